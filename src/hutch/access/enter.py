"""Run a command inside a running container: no shell in between; argv, streams, exit code and signals intact.

The child joins the workspace's cgroup, then all namespaces of its PID 1 in one setns(2) by pidfd, drops what
that process may not have either, and becomes the command. Before it enters it is made undumpable, so the
guest's root cannot look into it; after it entered nothing is imported, since the files would be the guest's.
"""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import struct
import sys
from functools import partial
from typing import NoReturn

from hutch.access.login import Login
from hutch.access.streams import BY_FORCE, Streams, captured, own_streams
from hutch.access.terminal import open_terminal
from hutch.errors import HutchError
from hutch.files import kept_open
from hutch.host.services.cgroup import Cgroup
from hutch.host.services.process import open_process, start_time
from hutch.libc import call
from hutch.seccomp.install import install_filters, leave_keyring, read_filters

PR_SET_DUMPABLE, PR_CAPBSET_DROP = 4, 24
NAMESPACES = 0x1000_0000 | 0x0002_0000 | 0x0400_0000 | 0x0800_0000 | 0x2000_0000 | 0x4000_0000 | 0x0200_0000
"""The flags CLONE_NEWUSER, NEWNS, NEWUTS, NEWIPC, NEWPID, NEWNET, NEWCGROUP."""
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
NOT_FOUND, NOT_EXECUTABLE = 127, 126

Limits = tuple[int, list[bytes]]
"""The bounding set and the filters of the guest's PID 1: they bind the command too. See capabilities(7) and
seccomp(2)."""


def enter(
    cgroup_path: str, leader: tuple[int, int], login: Login, argv: list[str], *, capture: int | None = None
) -> int:
    """Run `argv` inside and return its exit code, 128 + n when signal n ended it.

    On a terminal the command gets a pseudo-terminal of its own. `capture` is a descriptor that takes the
    command's output instead of the caller's own streams; what interrupts us then ends the command at once, as BY_FORCE
    always does. It owns the signals of this process until then, and forks: so it needs a main thread, and no others.
    """
    pidfd = open_process(*leader)
    if pidfd is None or not _is_in(leader[0], cgroup_path):
        raise HutchError("the workspace has just ended")
    cgroup = Cgroup(cgroup_path)
    limits = _read_limits(leader[0], cgroup)
    if capture is not None:
        streams = captured(capture)
    else:
        streams = own_streams(partial(open_terminal, pidfd, leader[0], login.uid))
    reading, writing = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    # No signal may come between the start of the command and the moment from which on it is passed on.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*FORWARDED, BY_FORCE))
    handlers = {number: signal.getsignal(number) for number in (*FORWARDED, BY_FORCE, signal.SIGWINCH)}
    seen: list[int] = []
    try:
        go_between = os.fork()
        if go_between == 0:
            try:
                cgroup.join("exec")
                leave_keyring()
                _enter_namespaces(pidfd)
                _go_between(login, argv, limits, streams, writing)
            except BaseException as error:  # noqa: BLE001 - a forked child must not run its parent's code
                os.write(2, f"hutch: cannot enter the workspace: {error}\n".encode())
                os._exit(NOT_EXECUTABLE)
        for descriptor in (writing, pidfd):
            os.close(descriptor)
        cgroup.close()
        streams.release()
        data = os.read(reading, 4)
        os.read(reading, 1)  # nothing but the end, which says that the command leads a process group of its own
        os.close(reading)
        if len(data) == 4:
            _forward_signals(struct.unpack("i", data)[0], seen, by_force=capture is not None)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        with kept_open(os.pidfd_open(go_between)) as ending:
            streams.relay(ending)
        code = _exit_code(os.waitpid(go_between, 0)[1])
        return 128 + seen[0] if seen and capture is not None else code
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _go_between(login: Login, argv: list[str], limits: Limits, streams: Streams, writing: int) -> NoReturn:
    """Run as the child in the namespaces of the guest, but for that of the processes: only its own child is in that."""
    command = os.fork()
    if command == 0:
        _become(login, argv, limits, streams, writing)
    os.write(writing, struct.pack("i", command))
    os.close(writing)
    for number in FORWARDED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    streams.forget()
    os._exit(_exit_code(os.waitpid(command, 0)[1]))


def _is_in(pid: int, cgroup_path: str) -> bool:
    """Whether a process lies in the workspace's cgroup, which makes sure of a pid that comes from a file of root's."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
            return any(f"/{cgroup_path}/machine" in line for line in file if line.startswith("0:"))
    except OSError:
        return False


def _read_limits(leader: int, cgroup: Cgroup) -> Limits:
    """Read PID 1's limits. One process at a time can trace it, so commands take turns; no guest can hold this lock."""
    with kept_open(cgroup.open("exec")) as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        return _bounding_set(leader), read_filters(leader)


def _bounding_set(pid: int) -> int:
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        for line in file:
            if line.startswith("CapBnd:"):
                return int(line.split()[1], 16)
    raise HutchError("the workspace has just ended")


def _enter_namespaces(pidfd: int) -> None:
    call("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0)
    call("setns", pidfd, NAMESPACES)


def _become(login: Login, argv: list[str], limits: Limits, streams: Streams, writing: int) -> NoReturn:
    """Run as the child inside: drop privileges, arrange the streams, become the command."""
    code, (bounding, filters) = NOT_EXECUTABLE, limits
    try:
        os.setsid()  # also without a terminal of its own: the caller's must not be the guest's to type on
        streams.arrange()
        os.closerange(3, 1 << 20)  # descriptors that the caller happened to have open
        for capability in range(64):
            if not bounding >> capability & 1:
                try:
                    call("prctl", PR_CAPBSET_DROP, capability, 0, 0, 0)
                except OSError:
                    break  # past the last capability that this kernel knows
        install_filters(filters)
        os.setgroups(_groups(login.user))
        os.setresgid(login.uid, login.uid, login.uid)
        os.setresuid(login.uid, login.uid, login.uid)
        for number in (*FORWARDED, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*FORWARDED, BY_FORCE))
        _change_directory(login)
        os.execvpe(argv[0], argv, login.environment())
    except FileNotFoundError:
        os.write(2, f"hutch: {argv[0]}: no such command in the workspace\n".encode())
        code = NOT_FOUND
    except BaseException as error:  # noqa: BLE001 - a forked child must not run its parent's code
        os.write(2, f"hutch: {argv[0]}: {error}\n".encode())
    os._exit(code)


def _change_directory(login: Login) -> None:
    if not login.cwd:
        try:
            os.chdir(login.home)
        except OSError:
            os.chdir("/")
        return
    try:
        os.chdir(login.cwd)
    except OSError as error:
        os.write(2, f"hutch: {login.cwd}: {error.strerror} in the workspace\n".encode())
        os._exit(NOT_EXECUTABLE)


def _groups(user: str) -> list[int]:
    """A user's supplementary groups by the guest's /etc/group, read by hand: its name service is not ours to load."""
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


def _forward_signals(command: int, seen: list[int], *, by_force: bool) -> None:
    """Pass what ends or interrupts us on to the command's process group, as a terminal would; or kill that.

    The signals that came are noted in `seen`.
    """
    started = start_time(command)

    def forward(number: int, frame: object) -> None:
        seen.append(number)
        if started is not None and start_time(command) == started:
            try:
                os.killpg(command, signal.SIGKILL if by_force or number == BY_FORCE else number)
            except ProcessLookupError:
                pass  # it has just ended

    for number in (*FORWARDED, BY_FORCE):
        signal.signal(number, forward)
