"""What a killed run left half done is undone, or finished, before the next one begins."""

from __future__ import annotations

from hutch.spec.names import Places
from hutch.state import PURGE, journaled, read_network, read_records, unfinished
from hutch.supervise import control
from hutch.supervise.control import Listener
from hutch.supervise.observe import observe


def recover(places: Places, listen: Listener) -> None:
    """Bring the host back to what the records say. The caller holds the lock; costs one look when all is well."""
    found = unfinished(places)
    if found is None:
        return
    from hutch.apply import converge
    from hutch.apply.removal import delete_workspace

    action, names = found
    for name in names:
        if observe(places, name).state != "running" or action == PURGE:
            control.stop_all(places, [name])
    network = read_network(places)
    records = {name: r for name, r in read_records(places).items() if not (action == PURGE and name in names)}
    if network is not None and converge.present(records):
        converge.settle(places, network.network, network.file, records)
    else:
        converge.dismantle(places)
    if action == PURGE:
        with journaled(places, PURGE, names):
            for name in names:
                listen(name, "warning", "`hutch rm --purge` was killed while it deleted; deleting the rest")
                delete_workspace(places, name)
    places.journal.unlink(missing_ok=True)
