"""Output that holds nothing up: what a member had root's process write to may take nothing, for as long as they like (a
pipe that nobody reads, a terminal that is stopped, a file of a file system of their own), while it has hutch's lock.

What a stream does not take at once is kept, and written when the command has come to its end, without any lock. Pipes
and terminals are opened anew, so that no flag of theirs counts; of anything else nobody knows how long a write takes,
so it gets all of it in the end.
"""

from __future__ import annotations

import fcntl
import io
import os
import select
import stat
import sys
from contextlib import suppress

NULL = os.makedev(1, 3)


class Keeping(io.RawIOBase):
    """A stream of this process that waits for nobody. `is_quick` says that its descriptor does not wait either."""

    def __init__(self, descriptor: int, *, is_quick: bool) -> None:
        self.descriptor = descriptor
        self.is_quick = is_quick
        self.kept = bytearray()

    def fileno(self) -> int:
        return self.descriptor

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return os.isatty(self.descriptor)

    def write(self, data: object) -> int:
        content = memoryview(data).cast("B")  # type: ignore[arg-type]
        self.kept += content
        if self.is_quick:
            self._write_some()
        return len(content)

    def _write_some(self) -> None:
        with suppress(BlockingIOError):
            while self.kept:
                del self.kept[: os.write(self.descriptor, self.kept)]

    def write_all(self) -> None:
        """Write what was kept, however long that takes; and from now on all at once."""
        self.is_quick = True
        poll = select.poll()
        poll.register(self.descriptor, select.POLLOUT)
        while self.kept:
            poll.poll()
            self._write_some()


_streams: list[Keeping] = []
"""Standard output and error, once they are made patient."""


def make_patient() -> None:
    """Have standard output and error hold up this process no more."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = Keeping(number, is_quick=open_anew(number))
        _streams.append(stream)
        text = io.TextIOWrapper(io.BufferedWriter(stream), "utf-8", "backslashreplace", write_through=True)
        setattr(sys, name, text)


def open_anew(number: int) -> bool:
    """Put a stream of this process's own, which does not wait, in the place of one of the caller's, with the same at
    its end. False where it stays theirs. Of one that the caller could not write to, nothing is opened: root could."""
    found, flags = os.fstat(number), fcntl.fcntl(number, fcntl.F_GETFL)
    if flags & os.O_PATH or flags & os.O_ACCMODE == os.O_RDONLY:
        nothing = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nothing, number)
        os.close(nothing)
        return True
    if stat.S_ISFIFO(found.st_mode) or os.isatty(number):
        with suppress(OSError):  # a terminal of another namespace, say
            own = os.open(f"/proc/self/fd/{number}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            os.dup2(own, number)
            os.close(own)
            return True
    return found.st_rdev == NULL


def finish() -> None:
    """Write all that was kept, and exit where it cannot be written. The caller has let go of every lock."""
    for text in (sys.stdout, sys.stderr):
        with suppress(ValueError):  # it was closed: nobody reads it
            text.flush()
    try:
        for stream in reversed(_streams):  # what was said on the way comes before the result
            stream.write_all()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)
    except OSError as error:
        sys.exit(f"hutch: the output cannot be written: {error.strerror}")
