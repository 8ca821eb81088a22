"""hutch leaves the host. What stays are homes, keys, images and records: of these the next `up` makes the same
workspaces again.
"""

from __future__ import annotations

from hutch.apply import converge
from hutch.apply.removal import disarm, give_back
from hutch.apply.unsaved import obstacles
from hutch.errors import HutchError
from hutch.files import entries
from hutch.host.identity import shells
from hutch.host.services.units import has_systemd
from hutch.host.storage import shares
from hutch.host.storage.quota import release_quota
from hutch.runtime import control
from hutch.spec.names import Places
from hutch.state import Record, journaled, read_network, read_records
from hutch.trees.removing import remove_tree


def withdraw(places: Places) -> tuple[str, ...]:
    """Stop every workspace, and take from the host what is not under the state directory. May be called again. Returns
    notes for the user."""
    records = read_records(places)
    names = tuple(sorted({*converge.present(records), *(entry.name for entry in entries(places.run / "workspaces"))}))
    notes = [*give_back(places)]
    shells.remove(places)
    if not names and read_network(places) is None:
        return tuple(notes)  # nothing else was ever made, or all of it is gone
    with journaled(places, "withdraw", names):
        control.stop_all(places, names)
        for record in records.values():
            notes += disarm(places, record) if not record.removed else ()
            if not record.ejected:  # its home is nobody's but its own
                _lift_quota(places, record)
        for name in names:
            control.forget(places, name)
            if has_systemd():
                from hutch.runtime import systemd

                systemd.withdraw(places, name)
        converge.dismantle(places)
    return (*notes, *shares.kept_guards(places))


def check_saved(places: Places) -> None:
    """Refuse where unsaved git work or a live session is in the way."""
    found = {name: obstacles(places, record) for name, record in read_records(places).items() if not record.ejected}
    if details := [f"{name}: {line}" for name, lines in found.items() for line in lines]:
        raise HutchError(
            "nothing was removed", details="\n".join(details), resolution="--force removes it all the same"
        )


def _lift_quota(places: Places, record: Record) -> None:
    """A home that is somebody's own directory holds as much as before it was one. Starts limit it again."""
    home = record.wanted.home
    if home is not None and home != str(places.home(record.name)):
        release_quota(home, record.uid_base, is_kept=True)


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
