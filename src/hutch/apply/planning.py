"""Gathers what planning needs: the records, the states, the images; then plans. Reads the host, changes nothing.

What is decided from what was gathered is decided in `decide`, which is a pure function.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import field, replace

from hutch.apply.building import recipe_of
from hutch.apply.converge import settle_network
from hutch.apply.inspecting import inspect, unbuilt_images, with_findings
from hutch.apply.machines import check_machines
from hutch.apply.ownership import check_ownership, former_paths, origin_of, orphans
from hutch.apply.starting import check_shares
from hutch.errors import ConfigError, HutchError, Problem, UsageError
from hutch.frozen import dataclass
from hutch.host.listening import check_ports
from hutch.plan.actions import Action, Affected, Change, Plan, Wanted
from hutch.plan.planner import Standing, network_changes, plan
from hutch.plan.resolve import collisions, resolve, still_used
from hutch.spec.marker import Invalid
from hutch.spec.model import Config, Network, Workspace
from hutch.spec.names import SUN_PATH, UID_RANGES, Places
from hutch.spec.owner import default_owner, find_owner, owner_keys
from hutch.state import Record, read_network, read_records
from hutch.supervise.observe import Observation, observe


@dataclass(frozen=True)
class Facts:
    """All that planning goes by beside the file: what is remembered, and what is found on the host.

    `applied` is the network as it was last set up, `network` as it is to be, with its uplink chosen; `owner` is the uid
    of who owns what names no owner; `origin` tells the file again when it has been moved. The functions look when they
    are asked, and give one answer to one question.
    """

    records: Mapping[str, Record]
    applied: Network | None
    network: Network
    owner: int
    origin: tuple[int, ...]
    observe: Callable[[str], Observation]
    """By the name of a workspace."""
    sessions_of: Callable[[str], tuple[str, ...]]
    """Who is at work in it, in words."""
    keys_of: Callable[[int], tuple[str, ...]]
    """The public keys of an owner."""
    image_of: Callable[[Workspace], str]
    """The id of its image."""
    real: Callable[[str], str]
    """A path with its symbolic links resolved."""
    exists: Callable[[str], bool]
    broken: Mapping[str, tuple[Change, ...]] = field(default_factory=dict)
    """What was taken from workspaces that run."""


def make_plan(
    places: Places,
    config: Config,
    names: Sequence[str],
    *,
    start: bool,
    prune: bool,
    adopt: bool = False,
    unbuilt: Mapping[str, str] | None = None,
) -> Plan:
    """The plan for the named workspaces of a file, or for all of them. `unbuilt` says of workspaces what is missing of
    their images: looked for unless given."""
    check_sockets(places, config)
    facts = observe_facts(places, config)
    seen = inspect(places, facts.applied, facts.records)
    facts = replace(facts, broken=seen.broken)
    found = decide(places, config, names, facts, start=start, prune=prune, adopt=adopt)
    wanted = {name: wanted.workspace for name, wanted in found.wanted.items()}
    check_owners(config.file, wanted)
    check_ports(config.file, wanted, facts.records)
    starting = [(config.file, action.workspace, wanted[action.workspace]) for action in found.actions if action.starts]
    check_machines(starting)
    check_shares(starting)
    missing = unbuilt_images(places, found.wanted) if unbuilt is None else unbuilt
    return with_findings(found, seen, missing, facts.records)


def observe_facts(places: Places, config: Config) -> Facts:
    """Reads the records now, and the rest when it is asked for."""
    records, applied = read_records(places), read_network(places)
    images: dict[tuple[object, ...], str] = {}

    def image_of(workspace: Workspace) -> str:
        made_from = (workspace.image, workspace.packages, workspace.setup)
        if made_from not in images:
            images[made_from] = recipe_of(places, workspace).id
        return images[made_from]

    def sessions_of(name: str) -> tuple[str, ...]:
        from hutch.apply.unsaved import live_sessions

        return tuple(live_sessions(places, records[name]))

    return Facts(
        records=records,
        applied=applied.network if applied else None,
        network=settle_network(places, config.network),
        owner=default_owner(os.environ, os.getuid()),
        origin=origin_of(config.file),
        observe=functools.cache(lambda name: observe(places, name)),
        sessions_of=sessions_of,
        keys_of=functools.cache(_keys_of),
        image_of=image_of,
        real=os.path.realpath,
        exists=functools.cache(os.path.exists),
    )


def decide(
    places: Places, config: Config, names: Sequence[str], facts: Facts, *, start: bool, prune: bool, adopt: bool
) -> Plan:
    """The plan that follows from a file and the facts, and from nothing else: it looks at nothing by itself."""
    chosen = dict.fromkeys(config.select(names))
    records = facts.records
    former = former_paths(config, records, facts.origin, facts.exists)
    check_ownership(config, records, former, facts.exists, adopt=adopt)
    kept = {name: record.wanted for name, record in records.items()}
    running = {n: r.booted.workspace for n, r in records.items() if r.booted is not None and facts.observe(n).is_up}
    in_use = [workspace.ip for workspace in running.values() if workspace.ip is not None]
    resolved = resolve(config.workspaces, kept, facts.network, places, facts.owner, in_use)
    wanted = {}
    for name in chosen:
        workspace = _with_keys(resolved[name], facts)
        wanted[name] = Wanted(workspace, facts.image_of(workspace))
    undeclared = tuple(orphans(config, records, former))
    remove = undeclared if prune else ()
    # Whoever has no part in this plan stays as recorded.
    parties = {*chosen, *remove}
    others = {name: r.wanted for name, r in records.items() if not r.removed and name not in parties}
    moved = network_changes(facts.applied, facts.network)
    check_bystanders(others, moved)
    everybody = {**others, **{name: target.workspace for name, target in wanted.items()}}
    refuse_clashes(collisions(everybody, facts.real))
    standing = {name: _standing(record, facts) for name, record in records.items() if name in parties}
    if not start:
        check_stopped({name: now for name, now in standing.items() if name in chosen}, moved)
    found = plan(
        config.file,
        facts.network,
        facts.applied,
        wanted,
        standing,
        remove=remove,
        undeclared=() if prune else undeclared,
        start=start,
    )
    inherited = tuple(name for name in undeclared if records[name].file in former)
    actions = tuple(_with_affected(action, facts) for action in found.actions)
    if running:
        stopping = {action.workspace for action in actions if action.stops}
        refuse_clashes(still_used(everybody, running, stopping, facts.real))
    excess = len(records.keys() | wanted.keys()) - UID_RANGES
    notes = (f"{excess} of them are more than this host has user ids for: `hutch up` refuses",) if excess > 0 else ()
    return replace(found, actions=actions, inherited=inherited, notes=(*found.notes, *notes))


def refuse_clashes(clashes: Sequence[str]) -> None:
    """Two workspaces with one address, or home, are not to be, not even while one is to be restarted some time."""
    if clashes:
        raise HutchError(
            "two workspaces of this host would collide",
            details="\n".join(clashes),
            resolution="set that key to something else, or choose another name; of one file, `hutch up` both together",
        )


def check_sockets(places: Places, config: Config) -> None:
    """The kernel limits the path of a socket."""
    excess = max((len(str(places.console(name))) - SUN_PATH for name in config.workspaces), default=0)
    if excess > 0:
        raise UsageError(
            f"the runtime directory {places.run} is {excess} bytes too long for the console of each workspace",
            resolution="set HUTCH_RUN_DIR to a shorter path",
        )


def check_bystanders(others: Collection[str], changes: Sequence[Change]) -> None:
    """The network is everybody's: it changes for all of its workspaces in one go, or not at all."""
    if changes and others:
        raise HutchError(
            f"a change of [network] would cut off {', '.join(others)}, which this plan leaves out",
            details="\n".join(f"{change.key}: {change.old} -> {change.new}" for change in changes),
            resolution="write the same [network] in each file, or `hutch rm` those that are left out",
        )


