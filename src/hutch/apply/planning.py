"""Gathers what planning needs: the records, the states, the images; then plans. Reads the host, changes nothing."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from hutch.apply.building import recipe_of
from hutch.apply.converge import settle_network
from hutch.apply.machines import check_machines
from hutch.apply.ownership import check_ownership, former_paths, orphans
from hutch.apply.starting import check_shares
from hutch.errors import ConfigError, HutchError, Problem, UsageError
from hutch.host.listening import check_ports
from hutch.plan.actions import Action, Affected, Change, Plan, Wanted
from hutch.plan.planner import Standing, network_changes, plan
from hutch.plan.resolve import collisions, resolve
from hutch.spec.marker import Invalid
from hutch.spec.model import Config, Workspace
from hutch.spec.names import SUN_PATH, Places
from hutch.spec.owner import default_owner, find_owner, owner_keys
from hutch.state import Record, read_network, read_records
from hutch.supervise.observe import observe


def make_plan(
    places: Places, config: Config, names: Sequence[str], *, start: bool, prune: bool, adopt: bool = False
) -> Plan:
    """The plan for the named workspaces of a file, or for all of them."""
    chosen = config.select(names)
    check_sockets(places, config)
    records = read_records(places)
    former = former_paths(config, records)
    check_ownership(config, records, former, adopt=adopt)
    network = settle_network(places, config.network)
    owner = default_owner(os.environ, os.getuid())
    kept = {name: record.wanted for name, record in records.items()}
    resolved = resolve(config.workspaces, kept, network, places, owner)
    check_owners(config.file, resolved)
    resolved = {name: _with_keys(workspace) for name, workspace in resolved.items()}
    undeclared = orphans(config, records, former)
    remove = tuple(undeclared) if prune else ()
    applied = read_network(places)
    # Whoever has no part in this plan stays as recorded.
    others = {n: r.wanted for n, r in records.items() if not r.removed and n not in chosen and n not in remove}
    if applied is not None:
        check_bystanders(others, network_changes(applied.network, network))
    clashes = collisions({**others, **{name: resolved[name] for name in chosen}}, os.path.realpath)
    if clashes:
        raise HutchError(
            "two workspaces of this host would collide",
            details="\n".join(clashes),
            resolution="set that key to something else, or choose another name; of one file, `hutch up` both together",
        )
    wanted = {name: Wanted(resolved[name], recipe_of(places, resolved[name]).id) for name in chosen}
    standing = {name: _standing(places, record) for name, record in records.items() if name in wanted}
    if applied is not None and not start:
        check_stopped(standing, network_changes(applied.network, network))
    check_ports(config.file, {name: resolved[name] for name in chosen}, records)
    leaving = {name: _standing(places, records[name]) for name in remove}
    found = plan(
        config.file,
        network,
        applied.network if applied else None,
        wanted,
        {**standing, **leaving},
        remove=remove,
        undeclared=() if prune else undeclared,
        start=start,
    )
    inherited = tuple(name for name in undeclared if records[name].file in former)
    actions = tuple(_with_affected(places, action, records) for action in found.actions)
    found = replace(found, actions=actions, inherited=inherited)
    starting = [(config.file, a.workspace, a.wanted.workspace) for a in found.actions if a.starts and a.wanted]
    check_machines(starting)
    check_shares(starting)
    return found


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
            resolution="one [network] for all files; `hutch up` without names, and `hutch rm` what no file declares",
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


def _with_keys(workspace: Workspace) -> Workspace:
    """Keys that the file does not say are the owner's."""
    if workspace.authorized_keys is not None:
        return workspace
    assert isinstance(workspace.owner, int)
    return replace(workspace, authorized_keys=owner_keys(find_owner(workspace.owner)) or None)


def _with_affected(places: Places, action: Action, records: Mapping[str, Record]) -> Action:
    """Say who notices that a running workspace is stopped."""
    if not action.stops:
        return action
    now = observe(places, action.workspace)
    if now.state != "running":
        return action
    from hutch.apply.unsaved import live_sessions

    sessions = tuple(live_sessions(places, records[action.workspace]))
    return replace(action, affected=Affected(sessions, now.since))


def _standing(places: Places, record: Record) -> Standing:
    booted = record.booted
    return Standing(
        file=record.file,
        wanted=Wanted(record.wanted, record.image),
        booted=Wanted(booted.workspace, booted.image) if booted else None,
        state=observe(places, record.name).state,
        removed=record.removed,
        ceiling=booted.memory if booted else None,
    )
