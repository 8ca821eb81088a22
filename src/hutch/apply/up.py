"""`hutch up`: has images built, and a plan carried out that is made anew once nobody can interfere any more."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import replace
from types import MappingProxyType
from typing import Protocol

from hutch.apply import reconcile
from hutch.apply.building import ask_for_updates, ensure_images
from hutch.apply.inspecting import unbuilt_images
from hutch.apply.live import apply_live
from hutch.apply.machines import check_new_machines
from hutch.apply.membership import declared_by, make_sources
from hutch.apply.ownership import origin_of
from hutch.apply.planning import TakesLong
from hutch.apply.recovery import recover
from hutch.apply.removal import mark_removed
from hutch.apply.starting import StartsFailed, execute
from hutch.apply.vanishing import refuse_unsaved
from hutch.backends import is_machine
from hutch.backends.share import private_layers
from hutch.engines import elsewhere, wanted_by_engine
from hutch.errors import HutchError, Unmet
from hutch.host.identity.ssh import owner_of
from hutch.host.network.namespace import look
from hutch.host.services.lock import lock, lock_if_free
from hutch.host.services.units import observe_ejected
from hutch.host.storage.shares import kept_guards
from hutch.images.progress import BuildProgress
from hutch.plan.actions import Action, Plan
from hutch.plan.decide import noted
from hutch.plan.resolve import allocate_uids
from hutch.run import Gathering
from hutch.runtime.control import Listener
from hutch.spec.model import Config
from hutch.spec.names import UID_COUNT, Layout
from hutch.spec.record import Record, is_local, writable_paths
from hutch.state import ensure_copy, read_records, unfinished, write_record
from hutch.trees.changing import give
from hutch.trees.cursor import opened
from hutch.trees.removing import remove_tree

Confirm = Callable[[Plan], None]
"""A callback before a plan stops workspaces in which somebody is at work; it raises an error to stop that plan."""
ATTEMPTS = 5


class Make(Protocol):
    """A function that makes the plan, as planning.make_plan does."""

    def __call__(
        self, unbuilt: Mapping[str, str] | None, *, is_draft: bool = False, looking: Gathering | None = None
    ) -> Plan: ...


def up(
    layout: Layout,
    config: Config,
    make: Make,
    *,
    confirm: Confirm,
    listen: Listener,
    progress: BuildProgress,
    members: Mapping[str, str] | None = None,
    force: bool = False,
) -> Plan:
    """Make the host as the plan says, and return that. `make` makes it, and is told what is missing of which images,
    where that is known; `progress` is told (image, stage, fraction) while one is built, and (workspace, stage,
    fraction) while one is moved. `members` are those of a cluster that workspaces are to be moved to, by name. Without
    `force`, no git work is lost with a root."""
    if (done := at_once(layout, config, make, listen, progress)) is not None:
        return done
    allowed: set[str] = set()
    unbuilt: dict[str, str] = {}
    for _ in range(ATTEMPTS):
        plan = make(None, is_draft=True)
        if not force:
            refuse_unsaved(plan)
        if plan.disturbed - allowed:
            confirm(plan)
            allowed |= plan.disturbed
        unbuilt |= unbuilt_images(layout, plan.wanted)
        workspaces = {name: wanted.workspace for name, wanted in plan.wanted.items()}
        if ensure_images(layout, workspaces, config.network, config.file, progress):
            ask_for_updates(layout, listen)
        supply_elsewhere(layout, plan, progress)
        with lock(layout), reconcile.first_network(layout, is_needed=any(map(is_local, workspaces.values()))):
            recover(layout, listen)
            reconcile_moves(layout, plan, listen)
            plan = make(unbuilt)
            if not force:
                refuse_unsaved(plan)
            # Until the lock was taken, an image may have been removed, the tree that it is made from may have
            # changed, or somebody may have come.
            if not unbuilt_images(layout, plan.wanted) and plan.disturbed <= allowed:
                make_sources(plan)
                apply_plan(layout, plan, listen, progress, members or {})
                return plan
    raise HutchError(
        f"{config.file}: images or sessions kept changing while planning ({ATTEMPTS} attempts)",
        resolution="try again when nothing removes images or writes in the trees that they are made from",
    )


def at_once(layout: Layout, config: Config, make: Make, listen: Listener, progress: BuildProgress) -> Plan | None:
    """The plan, carried out, where it can be without giving the lock away again: nobody else has that, and nothing has
    to be built, asked, moved, recovered or looked for at length. So it is made once, and the host looked at once. None
    for every other, with nothing done."""
    with lock_if_free(layout) as is_held:
        records = read_records(layout) if is_held and unfinished(layout) is None else None
        if records is None or any(record.moving for record in records.values()):
            return None
        if elsewhere(records) or not all(map(is_local, config.workspaces.values())):
            return None
        with reconcile.first_network(layout), closing(look(layout)) as looking:
            recover(layout, listen)
            try:
                plan = make(None, looking=looking)
            except TakesLong:
                return None
            if plan.disturbed or unbuilt_images(layout, plan.wanted):
                return None
            make_sources(plan)
            apply_plan(layout, plan, listen, progress, looking=looking)
            return plan


def supply_elsewhere(layout: Layout, plan: Plan, progress: BuildProgress) -> None:
    """Bring the images of workspaces that are to start elsewhere there."""
    starting = {a.workspace: a.wanted for a in plan.actions if a.starts and a.wanted is not None and plan.start}
    for engine, theirs in wanted_by_engine(layout, starting):
        engine.supply(theirs, progress)


def reconcile_moves(layout: Layout, plan: Plan, listen: Listener) -> None:
    """Go back from, or finish, moves of the plan's workspaces that were cut short."""
    targets = {name: is_local(wanted.workspace) for name, wanted in plan.wanted.items()}
    if any(record.moving is not None for name, record in read_records(layout).items() if name in targets):
        # Spares the start-up of `hutch up` where nothing is moved.
        from hutch.apply.moving import reconcile_all

        reconcile_all(layout, targets, listen)


