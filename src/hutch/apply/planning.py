"""Gathers what planning needs: the records, the states, the images; then plans. Reads the host, changes nothing.

All decisions are made in plan/decide, by a pure function. A caller other than root plans for the workspaces that it may
see, by what it may see.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from hutch.apply.allowing import find_allowance, refuse_above
from hutch.apply.building import recipes_for
from hutch.apply.inspecting import Findings, inspect, unbuilt_images, with_findings
from hutch.apply.machines import check_machines
from hutch.apply.membership import check_own, check_taking, own_of, refuse_others
from hutch.apply.ownership import check_ownership, former_paths, origin_of, orphans
from hutch.apply.reconcile import with_uplink
from hutch.apply.serving import ejected_routes
from hutch.apply.starting import check_shares
from hutch.engines import Misplaced, by_engine, elsewhere, here, observe_all, wanted_by_engine
from hutch.errors import HutchError, Problem, UsageError
from hutch.files import real_path
from hutch.host.identity.holders import lost_holders
from hutch.host.identity.user_view import hidden_names, read_user_view, visible_names
from hutch.host.network import router
from hutch.host.network.listening import check_ports
from hutch.host.services.units import has_systemd, observe_ejected
from hutch.plan.actions import Change, Plan, Repair, Wanted
from hutch.plan.decide import Facts, Ownership, decide
from hutch.run import Gathering
from hutch.runtime.observe import observe
from hutch.spec.field_types import Invalid
from hutch.spec.member import concerned
from hutch.spec.model import Config, Network, WorkspaceSpec
from hutch.spec.names import SUN_PATH, Layout
from hutch.spec.owner import default_owner, find_owner, owner_keys, place_of
from hutch.spec.record import Observation, Record, has_processes, is_local
from hutch.spec.refusing import refuse_files
from hutch.spec.rights import as_caller
from hutch.spec.sharing import with_lost_keys
from hutch.state import read_network, read_records

Checked = dict[str, tuple[object, tuple[str, ...]]]
"""engine -> (the workspaces that its servers were asked about, its notes): one command asks once."""
Looked = dict[tuple[str, bool], tuple[str, ...]]
"""(workspace, whether a root that is kept goes too) -> the git work that goes with its root, in words."""


class TakesLong(Exception):
    """A plan needs a look that may take long, and must not be taken now."""


NO_GROUP = (
    "the group hutch no longer sees and enters every workspace, and the copy of root's key that it had opens none; "
    'share_with = ["@hutch"], in [defaults] or in a workspace, lets its members in again'
)
NOT_ROOT = "root's plan also looks at the host, directories and images that are closed to you, and others' workspaces"


def make_plan(
    layout: Layout,
    config: Config,
    names: Sequence[str],
    unbuilt: Mapping[str, str] | None = None,
    *,
    start: bool,
    prune: bool,
    adopt: bool = False,
    checked: Checked | None = None,
    looked: Looked | None = None,
    is_draft: bool = False,
    looking: Gathering | None = None,
) -> Plan:
    """The plan for the named workspaces of a file, or for all of them. `unbuilt` says of workspaces what is missing of
    their images: looked for unless given. `checked` is what an earlier plan of the same command was told by servers:
    each start looks again at what it needs. `looked` is the same of looks for git work in roots, which only root can
    take. A draft is not carried out, and tells of no repairs of the host where none of its workspaces runs. With
    `looking`, a look at the host's network that has been begun, the plan is made in haste: where git work has to be
    looked for, TakesLong is raised."""
    is_root = os.geteuid() == 0
    check_sockets(layout, config)
    if not is_root and not names:
        names = own_names(layout, config)
    facts = observe_facts(layout, config, *(everything(layout) if is_root else seen_by_caller(layout, config, names)))
    if is_root:
        unsaved_of = not_now if looking else looker(layout, facts.records, {} if looked is None else looked)
        facts = replace(facts, unsaved_of=unsaved_of)
    seen = Findings()
    if is_root:
        if any(is_local(workspace) for workspace in config.workspaces.values()):
            check_network(layout, facts.network, facts.applied)
        if not is_draft or any(has_processes(facts.observe(name).state) for name in config.select(names)):
            seen = inspect(layout, facts.applied, facts.records, looking)
        seen = replace(seen, repairs=(*seen.repairs, *half_moved(facts.records, config.select(names))))
    ownership = decide_ownership(config, facts, config.select(names), adopt=adopt, prune=prune)
    facts = replace(facts, broken={**seen.broken, **broken_elsewhere(layout, facts, config.select(names))})
    found = decide(layout, config, names, facts, ownership, start=start, prune=prune)
    if (allowance := find_allowance(layout)) is not None:
        with as_caller():
            refuse_above(config, found, facts, allowance)
    wanted = {name: wanted.workspace for name, wanted in found.wanted.items()}
    check_owners(config.file, wanted)
    notes = check_elsewhere(layout, config.file, found, facts.records, {} if checked is None else checked)
    wanted = {name: workspace for name, workspace in wanted.items() if is_local(workspace)}
    check_ports(config.file, wanted, here(facts.records))
    check_machines(
        (config.file, a.workspace, wanted[a.workspace]) for a in found.actions if a.starts and a.workspace in wanted
    )
    if layout.old_group_key.parent.exists():  # which not everybody may look into
        notes = (*notes, NO_GROUP)
    found = replace(found, notes=(*found.notes, *notes))
    if not is_root:
        return replace(found, notes=(*found.notes, NOT_ROOT))
    showing = [a.workspace for a in found.actions if (a.starts or a.shows) and a.workspace in wanted]
    try:
        with as_caller():
            check_shares((config.file, name, wanted[name]) for name in showing)
    except HutchError:  # of the home, perhaps, that somebody else has just been given for a workspace of that name
        refuse_others(layout, showing)
        raise
    missing = unbuilt_images(layout, found.wanted) if unbuilt is None else unbuilt
    return with_findings(found, seen, missing, facts.records)


def not_now(name: str, deletes: bool) -> tuple[str, ...]:
    """A look for git work that is not taken."""
    raise TakesLong


def looker(layout: Layout, records: Mapping[str, Record], looked: Looked) -> Callable[[str, bool], tuple[str, ...]]:
    """A function that looks for git work which goes with the root of a workspace, once for each command: it may take as
    long as git does, and the lock is held when the same plan is made again."""

    def look(name: str, deletes: bool) -> tuple[str, ...]:
        # Spares the start-up of `hutch plan` where nothing is stopped.
        from hutch.apply.vanishing import unsaved_in_root

        if (name, deletes) not in looked:
            looked[name, deletes] = tuple(unsaved_in_root(layout, records[name], deletes=deletes))
        return looked[name, deletes]

    return look


def broken_elsewhere(layout: Layout, facts: Facts, names: Sequence[str]) -> dict[str, tuple[Change, ...]]:
    """The parts that running workspaces, of those named, have lost on servers. No other server is asked."""
    broken: dict[str, tuple[Change, ...]] = {}
    for engine, theirs in by_engine(layout, {n: facts.records[n] for n in names if n in facts.records}):
        broken |= engine.broken({n: r for n, r in theirs.items() if has_processes(facts.observe(n).state)})
    return broken


def half_moved(records: Mapping[str, Record], names: Sequence[str]) -> Iterator[Repair]:
    """Moves of these workspaces that were cut short."""
    for name in names:
        record = records.get(name)
        if record is not None and record.moving is not None:
            other = "this host" if record.moving.place is None else str(record.moving.place)
            what = f"to {other} was cut short, and is undone"
            yield Repair("move", what if record.moving.step == "copying" else f"from {other} is not finished", name)


def check_elsewhere(
    layout: Layout, file: str, plan: Plan, records: Mapping[str, Record], checked: Checked
) -> tuple[str, ...]:
    """Refuse what the servers could not carry out. Returns notes for the user."""
    notes: list[str] = []
    for engine, wanted in wanted_by_engine(layout, plan.wanted):
        one = next(iter(wanted.values()))
        name, about = one.workspace.engine, (wanted, {name: records.get(name) for name in wanted})
        if name not in checked or checked[name][0] != about:
            try:
                checked[name] = about, engine.check(wanted, records)
            except Misplaced as error:
                refuse_files([(file, misplaced(error, one))])
        notes += checked[name][1]
    return tuple(notes)


def misplaced(error: Misplaced, wanted: Wanted) -> Problem:
    """The problem of a file whose workspaces have no such place as it says."""
    what = "; ".join((error.brief, *error.details.splitlines()))
    value = str(getattr(wanted.place, error.key))
    return Problem(what, f"engines.{wanted.workspace.engine}.{error.key}", value, error.resolution)


def everything(layout: Layout) -> tuple[Mapping[str, Record], Network | None]:
    """The records, and the network as it was last set up. Keys that others have are made anew by the next command
    that changes something, so they count as that here."""
    applied, lost = read_network(layout), lost_holders(layout)
    records = {name: with_lost_keys(record, lost) for name, record in read_records(layout).items()}
    return records, applied.network if applied else None


def own_names(layout: Layout, config: Config) -> Sequence[str]:
    """The workspaces of a file without those of others."""
    hidden = hidden_names(layout)
    names = [name for name in config.workspaces if name not in hidden]
    if names or not config.workspaces:
        return names
    raise HutchError(
        f"of the workspaces in {config.file}, none is yours", resolution="root plans them: run it with sudo or doas"
    )


def seen_by_caller(layout: Layout, config: Config, names: Sequence[str]) -> tuple[Mapping[str, Record], Network | None]:
    """The part of `everything` that the caller may see. Raises HutchError for another one's among the named."""
    asked = {name: read_user_view(layout, name) for name in config.select(names)}
    seen = {name: asked.get(name) or read_user_view(layout, name) for name in (*visible_names(layout), *asked)}
    views = {name: view for name, view in seen.items() if view is not None}
    return {name: view.record for name, view in views.items()}, next((view.network for view in views.values()), None)


