"""The main process of a Launch, with the console and the socket that it talks through. Part of the supervisor."""

from __future__ import annotations

import os
import select
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_DGRAM, socket  # socket itself brings enum and more: five milliseconds

from hutch.supervise.steps import ENVIRONMENT

TYPE_CHECKING = False  # see supervise/status
if TYPE_CHECKING:
    from collections.abc import Sequence

    from hutch.supervise.console import Console, Log

# A terminal that can be asked things is asked for its colours by nspawn and systemd, and they wait for the answer.
MAIN_ENVIRONMENT = {"TERM": "dumb", "SYSTEMD_LOG_COLOR": "0"}
# HUP, INT, PIPE, TERM and XFSZ: what Python or the supervisor changed. The names would have to be imported.
SIGNALS = (1, 2, 13, 15, 25)
REAPED_WITHIN = 10_000  # milliseconds, after it was killed


class Main:
    """The main process, with what it talks through. It begins when this is made, in the cgroup of its parent."""

    def __init__(self, runtime: str, argv: Sequence[str]) -> None:
        self.runtime = runtime
        self.console: Console | None = None
        self.notify = _listen(f"{runtime}/notify")
        self.machine_end, guest_end = os.openpty()
        self.pid = os.posix_spawnp(
            "setpriv",
            ["setpriv", "--pdeathsig", "TERM", "--", *argv],
            {**ENVIRONMENT, "NOTIFY_SOCKET": f"{runtime}/notify", **MAIN_ENVIRONMENT},
            file_actions=[(os.POSIX_SPAWN_DUP2, guest_end, descriptor) for descriptor in (0, 1, 2)],
            setsid=True,
            setsigmask=(),
            setsigdef=SIGNALS,
        )
        os.close(guest_end)
        self.pidfd = os.pidfd_open(self.pid)
        self.is_waited_for = False

    def open_console(self, log: Log) -> Console:
        """From now on what it says is heard; until then the kernel keeps it."""
        from hutch.supervise.console import Console

        self.console = Console(f"{self.runtime}/console", log, self.machine_end)
        return self.console

    def wait(self) -> int:
        """The exit code, negative for a signal."""
        self.is_waited_for = True
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        """The process has been killed, or has ended by itself."""
        if not self.is_waited_for:
            poll = select.poll()
            poll.register(self.pidfd, select.POLLIN)
            if poll.poll(REAPED_WITHIN):
                self.wait()
        os.close(self.pidfd)
        self.notify.close()
        if self.console is not None:
            self.console.close()
        os.close(self.machine_end)


def _listen(path: str) -> socket:
    """A socket for notifications."""
    if os.path.lexists(path):
        os.unlink(path)
    listener = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC)
    listener.bind(path)
    listener.setblocking(False)
    return listener
