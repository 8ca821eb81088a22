"""Finds and ends processes of the host under test by what they are; nothing outside of its pid namespace is seen."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.host.instance import Instance


@dataclass(frozen=True)
class Process:
    """A process and its command line."""

    pid: int
    parent: int
    command: tuple[str, ...]


def processes() -> list[Process]:
    """Every process that has a command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
        if command[0]:
            found.append(Process(int(entry.name), parent, tuple(command)))
    return found


def status_of(pid: int) -> dict[str, str]:
    """What the kernel says of a process, by the words of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def kill_processes(matches: Callable[[tuple[str, ...]], bool]) -> int:
    """SIGKILL to the processes whose command line matches; returns how many there were."""
    victims = [process for process in processes() if matches(process.command)]
    for victim in victims:
        os.kill(victim.pid, signal.SIGKILL)
    return len(victims)


def main_of(instance: Instance, name: str) -> Process:
    """A workspace's main process: systemd-nspawn, or the shell that stays beside a machine."""
    pid = instance.status(name)["pid"]
    return next(process for process in processes() if process.pid == pid)


def runner_of(instance: Instance, name: str) -> Process:
    """What runs a workspace's service: the parent of its main process."""
    parent = main_of(instance, name).parent
    return next(process for process in processes() if process.pid == parent)


def host_processes() -> list[str]:
    """Names of the processes outside of any workspace, in the order of the alphabet."""
    own = os.stat("/proc/self/ns/user").st_ino
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "ns" / "user").stat().st_ino == own:
                found.append((entry / "comm").read_text().strip())
        except OSError:  # it has ended
            continue
    return sorted(found)


def ended(pidfd: int) -> None:
    """Wait for the end of a process that is not our child, and close the descriptor."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(20_000)
    os.close(pidfd)
