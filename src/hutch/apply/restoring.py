"""Damaged records are rebuilt from their copies by the first command that is to change something. Imports stay few."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hutch.files import entries
from hutch.host.services.lock import lock
from hutch.spec.names import Layout
from hutch.state import (
    NETWORK,
    WORKSPACE,
    Damaged,
    aside_of,
    decode,
    network_from,
    read_copy,
    read_network,
    read_record,
    read_records,
    record_from,
    restore,
)

if TYPE_CHECKING:
    from hutch.runtime.control import Listener
    from hutch.spec.record import NetworkRecord, Record

F = TypeVar("F", bound=Callable[..., Any])


def with_restored_records(method: F) -> F:
    """A decorator for methods that change something, of a class with `layout` and `listen`: records that turn out to be
    damaged are rebuilt from their copies, and the method is called again."""

    @functools.wraps(method)
    def wrapper(self: Any, *arguments: Any, **values: Any) -> Any:
        try:
            return method(self, *arguments, **values)
        except Damaged:
            if not restore_records(self.layout, self.listen):
                raise
        return method(self, *arguments, **values)

    return wrapper  # type: ignore[return-value]


def sound_records(layout: Layout) -> dict[str, Record]:
    """Every record; the copy of one that is damaged, and yet to be rebuilt. Raises Damaged where neither is sound."""
    try:
        return read_records(layout)
    except Damaged:
        names = [entry.name for entry in entries(layout.workspaces)]
        found = {name: _sound_record(layout, name) for name in names}
        return {name: record for name, record in found.items() if record is not None}


def _sound_record(layout: Layout, name: str) -> Record | None:
    try:
        return read_record(layout, name)
    except Damaged:
        path = layout.record(name)
        copy = read_copy(path)
        if copy is None:
            raise
        return record_from(decode(WORKSPACE, path, copy))


def sound_network(layout: Layout) -> NetworkRecord | None:
    """The record of the network, or its copy where it is damaged. Raises Damaged where neither is sound."""
    try:
        return read_network(layout)
    except Damaged:
        copy = read_copy(layout.network_record)
        if copy is None:
            raise
        return network_from(decode(NETWORK, layout.network_record, copy))


def restore_records(layout: Layout, listen: Listener) -> bool:
    """Rebuild every damaged record that has a sound copy; whether there was any."""
    has_restored = False
    with lock(layout):
        names = [entry.name for entry in entries(layout.workspaces)]
        readers: list[tuple[str, Path, Callable[[], object]]] = [
            ("network", layout.network_record, partial(read_network, layout)),
            *((name, layout.record(name), partial(read_record, layout, name)) for name in names),
        ]
        for name, path, read in readers:
            try:
                read()
            except Damaged as error:
                if restore(path):
                    what = f"kept as {aside_of(path)}" if aside_of(path).exists() else "gone"
                    listen(
                        name, "warning", f"{error.brief}; it was rebuilt from its copy, and the damaged one is {what}"
                    )
                    has_restored = True
    return has_restored
