"""The plan that follows from a file and the facts, and from nothing else: nothing here looks at the host."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import field, replace

from hutch.backends import is_machine
from hutch.errors import HutchError
from hutch.frozen import dataclass
from hutch.plan.actions import Action, Affected, Change, Plan, Wanted
from hutch.plan.origins import with_ceiling, with_kits
from hutch.plan.planner import Standing, network_changes, plan
from hutch.plan.resolve import collisions, resolve, still_used
from hutch.spec.decisions import standing, unlisted, words
from hutch.spec.ejected import Note
from hutch.spec.model import Clamped, Config, Network, WorkspaceSpec
from hutch.spec.names import UID_RANGES, Layout
from hutch.spec.policy import policy_of
from hutch.spec.record import Observation, Place, Record, holds_identity, is_local, state_of


@dataclass(frozen=True)
class Facts:
    """The input of planning beside the file: the records, and the facts of the host.

    `applied` is the network as it was last set up, `network` as it is to be, with its uplink chosen; `owner` is the uid
    that owns workspaces without an `owner`; `origin` identifies the file when it has been moved; `place` is that of the
    file's workspaces which another host runs, None without any. The functions look when they are asked, and give one
    answer to one question.
    """

    records: Mapping[str, Record]
    applied: Network | None
    network: Network
    owner: int
    origin: tuple[int, ...]
    observe: Callable[[str], Observation]
    """The observation of a workspace, by its name, whoever runs it."""
    sessions_of: Callable[[str], tuple[str, ...]]
    """The sessions in a workspace, in words."""
    keys_of: Callable[[str, int], tuple[str, ...]]
    """The public keys of a workspace's owner, by its name too."""
    image_of: Callable[[str, WorkspaceSpec], str]
    """The id of a workspace's image, by its name too: a workspace may have to stay on an older edition."""
    real: Callable[[str], str]
    """A path with its symbolic links resolved."""
    exists: Callable[[str], bool]
    has_systemd: bool = False
    """Whether systemd is the host's process 1."""
    ejected: Mapping[str, Note] = field(default_factory=dict)
    """The workspaces that were ejected, from this hutch or another one, and are still there."""
    broken: Mapping[str, tuple[Change, ...]] = field(default_factory=dict)
    """The parts that running workspaces have lost."""
    place: Place | None = None
    unsaved_of: Callable[[str, bool], tuple[str, ...]] = lambda name, deletes: ()
    """The git work, in words, that goes with a workspace's root when it stops, by its name and by whether a root that
    is kept is deleted too."""
    now: float = 0.0
    """The time, in Unix time."""


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
    refuse_moves(config, names, facts)
    running = _running(facts, asks=not all(is_local(config.workspaces[name]) for name in config.select(names)))
    wanted = _resolve(layout, config, names, facts, running)
    remove = whose.undeclared if prune else ()
    # Workspaces without a part in this plan stay as recorded.
    parties = {*wanted, *remove}
    others = {name: r.wanted for name, r in facts.records.items() if not r.removed and name not in parties}
    ejected = {name: r.wanted for name, r in facts.records.items() if r.ejected and r.removed}
    there = {name: str(facts.records[name].ejected) for name in ejected}
    half_done = {name: r.ejected for name, r in facts.records.items() if r.ejected and not r.removed}  # is undone first
    there |= {name: n.directory for name, n in facts.ejected.items() if half_done.get(name) != n.directory}
    refuse_ejected(config.file, {name: there[name] for name in wanted if name in there})
    everybody = {**ejected, **others, **{name: target.workspace for name, target in wanted.items()}}
    standing = {name: _standing(record, facts) for name, record in facts.records.items() if name in parties}
    network = _network(facts, wanted)
    moved = network_changes(facts.applied, network)
    check_bystanders([name for name, workspace in others.items() if is_local(workspace)], moved)
    refuse_overlaps(network, everybody, _places(facts, wanted, everybody))
    refuse_clashes(collisions(everybody, facts.real))
    if not start:
        here = [name for name, target in wanted.items() if is_local(target.workspace)]
        check_stopped({name: now for name, now in standing.items() if name in here}, moved)
    found = plan(
        config.file,
        network,
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
    return _annotate(found, facts, whose, config.clamped)


def _network(facts: Facts, wanted: Mapping[str, Wanted]) -> Network:
    """The network of this host: a plan for workspaces of another host alone leaves it as it is."""
    if facts.applied is not None and wanted and not any(is_local(target.workspace) for target in wanted.values()):
        return facts.applied
    return facts.network


def _places(facts: Facts, wanted: Mapping[str, Wanted], everybody: Collection[str]) -> dict[str, Place]:
    """The places of those among everybody that another host runs, by name."""
    known = {name: facts.records[name].place for name in everybody if name in facts.records}
    known |= {name: target.place for name, target in wanted.items()}
    return {name: place for name, place in known.items() if place is not None}


def _running(facts: Facts, *, asks: bool) -> dict[str, WorkspaceSpec]:
    """The workspaces that hold an identity, as they were booted. A plan that is for this host's alone asks no server
    for it, and waits for none: all workspaces there count."""
    booted = {name: record for name, record in facts.records.items() if record.booted is not None}
    return {
        name: record.effective
        for name, record in booted.items()
        if not (asks or is_local(record.wanted)) or holds_identity(state_of(record, facts.observe(name)))
    }


def _resolve(
    layout: Layout, config: Config, names: Sequence[str], facts: Facts, running: Mapping[str, WorkspaceSpec]
) -> dict[str, Wanted]:
    """The workspaces that are named, with nothing left open."""
    chosen = dict.fromkeys(config.select(names))
    kept = {name: record.wanted for name, record in facts.records.items()}
    in_use = [workspace.ip for workspace in running.values() if workspace.ip is not None]
    in_use += [note.ip for note in facts.ejected.values()]
    in_use += [record.moving.wanted.ip or "" for record in facts.records.values() if record.moving is not None]
    resolved = resolve(config.workspaces, kept, facts.network, layout, facts.owner, in_use, facts.place)
    workspaces = {name: _with_keys(name, resolved[name], facts) for name in chosen}
    return {
        name: Wanted(
            workspace,
            facts.image_of(name, workspace),
            None if is_local(workspace) else facts.place,
            config.brought.get(name, {}),
        )
        for name, workspace in workspaces.items()
    }


def _with_keys(name: str, workspace: WorkspaceSpec, facts: Facts) -> WorkspaceSpec:
    """The workspace with keys: the owner's, where the file gives none."""
    if workspace.authorized_keys is not None:
        return workspace
    return replace(workspace, authorized_keys=facts.keys_of(name, workspace.uid) or None)


def _standing(record: Record, facts: Facts) -> Standing:
    booted, now = record.booted, facts.observe(record.name)
    return Standing(
        file=record.file,
        wanted=Wanted(record.wanted, record.image, record.place),
        booted=Wanted(booted.workspace, booted.image, record.place) if booted else None,
        state=state_of(record, now),
        ceiling=booted.memory if booted else None,
        reason=now.reason,
        broken=facts.broken.get(record.name, ()),
    )


def refuse_moves(config: Config, names: Sequence[str], facts: Facts) -> None:
    """Refuse workspaces that are to be somewhere else by now, and cannot be moved there. Made there without a move,
    they would be second ones, and empty."""
    refused: list[tuple[str, str]] = []
    for name in config.select(names):
        record, workspace = facts.records.get(name), config.workspaces[name]
        if record is None or (record.removed and record.ejected):
            continue
        place = None if is_local(workspace) else facts.place
        if (record.place and record.place.identity) == (place and place.identity):
            continue
        what = "its home is" if record.removed else "it is"
        where = f"{what} {_where(record.place)}, and {config.file} wants it {_where(place)}"
        refused += [(f"{name}: {where}: {why}", way) for why, way in _why_unmoved(record, workspace, place, facts)]
    if refused:
        names = list(dict.fromkeys(line.partition(":")[0] for line, _ in refused))
        raise HutchError(
            f"{', '.join(names)} cannot be moved there",
            details="\n".join(line for line, _ in refused),
            resolution="; or take that change back; ".join(dict.fromkeys(way for _, way in refused)),
        )


def _why_unmoved(
    record: Record, workspace: WorkspaceSpec, place: Place | None, facts: Facts
) -> Iterator[tuple[str, str]]:
    """(the reason why a workspace cannot be moved, what to do about it)."""
    name = record.name
    if record.removed:
        yield "only its home is kept", f"`hutch up {name}` makes it again where it was; then move it"
        return
    if place is not None and record.place is not None:
        yield "a move leads to this host or from it", 'first move it here, with engine = "local"'
        return
    if is_machine(workspace) or is_machine(record.wanted):
        yield "only containers are moved", 'keep type = "container" while it is moved'
    if place is None and workspace.home is not None:
        way = "leave `home` out while it is moved; then stop it, move the directory, and name it"
        yield f"its home comes into hutch's own directory, not into {workspace.home}", way
    now = facts.observe(name)
    if now.state == "unreachable":
        yield f"it cannot be asked ({now.reason})", "bring its server back"


def _where(place: Place | None) -> str:
    """A place in words."""
    if place is None:
        return "on this host"
    return f"on the Incus server {place.remote}, in the project {place.project} with the subnet {place.subnet}"


def refuse_overlaps(network: Network, workspaces: Mapping[str, WorkspaceSpec], places: Mapping[str, Place]) -> None:
    """Refuse a server's subnet that overlaps this host's network: an address leads to one place. Within one file that
    was refused before."""
    if not any(map(is_local, workspaces.values())):
        return
    own = [("subnet", network.subnet), *([("uplink", network.uplink)] if network.uplink else [])]
    found = [
        f"{name} is in {place.subnet}, which overlaps the {key} {value}"
        for name, place in places.items()
        for key, value in own
        if ipaddress.IPv4Network(place.subnet).overlaps(ipaddress.IPv4Network(value))
    ]
    if found:
        raise HutchError(
            "a network of an Incus server and this host's would overlap",
            details="\n".join(found),
            resolution="choose another subnet in [network], or in [engines.incus] of the file that declares them",
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


def _annotate(found: Plan, facts: Facts, whose: Ownership, clamped: Mapping[str, Clamped]) -> Plan:
    """The plan, with sessions that it affects, kits and ceilings that its reasons come from, workspaces that it
    inherits, and a note on those that will not fit."""
    affected = (_with_affected(action, facts) for action in found.actions)
    actions = tuple(
        with_ceiling(_with_kits(action, facts.records.get(action.workspace)), clamped.get(action.workspace, {}))
        for action in affected
    )
    inherited = tuple(name for name in whose.undeclared if facts.records[name].file in whose.former)
    known = {name: record.wanted for name, record in facts.records.items()}
    known |= {name: target.workspace for name, target in found.wanted.items()}
    excess = sum(map(is_local, known.values())) - UID_RANGES
    notes = (f"{excess} of them are more than this host has user ids for: `hutch up` refuses",) if excess > 0 else ()
    return replace(found, actions=actions, inherited=inherited, notes=(*found.notes, *_opened(found, facts), *notes))


def _opened(found: Plan, facts: Facts) -> Iterator[str]:
    """Notes on what people have opened beside the lists of the plan's workspaces."""
    for name, target in found.wanted.items():
        record = facts.records.get(name)
        if record is not None and record.decisions:
            opened = standing(record.decisions, policy_of(target.workspace), facts.now)
            if opened:
                yield f"{name}: beside its list, `hutch allow` has opened {', '.join(map(words, opened))}"


def _with_kits(action: Action, record: Record | None) -> Action:
    """Add to an action the kits that its reasons come from; `record` is that of its workspace."""
    return with_kits(action, record.brought if record else {}, action.wanted.brought if action.wanted else {})


def _with_affected(action: Action, facts: Facts) -> Action:
    """Add to an action the sessions that notice the stop of a running workspace, and the work that goes with its
    root."""
    if not action.stops:
        return action
    name, now = action.workspace, facts.observe(action.workspace)
    runs = now.state == "running"
    unsaved = facts.unsaved_of(name, action.action in ("recreate", "remove", "move"))
    if not runs and not unsaved:
        return action
    return replace(action, affected=Affected(facts.sessions_of(name) if runs else (), now.since, unsaved))


def noted(before: Record, action: Action, wanted: Wanted, file: str, origin: tuple[int, ...]) -> Record:
    """The record of a workspace that `file` wants like that from now on. What it is booted from stays until it starts
    again, unless its root goes with it. What people allowed and the list opens by now is the list's from now on."""
    return replace(
        before,
        file=file,
        wanted=wanted.workspace,
        image=wanted.image,
        booted=None if action.action in ("recreate", "move") else before.booted,
        removed=False,
        removed_at=None,
        origin=origin,
        place=wanted.place,
        brought=wanted.brought,
        decisions=unlisted(before.decisions, policy_of(wanted.workspace)),
    )
