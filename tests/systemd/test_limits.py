"""Limits where the kernel has what enforces them: a memory hog and a fork bomb in one workspace, and how a neighbour's
ssh feels them.
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

MEMORY = 256 << 20
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
def two(world: World) -> Iterator[Instance]:
    with open_instance(world) as instance:
        instance.declare("container", bad='memory = "256MiB"\nvcpus = 1', good="")
        instance.hutch("up", timeout=600)
        yield instance


def group(instance: Instance, file: str) -> str:
    """What a file of the bad one's cgroup says: its slice's, which has the limits."""
    slice_ = Path(Layout(instance.state, instance.run).cgroup("bad")).parent
    return (Path("/sys/fs/cgroup") / slice_ / file).read_text().strip()


def p95(instance: Instance) -> float:
    """Of plain ssh to the neighbour."""
    taken = []
    for _ in range(SAMPLES):
        began = time.monotonic()
        instance.ssh("good")
        taken.append(time.monotonic() - began)
    return sorted(taken)[math.ceil(SAMPLES * 0.95) - 1]


def test_the_kernel_is_told_and_systemd_leaves_it_so(two: Instance) -> None:
    def told() -> tuple[str, str]:
        return group(two, "memory.max"), group(two, "cpu.max")

    assert told() == (str(MEMORY), "100000 100000")
    assert int(group(two, "pids.max")) > 0
    assert two.status("bad")["warnings"] == []
    call("systemctl", "daemon-reload")
    call("systemd-run", "--wait", "--property=CPUAccounting=yes", "true")
    assert told() == (str(MEMORY), "100000 100000")


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
