"""The plan that follows from a file and the facts, and from nothing else: nothing here looks at the host."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import field, replace

from hutch.errors import HutchError
from hutch.frozen import dataclass
from hutch.plan.actions import Action, Affected, Change, Plan, Wanted
from hutch.plan.planner import Standing, network_changes, plan
from hutch.plan.resolve import collisions, resolve, still_used
from hutch.spec.ejected import Note
from hutch.spec.model import Config, Network, WorkspaceSpec
from hutch.spec.names import UID_RANGES, Layout
from hutch.spec.record import Observation, Record, holds_identity, state_of


@dataclass(frozen=True)
class Facts:
    """The input of planning beside the file: the records, and the facts of the host.

    `applied` is the network as it was last set up, `network` as it is to be, with its uplink chosen; `owner` is the uid
    that owns workspaces without an `owner`; `origin` identifies the file when it has been moved. The functions look
    when they are asked, and give one answer to one question.
    """

    records: Mapping[str, Record]
    applied: Network | None
    network: Network
    owner: int
    origin: tuple[int, ...]
    observe: Callable[[str], Observation]
    """The observation of a workspace, by its name."""
    sessions_of: Callable[[str], tuple[str, ...]]
    """The sessions in a workspace, in words."""
    keys_of: Callable[[int], tuple[str, ...]]
    """The public keys of an owner."""
    image_of: Callable[[WorkspaceSpec], str]
    """The id of a workspace's image."""
    real: Callable[[str], str]
    """A path with its symbolic links resolved."""
    exists: Callable[[str], bool]
    has_systemd: bool = False
    """Whether systemd is the host's process 1."""
    ejected: Mapping[str, Note] = field(default_factory=dict)
    """The workspaces that were ejected, from this hutch or another one, and are still there."""
    broken: Mapping[str, tuple[Change, ...]] = field(default_factory=dict)
    """The parts that running workspaces have lost."""


@dataclass(frozen=True)
class Ownership:
    """The file's own beside the workspaces that it declares: its `former` paths, and the workspaces that are
    `undeclared` by now although it brought them up."""

    former: Collection[str] = ()
    undeclared: tuple[str, ...] = ()


def decide(
    layout: Layout,
    config: Config,
    names: Sequence[str],
    facts: Facts,
    whose: Ownership,
    *,
    start: bool,
    prune: bool,
) -> Plan:
    """The plan for the named workspaces of a file, or for all of them. Raises HutchError for a refused one."""
    running = _running(facts)
    wanted = _resolve(layout, config, names, facts, running)
    remove = whose.undeclared if prune else ()
    # Workspaces without a part in this plan stay as recorded.
    parties = {*wanted, *remove}
    others = {name: r.wanted for name, r in facts.records.items() if not r.removed and name not in parties}
    ejected = {name: r.wanted for name, r in facts.records.items() if r.ejected and r.removed}
    there = {name: str(facts.records[name].ejected) for name in ejected}
    there |= {name: note.directory for name, note in facts.ejected.items()}
    refuse_ejected(config.file, {name: there[name] for name in wanted if name in there})
    everybody = {**ejected, **others, **{name: target.workspace for name, target in wanted.items()}}
    standing = {name: _standing(record, facts) for name, record in facts.records.items() if name in parties}
    moved = network_changes(facts.applied, facts.network)
    check_bystanders(others, moved)
    refuse_clashes(collisions(everybody, facts.real))
    if not start:
        check_stopped({name: now for name, now in standing.items() if name in wanted}, moved)
    found = plan(
        config.file,
        facts.network,
        facts.applied,
        wanted,
        standing,
        remove=remove,
        undeclared=() if prune else whose.undeclared,
        start=start,
        has_systemd=facts.has_systemd,
    )
    if running:
        stopping = {action.workspace for action in found.actions if action.stops}
        refuse_clashes(still_used(everybody, running, stopping, facts.real))
    return _annotate(found, facts, whose)


def _running(facts: Facts) -> dict[str, WorkspaceSpec]:
    """The workspaces that hold an identity, as they were booted."""
    booted = {name: record for name, record in facts.records.items() if record.booted is not None}
    return {n: r.effective for n, r in booted.items() if holds_identity(state_of(r, facts.observe(n)))}


