"""Limits where the kernel has what enforces them: they are told, changed and kept; and how a neighbour's ssh feels a
memory hog and a fork bomb.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.spec.names import Layout
from tests.host.instance import Instance
from tests.support.world import World
from tests.systemd.conftest import call, open_instance

pytestmark = pytest.mark.own_kernel

MEMORY = 256 << 20
LIMITED = f'memory = "{MEMORY >> 20}MiB"\nvcpus = 1'
PROGRAMS = {
    "memory hog": """
import os
while True:
    if os.fork() == 0:
        kept = []
        while True:
            kept.append(os.urandom(1 << 16) * 64)
    os.wait()
""",
    "fork bomb": """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
""",
}
SAMPLES = 8
SLACK = 2.0  # seconds; what an emulated host with other things to do loses at once


@pytest.fixture(scope="module")
def bad(world: World) -> Iterator[Instance]:
    with open_instance(world) as instance:
        instance.declare("container", bad=LIMITED)
        instance.hutch("up", timeout=600)
        yield instance


@pytest.fixture(scope="module")
def two(bad: Instance) -> Instance:
    bad.declare("container", bad=LIMITED, good="")
    bad.hutch("up", timeout=600)
    return bad


def group(instance: Instance, file: str) -> str:
    """What a file of the bad one's cgroup says: its slice's, which has the limits."""
    slice_ = Path(Layout(instance.state, instance.run).cgroup("bad")).parent
    return (Path("/sys/fs/cgroup") / slice_ / file).read_text().strip()


def told(instance: Instance) -> tuple[str, str]:
    return group(instance, "memory.max"), group(instance, "cpu.max")


def p95(instance: Instance) -> float:
    """Of plain ssh to the neighbour."""
    taken = []
    for _ in range(SAMPLES):
        began = time.monotonic()
        instance.ssh("good")
        taken.append(time.monotonic() - began)
    return sorted(taken)[math.ceil(SAMPLES * 0.95) - 1]


@pytest.mark.smoke
def test_the_kernel_is_told_and_systemd_leaves_it_so(bad: Instance) -> None:
    assert told(bad) == (str(MEMORY), "100000 100000")
    assert int(group(bad, "pids.max")) > 0
    assert bad.status("bad")["warnings"] == []
    call("systemctl", "daemon-reload")
    call("systemd-run", "--wait", "--property=CPUAccounting=yes", "true")
    assert told(bad) == (str(MEMORY), "100000 100000")


@pytest.mark.smoke
def test_the_hosts_cgroups_are_as_systemd_has_them(bad: Instance) -> None:
    """A start that mounts cgroup2 for a guest leaves the options of the one hierarchy of the whole host alone."""
    found = call("findmnt", "--noheadings", "--output", "FS-OPTIONS", "/sys/fs/cgroup").strip().split(",")
    assert {"nsdelegate", "memory_recursiveprot"} <= set(found)


@pytest.mark.smoke
def test_what_takes_more_memory_is_ended(bad: Instance) -> None:
    script = f"print(len(b'x' * {2 * MEMORY}))"
    assert bad.inside("bad", "python3", "-c", script, check=False).returncode != 0
    events = dict(line.split() for line in group(bad, "memory.events").splitlines())
    assert int(events["oom_kill"]) > 0
    assert int(group(bad, "memory.peak")) <= MEMORY
    assert bad.status("bad")["state"] == "running"


@pytest.mark.smoke
def test_limits_change_while_it_runs(bad: Instance) -> None:
    before = bad.status("bad")["pid"]
    bad.declare("container", bad='memory = "300MiB"')
    bad.hutch("up", timeout=600)
    assert told(bad) == (str(300 << 20), "max 100000")
    bad.declare("container", bad="")
    bad.hutch("up", timeout=600)
    assert told(bad) == ("max", "max 100000")
    bad.declare("container", bad=LIMITED)
    bad.hutch("up", timeout=600)
    assert told(bad) == (str(MEMORY), "100000 100000")
    assert bad.status("bad")["pid"] == before


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_neighbour_hardly_notices(two: Instance, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    two.hutch("restart", "bad", timeout=300)
    quiet = p95(two)
    start = ("systemd-run", "--quiet", "--property=OOMPolicy=continue", "python3", "-c", PROGRAMS[name])
    two.inside("bad", *start, root=True)
    loud = p95(two)
    used, count, events = (group(two, file) for file in ("memory.current", "pids.current", "memory.events"))
    with capsys.disabled():
        print(f"\n{name}: ssh to a neighbour, p95: {quiet:.2f} s when quiet, {loud:.2f} s meanwhile;", end=" ")
        print(f"{int(used) >> 20} MiB, {count} tasks; {' '.join(events.split())}")
    assert int(used) <= MEMORY
    assert int(count) <= int(group(two, "pids.max"))
    two.hutch("stop", "bad", timeout=300)
    if loud > 2 * quiet + SLACK:  # this host may have got other things to do
        assert loud <= 2 * p95(two) + SLACK
