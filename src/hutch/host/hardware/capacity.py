"""The largest virtual machine that this host can have. `observe_capacity` reads it; `check_host` compares, purely."""

from __future__ import annotations

import os
from collections.abc import Mapping

from hutch.backends import is_machine
from hutch.errors import Problem
from hutch.frozen import dataclass
from hutch.spec.model import MOST_MACHINE_CPUS, WorkspaceSpec

CPUS_FOR_EACH = 4
"""Virtual processors for each of the host's. More than the host has make nothing faster; a file that is shared between
a large machine and a small one should work on both all the same. Far beyond that, a guest's processors wait for locks
whose holder is not running, and it looks as if it hung."""
UNITS = (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


@dataclass(frozen=True)
class Capacity:
    """The host's capacity: bytes of memory, and processors."""

    memory: int
    cpus: int


def observe_capacity() -> Capacity:
    with open("/proc/meminfo", encoding="ascii") as file:
        total = next(line for line in file if line.startswith("MemTotal:"))
    return Capacity(int(total.split()[1]) << 10, os.cpu_count() or 1)


def check_host(workspaces: Mapping[str, WorkspaceSpec], memory_total: int, cpus: int) -> list[Problem]:
    """Problems: machines larger than the host. For a container these numbers are limits, which may be any."""
    problems = []
    most = min(CPUS_FOR_EACH * cpus, MOST_MACHINE_CPUS)
    for name, workspace in workspaces.items():
        if not is_machine(workspace):
            continue
        prefix, memory, vcpus = f"workspaces.{name}", workspace.memory, workspace.vcpus
        if memory is not None and memory > memory_total:
            message = f"is more than all of the host's memory, {show_size(memory_total, rounded=True)}"
            hint = f"less than {show_size(memory_total, rounded=True)}, so that the host has some too"
            problems.append(Problem(message, f"{prefix}.memory", show_size(memory), hint))
        if vcpus is not None and most < vcpus <= MOST_MACHINE_CPUS:  # beyond that, every host refuses it
            message = f"is more than {CPUS_FOR_EACH} for each processor of the host, which has {cpus}"
            hint = f"1 to {most}; more than {cpus} make nothing faster"
            problems.append(Problem(message, f"{prefix}.vcpus", str(vcpus), hint))
    return problems


def show_size(size: int, *, rounded: bool = False) -> str:
    """A size as the file has it: "4GiB". `rounded` is for measured sizes."""
    for unit, factor in UNITS:
        if rounded and size >= factor:
            return f"{size / factor:.1f}{unit}"
        if size % factor == 0 and size:
            return f"{size // factor}{unit}"
    return f"{size} bytes"
