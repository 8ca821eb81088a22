"""The bounds of a guest beside its namespaces: seccomp filters, and an empty keyring. A container has them from its
main process. A command that enters takes those of the guest's PID 1: otherwise guest root could borrow from it what its
own processes lack. It is loaded at each start: imports stay few.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys

from hutch.libc import call, library
from hutch.seccomp.filters import INSTRUCTION, render_filter

TYPE_CHECKING = False  # see runtime/steps
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from hutch.failure import HutchError

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
PTRACE_DETACH, PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_SECCOMP_GET_FILTER = 17, 0x4206, 0x4207, 0x420C
WALL = 0x4000_0000  # __WALL: also for a child that is traced rather than born
COUNTED = {resource.RLIMIT_SIGPENDING: 4096, resource.RLIMIT_MSGQUEUE: 400 << 10}
"""The limits of signals that wait and of bytes in POSIX message queues: of a user namespace that root makes, the kernel
counts both for root too, who may have more."""
KEYCTL_JOIN_SESSION_KEYRING = 1
KEYCTL = 250 if os.uname().machine == "x86_64" else 219  # the number of keyctl(2); libc does not offer it


libc = library()
libc.ptrace.restype = ctypes.c_long
libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


class Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install_seccomp(system_calls: Sequence[str], other_families_than: Sequence[str]) -> None:
    """Install the filter that a Launch asks for, in this process and all its descendants. OSError or ValueError where
    that cannot be."""
    install_filters([render_filter(os.uname().machine, system_calls, other_families_than)])


def read_filters(pid: int) -> list[bytes]:
    """The seccomp filters of a process, oldest first. It is stopped for a moment; see ptrace(2)."""
    if libc.ptrace(PTRACE_SEIZE, pid, None, None) != 0 or libc.ptrace(PTRACE_INTERRUPT, pid, None, None) != 0:
        raise _unreadable(ctypes.get_errno())
    try:
        os.waitpid(pid, WALL)
        filters: list[bytes] = []
        while (length := libc.ptrace(PTRACE_SECCOMP_GET_FILTER, pid, len(filters), None)) > 0:
            buffer = ctypes.create_string_buffer(length * INSTRUCTION)
            libc.ptrace(PTRACE_SECCOMP_GET_FILTER, pid, len(filters), buffer)
            filters.append(buffer.raw)
        if not filters:
            raise _unreadable(ctypes.get_errno())
        return filters
    finally:
        libc.ptrace(PTRACE_DETACH, pid, None, None)


def _unreadable(code: int) -> HutchError:
    from hutch.failure import HutchError  # it brings more with it than all that runs here before a guest

    return HutchError(
        "the guest's system call filters cannot be read, so nothing was run without them",
        details=os.strerror(code),
        resolution="use ssh; `hutch exec` needs ptrace and a kernel with CONFIG_CHECKPOINT_RESTORE",
    )


def install_filters(filters: list[bytes]) -> None:
    """Install these filters in this process, and in what it becomes. Needs CAP_SYS_ADMIN in its user namespace."""
    for code in filters:
        program = Program(len(code) // INSTRUCTION, code)
        try:
            call("prctl", PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0)
        except OSError as error:
            raise OSError(error.errno, "the filter of system calls cannot be installed") from error


def main(system_calls: str, other_families_than: str, *argv: str) -> NoReturn:
    """A program of its own, which becomes `argv`, with an empty keyring and the filter that a Launch asks for, with
    commas in between: once it reads that all is ready for it."""
    leave_keyring()
    try:
        leave_counts()
        install_seccomp(system_calls.split(","), other_families_than.split(","))
        if os.read(0, 16) != b"ready\n":
            sys.exit("the service's script ended before the container was ready, so it is not run")
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execvp(argv[0], argv)
    except (OSError, ValueError) as error:
        sys.exit(f"system calls cannot be kept from the guest, so it is not run: {error}")


def leave_keyring() -> None:
    """Take a new, empty session keyring: the caller's may hold secrets. A kernel without keyrings has none."""
    libc.syscall(KEYCTL, KEYCTL_JOIN_SESSION_KEYRING, None)


def leave_counts() -> None:
    """Leave root a part of what is counted for it: what a user namespace may have at the most, with all that root has,
    are the limits of the process that makes it."""
    for kind, most in COUNTED.items():
        _, hard = resource.getrlimit(kind)
        if hard == resource.RLIM_INFINITY or hard > most:
            resource.setrlimit(kind, (most, most))
