"""What holds of every plan: it follows from its input alone, order does not matter, and once it was applied there is
nothing left to do.

Whole hosts are made up here, of several files and their workspaces, and go through `decide` as `hutch plan` does.
`applied` says in short what `hutch up` makes of them.
"""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hutch.apply.planning import decide_ownership
from hutch.errors import HutchError
from hutch.plan.actions import Action, Plan, Wanted
from hutch.plan.decide import Facts, decide, noted
from hutch.plan.planner import HEAVIER, differences, with_live_changes
from hutch.plan.resolve import resolve
from hutch.spec.model import WORKSPACE_KEYS, Config, Mount, Network, Publish, WorkspaceSpec
from hutch.spec.record import Booted, Observation, Place, Record, State, is_local
from tests.unit.facts import KEY, LAYOUT, NETWORK
from tests.unit.plan.cases import image_of

FILE, OTHER = "/srv/project/hutch.toml", "/srv/other/hutch.toml"
ORIGINS = {FILE: (11, 10), OTHER: (21, 20)}
NETWORKS = [NETWORK, replace(NETWORK, bridge="other0"), Network(subnet="10.9.0.0/24", uplink="10.8.0.0/30")]
NAMES = ["a", "b", "c", "d", "web"]

PLACE = Place("local", "hutch", "auto", "10.83.0.0/16", 1000, "/home/alice/.config/incus")

# What differs from workspace to workspace, and needs nothing of another's.
VALUES: dict[str, list[Any]] = {
    "type": ["container", "vm"],
    "engine": ["local", "local", "incus"],
    "hypervisor": ["auto", "qemu"],
    "image": ["debian:trixie", "rootfs:/srv/tree"],
    "packages": [("git",), ("git", "vim"), ("vim", "git")],
    "setup": ["", "true"],
    "shell": ["/bin/bash", "/bin/zsh"],
    "vcpus": [None, 2],
    "memory": [None, 2**29, 2**31],
    "disk": [None, 2**31],
    "owner": [None, 1001],
    "share_with": [(), ("1001",), ("1001", "@1200")],
    "ip": [None, None, "192.168.83.7", "192.168.83.2"],
    "mac": [None, None, "02:00:00:00:00:01"],
    "cid": [None, 7],
    "autostart": [False, True],
    "auto_refresh": ["never", "weekly"],
    "restart_if_changed": [False, True],
    "persist": ["home", "all"],
    "mounts": [(), (Mount("/srv/a", "/a"),)],
    "publish": [(), (Publish("", 80, 80, "tcp"),)],
    "env": [(), (("A", "b"),)],
    "gpu": [False, True],
}
declarations = st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in VALUES.items()}).map(
    lambda keys: WorkspaceSpec(**{"type": "container", **keys})
)
files = st.dictionaries(st.sampled_from(NAMES), declarations, max_size=4)


@dataclass(frozen=True)
class Host:
    """What `decide` is told, as plain values. `rebuilt` counts how often the rootfs tree has changed; `declared` is
    what the file says by now."""

    records: dict[str, Record] = field(default_factory=dict)
    states: dict[str, State] = field(default_factory=dict)
    applied: Network | None = None
    network: Network = NETWORK
    rebuilt: int = 0
    declared: dict[str, WorkspaceSpec] = field(default_factory=dict)

    def facts(self) -> Facts:
        return Facts(
            records=self.records,
            applied=self.applied,
            network=self.network,
            owner=1000,
            origin=ORIGINS[FILE],
            observe=lambda name: Observation(self.states.get(name, "stopped")),
            sessions_of=lambda name: (),
            keys_of=lambda _, owner: (f"{KEY} {owner}",),
            image_of=lambda name, workspace: self.image_of(workspace),
            real=os.path.normpath,
            exists=lambda path: True,
            place=PLACE,
        )

    def image_of(self, workspace: WorkspaceSpec) -> str:
        suffix = f"-{self.rebuilt}" if workspace.image.startswith("rootfs:") else ""
        return image_of(workspace) + suffix


@dataclass(frozen=True)
class Command:
    """What stands behind `hutch plan`."""

    names: tuple[str, ...] = ()
    start: bool = True
    prune: bool = False
    adopt: bool = True