def check_stopped(standing: Mapping[str, Standing], changes: Sequence[Change]) -> None:
    """A workspace cannot run on while its network is made anew, and without a start it would be left stopped."""
    running = [name for name, now in standing.items() if now.is_up]
    if changes and running:
        raise HutchError(
            f"a change of [network] restarts {', '.join(running)}, which --no-start forbids",
            details="\n".join(f"{change.key}: {change.old} -> {change.new}" for change in changes),
            resolution=f"`hutch up` without --no-start, or `hutch stop {' '.join(running)}` first",
        )


def check_owners(file: str, resolved: Mapping[str, Workspace]) -> None:
    """An account may have changed since the file or a record named it."""
    problems = []
    for name, workspace in resolved.items():
        assert isinstance(workspace.owner, int)
        try:
            find_owner(workspace.owner)
        except Invalid as error:
            problems.append(
                Problem(error.message, f"workspaces.{name}.owner", str(workspace.owner), error.hint, file=file)
            )
    if problems:
        raise ConfigError(problems)


def _keys_of(owner: int) -> tuple[str, ...]:
    try:
        return owner_keys(find_owner(owner))
    except Invalid:  # which check_owners tells
        return ()


def _with_keys(workspace: Workspace, facts: Facts) -> Workspace:
    """Keys that the file does not say are the owner's."""
    if workspace.authorized_keys is not None:
        return workspace
    assert isinstance(workspace.owner, int)
    return replace(workspace, authorized_keys=facts.keys_of(workspace.owner) or None)


def _with_affected(action: Action, facts: Facts) -> Action:
    """Say who notices that a running workspace is stopped."""
    now = facts.observe(action.workspace) if action.stops else None
    if now is None or now.state != "running":
        return action
    return replace(action, affected=Affected(facts.sessions_of(action.workspace), now.since))


def _standing(record: Record, facts: Facts) -> Standing:
    booted, now = record.booted, facts.observe(record.name)
    return Standing(
        file=record.file,
        wanted=Wanted(record.wanted, record.image),
        booted=Wanted(booted.workspace, booted.image) if booted else None,
        state=now.state,
        removed=record.removed,
        ceiling=booted.memory if booted else None,
        reason=now.reason,
        broken=facts.broken.get(record.name, ()),
    )
