"""Run a command inside a running container: no shell in between; argv, streams, exit code and signals intact.

The child joins the workspace's cgroup, then all namespaces of its PID 1 in one setns(2) by pidfd, drops what
that process may not have either, and becomes the command. Before it enters it is made undumpable, so the
guest's root cannot look into it; after it entered nothing is imported, since the files would be the guest's.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import stat
import struct
import sys
import termios
import tty
from dataclasses import dataclass
from typing import NoReturn

from hutch.errors import HutchError
from hutch.host.cgroup import Cgroup
from hutch.host.process import open_process, start_time

PR_SET_DUMPABLE, PR_CAPBSET_DROP = 4, 24
NAMESPACES = 0x1000_0000 | 0x0002_0000 | 0x0400_0000 | 0x0800_0000 | 0x2000_0000 | 0x4000_0000 | 0x0200_0000
"""CLONE_NEWUSER, NEWNS, NEWUTS, NEWIPC, NEWPID, NEWNET, NEWCGROUP."""
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
NOT_FOUND, NOT_EXECUTABLE = 127, 126


@dataclass(frozen=True, slots=True)
class Login:
    """As whom the command runs."""

    user: str
    uid: int
    home: str
    shell: str
    env: tuple[tuple[str, str], ...]

    def environment(self) -> dict[str, str]:
        return {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": self.home,
            "USER": self.user,
            "LOGNAME": self.user,
            "SHELL": self.shell,
            "LANG": "C.UTF-8",
            "TERM": os.environ.get("TERM", "dumb"),
            **dict(self.env),
        }


def enter(
    cgroup_path: str, leader: tuple[int, int], login: Login, argv: list[str], *, capture: int | None = None
) -> int:
    """Run `argv` inside and return its exit code, 128 + n when signal n ended it.

    On a terminal the command gets a pseudo-terminal of its own. `capture` is a descriptor that takes the
    command's output instead of the caller's own streams.
    """
    pidfd = open_process(*leader)
    if pidfd is None or not _is_in(leader[0], cgroup_path):
        raise HutchError("the workspace has just ended")
    bounding = _bounding_set(leader[0])
    cgroup = Cgroup(cgroup_path)
    terminal = capture is None and os.isatty(0) and os.isatty(1)
    pty_ends = os.openpty() if terminal else None
    reading, writing = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    go_between = os.fork()
    if go_between == 0:
        try:
            os.close(reading)
            cgroup.join("exec")
            _enter_namespaces(pidfd)
            command = os.fork()
            if command == 0:
                _become(login, argv, bounding, pty_ends[1] if pty_ends else None, capture)
            os.write(writing, struct.pack("i", command))
            os.close(writing)
            for number in FORWARDED:
                signal.signal(number, signal.SIG_IGN)
            if pty_ends:
                os.close(pty_ends[0])
                os.close(pty_ends[1])
            os._exit(_exit_code(os.waitpid(command, 0)[1]))
        except BaseException as error:  # noqa: BLE001 - a forked child must not run its parent's code
            os.write(2, f"hutch: cannot enter the workspace: {error}\n".encode())
            os._exit(NOT_EXECUTABLE)
    os.close(writing)
    os.close(pidfd)
    cgroup.close()
    data = os.read(reading, 4)
    os.close(reading)
    if len(data) == 4:
        _forward_signals(struct.unpack("i", data)[0])
    if pty_ends:
        os.close(pty_ends[1])
        _relay(pty_ends[0])
    return _exit_code(os.waitpid(go_between, 0)[1])


def _is_in(pid: int, cgroup_path: str) -> bool:
    """The leader's pid comes from a file of root's; that it lies in the workspace's cgroup makes sure of it."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
            return any(f"/{cgroup_path}/machine" in line for line in file if line.startswith("0:"))
    except OSError:
        return False


def _bounding_set(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        for line in file:
            if line.startswith("CapBnd:"):
                return int(line.split()[1], 16)
    raise HutchError("the workspace has just ended")


def _call(function: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{function}: {os.strerror(code)}")


def _enter_namespaces(pidfd: int) -> None:
    _call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    _call("setns", pidfd, NAMESPACES)


def _become(login: Login, argv: list[str], bounding: int, terminal: int | None, capture: int | None) -> NoReturn:
    """The child inside: drop privileges, arrange the streams, become the command."""
    code = NOT_EXECUTABLE
    try:
        os.setsid()  # also without a terminal of its own: the caller's must not be the guest's to type on
        if terminal is not None:
            fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
            for descriptor in (0, 1, 2):
                os.dup2(terminal, descriptor)
        if capture is not None:
            null = os.open("/dev/null", os.O_RDONLY)
            os.dup2(null, 0)
            os.dup2(capture, 1)
            os.dup2(capture, 2)
        for capability in range(64):
            if not bounding >> capability & 1:
                try:
                    _call("prctl", PR_CAPBSET_DROP, capability, 0, 0, 0)
                except OSError:
                    break  # past the last capability that this kernel knows
        os.setgroups(_groups(login.user))
        os.setresgid(login.uid, login.uid, login.uid)
        os.setresuid(login.uid, login.uid, login.uid)
        for number in (*FORWARDED, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        try:
            os.chdir(login.home)
        except OSError:
            os.chdir("/")
        os.execvpe(argv[0], argv, login.environment())
    except FileNotFoundError:
        os.write(2, f"hutch: {argv[0]}: no such command in the workspace\n".encode())
        code = NOT_FOUND
    except BaseException as error:  # noqa: BLE001 - a forked child must not run its parent's code
        os.write(2, f"hutch: {argv[0]}: {error}\n".encode())
    os._exit(code)


def _groups(user: str) -> list[int]:
    """Supplementary groups by the guest's /etc/group, read by hand: its name service is not ours to load."""
    try:
        descriptor = os.open("/etc/group", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return []
        lines = os.read(descriptor, 1 << 20).decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    entries = [line.split(":") for line in lines]
    return [
        int(entry[2])
        for entry in entries
        if len(entry) == 4 and user in entry[3].split(",") and entry[2].isascii() and entry[2].isdigit()
    ][:64]


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _forward_signals(command: int) -> None:
    """Pass what ends or interrupts us on to the command's process group, as a terminal would."""
    started = start_time(command)

    def forward(number: int, frame: object) -> None:
        if started is not None and start_time(command) == started:
            os.killpg(command, number)

    for number in FORWARDED:
        signal.signal(number, forward)


def _relay(terminal: int) -> None:
    """Join our terminal and the command's until the command's side closes."""
    saved = termios.tcgetattr(0)

    def resize(number: int, frame: object) -> None:
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8))

    resize(0, None)
    signal.signal(signal.SIGWINCH, resize)
    try:
        tty.setraw(0)
        sources = [0, terminal]
        while True:
            for descriptor in select.select(sources, [], [])[0]:
                try:
                    data = os.read(descriptor, 65536)
                except OSError:  # Linux's way of saying that the other side of a pseudo-terminal has closed
                    data = b""
                if data:
                    _write_all(1 if descriptor == terminal else terminal, data)
                elif descriptor == terminal:
                    return
                else:
                    sources.remove(0)
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, saved)
        os.close(terminal)


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