def planned(declared: dict[str, WorkspaceSpec], host: Host, command: Command) -> Plan:
    """The plan, which must not be refused; that it may be is the business of the golden cases."""
    config = Config(FILE, host.network, declared)
    names = [name for name in command.names if name in declared]
    facts = host.facts()
    try:
        whose = decide_ownership(config, facts, config.select(()), adopt=command.adopt)
        return decide(LAYOUT, config, names, facts, whose, start=command.start, prune=command.prune)
    except HutchError:
        assume(False)
        raise


@st.composite
def hosts(draw: st.DrawFn) -> Host:
    """A host after a life: workspaces of two files, as resolved, in any state, booted from something else maybe."""
    then, rebuilt = draw(files), draw(st.integers(0, 1))
    applied = draw(st.sampled_from(NETWORKS))
    own = Host(network=applied, rebuilt=rebuilt)
    try:
        resolved = resolve(then, {}, applied, LAYOUT, 1000, place=PLACE)
        was = draw(st.fixed_dictionaries(dict.fromkeys(then, declarations)))
        before = resolve(was, resolved, applied, LAYOUT, 1000, place=PLACE)
    except HutchError:
        assume(False)
        raise
    records: dict[str, Record] = {}
    states: dict[str, State] = {}
    for index, (name, workspace) in enumerate(resolved.items()):
        file, removed = draw(st.sampled_from([FILE, FILE, OTHER])), draw(st.sampled_from([False, False, True]))
        wanted, runs = (replace(w, authorized_keys=(f"{KEY} {w.owner}",)) for w in (workspace, before[name]))
        runs = replace(runs, engine=wanted.engine, home=wanted.home, ip=wanted.ip)  # none has been moved
        record = Record(name, file, wanted, own.image_of(wanted), index << 16, f"{index:032x}", origin=ORIGINS[file])
        record = replace(record, place=None if is_local(wanted) else PLACE)
        booted = draw(st.sampled_from(["as wanted", "otherwise", "never"]))
        if removed:
            record = replace(record, removed=True)
        elif booted == "as wanted":
            record = record.with_booted()
        elif booted == "otherwise":
            started = replace(record, wanted=runs, image=own.image_of(runs)).with_booted()
            record = replace(record, booted=started.booted)
        records[name] = record
        possible: list[State] = ["stopped", "failed", "starting", "running", "stopping"]
        states[name] = draw(st.sampled_from(possible)) if record.booted else "stopped"
    present = any(not record.removed for record in records.values())
    later = draw(st.sampled_from([applied, *NETWORKS]))
    declared = draw(files)
    for name in declared.keys() & then.keys():  # much of a file is as it was, or as it was before that
        declared[name] = draw(st.sampled_from([then[name], was[name], declared[name]]))
    return Host(records, states, applied if present else None, later, draw(st.integers(0, 1)), declared)


commands = st.builds(
    Command, st.just(()) | st.lists(st.sampled_from(NAMES), max_size=3).map(tuple), st.booleans(), st.booleans()
)


def applied(host: Host, plan: Plan) -> Host:
    """What `hutch up` makes of a host, in short (see apply/up)."""
    records, states = dict(host.records), dict(host.states)
    for action in plan.actions:
        before = records.get(action.workspace)
        if action.action == "remove":
            assert before is not None
            records[action.workspace] = replace(before, removed=True, booted=None)
            states[action.workspace] = "stopped"
        elif action.action != "no change":
            records[action.workspace], states[action.workspace] = after(host, plan, action, before)
    for name in plan.inherited:
        records[name] = replace(records[name], file=plan.file, origin=ORIGINS[FILE])
    return replace(host, records=records, states=states, applied=plan.network)


def after(host: Host, plan: Plan, action: Action, before: Record | None) -> tuple[Record, State]:
    """The record and the state of one workspace, once its action is done."""
    assert action.wanted is not None
    if before is None:
        base = max((record.uid_base for record in host.records.values()), default=0) + (1 << 16)
        before = Record(action.workspace, plan.file, action.wanted.workspace, action.wanted.image, base, "0" * 32)
    state = host.states.get(action.workspace, "stopped")
    record = noted(before, action, action.wanted, plan.file, ORIGINS[FILE])
    if action.starts and plan.start:
        return record.with_booted(), "running"
    if action.stops or action.action == "create":
        return record, "stopped"
    if record.booted is not None and state == "running":
        old, ceiling = Wanted(record.booted.workspace, record.booted.image), record.booted.memory
        done = with_live_changes(old, action.wanted, ceiling)
        record = replace(record, booted=Booted(done.workspace, done.image, ceiling))
    return record, state


