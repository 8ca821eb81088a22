"""A call of the engine in a process of its own: the caller's side of `worker`.

A command of hutch owns what a process has only one of: signals, a umask, locks, the right to fork. A thread of
somebody else's program has none of that, and nobody could interrupt it. So such calls run where the command line runs
them, in the main thread of a process that does nothing else; what ends them early is a signal.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, is_dataclass
from functools import partial
from typing import Any

from hutch.access.piped import Piped, Take, current_canceller
from hutch.errors import HutchError, UsageError
from hutch.frozen import dataclass
from hutch.run import describe, start
from hutch.spec.names import HANDED_ON, Layout
from hutch.spec.programs import own_program

HEADER = struct.Struct("!I")  # the length of the frame that follows
MOST_SAID = 1 << 30  # bytes of a frame

Streams = tuple[int | None, int | None, int | None]
"""The streams 0, 1 and 2 of a job, each hutch.run.PIPE, None for nothing, or a descriptor."""


@dataclass(frozen=True)
class Call:
    """A method of a Hutch, or of one of its workspaces, with its arguments. `end_by` is the signal that ends it early,
    and that it gets when its caller is gone. `account` are the uid and the gid that it runs as, where root calls for
    somebody else: its result is a value of JSON then, or a dataclass that comes as one."""

    layout: Layout
    method: str
    arguments: Mapping[str, Any]
    workspace: str = ""
    end_by: int = signal.SIGTERM
    account: tuple[int, int] | None = None


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
        self.decode = pickle.loads if call.account is None else decode_plain
        self.heard = b""
        told = pickle.dumps(sys.path) + pickle.dumps(call)
        with ExitStack() as undo:
            self.control, theirs = socket.socketpair()
            undo.callback(self.control.close)
            with theirs:
                process = start(
                    [*_become(call), *own_program("hutch.api.worker", sys.executable), str(theirs.fileno())],
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
            if end > MOST_SAID:
                raise HutchError("a process of hutch's own says more than anybody needs")
            if len(self.heard) < end:
                return
            kind, value = self.decode(self.heard[HEADER.size : end])
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


def _become(call: Call) -> tuple[str, ...]:
    """The words before a program that runs as a call's account."""
    if call.account is None:
        return ()
    uid, gid = call.account
    return ("setpriv", f"--reuid={uid}", f"--regid={gid}", "--init-groups", "--")


def change(call: Call, **events: Callable[..., object]) -> Any:
    """Carry out a call that changes the host, and return its result. Interrupted, it undoes what is half done, as an
    interrupted command does."""
    canceller = current_canceller()
    told = {kind: partial(canceller.tell, listener) for kind, listener in events.items()}
    with canceller.watching(job := Job(call, events=told)):
        return job.result()


def frame(kind: str, value: object) -> bytes:
    """What happened as a frame for a caller with the same account, whose word it is as well."""
    data = pickle.dumps((kind, value))
    return HEADER.pack(len(data)) + data


def plain_frame(kind: str, value: object) -> bytes:
    """The same for root, who called for this account: it may have made up all that it says."""
    if isinstance(value, HutchError):
        value = [value.brief, value.details, value.resolution, value.exit_code]
    elif is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    data = json.dumps([kind, value]).encode()
    return HEADER.pack(len(data)) + data


def decode_plain(data: bytes) -> tuple[str, Any]:
    """What `plain_frame` has said. Raises HutchError for anything else."""
    try:
        kind, value = json.loads(data)
        if kind != "error":
            return str(kind), value
        brief, details, resolution, code = value
        error = UsageError if code == UsageError.exit_code else HutchError
        return "error", error(str(brief), details=str(details), resolution=str(resolution))
    except (ValueError, TypeError, RecursionError) as error:
        raise HutchError("a process of hutch's own, with another account, does not say how it ended") from error
