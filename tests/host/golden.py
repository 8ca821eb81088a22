"""What the host looks like while a workspace runs, to compare with after something went wrong."""

from __future__ import annotations

import time
from collections import Counter

from tests.host.instance import Instance
from tests.host.processes import host_processes
from tests.host.residue import cgroups_of, observe
from tests.support import machine
from tests.support.world import PUBLIC

KEYS = 'publish = ["18090:80"]\nenv = { A = "b" }\n'


def make_golden(instance: Instance, workspace_type: str) -> list[str]:
    """Start `web`, with something in its home, and return the shape of the host with it."""
    instance.declare(workspace_type, web=KEYS)
    instance.up()
    instance.ssh("web", "echo precious > ~/precious")
    return steady_shape(instance)


def steady_shape(instance: Instance) -> list[str]:
    """The shape, once it has been the same for a second: the watch over the rules looks once more after a start."""
    last, since = shape(instance), time.monotonic()
    deadline = since + 30
    while time.monotonic() < since + 1:
        assert time.monotonic() < deadline, "the host does not come to rest"
        time.sleep(0.1)
        if (now := shape(instance)) != last:
            last, since = now, time.monotonic()
    return last


def shape(instance: Instance) -> list[str]:
    """The host while workspaces run, without numbers that differ from start to start."""
    seen = observe()
    lines = [
        f"{section}: {line}"
        for section in ("routes", "routing rules", "firewall", "mounts", "etc")
        for line in seen[section]
    ]
    lines += [f"{section}: {line}" for section in ("run", "namespaces", "kernel settings") for line in seen[section]]
    lines += [f"interface: {line.split()[0]}" for line in seen["interfaces"]]
    lines += [f"processes: {count} of {name}" for name, count in sorted(Counter(host_processes()).items())]
    lines += [f"cgroup: {path}" for path in cgroups_of(instance)]
    return sorted(lines)


def assert_as_declared(instance: Instance, golden: list[str]) -> None:
    """Running, reachable, as a clean start would have left it; and one more `up` changes nothing."""
    state = instance.status("web")["state"]
    assert state == "running", state
    said = instance.ssh("web", f"cat ~/precious; curl --silent --max-time 10 http://{PUBLIC}/").stdout
    assert said.startswith("precious\ninternet "), said
    changed = machine.difference({"shape": tuple(golden)}, {"shape": tuple(settle(instance, golden))})
    assert not changed, changed
    action = instance.plan()["web"]["action"]
    assert action == "no change", action


def settle(instance: Instance, golden: list[str]) -> list[str]:
    """The shape, once ended processes are reaped."""
    deadline = time.monotonic() + 5
    while (now := shape(instance)) != golden and time.monotonic() < deadline:
        time.sleep(0.1)
    return now
