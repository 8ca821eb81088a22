"""What one hutch could leave behind on the host under test: more than a test run may leave on the machine.

All of /etc counts, byte for byte, and every process; control groups only by the name of that hutch, because
their tree is the whole machine's.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from hutch.spec.names import Layout
from tests.host.instance import Instance
from tests.host.processes import processes
from tests.support import machine

LOOK = ("nft", "--stateless")
"""How the watch over the rules looks at them, whenever these change."""


def observe() -> machine.Snapshot:
    """Everything of the host that hutch may only borrow."""
    sections = dict(machine.snapshot())
    del sections["cgroups"], sections["files"], sections["paths"]
    return {
        **sections,
        "etc": tuple(sorted(_tree(Path("/etc")))),
        "run": tuple(sorted(name for name in os.listdir("/run") if name != "systemd")),  # nspawn's own, empty, stays
        "namespaces": tuple(sorted(os.listdir("/run/netns"))),
        "processes": tuple(sorted(_programs())),
    }


def _programs() -> Iterator[str]:
    """All processes, without those in which a shell looks something up: they are forks of it, and gone in a moment."""
    found = {process.pid: process.command for process in processes()}
    for pid, command in found.items():
        try:
            parent = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
        except (OSError, IndexError):
            continue
        if found.get(parent) != command and command[:2] != LOOK:
            yield f"{pid} {' '.join(command)}"


def differences(before: machine.Snapshot, *, patience: float = 5.0) -> str:
    """What is there now and was not, or the reverse. Waits for ended processes to be reaped."""
    deadline = time.monotonic() + patience
    while (report := machine.difference(before, observe())) and time.monotonic() < deadline:
        time.sleep(0.05)
    return report


def cgroups_of(instance: Instance) -> list[str]:
    """Control groups that carry the name of this hutch, in every hierarchy."""
    name = Layout(instance.state, instance.run).instance
    called = (name, f"hutch.slice/{name}.slice")
    tops = [path for top in ("", "*/") for each in called for path in Path("/sys/fs/cgroup").glob(f"{top}{each}")]
    return sorted(str(path) for path in tops if path.is_dir())


def _tree(top: Path) -> Iterator[str]:
    for path in top.rglob("*"):
        state = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() and not path.is_symlink() else ""
        yield f"{path.relative_to(top)} {state.st_mode:o} {state.st_uid}:{state.st_gid} {content}"
