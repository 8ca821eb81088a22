"""Processes by identity: a pid counts only together with its start time, and is signalled through a pidfd."""

from __future__ import annotations

import os
import select
import signal

from hutch.libc import call

PR_SET_PDEATHSIG = 1


def start_time(pid: int) -> int | None:
    """The start time of `pid`, in clock ticks since boot; None when there is no such process or it is a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            after_name = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if after_name[0] == b"Z" else int(after_name[19])


def arguments(pid: int) -> tuple[str, ...]:
    """The command line of a process; () of one that has none, as of the kernel's own. Raises OSError for none."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return tuple(file.read().decode("utf-8", "replace").split("\0")[:-1])


def is_alive(pid: int, started: int | None) -> bool:
    """Whether the process that had `pid` and began at `started` still runs."""
    return started is not None and start_time(pid) == started


def open_process(pid: int, started: int | None) -> int | None:
    """A pidfd for exactly that process, or None. Reading the start time after opening finds out a reused pid."""
    if started is None:
        return None
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    if start_time(pid) != started:
        os.close(descriptor)
        return None
    return descriptor


def terminate(pid: int, started: int, *, patience: float) -> bool:
    """Ask the process to end and wait up to `patience` seconds. True when it is gone."""
    descriptor = open_process(pid, started)
    if descriptor is None:
        return True
    try:
        signal.pidfd_send_signal(descriptor, signal.SIGTERM)
        return bool(select.select([descriptor], [], [], patience)[0])
    except ProcessLookupError:
        return True
    finally:
        os.close(descriptor)


def die_with_parent(number: int, parent: int) -> None:
    """Have the kernel send us a signal when the thread that started us ends. `parent` is the process that we were
    started by; one that has ended by now has sent nothing."""
    call("prctl", PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)
