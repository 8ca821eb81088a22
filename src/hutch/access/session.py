"""One ssh with our ends of its streams, and the output of a command on one of them. Used by `remote`."""

from __future__ import annotations

import fcntl
import os
import select
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from hutch.access.relay import Channel, open_unblocked, read_some
from hutch.access.remote_script import Ear
from hutch.run import Popen, TimeoutExpired, start

GRACE = 2.0  # seconds that ssh may take to end


class Session:
    """A running ssh, and our ends of its streams: on a terminal all are the same. `ears` hears what its streams say,
    and `unsent` waits until it is taken. `env` is added to ssh's environment."""

    def __init__(self, argv: list[str], ears: list[Ear], *, terminal: bool, env: Mapping[str, str]) -> None:
        self.unsent = b""
        # In a session of its own: what is typed on our terminal interrupts us, and not ssh. It ends when we do.
        prefix = ["setpriv", "--pdeathsig", "TERM", *(["setsid", "--ctty"] if terminal else []), "--"]
        if terminal:
            self.input, inner = os.openpty()
            sources, inside = [self.input], [inner, inner, inner]
        else:
            reading, self.input = os.pipe2(os.O_CLOEXEC)
            pipes = [os.pipe2(os.O_CLOEXEC) for _ in ears]
            sources, inside = [pipe[0] for pipe in pipes], [reading, pipes[0][1], pipes[-1][1]]
        self.ears = dict(zip(sources, ears, strict=True))
        for descriptor in {self.input, *sources}:
            os.set_blocking(descriptor, False)
        try:
            self.process: Popen[bytes] = start(
                [*prefix, *argv],
                stdin=inside[0],
                stdout=inside[1],
                stderr=inside[2],
                env={"TERM": os.environ.get("TERM", "dumb"), **env},
                new_session=not terminal,
            )
        except BaseException:
            self.close_streams()
            raise
        finally:
            for descriptor in set(inside):
                os.close(descriptor)

    def interests(self) -> dict[int, int]:
        found = dict.fromkeys(self.ears, select.POLLIN)
        if self.unsent:
            found[self.input] = found.get(self.input, 0) | select.POLLOUT
        return found

    def exchange(self) -> bool:
        """Send what is taken, hear what is said; False when the session has ended."""
        with suppress(BlockingIOError, BrokenPipeError):
            self.unsent = self.unsent[os.write(self.input, self.unsent) :]
        goes_on = True
        for source, ear in self.ears.items():
            while (data := read_some(source)) is not None:
                if not data:
                    goes_on = False
                    break
                ear.take(data)
        return goes_on

    def give_away(self) -> dict[int, Ear]:
        """The streams, for whoever carries them from now on, and closes them."""
        found, self.ears = self.ears, {}
        return found

    def close_streams(self) -> None:
        for descriptor in {self.input, *self.ears} - {-1}:
            os.close(descriptor)
        self.input, self.ears = -1, {}

    def end(self, patience: float) -> None:
        """Wait for ssh to end by itself, then make it."""
        for ask, seconds in ((None, patience), (self.process.terminate, GRACE), (self.process.kill, None)):
            if ask is not None:
                ask()
            try:
                self.process.wait(seconds)
                return
            except TimeoutExpired:
                continue


class Spoken(Channel):
    """The output of a command on one of its streams. `on_change` is called when there may be no more to wait for. When
    nobody takes what it says, the other side is told so, unless the stream is `needed` since it tells the end."""

    def __init__(
        self, source: int, sink: int, ear: Ear, on_change: Callable[[], None], *, needed: bool, terminal: bool
    ) -> None:
        super().__init__(source, sink, owned=(sink,) if terminal else (sink, source), take=self._hear)
        self.ear = ear
        self.on_change = on_change
        self.needed = needed
        self.is_deaf = self.is_refused = False
        self.is_open = True
        self.size = 0
        self.heard_at = time.monotonic()

    def _hear(self, data: bytes) -> tuple[bytes, bool]:
        self.heard_at = time.monotonic()
        self.size += len(data)
        said = self.ear.take(data)
        self.on_change()
        return b"" if self.is_deaf else said, self.ear.code is not None

    def write(self) -> None:
        had_ended = self.has_ended
        super().write()
        if self.has_ended and not had_ended:
            self.is_deaf, self.is_refused = self.needed, not self.needed
            self.has_ended = not self.needed

    def close(self) -> None:
        super().close()
        self.is_open = False
        self.on_change()


def sink_of(number: int) -> int:
    """A descriptor to write to. The caller's position in a file is shared, so a file is not opened anew."""
    if stat.S_ISREG(os.fstat(number).st_mode):
        return fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3)
    return open_unblocked(number)
