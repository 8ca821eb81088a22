"""Carries bytes between descriptors: our terminal and a pseudo-terminal, a pipe or a socket of the other side.

What one side does not take waits here and holds up nothing else: no more is read for it meanwhile, so the
memory that it costs is bounded.
"""

from __future__ import annotations

import os
import select
import termios
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

CHUNK = 65536
DRAIN_CHUNKS = 64
BACKGROUND_SECONDS = 0.3  # until a terminal whose foreground we are not is looked at again


def read_some(source: int, size: int = CHUNK) -> bytes | None:
    """The bytes that are there, up to a size: None for nothing yet, b"" at the end of the stream. A pseudo-terminal
    whose other side has closed ends by an error, and so does a socket whose other end was closed with data unread."""
    try:
        return os.read(source, size)
    except BlockingIOError:
        return None
    except OSError:
        return b""


class Channel:
    """One direction of a connection. `owned` are descriptors to close when it is over. `take` sees what was read, and
    returns what is to be passed on and whether that is the last of it."""

    def __init__(
        self,
        source: int,
        sink: int,
        *,
        owned: Sequence[int] = (),
        take: Callable[[bytes], tuple[bytes, bool]] = lambda data: (data, False),
    ) -> None:
        self.source = source
        self.sink = sink
        self.owned = tuple(owned)
        self.take = take
        self.pending = b""
        self.has_ended = False

    @property
    def is_over(self) -> bool:
        return self.has_ended and not self.pending

    def read(self) -> None:
        data = read_some(self.source)
        if data is not None:
            self.pending, is_last = self.take(data)
            self.has_ended = is_last or not data

    def write(self) -> None:
        try:
            self.pending = self.pending[os.write(self.sink, self.pending) :]
        except BlockingIOError:
            pass
        except OSError:  # nobody takes it any more
            self.pending, self.has_ended = b"", True

    def close(self) -> None:
        for descriptor in self.owned:
            os.close(descriptor)
        self.owned = ()


def relay(channels: Sequence[Channel], *, until: int | None = None) -> None:
    """Carry until `until` can be read (a pidfd; what was said by then still arrives), or else until one is over."""
    running = list(channels)
    try:
        while running:
            poll, idle = _interests(running)
            if until is not None:
                poll.register(until, select.POLLIN)
            ready = dict(poll.poll(BACKGROUND_SECONDS * 1000 if idle else None))
            _carry(running, ready)
            if until is None and any(channel.is_over for channel in running):
                return
            for channel in [channel for channel in running if channel.is_over]:
                running.remove(channel)
                channel.close()
            if until is not None and until in ready:
                _drain(running)
                return
            if not running and until is not None:
                select.select([until], [], [])
    finally:
        for channel in running:
            channel.close()


def _interests(channels: Sequence[Channel]) -> tuple[select.poll, bool]:
    """A poll for the descriptors to wait for, and whether a terminal is left out since it is not ours to read now."""
    events: dict[int, int] = {}
    idle = False
    for channel in channels:
        if channel.pending:
            events[channel.sink] = events.get(channel.sink, 0) | select.POLLOUT
        elif _is_ours_to_read(channel.source):
            events[channel.source] = events.get(channel.source, 0) | select.POLLIN
        else:
            idle = True
    poll = select.poll()
    for descriptor, wanted in events.items():
        poll.register(descriptor, wanted)
    return poll, idle


def _carry(channels: Sequence[Channel], ready: dict[int, int]) -> None:
    for channel in channels:
        if channel.pending:
            if ready.get(channel.sink, 0) & (select.POLLOUT | select.POLLERR | select.POLLHUP):
                channel.write()
        elif ready.get(channel.source, 0) & (select.POLLIN | select.POLLERR | select.POLLHUP):
            channel.read()


def _drain(channels: Sequence[Channel], patience: float = 30.0) -> None:
    """Pass on the last output of the other side, which has ended, as long as the sink takes it."""
    for channel in channels:
        if channel.source <= 2:
            continue  # nobody is left to read what we say
        more = DRAIN_CHUNKS  # its children may go on to write without end
        while channel.pending or (more and not channel.has_ended and is_ready(channel.source)):
            if not channel.pending:
                channel.read()
                more -= 1
            elif select.select([], [channel.sink], [], patience)[1]:
                channel.write()
            else:
                break


def is_ready(descriptor: int) -> bool:
    """Whether a descriptor can be read now."""
    return bool(select.select([descriptor], [], [], 0)[0])


def _is_ours_to_read(descriptor: int) -> bool:
    """False for our terminal while somebody else is in its foreground: reading it then would stop us (SIGTTIN)."""
    if descriptor > 2:
        return True
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:  # no terminal, or not the one that controls us
        return True


def open_unblocked(descriptor: int) -> int:
    """A new descriptor of the same file, opened with O_NONBLOCK, since others who have it open share that flag. Where
    it cannot be opened again, a plain copy."""
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return os.dup(descriptor)


@contextmanager
def raw(terminal: int) -> Iterator[None]:
    """Have a terminal pass every key on within the context; afterwards it is as it was before."""
    saved = termios.tcgetattr(terminal)
    try:
        tty.setraw(terminal, termios.TCSADRAIN)  # input that was typed ahead stays
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, saved)