def apply_plan(
    layout: Layout,
    plan: Plan,
    listen: Listener,
    progress: BuildProgress = lambda *words: None,
    members: Mapping[str, str] = MappingProxyType({}),
    looking: Gathering | None = None,
) -> None:
    """Carry out the plan. The caller holds the lock; images are there already. Moves come last, one by one. By
    `looking` the plan was made, with the lock held."""
    records = read_records(layout)
    for name in records:  # before anything changes: a copy is not waited for, so a power cut may have torn it
        ensure_copy(layout.record(name))
    if plan.start:
        check_new_machines(layout, plan)
    new = [
        action.workspace
        for action in plan.actions
        if action.wanted
        and is_local(action.wanted.workspace)
        and (action.workspace not in records or action.action == "move")
    ]
    taken = {record.uid_base for record in records.values()}
    taken |= {record.moving.uid_base for record in records.values() if record.moving is not None}
    taken |= {note.uid_base for note in observe_ejected().values()}
    uids = dict(zip(new, allocate_uids(taken, len(new), layout.uid_index), strict=True))
    unmet: list[Unmet] = []
    moves = [action for action in plan.actions if action.action == "move"]
    plan = replace(plan, actions=tuple(action for action in plan.actions if action not in moves))

    def between() -> None:
        _write_down(layout, plan, records, uids, listen)
        live = [action.workspace for action in plan.actions if action.action == "live"]
        if live or not (plan.start and any(action.starts for action in plan.actions)):
            is_as_seen = all(action.action == "no change" for action in plan.actions)
            reconcile.reconcile_host(layout, plan.network, plan.file, records, looking if is_as_seen else None)
        if live:
            if failures := apply_live(layout, plan.network, records, live, listen):
                unmet.append(
                    Unmet(
                        f"{', '.join(failures)}: not all changes could be made while running",
                        details="\n".join(f"{name}: {why}" for name, why in failures.items()),
                        resolution="the next `hutch up` tries again; "
                        f"`hutch restart {next(iter(failures))}` makes sure of them",
                    )
                )
            reconcile.reconcile_user_views(layout, records)

    try:
        execute(layout, plan, records, listen, between)
    except StartsFailed as error:
        unmet.append(error)
    finish_moves(layout, plan, unmet, listen)
    for action in moves:
        try:
            _move(layout, plan, action, uids.get(action.workspace, 0), listen, progress, members)
        except HutchError as error:  # the others are moved all the same
            unmet.append(_not_moved(action.workspace, error))
    for text in kept_guards(layout):
        listen("shares", "warning", text)
    if unmet:
        raise both(unmet)


