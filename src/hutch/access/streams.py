"""The three streams of a command in a workspace. A terminal of the caller's never gets inside: whoever holds one can
read what is typed on it later, and type on it. So it is carried over a pseudo-terminal or a pipe of the command's own;
anything else is handed in as it is.
"""

from __future__ import annotations

import fcntl
import os
import signal
import termios
from collections.abc import Callable
from contextlib import nullcontext

from hutch.access.relay import Channel, open_unblocked, raw, relay

BY_FORCE = signal.SIGRTMIN
"""A signal to the process that carries a command's streams: kill the command and its process group at once."""


class Streams:
    """The streams of one command. `inside` are the descriptors that become the command's 0, 1 and 2. When `terminal` is
    not None, it is the host's end of the pseudo-terminal that is inside, and the one that controls the command."""

    def __init__(self, inside: tuple[int, int, int], channels: list[Channel], terminal: int | None = None) -> None:
        self.inside = inside
        self.channels = channels
        self.terminal = terminal

    def release(self) -> None:
        """Close the command's descriptors: in the caller, once the command has its own copies."""
        for descriptor in set(self.inside):
            if descriptor > 2:
                os.close(descriptor)

    def forget(self) -> None:
        """Close all streams: in a process that only waits for the command."""
        self.release()
        for channel in self.channels:
            channel.close()
        if self.terminal is not None:
            os.close(self.terminal)

    def arrange(self) -> None:
        """Take the streams on, and the pseudo-terminal as the controlling one: in the command."""
        if self.terminal is not None:
            fcntl.ioctl(self.inside[0], termios.TIOCSCTTY, 0)
        copies = [fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3) for descriptor in self.inside]
        for number, copy in enumerate(copies):
            os.dup2(copy, number)

    def relay(self, until: int) -> None:
        """Carry bytes until the command has ended, which the pidfd `until` tells: in the caller."""
        with nullcontext() if self.terminal is None else raw(0):
            if self.terminal is not None:
                self._follow_size(self.terminal)
            relay(self.channels, until=until)
        if self.terminal is not None:
            signal.signal(signal.SIGWINCH, signal.SIG_DFL)
            os.close(self.terminal)

    def _follow_size(self, terminal: int) -> None:
        def resize(number: int, frame: object) -> None:
            try:
                fcntl.ioctl(terminal, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8))
            except OSError:
                pass  # one of them has just hung up

        resize(0, None)
        signal.signal(signal.SIGWINCH, resize)


def captured(descriptor: int) -> Streams:
    """Streams without input, whose output all goes to one descriptor of the caller's, which stays open."""
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    output = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    return Streams((null, output, output), [])


def own_streams(open_terminal: Callable[[], tuple[int, int]]) -> Streams:
    """The caller's own streams. With a terminal at both ends the command gets one too, by `open_terminal`, which
    returns the host's end and the command's; a lone one becomes a pipe."""
    fill_gaps()
    terminals = [os.isatty(number) for number in (0, 1, 2)]
    if terminals[0] and terminals[1]:
        return _interactive(*open_terminal(), has_errors=terminals[2])
    inside, channels = [0, 1, 2], []
    for number in (0, 1, 2):
        if terminals[number]:
            reading, writing = os.pipe2(os.O_CLOEXEC)
            if number == 0:
                os.set_blocking(writing, False)
                inside[0] = reading
                channels.append(Channel(0, writing, owned=[writing]))
            else:
                os.set_blocking(reading, False)
                inside[number] = writing
                sink = open_unblocked(number)
                channels.append(Channel(reading, sink, owned=[reading, sink]))
    return Streams((inside[0], inside[1], inside[2]), channels)


def _interactive(terminal: int, inner: int, *, has_errors: bool) -> Streams:
    os.set_blocking(terminal, False)
    sink = open_unblocked(1)
    channels = [Channel(0, terminal), Channel(terminal, sink, owned=[sink])]
    return Streams((inner, inner, inner if has_errors else 2), channels, terminal)


def fill_gaps() -> None:
    """Open /dev/null for streams that the caller has closed: no file that is opened later may take their numbers."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open("/dev/null", os.O_RDWR)
