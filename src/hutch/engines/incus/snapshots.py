"""The ability of workspaces on Incus servers to be kept as points in time.

See hutch.engines.protocols.Snapshots.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING

from hutch.engines.incus import forking, points, restoring
from hutch.engines.incus.client import Client
from hutch.engines.incus.preparing import Pools, render_instance
from hutch.engines.incus.ways import client_of, place_of
from hutch.spec.record import Record
from hutch.spec.snapshot import Snapshot

if TYPE_CHECKING:
    from hutch.spec.names import Layout
    from hutch.spec.record import Place


class IncusSnapshots:
    """The snapshots of all workspaces on Incus servers, by Incus's own."""

    def __init__(self, layout: Layout, connect: Callable[[Place], Client] | None = None) -> None:
        self.layout = layout
        self.connect = connect or partial(client_of, layout)

    def take(self, record: Record, tag: str) -> float:
        client = self._client(record)
        points.remove_unfinished(client, record)
        return points.take(client, record, tag)

    def list(self, record: Record) -> Sequence[Snapshot]:
        return points.snapshots(points.look(self._client(record), record))

    def delete(self, record: Record, tag: str) -> None:
        client = self._client(record)
        points.remove_unfinished(client, record)
        found = points.look(client, record)
        points.the_snapshot(found, record, tag)
        points.delete(client, record, tag, found)

    def check(self, record: Record, tag: str) -> tuple[str, ...]:
        return restoring.check(self._client(record), record, tag)

    def restore(self, record: Record, tag: str) -> None:
        client = self._client(record)
        points.remove_unfinished(client, record)
        restoring.check(client, record, tag)
        restoring.restore(client, record, tag, os.urandom(8).hex())

    def fork(self, record: Record, tag: str, copies: Sequence[Record], known: Collection[str]) -> float:
        client = self._client(record)
        points.remove_unfinished(client, record)
        forking.remove_copies(client, record, known)
        found = points.look(client, record)
        pools = Pools(
            found.instance.pool if found.instance is not None else "", found.home.pool if found.home is not None else ""
        )
        wanted = {
            new.name: (new, render_instance(self.layout, new, new.wanted, new.image, pools, secrets=False))
            for new in copies
        }
        return forking.fork(client, record, tag, wanted, known)

    def confirm(self, record: Record, copies: Sequence[Record]) -> None:
        forking.confirm(self._client(record), copies)

    def recover(self, record: Record, known: Collection[str]) -> tuple[str, ...]:
        client = self._client(record)
        points.await_operations(client, record)  # such as the stop that comes before a restore
        done = points.remove_unfinished(client, record)
        return (*done, *forking.remove_copies(client, record, known))

    def _client(self, record: Record) -> Client:
        return self.connect(place_of(record))
