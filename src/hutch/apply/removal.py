"""Taking workspaces away: what stays of a removed one, and what a purge deletes."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from hutch.apply import converge
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
from hutch.spec.names import Places
from hutch.spec.record import Record
from hutch.state import PURGE, journaled, read_network, read_records, write_record
from hutch.trees.removing import remove_tree


def mark_removed(places: Places, records: dict[str, Record], name: str) -> tuple[str, ...]:
    """Home, key, address and uid range stay; everything else of the workspace goes. Returns notes for the user."""
    notes = disarm(places, records[name])
    records[name] = replace(records[name], removed=True, booted=None)
    write_record(places, records[name])
    remove_tree(places.root(name))  # in which the guest wrote
    control.forget(places, name)
    return notes


def disarm(places: Places, record: Record) -> tuple[str, ...]:
    """What stays of a workspace where others may look must not hold programs of its guest's that count as somebody
    else's: a directory that is not hutch's own has been guarded by a mount for as long as it was declared, and stays
    so where that fails. Its guest is stopped."""
    notes = []
    known = [record.wanted, *([record.booted.workspace] if record.booted else [])]
    for workspace in known:
        guest = shares.Guest(record.uid_base, workspace.uid)
        for path in shares.writable_paths(workspace):
            if path != str(places.home(record.name)):
                notes += _disarm(places, path, guest)
    return tuple(dict.fromkeys(notes))


def _disarm(places: Places, path: str, guest: shares.Guest) -> list[str]:
    try:
        shares.disarm(path, guest)
    except HutchError as error:
        if not shares.hold(places, path, error.brief):
            return [f"what the guest made setuid in {path} still is, and nothing guards it: {error.brief}"]
    return []


def remove(places: Places, record: Record, *, purge: bool) -> tuple[str, ...]:
    """Remove a workspace; with `purge` its home, key and address too. Returns notes for the user."""
    name, home = record.name, record.wanted.home
    records, network = read_records(places), read_network(places)
    lost = (
        ("everything outside its home is deleted",) if record.effective.persist == "all" and not record.removed else ()
    )
    if name not in records:
        raise HutchError(f"{name} has just been removed by somebody else")
    with journaled(places, "remove", (name,)):
        control.stop_all(places, [name])
        notes = (*lost, *mark_removed(places, records, name))
        converge.settle_again(places, network, records)
    notes += tuple(shares.kept_guards(places))
    if not purge:
        return (f"home is kept in {home}", *notes)
    kept = own_settings((places.unit(name), places.slice(name)))
    notes += tuple(f"{path} is your own and was left alone; it counts for the next {name}, too" for path in kept)
    is_own = home == str(places.home(name))
    with journaled(places, PURGE, (name,)):
        if home is not None:
            release_quota(home, record.uid_base, is_kept=not is_own)
        notes += delete_workspace(places, name)
    return notes if is_own else (f"{home} is a directory of your own and was left alone", *notes)


def delete_workspace(places: Places, name: str) -> tuple[str, ...]:
    """Delete all that is kept of a workspace; with the last one, hutch's own keys, what `doctor --fix` changed of
    others', and empty directories. Images stay. Returns notes for the user.

    The record goes last but for its directory: until then, what is being deleted has a name.
    """
    shares.release(places, str(places.home(name)))
    remove_tree(places.home(name))
    journal.remove(places.egress, name)
    for entry in entries(places.workspace(name)):
        if entry != places.record(name):
            remove_tree(entry)
    remove_tree(places.workspace(name))
    notes: tuple[str, ...] = ()
    if not read_records(places):
        notes = give_back(places)
        shells.remove(places)
        remove_tree(places.state / "keys")
        for directory in (places.workspaces, places.egress, places.run / "workspaces", places.run):
            with suppress(OSError):
                directory.rmdir()
    return notes


def give_back(places: Places) -> tuple[str, ...]:
    """Undo what `doctor --fix` did, as far as it can be. Returns what could not be, in words, which stays noted."""
    if not places.repairs.exists():
        return ()
    try:
        with troubles_told(), host_lock():
            failures = repairs.take_back(places, lambda change: None)
    except HutchError as error:
        failures = [error.brief]
    return tuple(f"of `doctor --fix`, this stays: {failure}; then `hutch doctor --undo`" for failure in failures)
