"""Totals: what all workspaces of a member, and those of all members, have together, and the ceiling of that. Pure.

A removed workspace whose home is kept still counts as one, and its disk does. What a plan does not let grow is not
refused, though a ceiling that was lowered is below it: less is always allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

from hutch.errors import Problem
from hutch.frozen import dataclass
from hutch.spec.allowance import RAISES, Allowance, amounts
from hutch.spec.ceiling import AMOUNTS
from hutch.spec.model import WorkspaceSpec
from hutch.spec.record import Observation, Record, holds_identity, is_local, state_of
from hutch.spec.values import render_size

Sizes = Mapping[str, int]
"""What one workspace has: of AMOUNTS, and one of `workspaces`."""
COUNT = "workspaces"


def check_totals(
    allowance: Allowance,
    wanted: Mapping[str, WorkspaceSpec],
    removed: Collection[str],
    records: Mapping[str, Record],
    is_member: Callable[[int], bool],
    running: Mapping[str, WorkspaceSpec] = MappingProxyType({}),
) -> Iterator[Problem]:
    """The problems of a member's plan that makes workspaces like these, and removes others. `is_member` tells whether
    the uid of an owner is a member's; `running` are workspaces that go on with what they were started with, which may
    be more than is wanted by now."""
    member, ceiling = allowance.member, allowance.ceiling
    before = {name: sizes_of(record) for name, record in records.items() if counts(record)}
    before = {name: larger(found, running.get(name)) for name, found in before.items()}
    owners = {name: records[name].wanted.uid for name in before} | dict.fromkeys(wanted, member.uid)
    after = before | {name: sizes(records[name].wanted, runs=False) for name in removed if name in before}
    after |= {name: larger(sizes(workspace), running.get(name)) for name, workspace in wanted.items()}
    own = {name for name in after if owners[name] == member.uid}
    everybodys = {name for name in after if is_member(owners[name])}
    for amount in (COUNT, *AMOUNTS):
        for key, names in ((COUNT if amount == COUNT else f"total_{amount}", own), (f"all_{amount}", everybodys)):
            most = ceiling.most(key)
            old, new = (total(found, names, amount) for found in (before, after))
            if most is None or new <= max(most, old):
                continue
            grown = [name for name in wanted if size(after, name, amount) > size(before, name, amount)]
            others = {name for name in own - {*wanted} if names is own and size(after, name, amount)}
            whose = f"{member.name}'s" if names is own else "all members'"
            found = Excess(amount, grown[-1], whose, size(after, grown[-1], amount), new, tuple(sorted(others)))
            yield found.problem(ceiling.says(key))


@dataclass(frozen=True)
class Excess:
    """A total that is above its ceiling: the workspace with which it is, what that `has` of it, and the `others` that
    one could do without."""

    amount: str
    name: str
    whose: str
    has: int
    total: int
    others: tuple[str, ...]

    def problem(self, ceiling: str) -> Problem:
        """The problem in words; `ceiling` says what that is."""
        shown = render_size if self.amount in ("memory", "disk") else str
        is_count = self.amount == COUNT
        what = f"{self.whose} workspaces" if is_count else f"the {self.amount} of {self.whose} workspaces"
        way = f"`hutch rm {'--purge ' if self.amount in (COUNT, 'disk') else ''}NAME`"
        way += f" of {', '.join(self.others)}" if self.others else ""
        return Problem(
            f"brings {what} to {shown(self.total)}, above the ceiling of members: {ceiling}",
            f"workspaces.{self.name}" if is_count else f"workspaces.{self.name}.{self.amount}",
            "" if is_count else shown(self.has),
            f"{'' if is_count else 'less here, or '}{way}; {RAISES}",
        )


def counts(record: Record) -> bool:
    """Whether a workspace takes something of this host: what was ejected is not hutch's any more."""
    return is_local(record.wanted) and not (record.removed and record.ejected)


def sizes_of(record: Record) -> Sizes:
    return sizes(record.wanted, runs=not record.removed)


def sizes(workspace: WorkspaceSpec, *, runs: bool = True) -> Sizes:
    """What a workspace counts for; one that never `runs` takes its disk alone. One that root made without a limit has
    no number, and counts for none."""
    return {COUNT: 1, **{amount: most or 0 for amount, most in amounts(workspace).items() if runs or amount == "disk"}}


def larger(found: Sizes, running: WorkspaceSpec | None) -> Sizes:
    """What a workspace counts for that may run with more."""
    return found if running is None else {amount: max(found.get(amount, 0), n) for amount, n in sizes(running).items()}


def running_of(
    records: Mapping[str, Record], observe: Callable[[str], Observation], stopping: Collection[str] = ()
) -> dict[str, WorkspaceSpec]:
    """The workspaces that go on running, those that are `stopping` aside, as they were started. A machine has the
    memory of its start, whatever its balloon was told since: giving it back is up to the guest."""
    return {
        name: replace(record.effective, memory=record.booted.memory or record.effective.memory)
        for name, record in records.items()
        if record.booted is not None
        and name not in stopping
        and counts(record)
        and holds_identity(state_of(record, observe(name)))
    }


def total(workspaces: Mapping[str, Sizes], names: Collection[str], amount: str) -> int:
    return sum(size(workspaces, name, amount) for name in names)


def size(workspaces: Mapping[str, Sizes], name: str, amount: str) -> int:
    return workspaces.get(name, {}).get(amount, 0)
