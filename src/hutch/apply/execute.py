"""One plan, from records to running workspaces."""

from __future__ import annotations

import os
from dataclasses import replace

from hutch.apply import converge
from hutch.apply.removal import mark_removed, remove_root
from hutch.apply.starting import start
from hutch.plan.actions import Action, Plan
from hutch.plan.planner import effective_weight
from hutch.plan.resolve import allocate_uids
from hutch.spec.model import WORKSPACE_KEYS, Workspace
from hutch.spec.names import Places
from hutch.state import Booted, Record, journaled, read_records, write_record
from hutch.supervise import control
from hutch.supervise.control import Listener


def apply_plan(places: Places, plan: Plan, listen: Listener) -> None:
    """Do what the plan says. The caller holds the lock; images are there already."""
    records = read_records(places)
    changing = tuple(action.workspace for action in plan.actions if action.action != "no change")
    if changing:
        with journaled(places, "up", changing):
            _apply(places, plan, records, listen)
    else:
        _apply(places, plan, records, listen)


def _apply(places: Places, plan: Plan, records: dict[str, Record], listen: Listener) -> None:
    down = [a for a in plan.actions if a.action in ("restart", "recreate", "remove")]
    if down:
        control.stop_all(places, [action.workspace for action in down])
    for action in plan.actions:
        before = records.get(action.workspace)
        is_made = action.action in ("create", "recreate")
        if is_made and before and action.wanted and _becomes_machine(before, action.wanted.workspace):
            from hutch.apply.handover import hand_over

            # Before it is written down: one that fails here is a container still.
            hand_over(places, replace(before, image=action.wanted.image))
        if action.action == "recreate":
            remove_root(places, action.workspace)
        if action.action == "remove":
            mark_removed(places, records, action.workspace)
        elif action.action != "no change":
            _note(places, plan, records, action)
    starting = [a.workspace for a in plan.actions if a.starts and plan.start]
    if starting:
        start(places, plan.network, plan.file, records, starting, listen)
    else:
        converge.settle(places, plan.network, plan.file, records)


def _becomes_machine(before: Record, wanted: Workspace) -> bool:
    """Whether it was a container, or what is kept of a removed one, and is to be a machine."""
    was = before.booted.workspace if before.booted else before.wanted
    return was.type == "container" and wanted.type == "vm"


def _note(places: Places, plan: Plan, records: dict[str, Record], action: Action) -> None:
    """Write down what is wanted, before anything on the host is made for it."""
    assert action.wanted is not None
    before = records.get(action.workspace)
    if before is None:
        record = Record(
            name=action.workspace,
            file=plan.file,
            wanted=action.wanted.workspace,
            image=action.wanted.image,
            uid_base=allocate_uids({r.uid_base for r in records.values()}, places.uid_index),
            machine_id=os.urandom(16).hex(),
        )
    else:
        record = replace(
            before,
            file=plan.file,
            wanted=action.wanted.workspace,
            image=action.wanted.image,
            booted=None if action.action == "recreate" else _still_booted(before.booted, action.wanted.workspace),
            removed=False,
        )
    write_record(places, record)
    records[action.workspace] = record


def _still_booted(booted: Booted | None, wanted: Workspace) -> Booted | None:
    """What it was booted from, with the keys that need no restart as they are from now on. After a recreate there is
    none: its root is gone, and nothing is left of it."""
    if booted is None:
        return None
    live = {key: getattr(wanted, key) for key in WORKSPACE_KEYS if effective_weight(key, booted.workspace) == "live"}
    return replace(booted, workspace=replace(booted.workspace, **live))
