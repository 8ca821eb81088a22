"""A call of the engine in a process of its own: the caller's side of `worker`.

A command of hutch owns what a process has only one of: signals, a umask, locks, the right to fork. A thread of
somebody else's program has none of that, and nobody could interrupt it. So such calls run where the command line runs
them, in the main thread of a process that does nothing else; what ends them early is a signal.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

from hutch.access.piped import Piped, Take, current_canceller
from hutch.errors import HutchError
from hutch.frozen import dataclass
from hutch.run import describe, start
from hutch.spec.names import HANDED_ON, Layout
from hutch.spec.programs import own_program

HEADER = struct.Struct("!I")  # the length of the frame that follows

Streams = tuple[int | None, int | None, int | None]
"""The streams 0, 1 and 2 of a job, each hutch.run.PIPE, None for nothing, or a descriptor."""


@dataclass(frozen=True)
class Call:
    """A method of a Hutch, or of one of its workspaces, with its arguments. `end_by` is the signal that ends it early,
    and that it gets when its caller is gone."""

    layout: Layout
    method: str
    arguments: Mapping[str, Any]
    workspace: str = ""
    end_by: int = signal.SIGTERM


class Job(Piped):
    """A running Call. `events` are callbacks for what it tells a listener ("listen") and for progress of an image
    ("progress"); see Piped for `patience`."""

    def __init__(
        self,
        call: Call,
        streams: Streams = (None, None, None),
        *,
        patience: float | None = None,
        events: Mapping[str, Callable[..., object]] | None = None,
    ) -> None:
        self.events = events or {}
        self.outcome: tuple[str, Any] | None = None
        self.heard = b""
        told = pickle.dumps(sys.path) + pickle.dumps(call)
        with ExitStack() as undo:
            self.control, theirs = socket.socketpair()
            undo.callback(self.control.close)
            with theirs:
                process = start(
                    [*own_program("hutch.api.worker", sys.executable), str(theirs.fileno())],
                    stdin=streams[0],
                    stdout=streams[1],
                    stderr=streams[2],
                    env={name: os.environ[name] for name in HANDED_ON if name in os.environ},
                    pass_fds=[theirs.fileno()],
                    # Only a job with the caller's terminal gets signals typed there; all others are ended by the
                    # caller.
                    new_session=not any(stream is not None and stream >= 0 for stream in streams),
                )
            super().__init__(process, end_by=call.end_by, patience=patience)
            undo.callback(self.close)
            with suppress(ConnectionError):  # it has ended already, which is found out below
                self.control.sendall(told)
            undo.pop_all()

    def result(
        self,
        takes: Mapping[int, Take] | None = None,
        stdin: Iterable[bytes | None] = (),
        *,
        seconds: float | None = None,
    ) -> Any:
        """Carry the call, see Piped, and return its result. An error that it raised is raised."""
        code = self.carry({self.control.fileno(): self._hear, **(takes or {})}, stdin, seconds=seconds)
        if self.outcome is None:
            raise HutchError(f"a process of hutch's own {describe(code)} before it was done")
        kind, value = self.outcome
        if kind == "error":
            raise value
        return value

    def _hear(self, data: bytes) -> None:
        self.heard += data
        while len(self.heard) >= HEADER.size:
            end = HEADER.size + HEADER.unpack_from(self.heard)[0]
            if len(self.heard) < end:
                return
            # The frame comes from a process of our own, over sockets that have no name.
            kind, value = pickle.loads(self.heard[HEADER.size : end])
            self.heard = self.heard[end:]
            if kind in self.events:
                self.events[kind](*value)
            elif kind in ("result", "error"):
                self.outcome = kind, value

    def close(self) -> None:
        try:
            super().close()
        finally:
            self.control.close()


def change(call: Call, **events: Callable[..., object]) -> Any:
    """Carry out a call that changes the host, and return its result. Interrupted, it undoes what is half done, as an
    interrupted command does."""
    canceller = current_canceller()
    told = {kind: partial(canceller.tell, listener) for kind, listener in events.items()}
    with canceller.watching(job := Job(call, events=told)):
        return job.result()


def frame(value: object) -> bytes:
    """A value as a frame for the caller."""
    data = pickle.dumps(value)
    return HEADER.pack(len(data)) + data
