"""Runs the command line, and strikes at one of its effects: a program of its own, started by the tests of faults.

    python faulty.py count|kill|ENOSPC|EIO NUMBER REPORT ARGUMENT…

Everything is real: the interpreter's audit events, and pass-through wrappers around the few calls that have none, say
what is about to be done. The NUMBER-th effect (from 1) is where the process is killed, or the NUMBER-th write of a file
where the call fails, once. `count` only runs. What was seen is appended to REPORT, one line each.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

CHANGES = frozenset(
    "os.rename os.remove os.mkdir os.rmdir os.link os.symlink os.chmod os.chown os.truncate os.setxattr os.utime "
    "os.kill os.killpg os.fork os.forkpty os.exec os.posix_spawn subprocess.Popen".split()
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
LOOKS = frozenset(("-j", "list", "get", "show"))
"""Words of commands that only look."""
ELSEWHERE = ("/dev/", "/proc/self/", "pipe:", "socket:", "anon_inode:")


class Striker:
    """Counts, and strikes."""

    def __init__(self, how: str, number: int, report: int) -> None:
        self.how, self.number, self.report = how, number, report
        self.seen = 0
        self.is_busy = False

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook, which cannot be removed again. It must not hear itself."""
        if self.is_busy or (event != "open" and event not in CHANGES):
            return
        self.is_busy = True
        try:
            self._consider(event, arguments)
        finally:
            self.is_busy = False

    def _consider(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, int) or not flags & WRITING:
                return
            self.meet(event, os.fsdecode(path), is_write=bool(flags & os.O_CREAT))
        elif event == "subprocess.Popen":
            argv = [str(word) for word in arguments[1]]
            if LOOKS.isdisjoint(argv):
                self.meet(event, " ".join(argv), is_write=False)
        else:
            subject = arguments[0] if arguments else ""  # os.fork has none
            first = os.fsdecode(subject) if isinstance(subject, (str, bytes)) else str(subject)
            self.meet(event, first, is_write=event in ("os.rename", "os.mkdir"))

    def meet(self, event: str, what: str, *, is_write: bool) -> None:
        """An effect that is about to happen."""
        if what.startswith(ELSEWHERE):
            return
        counts = is_write and what.startswith("/") and not what.startswith(("/sys/", "/proc/"))
        if self.how in ("ENOSPC", "EIO") and not counts:
            return
        self.seen += 1
        line = f"{self.seen} {event} {what[:200]!r}\n"
        REAL_WRITE(self.report, line.encode())
        if self.how == "count" or self.seen != self.number:
            return
        if self.how == "kill":
            REAL_KILL(os.getpid(), signal.SIGKILL)
        raise OSError(getattr(errno, self.how), os.strerror(getattr(errno, self.how)), what)

    def wrap(self, function: Callable[..., Any], name: str, *, is_write: bool) -> Callable[..., Any]:
        """The same function, announced. Its first argument is a descriptor."""

        def announced(descriptor: int, *arguments: Any) -> Any:
            self.is_busy = True
            try:
                self.meet(name, os.readlink(f"/proc/self/fd/{descriptor}"), is_write=is_write)
            finally:
                self.is_busy = False
            return function(descriptor, *arguments)

        return announced


REAL_WRITE, REAL_KILL = os.write, os.kill


def main() -> None:
    how, number, report, *arguments = sys.argv[1:]
    descriptor = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    striker = Striker(how, int(number), descriptor)
    sys.argv = ["hutch", *arguments]
    from hutch.__main__ import entry

    os.write = striker.wrap(os.write, "os.write", is_write=True)
    os.fsync = striker.wrap(os.fsync, "os.fsync", is_write=True)
    signal.pidfd_send_signal = announce_signals(striker)
    sys.addaudithook(striker.hook)
    entry()


def announce_signals(striker: Striker) -> Callable[..., None]:
    real = signal.pidfd_send_signal

    def announced(pidfd: int, number: int, *arguments: Any) -> None:
        striker.meet("pidfd_send_signal", f"{signal.Signals(number).name}", is_write=False)
        real(pidfd, number, *arguments)

    return announced


if __name__ == "__main__":
    main()