def _resolve(
    layout: Layout, config: Config, names: Sequence[str], facts: Facts, running: Mapping[str, WorkspaceSpec]
) -> dict[str, Wanted]:
    """The workspaces that are named, with nothing left open."""
    chosen = dict.fromkeys(config.select(names))
    kept = {name: record.wanted for name, record in facts.records.items()}
    in_use = [workspace.ip for workspace in running.values() if workspace.ip is not None]
    in_use += [note.ip for note in facts.ejected.values()]
    resolved = resolve(config.workspaces, kept, facts.network, layout, facts.owner, in_use)
    workspaces = {name: _with_keys(resolved[name], facts) for name in chosen}
    return {name: Wanted(workspace, facts.image_of(workspace)) for name, workspace in workspaces.items()}


def _with_keys(workspace: WorkspaceSpec, facts: Facts) -> WorkspaceSpec:
    """The workspace with keys: the owner's, where the file gives none."""
    if workspace.authorized_keys is not None:
        return workspace
    return replace(workspace, authorized_keys=facts.keys_of(workspace.uid) or None)


def _standing(record: Record, facts: Facts) -> Standing:
    booted, now = record.booted, facts.observe(record.name)
    return Standing(
        file=record.file,
        wanted=Wanted(record.wanted, record.image),
        booted=Wanted(booted.workspace, booted.image) if booted else None,
        state=state_of(record, now),
        ceiling=booted.memory if booted else None,
        reason=now.reason,
        broken=facts.broken.get(record.name, ()),
    )


def refuse_ejected(file: str, ejected: Mapping[str, str]) -> None:
    """Refuse names that were ejected: those workspaces run beside hutch, by that name and at that address."""
    if ejected:
        raise HutchError(
            f"{file} declares {', '.join(ejected)}, which hutch has ejected",
            details="\n".join(f"{name} goes on without hutch, in {place}" for name, place in ejected.items()),
            resolution="take it out of the file; or remove it there (the script `remove`), and `hutch rm --purge` it",
        )


def refuse_clashes(clashes: Sequence[str]) -> None:
    """Refuse two workspaces with one address, or home, even while one of them is only to be restarted some time."""
    if clashes:
        raise HutchError(
            "two workspaces of this host would collide",
            details="\n".join(clashes),
            resolution="set that key to something else, or choose another name; of one file, `hutch up` both together",
        )


def check_bystanders(others: Collection[str], changes: Sequence[Change]) -> None:
    """Refuse a change of the network that leaves out workspaces: it changes for all in one go, or not at all."""
    if changes and others:
        raise HutchError(
            f"a change of [network] would cut off {', '.join(others)}, which this plan leaves out",
            details="\n".join(f"{change.key}: {change.old} -> {change.new}" for change in changes),
            resolution="write the same [network] in each file, or `hutch rm` those that are left out",
        )


def check_stopped(standing: Mapping[str, Standing], changes: Sequence[Change]) -> None:
    """Refuse a new network without starts: a workspace cannot run on meanwhile, and would be left stopped."""
    running = [name for name, now in standing.items() if now.is_running]
    if changes and running:
        raise HutchError(
            f"a change of [network] restarts {', '.join(running)}, which --no-start forbids",
            details="\n".join(f"{change.key}: {change.old} -> {change.new}" for change in changes),
            resolution=f"`hutch up` without --no-start, or `hutch stop {' '.join(running)}` first",
        )


def _annotate(found: Plan, facts: Facts, whose: Ownership) -> Plan:
    """The plan, with sessions that it affects, workspaces that it inherits, and a note on those that will not fit."""
    actions = tuple(_with_affected(action, facts) for action in found.actions)
    inherited = tuple(name for name in whose.undeclared if facts.records[name].file in whose.former)
    excess = len(facts.records.keys() | found.wanted.keys()) - UID_RANGES
    notes = (f"{excess} of them are more than this host has user ids for: `hutch up` refuses",) if excess > 0 else ()
    return replace(found, actions=actions, inherited=inherited, notes=(*found.notes, *notes))


def _with_affected(action: Action, facts: Facts) -> Action:
    """Add to an action the sessions that notice the stop of a running workspace."""
    now = facts.observe(action.workspace) if action.stops else None
    if now is None or now.state != "running":
        return action
    return replace(action, affected=Affected(facts.sessions_of(action.workspace), now.since))


def noted(before: Record, action: Action, wanted: Wanted, file: str, origin: tuple[int, ...]) -> Record:
    """The record of a workspace that `file` wants like that from now on. What it is booted from stays until it starts
    again, unless its root goes with it."""
    return replace(
        before,
        file=file,
        wanted=wanted.workspace,
        image=wanted.image,
        booted=None if action.action == "recreate" else before.booted,
        removed=False,
        origin=origin,
    )
