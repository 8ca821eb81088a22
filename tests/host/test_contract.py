"""What every backend keeps while it runs, the toy of the tests included. What can be told without running it is in
tests/unit/backends/test_contract.py."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.support import toys
from tests.support.world import World


class WithToys(Instance):
    """A hutch whose registry has the toys in it, one of which is chosen for containers by its rank."""

    program: ClassVar[tuple[str, ...]] = (sys.executable, str(Path(toys.__file__)))


@dataclass(frozen=True)
class Case:
    """A backend: the hutch that has it, and a change that it does not make while the guest runs."""

    kind: type[Instance]
    is_restarted_for: tuple[str, str]
    hypervisor: str | None = None
    keys: str = ""


MUTE = 'hypervisor = "toy-machine"\npersist = "all"'
"""A toy answers nobody who would ask it, before it ends, for work that goes with its root: so that is kept."""
CASES = {
    "nspawn": ("container", Case(Instance, ("shell", '"/bin/sh"'))),
    "machine": ("vm", Case(Instance, ("vcpus", "2"), "qemu", 'hypervisor = "qemu"')),
    "toy": ("container", Case(WithToys, ("memory", '"1GiB"'))),
    "toy-machine": ("vm", Case(WithToys, ("vcpus", "2"), "toy-machine", MUTE)),
}
PARAMS = [pytest.param(*both, id=name, marks=[pytest.mark.vm] * (both[0] == "vm")) for name, both in CASES.items()]


@pytest.fixture(scope="module")
def running(world: World, images: Path, workspace_type: str, case: Case) -> Iterator[Instance]:
    with open_instance(world, images, case.kind) as instance:
        instance.declare(workspace_type, web=case.keys)
        instance.up()
        yield instance


pytestmark = pytest.mark.parametrize(("workspace_type", "case"), PARAMS, scope="module")


def state_of(instance: Instance) -> Any:
    return instance.status("web")["state"]


def test_it_is_ready(running: Instance, workspace_type: str, case: Case) -> None:
    found = running.status("web")
    assert (found["state"], found["pending"], found["warnings"]) == ("running", "none", [])
    assert found["ready_seconds"] > 0
    assert found["hypervisor"] == case.hypervisor
    assert running.plan()["web"]["action"] == "no change"


def test_refused_input_is_named_and_changes_nothing(running: Instance, workspace_type: str, case: Case) -> None:
    running.declare(workspace_type, web=f'{case.keys}\nowner = "root"')
    refused = running.hutch("up", check=False)
    assert refused.returncode == 2
    assert "workspaces.web.owner" in refused.stderr
    assert state_of(running) == "running"


def test_a_change_that_it_does_not_make_live_is_refused_by_name(
    running: Instance, workspace_type: str, case: Case
) -> None:
    key, value = case.is_restarted_for
    before = running.status("web")["pid"]
    running.declare(workspace_type, web=f"{case.keys}\n{key} = {value}\nrestart_if_changed = false")
    told = running.up()
    assert f"it takes effect at the next restart ({key})" in told.stdout + told.stderr
    assert (running.status("web")["pid"], running.status("web")["pending"]) == (before, "restart")
    running.declare(workspace_type, web=case.keys)
    running.up()
    assert (running.status("web")["pid"], running.status("web")["pending"]) == (before, "none")


def test_it_is_explained(running: Instance, workspace_type: str, case: Case) -> None:
    text = running.hutch("explain", "web").stdout
    assert "it runs, started as shown below" in text
    assert "put the port on the bridge" in text


@pytest.mark.vm(slow=True)  # each start of a machine takes many seconds, and systemd's tests kill one too
def test_it_crashes_and_is_brought_back(running: Instance, workspace_type: str, case: Case) -> None:
    running.declare(workspace_type, web=case.keys)
    before = running.status("web")["pid"]
    os.kill(before, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while running.status("web")["pid"] == before:
        assert time.monotonic() < deadline
    running.up()
    found = running.status("web")
    assert found["state"] == "running" and found["pid"] != before


@pytest.mark.vm(slow=True)
def test_it_restarts(running: Instance, workspace_type: str, case: Case) -> None:
    before = running.status("web")["pid"]
    running.hutch("restart", "web")
    found = running.status("web")
    assert found["state"] == "running" and found["pid"] != before


def test_it_stops_and_leaves_nothing(running: Instance, workspace_type: str, case: Case) -> None:
    """What is left on the host once its hutch is closed fails the fixture."""
    running.hutch("stop", "web")
    assert (state_of(running), running.status("web")["pid"]) == ("stopped", None)
    assert running.plan()["web"]["action"] == "start"


@pytest.mark.vm(slow=True)
def test_it_starts_again(running: Instance, workspace_type: str, case: Case) -> None:
    running.hutch("start", "web")
    assert state_of(running) == "running"
