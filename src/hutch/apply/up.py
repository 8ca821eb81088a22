"""`hutch up`: has images built, and a plan carried out that is made anew once nobody can interfere any more."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace

from hutch.apply import reconcile
from hutch.apply.building import ensure_images
from hutch.apply.inspecting import unbuilt_images
from hutch.apply.live import apply_live
from hutch.apply.machines import check_new_machines
from hutch.apply.ownership import origin_of
from hutch.apply.recovery import recover
from hutch.apply.removal import mark_removed
from hutch.apply.starting import StartsFailed, execute
from hutch.backends import is_machine
from hutch.backends.share import sources
from hutch.errors import HutchError, Unmet
from hutch.host.identity.ssh import owner_of
from hutch.host.services.lock import lock
from hutch.host.services.units import observe_ejected
from hutch.host.storage.shares import kept_guards
from hutch.plan.actions import Plan
from hutch.plan.decide import noted
from hutch.plan.resolve import allocate_uids
from hutch.runtime.control import Listener
from hutch.spec.model import Config
from hutch.spec.names import UID_COUNT, Layout
from hutch.spec.record import Record
from hutch.state import ensure_copy, read_records, write_record
from hutch.trees.changing import give
from hutch.trees.cursor import opened
from hutch.trees.removing import remove_tree

Confirm = Callable[[Plan], None]
"""A callback before a plan stops workspaces in which somebody is at work; it raises an error to stop that plan."""


def up(
    layout: Layout,
    config: Config,
    make: Callable[[Mapping[str, str] | None], Plan],
    *,
    confirm: Confirm,
    listen: Listener,
    progress: Callable[[str, str, float], None],
) -> Plan:
    """Make the host as the plan says, and return that. `make` makes it, and is told what is missing of which images,
    where that is known; `progress` is told (image, stage, fraction) while one is built."""
    allowed: set[str] = set()
    unbuilt: dict[str, str] = {}
    for _ in range(5):
        plan = make(None)
        if plan.disturbed - allowed:
            confirm(plan)
            allowed |= plan.disturbed
        unbuilt |= unbuilt_images(layout, plan.wanted)
        workspaces = {name: wanted.workspace for name, wanted in plan.wanted.items()}
        ensure_images(layout, workspaces, config.network, config.file, progress)
        with lock(layout), reconcile.first_network(layout):
            recover(layout, listen)
            plan = make(unbuilt)
            # Until the lock was taken, an image may have been removed, the tree that it is made from may have
            # changed, or somebody may have come.
            if not unbuilt_images(layout, plan.wanted) and plan.disturbed <= allowed:
                apply_plan(layout, plan, listen)
                return plan
    raise HutchError(
        f"{config.file}: what its workspaces need, or who is in them, changed as soon as it was seen to",
        resolution="try again when nothing removes images or writes in the trees that they are made from",
    )


def apply_plan(layout: Layout, plan: Plan, listen: Listener) -> None:
    """Carry out the plan. The caller holds the lock; images are there already."""
    records = read_records(layout)
    for name in records:  # before anything changes: a copy is not waited for, so a power cut may have torn it
        ensure_copy(layout.record(name))
    if plan.start:
        check_new_machines(layout, plan, records)
    new = [action.workspace for action in plan.actions if action.wanted and action.workspace not in records]
    taken = {record.uid_base for record in records.values()}
    taken |= {note.uid_base for note in observe_ejected().values()}
    uids = dict(zip(new, allocate_uids(taken, len(new), layout.uid_index), strict=True))
    unmet: list[Unmet] = []

    def between() -> None:
        _write_down(layout, plan, records, uids, listen)
        live = [action.workspace for action in plan.actions if action.action == "live"]
        if live or not (plan.start and any(action.starts for action in plan.actions)):
            reconcile.reconcile_host(layout, plan.network, plan.file, records)
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
    for text in kept_guards(layout):
        listen("shares", "warning", text)
    if unmet:
        raise both(unmet)


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
            hand_over(before)  # before it is written down: one that fails here is a container still
        if action.action == "recreate":
            remove_tree(layout.root(action.workspace))
        if action.action == "remove":
            for text in mark_removed(layout, records, action.workspace):
                listen(action.workspace, "warning", text)
            listen(action.workspace, "removed", "")
        elif action.action != "no change":
            assert action.wanted is not None
            before = before or Record(
                name=action.workspace,
                file=plan.file,
                wanted=action.wanted.workspace,
                image=action.wanted.image,
                uid_base=uids[action.workspace],
                machine_id=os.urandom(16).hex(),
            )
            records[action.workspace] = noted(before, action, action.wanted, plan.file, origin)
            write_record(layout, records[action.workspace])
    for name in plan.inherited:
        records[name] = replace(records[name], file=plan.file, origin=origin)
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


def hand_over(record: Record) -> None:
    """Give everything that the container made in its shares to the owner. It does not run. May be called again. Files
    that are foreign to it stay as they are.

    Files that root of a container made in a share belong to the container's own uids on the host. A machine's shares
    know one owner only, so they all become the owner's: each by its inode, if that is this workspace's, and by no name
    of the guest's.
    """
    owner = record.wanted.uid
    gid, _ = owner_of(owner)
    for source, _, readonly in sources(record.wanted):
        if readonly:
            continue
        try:
            with opened(source) as top:
                give(top, range(record.uid_base, record.uid_base + UID_COUNT), owner, gid)
        except (FileNotFoundError, NotADirectoryError):
            continue  # it is made, or refused, when the machine starts
        except (HutchError, OSError) as error:
            why = error.brief if isinstance(error, HutchError) else error.strerror
            raise HutchError(
                f"{record.name}: what the container made in {source} cannot be handed over to the machine",
                details=str(why),
                resolution="the next `hutch up` tries again",
            ) from error
