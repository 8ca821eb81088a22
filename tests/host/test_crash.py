"""`kill -9` at any moment: the next `up` reaches the declared state, nothing is left over, homes are intact."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.spec.names import Places
from tests.host.instance import HUTCH, Instance
from tests.host.opening import open_instance
from tests.host.processes import Process, ended, host_processes, nspawn_of, supervisor_of
from tests.host.residue import cgroups_of, observe
from tests.support import machine
from tests.support.world import PUBLIC, World

KEYS = 'publish = ["18090:80"]\nenv = { A = "b" }\n'
MOMENTS = 7


@pytest.fixture(scope="module")
def reference(world: World, images: Path, workspace_type: str) -> Iterator[tuple[Instance, list[str]]]:
    """A running hutch, and what a running one looks like on the host."""
    with open_instance(world, images) as instance:
        yield instance, make_golden(instance, workspace_type)


def make_golden(instance: Instance, workspace_type: str) -> list[str]:
    """Start `web`, with something in its home, and return the shape of the host with it."""
    instance.declare(workspace_type, web=KEYS)
    instance.up()
    instance.ssh("web", "echo precious > ~/precious")
    return shape(instance)


@pytest.fixture
def golden(reference: tuple[Instance, list[str]]) -> tuple[Instance, list[str]]:
    """The same, running again whatever the test before did."""
    reference[0].up()
    return reference


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


@pytest.mark.parametrize("moment", range(MOMENTS))
def test_the_command_line_is_killed_while_it_starts(golden: tuple[Instance, list[str]], moment: int) -> None:
    instance, expected = golden
    instance.hutch("rm", "web")
    kill_after(instance, random.Random(moment).uniform(moment, moment + 1) / MOMENTS * 1.4, "up")
    instance.up()
    assert_as_declared(instance, expected)


@pytest.mark.parametrize("moment", range(3))
def test_the_command_line_is_killed_while_it_removes(golden: tuple[Instance, list[str]], moment: int) -> None:
    instance, expected = golden
    kill_after(instance, 0.1 + moment * 0.15, "rm", "web")
    instance.up()
    assert_as_declared(instance, expected)


def test_the_command_line_is_killed_while_it_restarts(golden: tuple[Instance, list[str]]) -> None:
    instance, expected = golden
    kill_after(instance, 0.35, "restart", "web")
    instance.up()
    assert_as_declared(instance, expected)


SPAWNS = "vfork,fork,clone,clone3"
RENAMES = "rename,renameat,renameat2"


@pytest.mark.parametrize("calls", [SPAWNS, RENAMES], ids=["spawn", "rename"])
@pytest.mark.parametrize("command", ["up", "restart", "rm"])
def test_the_command_line_is_killed_at_every_effect(
    instance: Instance, workspace_type: str, command: str, calls: str
) -> None:
    """SIGKILL just before every third start of a command or replacement of a file, from the first on."""
    expected = make_golden(instance, workspace_type)
    for count in range(1, 200, 3):
        if command == "up":
            instance.hutch("rm", "web")
        arguments = ["up"] if command == "up" else [command, "web"]
        killed = kill_before(instance, f"{calls}:signal=SIGKILL:when={count}", calls, *arguments)
        instance.up()
        assert_as_declared(instance, expected)
        if not killed:
            break
    assert count > 1


def kill_before(instance: Instance, injection: str, calls: str, *arguments: str) -> bool:
    """Run a command that dies by the injection; False when it came to its end before that."""
    strace = ["strace", "--quiet=all", "--output=/dev/null", "-e", f"trace={calls}", "-e", f"inject={injection}"]
    result = subprocess.run(
        [*strace, *HUTCH, *arguments],
        cwd=instance.directory,
        env=instance.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=60,
    )
    return result.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)


def kill_after(instance: Instance, seconds: float, *arguments: str) -> None:
    """SIGKILL to the command line alone; what it started goes on or not, as it may."""
    process = instance.spawn(*arguments)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


@pytest.mark.parametrize("victim", ["supervisor", "nspawn"])
def test_what_runs_a_workspace_is_killed(golden: tuple[Instance, list[str]], victim: str) -> None:
    instance, expected = golden
    supervisor, nspawn = supervisor_of(instance, "web"), nspawn_of(instance, "web")
    end = os.pidfd_open(supervisor.pid)
    kill(supervisor if victim == "supervisor" else nspawn)
    ended(end)
    assert instance.status("web")["state"] == "failed"
    assert instance.plan()["web"]["action"] == "start"
    instance.up()
    assert_as_declared(instance, expected)


def test_everything_of_a_workspace_is_killed_at_once(golden: tuple[Instance, list[str]]) -> None:
    instance, expected = golden
    victims = [supervisor_of(instance, "web"), nspawn_of(instance, "web")]
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


def test_a_killed_workspace_can_be_removed(golden: tuple[Instance, list[str]]) -> None:
    instance, expected = golden
    kill(supervisor_of(instance, "web"))
    instance.hutch("rm", "web", "--force")
    assert cgroups_of(instance) == [] or not instance.names()
    instance.up()
    assert_as_declared(instance, expected)


def test_the_router_is_taken_away(golden: tuple[Instance, list[str]]) -> None:
    """Somebody deletes the uplink by hand: traffic stops, and the next `up` repairs it."""
    instance, expected = golden
    uplink = Places(instance.state, instance.run).uplink_host
    subprocess.run(["ip", "link", "delete", uplink], check=True, timeout=10)
    instance.up()
    assert_as_declared(instance, expected)


def test_damaged_state_is_never_read_as_nothing(golden: tuple[Instance, list[str]]) -> None:
    instance, expected = golden
    record = instance.state / "workspaces" / "web" / "workspace.json"
    content = record.read_bytes()
    for damage in (b"", content[:-30], content.replace(b'"web"', b'"wep"', 1)):
        record.write_bytes(damage)
        result = instance.hutch("up", check=False)
        assert result.returncode == 1
        assert str(record) in result.stderr
    record.write_bytes(content)
    assert_as_declared(instance, expected)


def test_eight_at_once(golden: tuple[Instance, list[str]]) -> None:
    instance, expected = golden
    instance.hutch("rm", "web")
    racers = [instance.spawn("up") for _ in range(8)]
    assert [racer.wait(120) for racer in racers] == [0] * 8
    assert_as_declared(instance, expected)