def observe_facts(layout: Layout, config: Config, records: Mapping[str, Record], applied: Network | None) -> Facts:
    """The facts for planning, with these records and the network as it was last set up; the rest is looked for when it
    is asked for."""
    recipe_for, caller = recipes_for(layout, records), os.geteuid()

    def keys_of(name: str, owner: int) -> tuple[str, ...]:
        if caller not in (0, owner) and name in records:
            return records[name].wanted.authorized_keys or ()
        return _keys_of(owner)

    def image_of(name: str, workspace: WorkspaceSpec) -> str:
        try:
            return recipe_for(name, workspace).id
        except HutchError:  # a tree that only root can look at
            if caller == 0 or name not in records:
                raise
            return records[name].image

    def sessions_of(name: str) -> tuple[str, ...]:
        # Spares the start-up of `hutch plan` where nothing is stopped.
        from hutch.apply.unsaved import sessions_of

        return tuple(sessions_of(layout, records[name]))

    return Facts(
        records=records,
        applied=applied,
        network=network_of(layout, config, applied),
        owner=member.uid if (member := concerned(caller)) else default_owner(os.environ, os.getuid()),
        origin=origin_of(config.file),
        observe=observer(layout, records),
        sessions_of=sessions_of,
        keys_of=keys_of,
        image_of=image_of,
        real=real_path,
        exists=functools.cache(os.path.exists),
        has_systemd=has_systemd(),
        ejected=observe_ejected(),
        place=place_of(config, os.environ, caller),
        now=time.time(),
    )


