"""The host's side as units: it reconciles the host when it boots, and clears it when systemd is told to stop all; it
guards at boot what stopped workspaces have written; it brings the records of what workspaces did up to date; and it
makes images anew. A short program; nothing of it stays.

The command line reconciles the host itself and then starts services that want this unit, and it holds the lock
meanwhile. So nothing is done, and no lock waited for, where the host is already as asked.
"""

from __future__ import annotations

import os
import sys

from hutch.apply import reconcile
from hutch.apply.recording import fold_connections
from hutch.apply.restoring import with_restored_records
from hutch.audit.inbox import fold_all
from hutch.errors import HutchError, troubles_told
from hutch.host.network.namespace import has_namespace
from hutch.host.services.lock import Busy, lock
from hutch.host.services.units import is_stopping, is_wanted_again
from hutch.spec.names import Layout
from hutch.spec.record import served
from hutch.state import read_network, read_records

PATIENCE = 0.2  # seconds between two looks whether whoever holds the lock has done it
GUARD_PATIENCE = 60.0  # seconds for the lock: all logins wait for the guards, and systemd ends them after five minutes


class Host:
    """One hutch's side of the host."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def listen(self, name: str, event: str, text: str) -> None:
        """Print an event for the journal."""
        os.write(2, f"{name}: {text}\n".encode())

    def is_reconciled(self) -> bool:
        return self.layout.reconciled.exists() and has_namespace(self.layout)

    @with_restored_records
    def start(self) -> None:
        """Reconcile the host as the records say; systemd gives up on it in the end."""
        while not self.is_reconciled():
            try:
                with lock(self.layout, patience=PATIENCE):
                    self._reconcile()
                return
            except Busy:
                continue

    def _reconcile(self) -> None:
        network, records = read_network(self.layout), read_records(self.layout)
        if network is None or not served(records):
            raise HutchError("there is no workspace", resolution="`hutch up` makes those of a hutch.toml")
        reconcile.reconcile_host(self.layout, network.network, network.file, records, is_unit=True)

    @with_restored_records
    def guard(self) -> None:
        """Guard what workspaces have written, as the records say; nothing else of the host is there yet."""
        with lock(self.layout, patience=GUARD_PATIENCE):
            own = reconcile.own_records(self.layout, read_records(self.layout))
            reconcile.reconcile_guards(self.layout, own)

    def fold(self) -> None:
        """Fold into the records what others than root have told for them."""
        fold_all(self.layout, lambda name, text: self.listen(name, "warning", text))
        fold_connections(self.layout, self.listen)

    @with_restored_records
    def refresh(self, period: str) -> None:
        """Make the images anew whose workspaces ask for it in this period."""
        # Spares the start-up of `hutch start`, which may wait for this program to reconcile the host.
        from hutch.apply.refreshing import NotAllRefreshed, refresh
        from hutch.apply.units import due

        failure: NotAllRefreshed | None = None
        try:
            found = refresh(self.layout, due(read_records(self.layout), period), self.listen, lambda *words: None)
        except NotAllRefreshed as error:
            found, failure = error.done, error
        for line in (line for each in found for line in each.words):
            os.write(2, f"{line}\n".encode())
        if failure is not None:
            raise failure

    def stop(self) -> None:
        """Clear the host. When it goes down, all that is there goes with the kernel. Whoever holds the lock may be
        waiting for this unit to start again: then all stays as it is."""
        while has_namespace(self.layout):
            if is_stopping():
                self.layout.reconciled.unlink(missing_ok=True)
                return
            try:
                with lock(self.layout, patience=PATIENCE):
                    reconcile.clear(self.layout)
                return
            except Busy:
                if is_wanted_again(self.layout.network_unit):
                    return


def main(what: str, *words: str) -> None:
    try:
        with troubles_told():
            host = Host(Layout.from_environment())
            known = (host.start, host.guard, host.fold, host.refresh, host.stop)
            {each.__name__: each for each in known}[what](*words)
    except HutchError as error:
        sys.exit("\n".join(filter(None, (error.brief, error.details, error.resolution))))
