"""A machine as its service runs it: how it ends and is there again. What else may come through the pipes is tried in
tests/host/test_machine_service, with a program that plays the machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.runtime.status import Status, read_status
from hutch.spec.names import Layout
from tests.host.egress import eventually
from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.support.world import World


@pytest.fixture(scope="module")
def lab(world: World, images: Path) -> Iterator[Instance]:
    with open_instance(world, images) as instance:
        instance.declare("vm", lab="")
        yield instance


@pytest.fixture
def running(lab: Instance) -> Instance:
    """Ready, whatever the test before did."""
    lab.hutch("up", timeout=300)
    return lab


def layout_of(instance: Instance) -> Layout:
    return Layout(instance.state, instance.run)


def said(instance: Instance) -> Status:
    """What its service says; without a command, since that may soon be something else."""
    found = read_status(str(layout_of(instance).status("lab")))
    assert found is not None
    return found


@pytest.mark.slow
def test_a_reboot_inside_is_another_start(running: Instance) -> None:
    before = said(running).pid
    running.inside("lab", "systemctl", "reboot", root=True, check=False)
    assert eventually(lambda: (said(running).state, said(running).reason) == ("stopped", "rebooting"), 60)
    assert eventually(lambda: said(running).state == "running", 200)
    assert said(running).pid != before
    running.ssh("lab")


@pytest.mark.long
def test_a_panic_is_told(running: Instance) -> None:
    running.ssh("lab", "(sleep 0.2; echo c | doas tee /proc/sysrq-trigger) >/dev/null 2>&1 & exit")
    assert eventually(lambda: said(running).state == "failed", 60)
    assert said(running).reason == "the guest's kernel panicked"
    assert eventually(lambda: said(running).state == "running", 200)  # it is started again
