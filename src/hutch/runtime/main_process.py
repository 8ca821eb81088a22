"""The main process of a Launch, with the console and the socket that it talks through. Part of the supervisor."""

from __future__ import annotations

import fcntl
import os
import select

# Not socket itself, which brings enum and more with it: five milliseconds.
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_DGRAM, SOCK_STREAM, socket, socketpair

from hutch.runtime.steps import ENVIRONMENT, write_private

TYPE_CHECKING = False  # see runtime/status
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from hutch.runtime.console import Console, Log

# A terminal that can be asked things is asked for its colours by nspawn and systemd, and they wait for the answer.
MAIN_ENVIRONMENT = {"TERM": "dumb", "SYSTEMD_LOG_COLOR": "0"}
# HUP, INT, PIPE, TERM and XFSZ: what Python or the supervisor changed. The names would have to be imported.
SIGNALS = (1, 2, 13, 15, 25)
FIRST_SAFE = 100  # a descriptor that no process is told to have
REAPED_WITHIN = 10_000  # milliseconds, after it was killed
HOST_CID = 2  # what every guest calls its host
MOST_WAITING = 16  # calls of a guest that are not answered yet


class Main:
    """The main process, with what it talks through: a terminal, a socket for notifications, one end each of the sockets
    called `links`, and the port at which its guest calls by `vsock`, with the one who may, if there is one. It begins
    when this is made, in the cgroup of its parent."""

    def __init__(
        self, runtime: str, argv: Sequence[str], links: Sequence[str], vsock: dict[str, Any] | None = None
    ) -> None:
        self.runtime = runtime
        self.console: Console | None = None
        self.notify = _listen(f"{runtime}/notify", SOCK_DGRAM)
        self.notify.setblocking(False)
        self.machine_end, guest_end = os.openpty()
        self.vsock = listen_to_guest(vsock) if vsock else None
        self.links, theirs = {}, []
        for name in links:
            self.links[name], other = socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
            theirs.append(other)
        inherited = [guest_end, guest_end, guest_end, *(other.fileno() for other in theirs)]
        self.pid = _spawn(argv, inherited, {"NOTIFY_SOCKET": f"{runtime}/notify", **MAIN_ENVIRONMENT}, setsid=True)
        os.close(guest_end)
        for other in theirs:
            other.close()
        self.pidfd = os.pidfd_open(self.pid)
        self.is_waited_for = False

    def open_console(self, log: Log) -> Console:
        """From now on what it says is heard; until then the kernel keeps it."""
        from hutch.runtime.console import Console

        self.console = Console(f"{self.runtime}/console", log, self.machine_end)
        return self.console

    @property
    def has_ended(self) -> bool:
        return _has_ended(self.pidfd, 0)

    def wait(self) -> int:
        """The exit code, negative for a signal."""
        self.is_waited_for = True
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        """The process has been killed, or has ended by itself."""
        if not self.is_waited_for and _has_ended(self.pidfd):
            self.wait()
        os.close(self.pidfd)
        self.notify.close()
        if self.vsock is not None:
            self.vsock[0].close()
        for link in self.links.values():
            link.close()
        if self.console is not None:
            self.console.close()
        os.close(self.machine_end)


class Helper:
    """A process that the main one talks to. What it says goes to `output`."""

    def __init__(self, helper: dict[str, Any], output: int) -> None:
        self.why: str = helper["why"]
        listener = _listen(helper["socket"], SOCK_STREAM)
        listener.listen(1)
        os.chown(helper["socket"], helper["uid"], helper["uid"])
        self.pid = _spawn(helper["argv"], [0, output, output, listener.fileno()], {})
        listener.close()
        _allow_files(self.pid, helper["open_files"])
        self.pidfd = os.pidfd_open(self.pid)
        self.end = "does not end"

    def close(self) -> str:
        """It has been killed, or has ended by itself: how, in words. May be called again."""
        if self.pidfd >= 0:
            if _has_ended(self.pidfd):
                code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
                self.end = f"ended with code {code}" if code >= 0 else f"was killed by signal {-code}"
            os.close(self.pidfd)
            self.pidfd = -1
        return self.end


def listen_to_guest(vsock: dict[str, Any]) -> tuple[socket, int]:
    """(a socket of the host's vsock, the context id of the machine whose guest is to call it). The kernel chooses the
    port, so that nobody can have taken it; whoever guesses it is told apart by what the kernel says of a caller."""
    from _socket import AF_VSOCK, VMADDR_CID_ANY, VMADDR_PORT_ANY

    listener = socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        listener.bind((VMADDR_CID_ANY, VMADDR_PORT_ANY))
        listener.listen(MOST_WAITING)
        port = listener.getsockname()[1]
        write_private(vsock["file"], f"vsock-stream:{HOST_CID}:{port}\n", vsock["uid"])
    except BaseException:
        listener.close()
        raise
    return listener, vsock["cid"]


def _spawn(argv: Sequence[str], descriptors: Sequence[int], environment: dict[str, str], setsid: bool = False) -> int:
    """Start a process that gets SIGTERM when this one is killed, with these descriptors as 0, 1, 2, ….

    They are moved out of the way first: one of them may have the number that another is to get.
    """
    safe = [fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, FIRST_SAFE) for number in descriptors]
    try:
        return os.posix_spawnp(
            "setpriv",
            ["setpriv", "--pdeathsig", "TERM", "--", *argv],
            {**ENVIRONMENT, **environment},
            file_actions=[(os.POSIX_SPAWN_DUP2, number, index) for index, number in enumerate(safe)],
            setsid=setsid,
            setsigmask=(),
            setsigdef=SIGNALS,
        )
    finally:
        for number in safe:
            os.close(number)


def _allow_files(pid: int, count: int) -> None:
    """Let a process have so many files open, whatever the session that it comes from may. Where this host does not let
    us, it makes do with what there is."""
    import resource  # for machines only

    try:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (count, count))
    except (OSError, ValueError):
        pass


def _has_ended(pidfd: int, patience: int = REAPED_WITHIN) -> bool:
    """Whether a process that has been killed has gone, after some patience."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(patience))


def _listen(path: str, kind: int) -> socket:
    """A socket at a path of root's own."""
    if os.path.lexists(path):
        os.unlink(path)
    listener = socket(AF_UNIX, kind | SOCK_CLOEXEC)
    listener.bind(path)
    return listener
