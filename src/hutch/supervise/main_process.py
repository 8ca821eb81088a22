"""The main process of a Launch, with the console and the socket that it talks through. Part of the supervisor."""

from __future__ import annotations

import os
import select
import signal
import socket

from hutch.supervise.console import Console, Log
from hutch.supervise.steps import ENVIRONMENT

TYPE_CHECKING = False  # see supervise/status
if TYPE_CHECKING:
    from typing import NoReturn

    from hutch.host.cgroup import Cgroup

# A terminal that can be asked things is asked for its colours by nspawn and systemd, and they wait for the answer.
MAIN_ENVIRONMENT = {"TERM": "dumb", "SYSTEMD_LOG_COLOR": "0"}
REAPED_WITHIN = 10_000  # milliseconds, after it was killed


class Main:
    """The main process, with what it talks through. It is forked at once and waits for `go`: joining a cgroup takes
    the kernel some milliseconds, which pass while the mounts are made.
    """

    def __init__(self, runtime: str, cgroup: Cgroup, argv: list[str], log: Log) -> None:
        path = f"{runtime}/notify"
        if os.path.lexists(path):
            os.unlink(path)
        self.console = Console(f"{runtime}/console", log)
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.notify.bind(path)
        self.notify.setblocking(False)
        gate, self.gate = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.gate)
            self._become(cgroup, gate, argv, {**ENVIRONMENT, "NOTIFY_SOCKET": path, **MAIN_ENVIRONMENT})
        os.close(gate)
        self.console.release_guest_end()
        self.pidfd = os.pidfd_open(self.pid)
        self.is_waited_for = False

    def _become(self, cgroup: Cgroup, gate: int, argv: list[str], environment: dict[str, str]) -> NoReturn:
        """The child; it never returns into its parent's code."""
        try:
            cgroup.join("machine")
            os.setsid()
            for descriptor in (0, 1, 2):
                os.dup2(self.console.guest_end, descriptor)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            if os.read(gate, 1):
                os.execvpe("setpriv", ["setpriv", "--pdeathsig", "TERM", "--", *argv], environment)
        except BaseException as error:  # noqa: BLE001 - a forked child must not run its parent's code
            os.write(2, f"{argv[0]} cannot be started: {error}\n".encode())
        os._exit(127)

    def go(self) -> None:
        try:
            os.write(self.gate, b"1")
        except BrokenPipeError:
            pass  # it has ended already: the pidfd says so, and its last words are on the console

    def wait(self) -> int:
        """The exit code, negative for a signal."""
        self.is_waited_for = True
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        """The process has been killed, or has ended by itself."""
        os.close(self.gate)
        if not self.is_waited_for:
            poll = select.poll()
            poll.register(self.pidfd, select.POLLIN)
            if poll.poll(REAPED_WITHIN):
                self.wait()
        os.close(self.pidfd)
        self.notify.close()
        self.console.close()