def changes_addresses(plan: Plan, host: Host) -> bool:
    """Whether somebody who had an address gets another one."""
    had = {name: record.wanted.ip for name, record in host.records.items()}
    return any(wanted.workspace.ip != had.get(name, wanted.workspace.ip) for name, wanted in plan.wanted.items())


# It follows from its input alone.


@given(host=hosts(), command=commands)
def test_planning_is_pure(host: Host, command: Command) -> None:
    before = copy.deepcopy(host)
    first = planned(host.declared, host, command)
    assert planned(host.declared, host, command) == first
    assert planned(copy.deepcopy(host.declared), copy.deepcopy(host), command) == first
    assert host == before


@given(host=hosts(), command=commands)
def test_a_plan_that_was_applied_plans_nothing(host: Host, command: Command) -> None:
    first = planned(host.declared, host, command)
    then = applied(host, first)
    second = planned(host.declared, then, command)
    assert [action.action for action in second.actions if action.action != "no change"] == []
    for action in first.actions:
        record = then.records[action.workspace]
        if action.action == "remove":
            assert record.removed
            continue
        if action.action == "no change" and action.wanted is not None and action.wanted.place != record.place:
            continue  # a move, which is put off with --no-start
        assert action.wanted == Wanted(record.wanted, record.image, record.place)
        assert record.file == FILE
        if command.start:
            assert then.states[action.workspace] == "running"
    assert applied(then, second) == then


@given(host=hosts(), start=st.booleans(), prune=st.booleans())
def test_one_by_one_leads_to_the_same(host: Host, start: bool, prune: bool) -> None:
    """Naming workspaces one after the other is no other way to the end, where each of those plans is allowed. An
    address that one of them gives up is free for the next one only then."""
    plan = planned(host.declared, host, Command((), start, prune))
    assume(not changes_addresses(plan, host))
    at_once = applied(host, plan)
    for name in host.declared:
        host = applied(host, planned(host.declared, host, Command((name,), start, prune)))
    assert set(host.records) == set(at_once.records)
    for name in host.declared:
        one, other = host.records[name], at_once.records[name]
        assert replace(one, uid_base=0, booted=None) == replace(other, uid_base=0, booted=None)
        assert host.states[name] == at_once.states[name]


# Who has no part in a plan is left alone.


@given(host=hosts(), command=commands)
def test_others_are_left_alone(host: Host, command: Command) -> None:
    plan = planned(host.declared, host, command)
    gone = {action.workspace for action in plan.actions if action.action == "remove"}
    touched = {action.workspace for action in plan.actions} - gone
    assert touched == ({name for name in host.declared if name in command.names} or set(host.declared))
    assert all(host.records[name].file == FILE and name not in host.declared for name in gone)
    assert command.prune or not gone
    then = applied(host, plan)
    assert all(then.records[name] == record for name, record in host.records.items() if name not in touched | gone)


# Order does not matter.


def shuffled(data: st.DataObject, table: dict[str, Any]) -> dict[str, Any]:
    return {name: table[name] for name in data.draw(st.permutations(list(table)))}


def without_order(plan: Plan, host: Host) -> dict[str, Action]:
    """The actions by workspace. Of one that was never there, the address depends on who is seen to first."""
    found = {}
    for action in plan.actions:
        if action.wanted is not None and action.workspace not in host.records:
            open_address = replace(action.wanted.workspace, ip=None)
            action = replace(action, wanted=replace(action.wanted, workspace=open_address))
        found[action.workspace] = action
    return found


def new_addresses(plan: Plan) -> set[str | None]:
    return {action.wanted.workspace.ip for action in plan.actions if action.wanted and action.action == "create"}


