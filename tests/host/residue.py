"""What one hutch could leave behind on the host under test: more than a test run may leave on the machine.

All of /etc counts, byte for byte, and every process; control groups only by the name of that hutch, because
their tree is the whole machine's.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from hutch.spec.names import Layout
from tests.host.instance import Instance
from tests.host.processes import processes
from tests.support import machine
from tests.support.incus_cluster import is_of_a_member

PASSING = ("nft --stateless", "sed -f /run/hutch-", "sshd-session: ")
"""The beginnings of what ends by itself: how the watch over the rules looks at them, whenever these change; and the
sessions of ssh in a guest, which end a moment after the client. Of a guest that is gone, none can stay."""
CLOCK_NS = 100_000_000
"""More than the clock of file systems may lag: two changes within so many nanoseconds may bear the same time."""
_digests: dict[tuple[str, int, int, int], str] = {}


def observe() -> machine.Snapshot:
    """Everything of the host that hutch may only borrow."""
    return {
        **machine.namespaces(),
        "etc": tuple(sorted(_tree(Path("/etc")))),
        "run": tuple(sorted(name for name in os.listdir("/run") if name != "systemd")),  # nspawn's own, empty, stays
        "namespaces": tuple(sorted(os.listdir("/run/netns"))),
        "processes": tuple(sorted(_programs())),
    }


def _programs() -> Iterator[str]:
    """All processes, without those in which a shell looks something up: they are forks of it, and gone in a moment;
    and without those of an Incus cluster, whose members are other hosts."""
    found = {process.pid: process.command for process in processes()}
    for pid, command in found.items():
        try:
            parent = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
        except (OSError, IndexError):
            continue
        text = " ".join(command)
        if found.get(parent) != command and not text.startswith(PASSING) and not is_of_a_member(pid):
            yield f"{pid} {text}"


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
    for directory, folders, files in os.walk(top):
        for path in (f"{directory}/{name}" for name in (*folders, *files)):
            state = os.lstat(path)
            content = _digest(path, state) if stat.S_ISREG(state.st_mode) else ""
            yield f"{path[len(str(top)) + 1 :]} {state.st_mode:o} {state.st_uid}:{state.st_gid} {content}"


def _digest(path: str, state: os.stat_result) -> str:
    """Of a file's content. It is read only once for each time that the kernel says it has changed at."""
    version = (path, state.st_ino, state.st_size, state.st_ctime_ns)
    if (known := _digests.get(version)) is not None:
        return known
    found = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    if time.time_ns() - state.st_ctime_ns > CLOCK_NS:
        _digests[version] = found
    return found
