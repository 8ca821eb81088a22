"""Ill will in one workspace, on any host: what needs no help of the kernel's cgroups is bounded. A fork bomb and a
memory hog are let loose where these are bounded: see tests/host/vm/test_enforced.py, whose host has all it takes.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.host.network.firewall import CONNECTIONS
from hutch.spec.names import Layout
from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.support import red_team
from tests.support.world import PUBLIC, World

DISK = 64 << 20
SAMPLES = 8


@pytest.fixture(scope="module")
def two(world: World, images: Path) -> Iterator[Instance]:
    with open_instance(world, images) as instance:
        instance.declare("container", bad='disk = "64MiB"', good="")
        instance.up()
        yield instance


def attack(instance: Instance, program: str, *arguments: str) -> None:
    """Let it loose, as a service of the guest's."""
    start = ("systemd-run", "--quiet", "--collect", "python3", "-c", program, *arguments)
    instance.inside("bad", *start, root=True)


def p95(instance: Instance) -> float:
    return red_team.percentile(red_team.measure(lambda: instance.ssh("good"), SAMPLES))


def connections(instance: Instance) -> int:
    """How many the router keeps at this moment."""
    namespace = Layout(instance.state, instance.run).namespace_path
    count = "/proc/sys/net/netfilter/nf_conntrack_count"
    command = ["nsenter", f"--net={namespace}", "cat", count]
    return int(subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout)


def test_what_needs_no_cgroups_is_bounded(two: Instance, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = p95(two)
    attack(two, red_team.LOG_FLOOD)
    attack(two, red_team.DISK_FILL, "/root")
    attack(two, red_team.CONNECTION_FLOOD, PUBLIC, "1000")
    loud = p95(two)
    assert 1000 < connections(two) <= CONNECTIONS + 100
    log = sum(path.stat().st_size for path in (two.run / "workspaces" / "bad").glob("machine.log*"))
    assert 0 < log <= 1 << 20
    used = two.inside("bad", "df", "--block-size=1", "--output=used", "/", root=True).stdout.split()[-1]
    assert DISK // 2 < int(used) <= DISK
    with capsys.disabled():
        print(
            f"\nssh to a neighbour, p95: {quiet:.2f} s when quiet, {loud:.2f} s meanwhile; not enforced here:", end=" "
        )
        print(", ".join(unenforced(two)) or "nothing")
    two.hutch("restart", "bad")
    assert two.inside("bad", "true").returncode == 0


def unenforced(instance: Instance) -> list[str]:
    """By what the doctor says of this host."""
    findings = json.loads(instance.hutch("doctor", "--json", check=False).stdout)
    return [item["name"] for item in findings if item["name"].startswith("limit of") and item["state"] != "ok"]