def observer(layout: Layout, records: Mapping[str, Record]) -> Callable[[str], Observation]:
    """A function that observes one workspace, once. The servers of all others are asked together."""
    ask = functools.cache(lambda: observe_all(layout, elsewhere(records)))

    @functools.cache
    def look(name: str) -> Observation:
        record = records.get(name)
        return observe(layout, name) if record is None or is_local(record.wanted) else ask()[name]

    return look


def network_of(layout: Layout, config: Config, applied: Network | None) -> Network:
    """This host's network as it is to be: one that no workspace of the file needs is not chosen."""
    if any(map(is_local, config.workspaces.values())):
        return with_uplink(layout, config.network, applied)
    return applied or config.network


def decide_ownership(
    config: Config, facts: Facts, names: Sequence[str], *, adopt: bool, prune: bool = False
) -> Ownership:
    """The file's own among the records, of which `names` are planned for. Raises HutchError for a workspace that is
    another one's, another person's first."""
    check_own(facts.records, names)
    former = former_paths(config, facts.records, facts.origin, facts.exists)
    check_ownership(config, facts.records, former, facts.exists, adopt=adopt)
    check_taking(config, facts.records, former, names)
    undeclared = tuple(orphans(config, facts.records, former))
    if prune:
        check_own(facts.records, undeclared)
    return Ownership(frozenset(former), tuple(own_of(facts.records, undeclared)))


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


@functools.cache
def _keys_of(owner: int) -> tuple[str, ...]:
    try:
        with as_caller():
            return owner_keys(find_owner(owner))
    except Invalid:  # check_owners tells of it
        return ()