def finish_moves(layout: Layout, plan: Plan, unmet: Collection[Unmet], listen: Listener) -> None:
    """Finish the moves of workspaces that have just been started, which had been cut short before that."""
    failed = {name for error in unmet if isinstance(error, StartsFailed) for name in error.failures}
    started = [action.workspace for action in plan.actions if action.starts and action.workspace not in failed]
    if plan.start and any(read_records(layout)[name].moving is not None for name in started):
        # Spares the start-up of `hutch up` where nothing is moved.
        from hutch.apply.moving import finish_started

        finish_started(layout, started, listen)


def _move(
    layout: Layout,
    plan: Plan,
    action: Action,
    uid_base: int,
    listen: Listener,
    progress: BuildProgress,
    members: Mapping[str, str],
) -> None:
    """Have a workspace run by another host. Raises HutchError, and then it is where it was."""
    # Spares the start-up of `hutch up` where nothing is moved.
    from hutch.apply.moving import Move

    assert action.wanted is not None
    before = read_records(layout)[action.workspace]
    after = replace(noted(before, action, action.wanted, plan.file, origin_of(plan.file)), uid_base=uid_base)
    Move(layout, plan.network, before, after, listen, progress, members.get(action.workspace, "")).make()


def _not_moved(name: str, error: HutchError) -> Unmet:
    """The error of a move as one of several."""
    if isinstance(error, Unmet):
        return error
    return Unmet(f"{name} was not moved: {error.brief}", details=error.details, resolution=error.resolution)


def _write_down(
    layout: Layout, plan: Plan, records: dict[str, Record], uids: Mapping[str, int], listen: Listener
) -> None:
    """Write the records of what is wanted and of the file, after the work that has to be done before."""
    origin = origin_of(plan.file)
    for action in plan.actions:
        before = records.get(action.workspace)
        is_made = action.action in ("create", "recreate")
        becomes_machine = is_made and action.wanted is not None and is_machine(action.wanted.workspace)
        if before and becomes_machine and not is_machine(before.effective):
            hand_over(layout, before)  # before it is written down: one that fails here is a container still
        if action.action == "recreate":
            remove_tree(layout.root(action.workspace))
        if action.action == "remove":
            for text in mark_removed(layout, records, action.workspace, listen):
                listen(action.workspace, "warning", text)
            listen(action.workspace, "removed", "")
        elif action.action != "no change":
            assert action.wanted is not None
            before = before or Record(
                name=action.workspace,
                file=plan.file,
                wanted=action.wanted.workspace,
                image=action.wanted.image,
                uid_base=uids.get(action.workspace, 0),
                machine_id=os.urandom(16).hex(),
            )
            records[action.workspace] = declared_by(noted(before, action, action.wanted, plan.file, origin))
            write_record(layout, records[action.workspace])
    for name in plan.inherited:
        records[name] = declared_by(replace(records[name], file=plan.file, origin=origin))
        write_record(layout, records[name])


def both(unmet: list[Unmet]) -> Unmet:
    """All errors as one."""
    if len(unmet) == 1:
        return unmet[0]
    return Unmet(
        "; ".join(error.brief for error in unmet),
        details="\n".join(error.details for error in unmet),
        resolution=unmet[-1].resolution,
    )


def hand_over(layout: Layout, record: Record) -> None:
    """Give everything that the container made in its shares, and of private ones, to the owner. It does not run. May be
    called again. Files that are foreign to it stay as they are.

    Files that root of a container made in a share belong to the container's own uids on the host. A machine's shares
    know one owner only, so they all become the owner's: each by its inode, if that is this workspace's, and by no name
    of the guest's.
    """
    owner = record.wanted.uid
    gid, _ = owner_of(owner)
    private = (f"{layer}/upper" for layer in private_layers(layout, record.name, record.wanted))
    for source in (*writable_paths(record.wanted), *private):
        try:
            with opened(source) as top:
                give(top, range(record.uid_base, record.uid_base + UID_COUNT), owner, gid)
        except (FileNotFoundError, NotADirectoryError):
            continue  # it is made, or refused, when the machine starts
        except (HutchError, OSError) as error:
            why = error.brief if isinstance(error, HutchError) else error.strerror
            raise HutchError(
                f"{record.name}: the container's files in {source} cannot be handed over to the machine",
                details=str(why),
                resolution="the next `hutch up` tries again",
            ) from error
