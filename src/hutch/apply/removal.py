"""Removal of workspaces: what stays of a removed one, and what a purge deletes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from hutch.apply import reconcile
from hutch.apply.holdings import key_directories
from hutch.apply.recording import note
from hutch.apply.starting import stop
from hutch.audit.events import shown
from hutch.audit.removing import remove_record
from hutch.engines import engine_of
from hutch.errors import HutchError, troubles_told
from hutch.files import entries
from hutch.host.doctor import repairs
from hutch.host.identity import shells
from hutch.host.services.lock import host_lock
from hutch.host.services.units import own_settings
from hutch.host.storage import shares
from hutch.host.storage.placeholders import remove_placeholders
from hutch.host.storage.quota import release_quota
from hutch.runtime import control
from hutch.runtime.control import Listener
from hutch.spec.names import Layout
from hutch.spec.record import Record, is_local
from hutch.state import PURGE, journaled, read_network, read_records, write_record
from hutch.trees.removing import remove_tree


def mark_removed(
    layout: Layout, records: dict[str, Record], name: str, listen: Listener, *, purge: bool = False
) -> tuple[str, ...]:
    """Remove all of a workspace but home, key, address, uid range and record; elsewhere, with `purge`, its home too.
    Returns notes for the user."""
    notes = disarm(layout, records[name])
    if not is_local(records[name].wanted):
        notes += engine_of(layout, records[name]).remove(records[name], purge=purge)
    records[name] = replace(records[name], removed=True, booted=None, removed_at=time.time(), decisions=())
    write_record(layout, records[name])
    remove_tree(layout.root(name))  # the guest wrote in it
    remove_placeholders(layout.placeholders, name)  # a host that went down while it ran has left them
    control.forget(layout, name)
    note(layout, name, "removed", listen, kept=None if purge else shown(records[name].home_words))
    return notes


def disarm(layout: Layout, record: Record) -> tuple[str, ...]:
    """Disarm the guest's setuid programs in directories that stay where others may look, since they would count as
    somebody else's: a directory that is not hutch's own has been guarded by a mount for as long as it was declared, and
    stays so where that fails. Its guest is stopped."""
    notes = []
    for owner in dict.fromkeys((record.wanted.uid, record.effective.uid)):
        guest = shares.Guest(record.uid_base, owner)
        for path in record.written:
            if path != str(layout.home(record.name)):
                notes += _disarm(layout, path, guest)
    return tuple(dict.fromkeys(notes))


def _disarm(layout: Layout, path: str, guest: shares.Guest) -> list[str]:
    try:
        shares.disarm(path, guest)
    except HutchError as error:
        if not shares.hold(layout, path, error.brief):
            return [f"any setuid files of the guest in {path} stay setuid, and nothing guards them: {error.brief}"]
    return []


def remove(layout: Layout, leaving: Mapping[str, Record], listen: Listener, *, purge: bool) -> None:
    """Remove workspaces; with `purge` their homes, keys and addresses too. `listen` is told of each, with notes for the
    user."""
    records, network = read_records(layout), read_network(layout)
    if gone := [name for name in leaving if name not in records]:
        raise HutchError(f"{', '.join(gone)} has just been removed by somebody else")
    notes = {}
    with journaled(layout, "remove", tuple(leaving)):
        stop(layout, leaving)
        for name, record in leaving.items():
            is_lost = record.effective.persist == "all" and not record.removed
            lost = ("everything outside its home is deleted",) if is_lost else ()
            notes[name] = (*lost, *mark_removed(layout, records, name, listen, purge=purge))
        reconcile.reconcile_again(layout, network, records)
    guards = shares.kept_guards(layout)
    for name, record in leaving.items():
        is_here = is_local(record.wanted)  # of a home on a server, its engine tells
        kept = (f"home is kept in {record.wanted.home}",) if is_here else ()
        home = purge_workspace(layout, record) if purge else kept
        text = "; ".join((*home, *notes[name], *guards))
        listen(name, "removed", f"({text})" if text else "")


def purge_workspace(layout: Layout, record: Record) -> tuple[str, ...]:
    """Delete all that is kept of a removed workspace, but a home that is not hutch's. Returns notes for the user."""
    name, home = record.name, record.wanted.home
    kept = own_settings((layout.unit(name), layout.slice(name)))
    notes = tuple(f"{path} is your own and was left alone; it counts for the next {name}, too" for path in kept)
    is_own = home in (None, str(layout.home(name)))
    with journaled(layout, PURGE, (name,)):
        if home is not None:
            release_quota(home, record.uid_base, is_kept=not is_own)
        notes += delete_workspace(layout, name)
    return notes if is_own else (f"{home} is a directory of your own and was left alone", *notes)


def delete_workspace(layout: Layout, name: str) -> tuple[str, ...]:
    """Delete all that is kept of a workspace; with the last one, hutch's own keys, what `doctor --fix` changed of
    others', and empty directories. Images stay. Returns notes for the user.

    The record goes last but for its directory: until then, what is being deleted has a name.
    """
    shares.release(layout, str(layout.home(name)))
    remove_tree(layout.home(name))
    remove_tree(layout.egress_records(name))
    remove_record(layout, name)
    for entry in entries(layout.workspace(name)):
        if entry != layout.record(name):
            remove_tree(entry)
    remove_tree(layout.workspace(name))
    notes: tuple[str, ...] = ()
    if not read_records(layout):
        notes = give_back(layout, is_leaving=False)
        shells.remove(layout)
        for keys in key_directories(layout):
            remove_tree(keys)
        state = (layout.workspaces, layout.egress, layout.keys)
        for directory in (*state, layout.run / "workspaces", layout.run):
            with suppress(OSError):
                directory.rmdir()
    return notes


def give_back(layout: Layout, *, is_leaving: bool = True) -> tuple[str, ...]:
    """Undo the changes of `doctor --fix`, as far as possible; the members' way in only if hutch `is_leaving`. Returns
    the failures, in words, which stay noted."""
    if not layout.repairs.exists():
        return ()
    try:
        with troubles_told(), host_lock():
            failures = repairs.take_back(layout, lambda change: None, is_leaving=is_leaving)
    except HutchError as error:
        failures = [error.brief]
    return tuple(f"of `doctor --fix`, this stays: {failure}; then `hutch doctor --undo`" for failure in failures)
