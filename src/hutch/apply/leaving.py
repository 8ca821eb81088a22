"""The ways in which workspaces leave: removed, together with hutch itself, or ejected. Half-done work of an earlier run
comes first; obstacles are looked for without the lock, since that takes as long as git does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from hutch.apply import ejecting, reconcile, removal
from hutch.apply.holdings import check_runtime, has_state, own_in_state
from hutch.apply.membership import refuse_others
from hutch.apply.moving import forget_other
from hutch.apply.recovery import recover
from hutch.apply.turning import check_host
from hutch.apply.unsaved import live_sessions, obstacles
from hutch.audit.removing import remove_all_records
from hutch.engines import elsewhere
from hutch.errors import HutchError, UsageError
from hutch.files import entries
from hutch.host.identity import shells
from hutch.host.network.namespace import has_namespace
from hutch.host.services.lock import lock
from hutch.host.storage import shares
from hutch.host.storage.placeholders import remove_placeholders
from hutch.host.storage.quota import release_quota
from hutch.images.cache import collect_leftovers
from hutch.plan.turning import refuse_moving, refuse_recreate
from hutch.runtime import control
from hutch.runtime.control import Listener
from hutch.runtime.observe import observe
from hutch.spec.ejected import Ejected
from hutch.spec.names import Layout, is_name
from hutch.spec.record import Record, has_processes, present
from hutch.state import journaled, read_network, read_record, read_records
from hutch.trees.removing import remove_tree


def remove(layout: Layout, names: str | Iterable[str], listen: Listener, *, purge: bool, force: bool) -> None:
    """Stop and remove workspaces; see `Hutch.remove`. `listen` is told of each, with notes for the user."""
    names = [names] if isinstance(names, str) else list(names)
    refuse_others(layout, names)
    with lock(layout):
        recover(layout, listen)
    records = {name: read_record(layout, name) if is_name(name) else None for name in names}
    found = {name: record for name, record in records.items() if record and (purge or not record.removed)}
    if unknown := [name for name in records if name not in found]:
        raise UsageError(f"there is no workspace {', '.join(unknown)}", resolution="`hutch ls` lists them")
    for name, record in found.items():
        if record.removed and record.ejected and ejecting.is_there(record):
            raise HutchError(
                f"{name} was ejected and is still there, with the address and the user ids that hutch keeps for it",
                resolution=f"{record.ejected}/remove takes it away",
            )
    if not force:
        check_saved(layout, found, purge=purge)
    with lock(layout):
        refuse_others(layout, found)
        found = {name: forget_other(layout, record, listen, force=force) for name, record in found.items()}
        removal.remove(layout, found, listen, purge=purge)


def uninstall(layout: Layout, listen: Listener, *, purge: bool, force: bool) -> tuple[str, ...]:
    """Take hutch off this host; see `Hutch.uninstall`. Returns notes for the user."""
    if not layout.state.exists() and not has_namespace(layout):
        return ()
    if not has_state(layout) and not has_namespace(layout):
        return (f"{layout.state} holds nothing of hutch's, and was left alone",)
    check_runtime(layout)
    with lock(layout):
        recover(layout, listen)
    notes: list[str] = []
    # Those that were ejected need it no more.
    if purge and (own := [name for name, record in read_records(layout).items() if not record.ejected]):
        remove(layout, own, listen, purge=True, force=force)
    with lock(layout):
        notes += take_away(layout)
        if purge:
            notes += delete_state(layout)
        else:
            notes.append(f"homes, keys and images are kept in {layout.state}")
    return tuple(notes)


def take_away(layout: Layout) -> tuple[str, ...]:
    """Stop every workspace, and take from the host all that is not under the state directory. Homes, keys, images and
    records stay: of these the next `up` makes the same workspaces again. May be called again. Returns notes for the
    user."""
    records = read_records(layout)
    names = tuple(sorted({*present(records), *(entry.name for entry in entries(layout.run / "workspaces"))}))
    notes = [*removal.give_back(layout)]
    shells.remove(layout)
    if not names and read_network(layout) is None and not has_namespace(layout):
        return tuple(notes)  # nothing else was ever made, or all of it is gone
    with journaled(layout, "uninstall", names):
        control.stop_all(layout, names)
        for record in records.values():
            notes += removal.disarm(layout, record) if not record.removed else ()
            home = record.wanted.home
            # A directory of somebody's own holds as much as before it was a home. Starts limit it again.
            if not record.ejected and home is not None and home != str(layout.home(record.name)):
                release_quota(home, record.uid_base, is_kept=True)
        for name in names:
            remove_placeholders(layout.placeholders, name)
            control.forget(layout, name)
        reconcile.dismantle(layout)
    if left := elsewhere(present(records)):
        notes.append(f"{', '.join(left)} of Incus servers are left there as they are; `hutch up` knows them again")
    return (*notes, *shares.kept_guards(layout))


def check_saved(layout: Layout, records: Mapping[str, Record], *, purge: bool) -> None:
    """Refuse where unsaved git work or a live session is in the way. An ejected workspace has neither here."""
    found = {name: obstacles(layout, record) for name, record in records.items() if not record.ejected}
    if details := [f"{name}: {line}" for name, lines in found.items() for line in lines]:
        fate = "and deletes the home" if purge else "and keeps the home"
        raise HutchError(
            "nothing was removed", details="\n".join(details), resolution=f"--force removes the workspace {fate}"
        )


def delete_state(layout: Layout) -> tuple[str, ...]:
    """Delete the state directory once no workspace is left: images, above all, and facts learned of this host. Ejected
    workspaces need nothing of it. What is not hutch's stays, in the directories that it lies in. Returns notes for the
    user."""
    if found := [name for name, record in read_records(layout).items() if not record.ejected]:
        raise HutchError(f"{layout.state} stays: there is {', '.join(found)}", resolution="remove that first")
    if layout.repairs.exists():
        raise HutchError(
            f"{layout.state} stays: {layout.repairs} is the note of changes by `hutch doctor --fix`, and not all of "
            "them could be taken back",
            resolution="`hutch doctor --undo` says why; or do without, and delete the note",
        )
    collect_leftovers(layout)
    for path in own_in_state(layout):
        remove_tree(path)
    remove_all_records(layout)
    parts = (layout.images, layout.workspaces, layout.egress, layout.keys, layout.user_views)
    for directory in (*parts, layout.addresses, layout.audits / "inbox", layout.audits, layout.state):
        with suppress(OSError):  # it holds something else, or is not there
            directory.rmdir()
    return (f"{layout.state} stays: it holds foreign files",) if layout.state.exists() else ()


def eject(
    layout: Layout,
    name: str,
    to: Path | None,
    listen: Listener,
    *,
    find: Callable[[str], Record],
    confirm: Callable[[str], None],
) -> Path:
    """Have a workspace go on without hutch; see `Hutch.eject`. `find` gives its record."""
    target = Ejected.beside(layout, find(name).name, to)
    ejecting.check(layout, find(name), target)
    at_work = live_sessions(layout, find(name)) if has_processes(observe(layout, name).state) else []
    confirm(", ".join((f"{name} goes to {target.state}, and hutch forgets it", *at_work)))
    with lock(layout):
        recover(layout, listen)
        record = find(name)
        so_not = ", so it was not ejected"
        refuse_moving(record, so_not)
        refuse_recreate(record, so_not)
        check_host(layout, [record], so_not)
        ejecting.check(layout, record, target)
        ejecting.eject(layout, record, target, listen)
    return target.state
