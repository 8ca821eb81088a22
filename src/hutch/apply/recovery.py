"""Recovery: undoes, or finishes, the half-done work of a killed run, before the next one begins."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path

from hutch.errors import HutchError
from hutch.files import TEMPORARY, entries, remove_flat, sync_directory, temporary_of
from hutch.host.identity.holders import lost_holders
from hutch.host.services.cgroup import Cgroup
from hutch.host.services.lock import host_lock
from hutch.host.services.process import is_alive
from hutch.runtime import control
from hutch.runtime.control import Listener
from hutch.runtime.observe import observe
from hutch.spec.names import Layout, inspected_by
from hutch.spec.record import Record, present
from hutch.spec.sharing import RETIRED, with_lost_keys
from hutch.state import EJECT, PURGE, journaled, read_network, read_records, unfinished, write_record

COMMANDS = {PURGE: "rm --purge", "remove": "rm"}
POINTS = ("snapshot", "restore", "fork")
"""Commands that change a server, and stop and start nothing of this host."""


def recover(layout: Layout, listen: Listener) -> None:
    """Bring the host back to what the records say. The caller holds the lock; costs one look when all is well."""
    temporary_of(layout.journal).unlink(missing_ok=True)  # left by a run that was killed before it began
    end_looks(layout)
    for path in layout.run.glob("workspaces/*/by"):  # a command that was killed is nobody's any more
        path.unlink(missing_ok=True)
    withdraw_keys(layout)
    if (found := unfinished(layout)) is not None:
        (recover_points if found[0] in POINTS else recover_host)(layout, *found, listen)


def recover_host(layout: Layout, action: str, names: tuple[str, ...], listen: Listener) -> None:
    """Undo, or finish, an action of this host."""
    # Spares the start-up of `hutch start`, which finds nothing half done as a rule.
    from hutch.apply import reconcile
    from hutch.apply.ejecting import recover_ejected
    from hutch.apply.removal import delete_workspace

    earlier = "an earlier command" if action == "unknown" else f"an earlier `hutch {COMMANDS.get(action, action)}`"
    for name in names:
        listen(name, "warning", f"{earlier} was cut short, and is undone first")
        if observe(layout, name).state != "running" or action == PURGE:
            control.stop_all(layout, [name])
    if action in (EJECT, "unknown"):
        recover_ejected(layout, names)
    records = {name: r for name, r in read_records(layout).items() if not (action == PURGE and name in names)}
    network, is_reconciled = read_network(layout), True
    try:
        reconcile.reconcile_again(layout, network, records)
    except HutchError as error:
        # Somebody else may have the addresses by now. That is no reason to refuse a command that wants another
        # network, or none: it reconciles the host itself, or clears it.
        if network is None or not present(records):
            raise
        listen("network", "warning", f"cannot be as it was: {error.brief}")
        is_reconciled = False
    if action == PURGE:
        with journaled(layout, PURGE, names):
            for name in names:
                for note in delete_workspace(layout, name):
                    listen(name, "warning", note)
    collect_leftovers(layout, present(records))
    if is_reconciled:
        layout.journal.unlink(missing_ok=True)


def recover_points(layout: Layout, action: str, names: Iterable[str], listen: Listener) -> None:
    """Undo what a `hutch snapshot`, `restore` or `fork` that was cut short has left at the servers. One that does not
    answer is told of: the next such command, or the next start, does it."""
    # Spares the start-up of `hutch start`, as above.
    from hutch.engines import snapshots_of

    records = read_records(layout)
    known = {record.machine_id for record in records.values()}
    for name, record in records.items():
        points = snapshots_of(layout, record) if name in names and not record.removed else None
        if points is None:
            continue
        try:
            for text in points.recover(record, known):
                listen(name, "warning", f"an earlier `hutch {action}` was cut short: {text}")
        except HutchError as error:
            listen(name, "warning", f"leftovers of an earlier `hutch {action}` cannot be removed yet: {error.brief}")
    collect_leftovers(layout, present(records))
    layout.journal.unlink(missing_ok=True)


def withdraw_keys(layout: Layout) -> None:
    """Have the keys made anew that others than their holders have, and note what they open until `up` has seen to it.
    May be called again, after a crash too: the records come first, and the copy of root's key goes last."""
    lost = lost_holders(layout)
    if not lost:
        return
    for record in read_records(layout).values():
        if (noted := with_lost_keys(record, lost)) != record:
            write_record(layout, noted)
    for holder in lost - {"0"}:
        remove_flat(layout.key(holder).parent)
    if "0" in lost:
        retired = layout.key(RETIRED).parent
        if layout.key(0).exists() and not retired.exists():
            os.rename(layout.key(0).parent, retired)
            sync_directory(layout.keys)
        remove_flat(layout.old_group_key.parent)


# Leftovers.


def end_looks(layout: Layout) -> None:
    """End what is left of an `rm` that was killed while it looked for unsaved work. One that goes on holds no lock, so
    the cgroup's name says whose it is."""
    with closing(Cgroup(layout.cgroup_of_all)) as all_of_them:
        groups = all_of_them.groups()
    for group in groups:
        if (whose := inspected_by(group)) and not is_alive(*whose):
            # Spares the start-up of `hutch start`, as above.
            from hutch.images.contain import end_contained

            end_contained(f"{layout.cgroup_of_all}/{group}")


def collect_leftovers(layout: Layout, records: Mapping[str, Record]) -> None:
    """Remove files that a killed run began to write, and its remains of workspaces that are no more. `records` are
    those of the workspaces that exist. The caller holds the lock."""
    # Spares the start-up of `hutch start`, as above.
    from hutch.host.identity.hosts_file import HOSTS

    for path in half_written(layout):
        path.unlink(missing_ok=True)
    hosts = temporary_of(Path(os.path.realpath(HOSTS)))
    if hosts.exists():
        with host_lock():  # it may be another hutch that writes there just now
            hosts.unlink(missing_ok=True)
    for runtime in entries(layout.run / "workspaces"):
        if runtime.name not in records:
            control.stop_all(layout, [runtime.name])
            control.forget(layout, runtime.name)
    for directory in entries(layout.workspaces):
        with suppress(OSError):  # it is not empty
            directory.rmdir()


def half_written(layout: Layout) -> Iterator[Path]:
    """Temporary files of ours. Their names say whose they are: nobody else writes in these directories."""
    for top, pattern in (
        (layout.state, f".*{TEMPORARY}"),
        (layout.workspaces, f"*/.*{TEMPORARY}"),
        (layout.workspaces, "*/ssh/.*.new*"),
        (layout.keys, "*/.*.new*"),
        (layout.run, f".*{TEMPORARY}"),
        (layout.run / "workspaces", f"*/.*{TEMPORARY}"),
        (layout.run / "workspaces", "*/status.json.new"),
    ):
        yield from top.glob(pattern)
    yield temporary_of(layout.ssh_config)
