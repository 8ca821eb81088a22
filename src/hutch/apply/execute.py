"""One plan, from records to running workspaces."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from hutch.apply import converge
from hutch.apply.machines import check_new_machines
from hutch.apply.ownership import origin_of
from hutch.apply.removal import mark_removed, remove_root
from hutch.apply.starting import StartsFailed, start
from hutch.errors import Unmet
from hutch.host.services.ejected import observe_ejected
from hutch.host.storage.shares import kept_guards
from hutch.plan.actions import Action, Plan
from hutch.plan.noting import noted
from hutch.plan.resolve import allocate_uids
from hutch.runtime import control
from hutch.runtime.control import Listener
from hutch.spec.model import Workspace
from hutch.spec.names import Places
from hutch.state import Record, ensure_copy, journaled, read_records, write_record


class LiveFailed(Unmet):
    """Some live changes are not in force; why is given by workspace."""

    def __init__(self, failures: Mapping[str, str]) -> None:
        super().__init__(
            f"{', '.join(failures)}: not all changes could be made while running",
            details="\n".join(f"{name}: {why}" for name, why in failures.items()),
            resolution=f"the next `hutch up` tries again; `hutch restart {next(iter(failures))}` makes sure of them",
        )


def apply_plan(places: Places, plan: Plan, listen: Listener) -> None:
    """Do what the plan says. The caller holds the lock; images are there already."""
    records = read_records(places)
    for name in records:  # before anything changes: a copy is not waited for, so a power cut may have torn it
        ensure_copy(places.record(name))
    if plan.start:
        check_new_machines(places, plan, records)
    new = [action.workspace for action in plan.actions if action.wanted and action.workspace not in records]
    taken = {record.uid_base for record in records.values()}
    taken |= {note.uid_base for note in observe_ejected().values()}
    uids = dict(zip(new, allocate_uids(taken, len(new), places.uid_index), strict=True))
    changing = tuple(action.workspace for action in plan.actions if action.action != "no change")
    if changing:
        with journaled(places, "up", changing):
            _apply(places, plan, records, uids, listen)
    else:
        _apply(places, plan, records, uids, listen)


def _apply(places: Places, plan: Plan, records: dict[str, Record], uids: Mapping[str, int], listen: Listener) -> None:
    """`uids` are the first uids of those that are new."""
    down = [a for a in plan.actions if a.stops]
    if down:
        control.stop_all(places, [action.workspace for action in down])
    _write_down(places, plan, records, uids, listen)
    live = [a.workspace for a in plan.actions if a.action == "live"]
    starting = [a.workspace for a in plan.actions if a.starts and plan.start]
    unmet: list[Unmet] = []
    if live or not starting:
        converge.settle(places, plan.network, plan.file, records)
    if live:
        from hutch.apply.live import apply_live

        if failures := apply_live(places, plan.network, records, live, listen):
            unmet.append(LiveFailed(failures))
        converge.converge_shown(places, records)
    if starting:
        try:
            start(places, plan.network, plan.file, records, starting, listen)
        except StartsFailed as error:
            unmet.append(error)
    for text in kept_guards(places):
        listen("shares", "warning", text)
    if unmet:
        raise both(unmet)


def _write_down(
    places: Places, plan: Plan, records: dict[str, Record], uids: Mapping[str, int], listen: Listener
) -> None:
    """What is wanted and whose it is, with what has to be done before that may be said."""
    origin = origin_of(plan.file)
    for action in plan.actions:
        before = records.get(action.workspace)
        is_made = action.action in ("create", "recreate")
        if is_made and before and action.wanted and _becomes_machine(before, action.wanted.workspace):
            from hutch.apply.handover import hand_over

            # Before it is written down: one that fails here is a container still.
            hand_over(before)
        if action.action == "recreate":
            remove_root(places, action.workspace)
        if action.action == "remove":
            for text in mark_removed(places, records, action.workspace):
                listen(action.workspace, "warning", text)
        elif action.action != "no change":
            _note(places, plan, records, action, uids, origin)
    for name in plan.inherited:
        records[name] = replace(records[name], file=plan.file, origin=origin)
        write_record(places, records[name])


def both(unmet: list[Unmet]) -> Unmet:
    """One error of all."""
    if len(unmet) == 1:
        return unmet[0]
    return Unmet(
        "; ".join(error.brief for error in unmet),
        details="\n".join(error.details for error in unmet),
        resolution=unmet[-1].resolution,
    )


def _becomes_machine(before: Record, wanted: Workspace) -> bool:
    """Whether it was a container, or what is kept of a removed one, and is to be a machine."""
    was = before.booted.workspace if before.booted else before.wanted
    return was.type == "container" and wanted.type == "vm"


def _note(
    places: Places,
    plan: Plan,
    records: dict[str, Record],
    action: Action,
    uids: Mapping[str, int],
    origin: tuple[int, ...],
) -> None:
    """Write down what is wanted, before anything on the host is made for it."""
    assert action.wanted is not None
    before = records.get(action.workspace) or Record(
        name=action.workspace,
        file=plan.file,
        wanted=action.wanted.workspace,
        image=action.wanted.image,
        uid_base=uids[action.workspace],
        machine_id=os.urandom(16).hex(),
    )
    record = noted(before, action, action.wanted, plan.file, origin)
    write_record(places, record)
    records[action.workspace] = record
