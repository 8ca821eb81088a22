"""What the keeper has, for a proxy of tests: asked in the same words, without a process of its own."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import cast

from hutch.egress.keeper import Keeper, Kept, answer_of
from hutch.egress.sets import Sets


class NoSets(Sets):
    """Sets of no kernel."""

    def __init__(self) -> None:
        pass


class Direct:
    """The proxy's end of the channel."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper, self._answer = keeper, b""

    def send(self, request: bytes) -> None:
        self._answer = answer_of(self._keeper, request)

    def recv(self, _: int) -> bytes:
        return self._answer


def kept_in(directory: Path) -> Kept:
    """Files of records and inboxes, all in this directory."""
    return Kept(cast(socket.socket, Direct(Keeper(NoSets(), directory, directory))))