@given(data=st.data(), host=hosts(), command=commands)
def test_order_does_not_matter(data: st.DataObject, host: Host, command: Command) -> None:
    """Of tables in the file, of records, and of names: the same actions for the same reasons, and whoever has an
    address keeps it. New ones get the same addresses between them, in the order of the file."""
    first = planned(host.declared, host, command)
    # Whoever loses its address looks for a free one, as new ones do.
    assume(not changes_addresses(first, host))
    other = replace(host, records=shuffled(data, host.records))
    names = tuple(data.draw(st.permutations(command.names)))
    second = planned(shuffled(data, host.declared), other, replace(command, names=names))
    assert without_order(first, host) == without_order(second, host)
    assert set(first.notes) == set(second.notes)
    assert command.names or new_addresses(first) == new_addresses(second)
    assert planned(host.declared, other, command).wanted == first.wanted


# Weights.


@given(host=hosts(), command=commands)
def test_no_action_is_lighter_than_its_reasons(host: Host, command: Command) -> None:
    """Unless a note says what is put off."""
    for action in planned(host.declared, host, command).actions:
        if any("it stays where it is" in note for note in action.notes):
            continue  # a move, which is put off as a whole
        heaviest = max((HEAVIER[change.weight] for change in action.reasons), default=-1)
        weight = {"no change": -1, "live": 0, "start": 1, "restart": 1}.get(action.action, 2)
        put_off = [change.key for change in action.reasons if HEAVIER[change.weight] > weight]
        note = next((note for note in action.notes if "takes effect at the next" in note), "")
        assert not put_off or note
        if note:
            assert weight <= 0
            assert all(key in note for key in put_off), action
        elif action.action != "remove":
            assert weight == heaviest or (weight, heaviest) == (1, 0), action


@given(host=hosts(), command=commands)
def test_every_action_has_a_reason(host: Host, command: Command) -> None:
    for action in planned(host.declared, host, command).actions:
        keys = {change.key for change in action.reasons}
        assert action.action == "no change" or keys
        network = {"network.bridge", "network.subnet", "network.uplink"}
        assert keys <= {*WORKSPACE_KEYS, *network, "workspace", "state", "file"}
        for change in action.reasons:
            assert change.old != change.new


@given(host=hosts(), command=commands)
def test_what_runs_is_stopped_for_a_heavy_reason_only(host: Host, command: Command) -> None:
    for action in planned(host.declared, host, command).actions:
        running = host.states.get(action.workspace) == "running"
        if running and action.action in ("restart", "recreate"):
            assert any(change.weight != "live" for change in action.reasons)
            assert action.affected is not None
        if running:
            assert action.action not in ("create", "start")


# The balloon.


@given(
    memory=st.lists(st.sampled_from([None, 2**28, 2**30, 2**31, 2**32]), min_size=2, max_size=6),
    put_off=st.booleans(),
)
def test_a_balloon_never_grows_beyond_what_was_started(memory: list[int | None], put_off: bool) -> None:
    """Along a whole life of changes: live up to the ceiling, a restart beyond it, which sets a new one."""
    host, ceiling = Host(), 0
    for size in memory:
        declared = {"web": WorkspaceSpec(type="vm", memory=size, restart_if_changed=not put_off)}
        plan = planned(declared, host, Command())
        (action,) = plan.actions
        wanted = size or 2**30
        if action.action in ("create", "restart"):
            assert action.action == "create" or (wanted > ceiling and not put_off)
            ceiling = wanted
        elif wanted > ceiling:
            assert put_off and action.notes
        host = applied(host, plan)
        booted = host.records["web"].booted
        assert booted is not None and booted.memory == ceiling
        assert (booted.workspace.memory or 2**30) <= ceiling
        assert [a.action for a in planned(declared, host, Command()).actions] == ["no change"]


@pytest.mark.parametrize("kind", ["container", "vm"])
@given(old=declarations, new=declarations)
def test_what_is_live_is_in_force_afterwards(kind: str, old: WorkspaceSpec, new: WorkspaceSpec) -> None:
    """What is left to do after all live changes is all that was not live."""
    one, two = (Wanted(replace(each, type=kind), "image") for each in (old, new))  # type: ignore[arg-type]
    ceiling = (one.workspace.memory or 2**30) if kind == "vm" else None
    left = differences(with_live_changes(one, two, ceiling), two, ceiling)
    assert left == tuple(change for change in differences(one, two, ceiling) if change.weight != "live")
