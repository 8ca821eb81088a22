"""The gate between a command and a supervisor that it has started: first the Launch comes through, then a byte that
says "you are where your guest is to run", and one that says "join the network". Imports stay few."""

from __future__ import annotations

import marshal
import os

TYPE_CHECKING = False  # see runtime/status
if TYPE_CHECKING:
    from typing import Any

LENGTH = 8  # bytes that say how long the Launch is
MOVED, GO = b"1", b"2"


def encode_launch(launch: dict[str, Any]) -> bytes:
    """A Launch as it goes from one process of this very interpreter to another."""
    data = marshal.dumps(launch)
    return len(data).to_bytes(LENGTH, "little") + data


def receive_launch(gate: int) -> dict[str, Any] | None:
    """The Launch, None when the command gave up before there was anything to run."""
    length = _read(gate, LENGTH)
    data = _read(gate, int.from_bytes(length, "little"))
    if not data:
        return None
    launch: dict[str, Any] = marshal.loads(data)
    return launch


def _read(descriptor: int, size: int) -> bytes:
    """Exactly so many bytes, or none when the other side is gone before they have come."""
    data = b""
    while len(data) < size:
        more = os.read(descriptor, size - len(data))
        if not more:
            return b""
        data += more
    return data
