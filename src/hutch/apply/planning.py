"""Gathers what planning needs: the records, the states, the images; then plans. Reads the host, changes nothing.

All decisions are made in plan/decide, by a pure function.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hutch.apply.building import recipe_of
from hutch.apply.inspecting import inspect, unbuilt_images, with_findings
from hutch.apply.machines import check_machines
from hutch.apply.ownership import check_ownership, former_paths, origin_of, orphans
from hutch.apply.reconcile import with_uplink
from hutch.apply.serving import ejected_routes
from hutch.apply.starting import check_shares
from hutch.errors import Problem, UsageError
from hutch.host.network import router
from hutch.host.network.listening import check_ports
from hutch.host.services.units import has_systemd, observe_ejected
from hutch.plan.actions import Plan
from hutch.plan.decide import Facts, Ownership, decide
from hutch.runtime.observe import observe
from hutch.spec.field_types import Invalid
from hutch.spec.model import Config, Network, WorkspaceSpec
from hutch.spec.names import SUN_PATH, Layout
from hutch.spec.owner import default_owner, find_owner, owner_keys
from hutch.spec.refusing import refuse_files
from hutch.state import read_network, read_records


def make_plan(
    layout: Layout,
    config: Config,
    names: Sequence[str],
    unbuilt: Mapping[str, str] | None = None,
    *,
    start: bool,
    prune: bool,
    adopt: bool = False,
) -> Plan:
    """The plan for the named workspaces of a file, or for all of them. `unbuilt` says of workspaces what is missing of
    their images: looked for unless given."""
    check_sockets(layout, config)
    facts = observe_facts(layout, config)
    check_network(layout, facts.network, facts.applied)
    seen = inspect(layout, facts.applied, facts.records)
    facts = replace(facts, broken=seen.broken)
    found = decide(layout, config, names, facts, decide_ownership(config, facts, adopt=adopt), start=start, prune=prune)
    wanted = {name: wanted.workspace for name, wanted in found.wanted.items()}
    check_owners(config.file, wanted)
    check_ports(config.file, wanted, facts.records)
    check_machines((config.file, a.workspace, wanted[a.workspace]) for a in found.actions if a.starts)
    check_shares((config.file, a.workspace, wanted[a.workspace]) for a in found.actions if a.starts or a.shows)
    missing = unbuilt_images(layout, found.wanted) if unbuilt is None else unbuilt
    return with_findings(found, seen, missing, facts.records)


def observe_facts(layout: Layout, config: Config) -> Facts:
    """The facts for planning: records are read now, the rest when it is asked for."""
    records, applied = read_records(layout), read_network(layout)
    images: dict[tuple[object, ...], str] = {}

    def image_of(workspace: WorkspaceSpec) -> str:
        made_from = (workspace.image, workspace.packages, workspace.setup)
        if made_from not in images:
            images[made_from] = recipe_of(layout, workspace).id
        return images[made_from]

    def sessions_of(name: str) -> tuple[str, ...]:
        # Spares the start-up of `hutch plan` where nothing is stopped.
        from hutch.apply.unsaved import live_sessions

        return tuple(live_sessions(layout, records[name]))

    return Facts(
        records=records,
        applied=applied.network if applied else None,
        network=with_uplink(layout, config.network),
        owner=default_owner(os.environ, os.getuid()),
        origin=origin_of(config.file),
        observe=functools.cache(lambda name: observe(layout, name)),
        sessions_of=sessions_of,
        keys_of=functools.cache(_keys_of),
        image_of=image_of,
        real=os.path.realpath,
        exists=functools.cache(os.path.exists),
        has_systemd=has_systemd(),
        ejected=observe_ejected(),
    )


def decide_ownership(config: Config, facts: Facts, *, adopt: bool) -> Ownership:
    """The file's own among the records. Raises HutchError for a workspace that is another one's."""
    former = former_paths(config, facts.records, facts.origin, facts.exists)
    check_ownership(config, facts.records, former, facts.exists, adopt=adopt)
    return Ownership(frozenset(former), tuple(orphans(config, facts.records, former)))


def check_network(layout: Layout, network: Network, applied: Network | None) -> None:
    """Refuse a network that is yet to be made, and cannot be: somebody else has its addresses."""
    if network == applied and os.path.exists(f"/sys/class/net/{layout.uplink_host}"):
        return
    own = {applied.subnet, applied.uplink} if applied else set()
    host = router.observe_host().without_routes(ejected_routes() | own)
    router.check_overlap(layout, network, host)


def check_sockets(layout: Layout, config: Config) -> None:
    """Refuse a runtime directory whose socket paths are longer than the kernel allows."""
    excess = max((len(str(layout.console(name))) - SUN_PATH for name in config.workspaces), default=0)
    if excess > 0:
        raise UsageError(
            f"the runtime directory {layout.run} is {excess} bytes too long for the console of each workspace",
            resolution="set HUTCH_RUN_DIR to a shorter path",
        )


def check_owners(file: str, resolved: Mapping[str, WorkspaceSpec]) -> None:
    """Check owners again: an account may have changed since the file or a record named it."""
    problems = []
    for name, workspace in resolved.items():
        try:
            find_owner(workspace.uid)
        except Invalid as error:
            problem = Problem(error.message, f"workspaces.{name}.owner", str(workspace.uid), error.hint)
            problems.append((file, problem))
    refuse_files(problems)


def _keys_of(owner: int) -> tuple[str, ...]:
    try:
        return owner_keys(find_owner(owner))
    except Invalid:  # check_owners tells of it
        return ()
