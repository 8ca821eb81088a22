"""One plan, from records to running workspaces."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from hutch.apply import converge
from hutch.apply.starting import start
from hutch.plan.actions import Action, Plan
from hutch.plan.resolve import allocate_uids
from hutch.run import run
from hutch.spec.names import Places
from hutch.state import Record, journaled, read_network, read_records, write_record
from hutch.supervise import control
from hutch.supervise.control import Listener

PACKAGE = str(Path(__file__).resolve().parent.parent)


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
        if action.action == "recreate":
            remove_root(places, action.workspace)
        if action.action == "remove":
            _mark_removed(places, records, action.workspace)
        elif action.action != "no change":
            _note(places, plan, records, action)
    starting = [a.workspace for a in plan.actions if a.starts and plan.start]
    if starting:
        start(places, plan.network, plan.file, records, starting, listen)
    else:
        converge.settle(places, plan.network, plan.file, records)


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
            uid_base=allocate_uids({r.uid_base for r in records.values()}),
            machine_id=os.urandom(16).hex(),
        )
    else:
        record = replace(
            before,
            file=plan.file,
            wanted=action.wanted.workspace,
            image=action.wanted.image,
            booted=None if action.action == "recreate" else before.booted,  # its root is gone: nothing is left of it
            removed=False,
        )
    write_record(places, record)
    records[action.workspace] = record


def _mark_removed(places: Places, records: dict[str, Record], name: str) -> None:
    """Home, key, address and uid range stay; everything else of the workspace goes."""
    records[name] = replace(records[name], removed=True, booted=None)
    write_record(places, records[name])
    remove_root(places, name)
    control.forget(places, name)


def remove_root(places: Places, name: str) -> None:
    """Delete the kept root. The guest wrote in it, so rm(1) walks it by descriptors, on one file system."""
    if places.root(name).exists():
        run(["rm", "-rf", "--one-file-system", "--", str(places.root(name))], timeout=600)


def remove(places: Places, name: str, *, purge: bool) -> tuple[str, ...]:
    """Remove a workspace; with `purge` its home, key and address too. Returns notes for the user."""
    records = read_records(places)
    record, network = records[name], read_network(places)
    notes = []
    with journaled(places, "remove", (name,)):
        control.stop_all(places, [name])
        _mark_removed(places, records, name)
        if converge.present(records) and network is not None:
            converge.settle(places, network.network, network.file, records)
        else:
            converge.dismantle(places)
        if purge:
            if record.wanted.home != str(places.home(name)):
                notes.append(f"{record.wanted.home} is a directory of your own and was left alone")
            run(["rm", "-rf", "--one-file-system", "--", str(places.workspace(name))], timeout=600)
        else:
            notes.append(f"home is kept in {record.wanted.home}")
    if purge and not read_records(places):
        _remove_last_traces(places)
    return tuple(notes)


def _remove_last_traces(places: Places) -> None:
    """Nothing is declared or kept any more: hutch's own keys and empty directories go; images stay cached."""
    run(["rm", "-rf", "--one-file-system", "--", str(places.state / "keys")])
    for directory in (places.workspaces, places.run / "workspaces", places.run):
        try:
            directory.rmdir()
        except OSError:
            pass
