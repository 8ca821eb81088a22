"""`kill -9` of what runs: the next `up` reaches the declared state, and nothing is left over. For killed commands see
test_faults."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hutch.spec.names import Layout
from tests.host.golden import assert_as_declared, make_golden
from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.host.processes import Process, ended, main_of, processes, runner_of
from tests.host.residue import cgroups_of
from tests.support.world import World


@pytest.fixture(scope="module")
def reference(world: World, images: Path, workspace_type: str) -> Iterator[tuple[Instance, list[str]]]:
    """A running hutch, and what a running one looks like on the host."""
    with open_instance(world, images) as instance:
        yield instance, make_golden(instance, workspace_type)


@pytest.fixture
def golden(reference: tuple[Instance, list[str]]) -> tuple[Instance, list[str]]:
    """The same, running again whatever the test before did."""
    reference[0].up()
    return reference


def test_what_runs_a_workspace_is_killed(golden: tuple[Instance, list[str]]) -> None:
    """The guest ends in order, and nobody starts it again."""
    instance, expected = golden
    end = os.pidfd_open(main_of(instance, "web").pid)
    kill(runner_of(instance, "web"))
    ended(end)
    status = instance.status("web")
    assert (status["state"], status["reason"]) == ("failed", "its main process was killed")
    assert instance.plan()["web"]["action"] == "start"
    instance.up()
    assert_as_declared(instance, expected)


def test_its_main_process_is_killed(golden: tuple[Instance, list[str]]) -> None:
    """It is started again, a while later."""
    instance, expected = golden
    runner, main = runner_of(instance, "web"), main_of(instance, "web")
    kill(main)
    await_state(instance, "failed")
    os.kill(runner.pid, signal.SIGSTOP)  # while it is looked at
    status = instance.status("web")
    assert (status["state"], status["reason"]) == ("failed", "nspawn was killed by SIGKILL")
    assert instance.plan()["web"]["action"] == "start"
    os.kill(runner.pid, signal.SIGCONT)
    await_state(instance, "running")
    assert (runner_of(instance, "web").pid, main_of(instance, "web").pid != main.pid) == (runner.pid, True)
    assert_as_declared(instance, expected)


def test_its_main_process_is_killed_and_somebody_is_faster(golden: tuple[Instance, list[str]]) -> None:
    instance, expected = golden
    kill(main_of(instance, "web"))
    instance.up()
    assert instance.status("web")["state"] == "running"
    assert_as_declared(instance, expected)
    assert len(processes_of(instance, "hutch.runtime.runner")) == 1


def await_state(instance: Instance, state: str) -> None:
    path, deadline = Layout(instance.state, instance.run).status("web"), time.monotonic() + 30
    while json.loads(path.read_text())["state"] != state:
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.02)


def processes_of(instance: Instance, word: str) -> list[Process]:
    """Those of a hutch's own whose command line has a word in it."""
    mine = [process for process in processes() if any(word in part for part in process.command)]
    return [process for process in mine if any(str(instance.run) in part for part in process.command)]


def test_everything_of_a_workspace_is_killed_at_once(golden: tuple[Instance, list[str]]) -> None:
    instance, expected = golden
    victims = [runner_of(instance, "web"), main_of(instance, "web")]
    for victim in victims:
        os.kill(victim.pid, signal.SIGSTOP)
    for victim in victims:
        kill(victim)
    instance.up()
    assert_as_declared(instance, expected)


def kill(process: Process) -> None:
    """SIGKILL, and wait for the end."""
    descriptor = os.pidfd_open(process.pid)
    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    ended(descriptor)


@pytest.mark.parametrize("victim", [runner_of, main_of])
def test_a_killed_workspace_can_be_removed(
    golden: tuple[Instance, list[str]], victim: Callable[[Instance, str], Process]
) -> None:
    instance, expected = golden
    kill(victim(instance, "web"))
    instance.hutch("rm", "web", "--force")
    assert cgroups_of(instance) == [] or not instance.names()
    instance.up()
    assert_as_declared(instance, expected)


def test_the_router_is_taken_away(golden: tuple[Instance, list[str]]) -> None:
    """Somebody deletes the uplink by hand: traffic stops, and the next `up` repairs it."""
    instance, expected = golden
    uplink = Layout(instance.state, instance.run).uplink_host
    subprocess.run(["ip", "link", "delete", uplink], check=True, timeout=10)
    instance.up()
    assert_as_declared(instance, expected)


def test_eight_at_once(golden: tuple[Instance, list[str]]) -> None:
    instance, expected = golden
    instance.hutch("rm", "web")
    racers = [instance.spawn("up") for _ in range(8)]
    assert [racer.wait(120) for racer in racers] == [0] * 8
    assert_as_declared(instance, expected)
