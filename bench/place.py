"""A private place to measure in: mount, network, process and cgroup namespaces that vanish with the run.

Owns how they are made and entered, and the check that the machine is afterwards as it was before. Inside,
/run, /tmp's sockets of others and the host's network are out of reach, /etc is an overlay, and /sys and
cgroup2 are fresh, and KVM is out of order: all contenders run in the same surroundings, and none sees the host's.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from bench.measure import run, say

OUTSIDE_ADDRESS, OUTSIDE_GATEWAY = "203.0.113.2/24", "203.0.113.1"  # a default route that leads nowhere


def observe_machine() -> dict[str, frozenset[str]]:
    """What a careless run would leave behind."""
    return {
        "interface": frozenset(os.listdir("/sys/class/net")),
        "mount": frozenset(_mounted()),
        "network namespace": frozenset(_names("/run/netns")),
        "cgroup": frozenset(_folders("/sys/fs/cgroup")),
        "file in /etc": frozenset(_stamps("/etc")),
        "file in /run": frozenset(_names("/run")),
        "firewall rule": frozenset(_rules()),
    }


def check_machine(
    before: dict[str, frozenset[str]], after: dict[str, frozenset[str]], marks: Sequence[str]
) -> list[str]:
    """Every trace of ours, as a line. What carries none of our `marks` is others' doing meanwhile, and only said."""
    traces = []
    for kind, old in before.items():
        changes = [f"{kind} appeared: {name}" for name in sorted(after[kind] - old)]
        changes += [f"{kind} vanished: {name}" for name in sorted(old - after[kind])]
        ours = [change for change in changes if any(mark in change + _content(change) for mark in marks)]
        traces += ours
        if len(changes) > len(ours):
            say(f"{len(changes) - len(ours)} changes by others meanwhile: {kind}s")
    return traces


def _content(change: str) -> str:
    """The text of a file of /etc that a change names: a line of ours may stand in it."""
    path = change.partition(": ")[2].partition(" (")[0]
    if not path.startswith("/etc/") or not os.path.isfile(path):
        return ""
    return Path(path).read_text(errors="replace")


def _mounted() -> list[str]:
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def _names(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []


def _folders(folder: str) -> list[str]:
    return [path for path, _, _ in os.walk(folder)]


def _stamps(folder: str) -> list[str]:
    paths = (os.path.join(path, name) for path, _, names in os.walk(folder) for name in names)
    return [f"{path} ({os.lstat(path).st_ino}, {os.lstat(path).st_ctime_ns})" for path in paths]


def _rules() -> list[str]:
    try:
        argv = ["nft", "-s", "list", "ruleset"]
        result = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=10)
    except FileNotFoundError:
        return []
    return result.stdout.splitlines()


# The cgroup namespace's root must hold no process itself, or no controller can be handed to the groups below it.
_ENTER = """
mount -t cgroup2 cgroup2 "$1"
top=$1/$2; shift 2
mkdir -p "$top/bench"
echo 0 > "$top/cgroup.procs"
exec unshare --cgroup sh -euc 'echo 0 > "$1/bench/cgroup.procs"; shift; exec "$@"' sh "$top" \\
    unshare --mount --propagation private --net --pid --ipc --fork --kill-child=KILL "$@"
"""
_LEAVE = """
mount -t cgroup2 cgroup2 "$1"
top=$1/$2
[ -d "$top" ] || exit 0
echo 1 > "$top/cgroup.kill" 2>/dev/null || true
for _ in $(seq 200); do
    find "$top" -depth -type d -exec rmdir {} + 2>/dev/null || true
    [ -d "$top" ] || exit 0
    sleep 0.05
done
exit 1
"""
_PRIVATE = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "sh", "-euc")


def enter(argv: Sequence[str], work: Path) -> int:
    """Run `argv` inside a new one and return its exit code; when it returns, nothing of the place is left."""
    mountpoint = work / "cgroup2"
    mountpoint.mkdir()
    group = f"hutch-bench-{os.getpid()}"
    process = subprocess.Popen([*_PRIVATE, _ENTER, "sh", str(mountpoint), group, *argv])
    try:
        return process.wait()
    finally:
        process.kill()
        process.wait()
        run([*_PRIVATE, _LEAVE, "sh", str(mountpoint), group], timeout=60)


def furnish(work: Path) -> None:
    """Inside the new namespaces: file systems, loopback, and a default route."""
    private = work / "private"
    for name in ("etc-upper", "etc-work"):
        (private / name).mkdir(parents=True, exist_ok=True)
    run(["mount", "-t", "proc", "proc", "/proc"])
    run(["umount", str(work / "cgroup2")])
    run(["mount", "-t", "sysfs", "sysfs", "/sys"])
    run(["mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"])
    run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"])
    if os.path.exists("/dev/kvm"):
        run(
            ["mount", "--bind", "/dev/null", "/dev/kvm"]
        )  # all virtual machines are emulated, or none could be compared
    layers = f"lowerdir=/etc,upperdir={private}/etc-upper,workdir={private}/etc-work"
    run(["mount", "-t", "overlay", "-o", layers, "overlay", "/etc"])
    run(["ip", "link", "set", "lo", "up"])
    add_route()


def add_route() -> None:
    """A default route, as an ordinary host has one."""
    run(["ip", "link", "add", "outside", "type", "bridge"])
    run(["ip", "address", "add", OUTSIDE_ADDRESS, "dev", "outside"])
    run(["ip", "link", "set", "outside", "up"])
    run(["ip", "route", "add", "default", "via", OUTSIDE_GATEWAY])
