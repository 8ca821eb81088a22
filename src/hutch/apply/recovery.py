"""Recovery: undoes, or finishes, the half-done work of a killed run, before the next one begins."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from hutch.errors import HutchError
from hutch.files import TEMPORARY, entries, temporary_of
from hutch.host.services.lock import host_lock
from hutch.runtime import control
from hutch.runtime.control import Listener
from hutch.runtime.observe import observe
from hutch.spec.names import Layout
from hutch.spec.record import Record, present
from hutch.state import EJECT, PURGE, journaled, read_network, read_records, unfinished

COMMANDS = {PURGE: "rm --purge", "remove": "rm"}


def recover(layout: Layout, listen: Listener) -> None:
    """Bring the host back to what the records say. The caller holds the lock; costs one look when all is well."""
    temporary_of(layout.journal).unlink(missing_ok=True)  # left by a run that was killed before it began
    found = unfinished(layout)
    if found is None:
        return
    # Spares the start-up of `hutch start`, which finds nothing half done as a rule.
    from hutch.apply import reconcile
    from hutch.apply.ejecting import recover_ejected
    from hutch.apply.removal import delete_workspace

    action, names = found
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


# Leftovers.


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
        (layout.state / "keys", "*/.*.new*"),
        (layout.run, f".*{TEMPORARY}"),
        (layout.run / "workspaces", f"*/.*{TEMPORARY}"),
        (layout.run / "workspaces", "*/status.json.new"),
    ):
        yield from top.glob(pattern)
    yield temporary_of(layout.ssh_config)
