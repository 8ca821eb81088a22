"""Removal of workspaces: what stays of a removed one, and what a purge deletes."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from hutch.apply import reconcile
from hutch.egress import journal
from hutch.errors import HutchError, troubles_told
from hutch.files import entries
from hutch.host.doctor import repairs
from hutch.host.identity import shells
from hutch.host.services.lock import host_lock
from hutch.host.services.units import own_settings
from hutch.host.storage import shares
from hutch.host.storage.quota import release_quota
from hutch.runtime import control
from hutch.spec.names import Layout
from hutch.spec.record import Record
from hutch.state import PURGE, journaled, read_network, read_records, write_record
from hutch.trees.removing import remove_tree


def mark_removed(layout: Layout, records: dict[str, Record], name: str) -> tuple[str, ...]:
    """Remove all of a workspace but home, key, address and uid range. Returns notes for the user."""
    notes = disarm(layout, records[name])
    records[name] = replace(records[name], removed=True, booted=None)
    write_record(layout, records[name])
    remove_tree(layout.root(name))  # the guest wrote in it
    control.forget(layout, name)
    return notes


def disarm(layout: Layout, record: Record) -> tuple[str, ...]:
    """Disarm the guest's setuid programs in directories that stay where others may look, since they would count as
    somebody else's: a directory that is not hutch's own has been guarded by a mount for as long as it was declared, and
    stays so where that fails. Its guest is stopped."""
    notes = []
    known = [record.wanted, *([record.booted.workspace] if record.booted else [])]
    for workspace in known:
        guest = shares.Guest(record.uid_base, workspace.uid)
        for path in shares.writable_paths(workspace):
            if path != str(layout.home(record.name)):
                notes += _disarm(layout, path, guest)
    return tuple(dict.fromkeys(notes))


def _disarm(layout: Layout, path: str, guest: shares.Guest) -> list[str]:
    try:
        shares.disarm(path, guest)
    except HutchError as error:
        if not shares.hold(layout, path, error.brief):
            return [f"what the guest made setuid in {path} still is, and nothing guards it: {error.brief}"]
    return []


def remove(layout: Layout, record: Record, *, purge: bool) -> tuple[str, ...]:
    """Remove a workspace; with `purge` its home, key and address too. Returns notes for the user."""
    name, home = record.name, record.wanted.home
    records, network = read_records(layout), read_network(layout)
    lost = (
        ("everything outside its home is deleted",) if record.effective.persist == "all" and not record.removed else ()
    )
    if name not in records:
        raise HutchError(f"{name} has just been removed by somebody else")
    with journaled(layout, "remove", (name,)):
        control.stop_all(layout, [name])
        notes = (*lost, *mark_removed(layout, records, name))
        reconcile.reconcile_again(layout, network, records)
    notes += tuple(shares.kept_guards(layout))
    if not purge:
        return (f"home is kept in {home}", *notes)
    kept = own_settings((layout.unit(name), layout.slice(name)))
    notes += tuple(f"{path} is your own and was left alone; it counts for the next {name}, too" for path in kept)
    is_own = home == str(layout.home(name))
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
    journal.remove(layout.egress, name)
    for entry in entries(layout.workspace(name)):
        if entry != layout.record(name):
            remove_tree(entry)
    remove_tree(layout.workspace(name))
    notes: tuple[str, ...] = ()
    if not read_records(layout):
        notes = give_back(layout)
        shells.remove(layout)
        remove_tree(layout.state / "keys")
        for directory in (layout.workspaces, layout.egress, layout.run / "workspaces", layout.run):
            with suppress(OSError):
                directory.rmdir()
    return notes


def give_back(layout: Layout) -> tuple[str, ...]:
    """Undo the changes of `doctor --fix`, as far as possible. Returns the failures, in words, which stay noted."""
    if not layout.repairs.exists():
        return ()
    try:
        with troubles_told(), host_lock():
            failures = repairs.take_back(layout, lambda change: None)
    except HutchError as error:
        failures = [error.brief]
    return tuple(f"of `doctor --fix`, this stays: {failure}; then `hutch doctor --undo`" for failure in failures)
