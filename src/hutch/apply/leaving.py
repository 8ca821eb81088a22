"""How workspaces leave: removed, together with hutch itself, or ejected. What an earlier run left half done comes
first; what is in the way is looked for without the lock, since that takes as long as git does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hutch.apply import converge, ejecting, removal
from hutch.apply.recovery import recover
from hutch.apply.turning import check_host
from hutch.apply.unsaved import live_sessions, obstacles
from hutch.errors import HutchError, UsageError
from hutch.files import entries
from hutch.host.identity import shells
from hutch.host.services.lock import lock
from hutch.host.storage import shares
from hutch.host.storage.quota import release_quota
from hutch.plan.turning import refuse_recreate
from hutch.runtime import control
from hutch.runtime.control import Listener
from hutch.runtime.observe import observe
from hutch.spec.ejected import Ejected
from hutch.spec.names import Places, is_name
from hutch.spec.record import Record, has_processes, present
from hutch.state import journaled, read_network, read_record, read_records
from hutch.trees.removing import remove_tree


def remove(places: Places, name: str, listen: Listener, *, purge: bool, force: bool) -> tuple[str, ...]:
    """Stop and remove a workspace; see `Hutch.remove`. Returns notes for the user."""
    with lock(places):
        recover(places, listen)
    record = read_record(places, name) if is_name(name) else None
    if record is None or (record.removed and not purge):
        raise UsageError(f"there is no workspace {name}", resolution="`hutch ls` lists them")
    if record.removed and record.ejected:
        if ejecting.is_there(record):
            raise HutchError(
                f"{name} was ejected and is still there, with the address and the user ids that hutch keeps for it",
                resolution=f"{record.ejected}/remove takes it away",
            )
    elif not force:
        found = obstacles(places, record)
        if found:
            raise HutchError(
                f"{name} was not removed", details="\n".join(found), resolution="--force removes it all the same"
            )
    with lock(places):
        return removal.remove(places, record, purge=purge)


def uninstall(places: Places, listen: Listener, *, purge: bool, force: bool) -> tuple[str, ...]:
    """Take hutch off this host; see `Hutch.uninstall`. Returns notes for the user."""
    if not places.state.exists():
        return ()
    with lock(places):
        recover(places, listen)
    notes: list[str] = []
    if purge:
        if not force:
            check_saved(places)
        for name, record in read_records(places).items():
            if not record.ejected:  # which needs hutch no more
                notes += remove(places, name, listen, purge=True, force=True)
    with lock(places):
        notes += take_away(places)
        if purge:
            delete_state(places)
    return tuple(notes)


def take_away(places: Places) -> tuple[str, ...]:
    """Stop every workspace, and take from the host what is not under the state directory. What stays are homes, keys,
    images and records: of these the next `up` makes the same workspaces again. May be called again. Returns notes for
    the user."""
    records = read_records(places)
    names = tuple(sorted({*present(records), *(entry.name for entry in entries(places.run / "workspaces"))}))
    notes = [*removal.give_back(places)]
    shells.remove(places)
    if not names and read_network(places) is None:
        return tuple(notes)  # nothing else was ever made, or all of it is gone
    with journaled(places, "uninstall", names):
        control.stop_all(places, names)
        for record in records.values():
            notes += removal.disarm(places, record) if not record.removed else ()
            home = record.wanted.home
            # A directory of somebody's own holds as much as before it was a home. Starts limit it again.
            if not record.ejected and home is not None and home != str(places.home(record.name)):
                release_quota(home, record.uid_base, is_kept=True)
        for name in names:
            control.forget(places, name)
        converge.dismantle(places)
    return (*notes, *shares.kept_guards(places))


def check_saved(places: Places) -> None:
    """Refuse where unsaved git work or a live session is in the way."""
    found = {name: obstacles(places, record) for name, record in read_records(places).items() if not record.ejected}
    if details := [f"{name}: {line}" for name, lines in found.items() for line in lines]:
        raise HutchError(
            "nothing was removed", details="\n".join(details), resolution="--force removes it all the same"
        )


def delete_state(places: Places) -> None:
    """Delete what is left once no workspace is: images, above all, and what was learned of this host. What has been
    ejected needs nothing of it."""
    if found := [name for name, record in read_records(places).items() if not record.ejected]:
        raise HutchError(f"{places.state} stays: there is {', '.join(found)}", resolution="remove that first")
    if places.repairs.exists():
        raise HutchError(
            f"{places.state} stays: {places.repairs} is the note of what `hutch doctor --fix` changed, and not all of "
            "that could be taken back",
            resolution="`hutch doctor --undo` says what is in the way; or do without, and delete the note",
        )
    remove_tree(places.state)


def eject(
    places: Places,
    name: str,
    to: Path | None,
    listen: Listener,
    *,
    find: Callable[[str], Record],
    confirm: Callable[[str], None],
) -> Path:
    """Have a workspace go on without hutch; see `Hutch.eject`. `find` gives its record."""
    target = Ejected.beside(places, find(name).name, to)
    ejecting.check(places, find(name), target)
    at_work = live_sessions(places, find(name)) if has_processes(observe(places, name).state) else []
    confirm(", ".join((f"{name} goes to {target.state}, and hutch forgets it", *at_work)))
    with lock(places):
        recover(places, listen)
        record = find(name)
        so_not = ", so it was not ejected"
        refuse_recreate(record, so_not)
        check_host(places, [record], so_not)
        ejecting.check(places, record, target)
        ejecting.eject(places, record, target, listen)
    return target.state
