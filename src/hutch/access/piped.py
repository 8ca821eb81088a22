"""A process whose streams are pipes of ours: its input, its output, and its deadline.

Unlike `relay`, nothing here owns a signal or forks, so it works in any thread of somebody else's program. What the
process says may be a guest's: it is handed on in pieces as it comes, and nothing of it is kept here.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

from hutch.access.relay import CHUNK, read_some
from hutch.run import Popen, TimeoutExpired

DRAIN = 1 << 20  # bytes that are still taken from a stream when the process has ended: a pipe holds no more
GRACE = 5.0  # seconds that a process may take to end when it is asked to

Take = Callable[[bytes], None]
"""A callback, called with the output of a process on one stream."""


class Overdue(Exception):
    """Raised by `carry` when the process has not ended in time. No TimeoutError, which anything may raise."""


class Cancelled(BaseException):
    """Raised by `carry` when another thread has cancelled it. Nobody should catch it by mistake."""


class Canceller:
    """Cancels the process that another thread carries, or will: `cancel` may be called by any thread, at any time.
    `tell` calls the listeners of that thread: it is given one, and what it is told."""

    def __init__(self, tell: Callable[..., object] = lambda listener, *words: listener(*words)) -> None:
        self.tell = tell
        self._lock = threading.Lock()
        self._is_cancelled = False
        self._running: Piped | None = None

    @contextmanager
    def watching(self, piped: Piped) -> Iterator[None]:
        """Let `cancel` end this process within the context, which closes it in the end."""
        try:
            with self._lock:
                self._running = piped
                if self._is_cancelled:
                    piped.cancel()
            yield
        finally:
            with self._lock:
                self._running = None
            piped.close()

    def cancel(self) -> None:
        with self._lock:
            self._is_cancelled = True
            if self._running is not None:
                self._running.cancel()


CURRENT: ContextVar[Canceller | None] = ContextVar("CURRENT", default=None)
"""The canceller of this thread's work, None where nobody may cancel it."""


def current_canceller() -> Canceller:
    return CURRENT.get() or Canceller()


class Piped:
    """A started process. `stdin` is its input, in pieces; None among them is "nothing yet", and the next piece is asked
    for when it has said something. It is ended by the signal `end_by`, and by force `patience` seconds later."""

    def __init__(self, process: Popen[bytes], *, end_by: int = signal.SIGTERM, patience: float | None = GRACE) -> None:
        self.process = process
        self.end_by = end_by
        self.patience = patience
        self.is_cancelled = False
        self._ending = threading.Lock()  # its number is signalled only while it is not reaped
        try:
            self._pidfd = os.pidfd_open(process.pid)
        except BaseException:
            process.kill()  # its number is its own until it is waited for
            process.wait()
            self._close_streams()
            raise

    def carry(
        self,
        takes: dict[int, Take],
        stdin: Iterable[bytes | None] = (),
        *,
        seconds: float | None = None,
    ) -> int:
        """Carry until the process has ended, and return its exit code. `takes` are the callbacks for its output, by our
        ends of them. Raises Overdue after `seconds`, and Cancelled when another thread has called it off."""
        deadline = None if seconds is None else time.monotonic() + seconds
        source = _Source(self.process.stdin.fileno() if self.process.stdin else -1, iter(stdin))
        for descriptor in (*takes, source.descriptor):
            if descriptor >= 0:
                os.set_blocking(descriptor, False)
        hearing = dict(takes)
        while not self._step(hearing, source, deadline):
            pass
        if self.is_cancelled:
            raise Cancelled
        for descriptor, take in hearing.items():
            _drain(descriptor, take)
        return self.process.wait()

    def _step(self, hearing: dict[int, Take], source: _Source, deadline: float | None) -> bool:
        """Wait, and do what can be done; True when the process has ended."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        for descriptor in hearing:
            poll.register(descriptor, select.POLLIN)
        if source.wants_to_write():
            poll.register(source.descriptor, select.POLLOUT)
        elif source.has_ended and self.process.stdin is not None:
            self.process.stdin.close()  # now, since it may wait for that and say nothing
            source.descriptor = -1
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise Overdue
        ready = dict(poll.poll(None if left is None else 1000 * left))
        if source.descriptor in ready:
            source.write()
        for descriptor, take in list(hearing.items()):
            if descriptor in ready and not _hear(descriptor, take):
                del hearing[descriptor]
            elif descriptor in ready:
                source.is_waiting = False
        return self._pidfd in ready

    def cancel(self) -> None:
        """Have the process end, which whoever carries it will notice. Any thread may call it."""
        self.is_cancelled = True
        self._signal(self.end_by)

    def _signal(self, number: int) -> None:
        with self._ending, suppress(ProcessLookupError):
            if self._pidfd >= 0:
                signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        """End the process unless it has ended: as it is to be ended, then by force. When that is interrupted, it ends
        by itself."""
        try:
            self._close_streams()
            self._end()
        finally:
            with self._ending:
                if self._pidfd >= 0:
                    os.close(self._pidfd)
                    self._pidfd = -1

    def _close_streams(self) -> None:
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with suppress(OSError):  # the last of what it was to read cannot be written any more
                    stream.close()

    def _end(self) -> None:
        if self.process.poll() is None:
            if not self.is_cancelled:
                self._signal(self.end_by)
            try:
                self.process.wait(self.patience)
            except TimeoutExpired:
                self._signal(signal.SIGKILL)
                self.process.wait()


class _Source:
    """The input of a process: pieces, and the pipe that they are written to."""

    def __init__(self, descriptor: int, pieces: Iterator[bytes | None]) -> None:
        self.descriptor = descriptor
        self.pieces = pieces
        self.pending = memoryview(b"")
        self.is_waiting = False
        self.has_ended = descriptor < 0

    def wants_to_write(self) -> bool:
        while not self.pending and not self.is_waiting and not self.has_ended:
            try:
                piece = next(self.pieces)
            except StopIteration:
                self.has_ended = True
            else:
                self.is_waiting = piece is None
                self.pending = memoryview(piece or b"")
        return bool(self.pending)

    def write(self) -> None:
        try:
            self.pending = self.pending[os.write(self.descriptor, self.pending[:CHUNK]) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:  # the process has closed its input
            self.pending, self.has_ended = memoryview(b""), True


def _hear(descriptor: int, take: Take) -> bool:
    """Hand on the output that has come; False at the end of the stream."""
    data = read_some(descriptor)
    if data:
        take(data)
    return data != b""


def _drain(descriptor: int, take: Take) -> None:
    """Hand on an ended process's last output. Processes that it left behind may go on; they are not waited for."""
    left = DRAIN
    while left > 0 and (data := read_some(descriptor, min(CHUNK, left))):
        take(data)
        left -= len(data)
