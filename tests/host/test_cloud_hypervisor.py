"""Machines under cloud-hypervisor: what is heard of them and said to them, against a server that takes nothing but what
is published; and a real boot, on hosts that have the program and a KVM that runs guests."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hutch
from hutch.backends.cloud_hypervisor import OLDEST, READY_PORT, parse_version
from hutch.backends.cloud_hypervisor_calls import AGAIN, POWEROFF_PORT
from hutch.runtime.hear import MOST_AT_ONCE, MOST_CALLS, Calls, listen_in
from hutch.spec.programs import own_program
from tests.host.instance import Instance
from tests.support.fake_cloud_hypervisor import FakeMachine


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[FakeMachine]:
    machine = FakeMachine(tmp_path, (POWEROFF_PORT,))
    yield machine
    machine.close()


# Being ready.


@pytest.fixture
def calls(tmp_path: Path) -> Iterator[Calls]:
    calls = listen_in(str(tmp_path), f"vm_{READY_PORT}")
    yield calls
    calls.close()


def hears_ready(calls: Calls) -> bool:
    """Whether it is said; what is said is heard for a moment."""
    deadline = time.monotonic() + 0.3
    while time.monotonic() < deadline and not calls.is_spent:
        if select.select([calls], [], [], 0.05)[0] and calls.hears_ready():
            return True
    return False


def call(machine: FakeMachine, text: bytes) -> None:
    with machine.call(READY_PORT) as connection:
        connection.sendall(text)


def test_a_guest_that_calls_is_ready(machine: FakeMachine, calls: Calls) -> None:
    for text in (b"STATUS=Starting\n", b"X_SYSTEMD_UNIT_ACTIVE=multi-user.target", b"READY=0\n", b"NOT_READY=1\n"):
        call(machine, text)
        assert not hears_ready(calls)
    call(machine, b"STATUS=Up\nREADY=1\nX=2")
    assert hears_ready(calls)
    with pytest.raises((FileNotFoundError, ConnectionRefusedError)):  # at once, so nothing inside waits for an answer
        machine.call(READY_PORT)


def test_a_call_is_over_once_something_was_said(machine: FakeMachine, calls: Calls) -> None:
    with machine.call(READY_PORT) as connection:
        connection.sendall(b"STATUS=Starting")
        hears_ready(calls)
        assert connection.recv(1) == b""  # systemd waits for it, before it goes on with the boot


def test_calls_that_say_nothing_or_too_much_change_nothing(machine: FakeMachine, calls: Calls) -> None:
    held = [machine.call(READY_PORT) for _ in range(MOST_AT_ONCE)]
    hears_ready(calls)
    with machine.call(READY_PORT) as one_too_many:
        hears_ready(calls)
        assert one_too_many.recv(1) == b""
    for connection in held:
        connection.sendall(b"x" * 8192)
    assert not hears_ready(calls)
    for connection in held:
        connection.close()
    call(machine, b"READY=1")
    assert hears_ready(calls)


def test_calls_without_end_are_not_answered_without_end(machine: FakeMachine, calls: Calls) -> None:
    for _ in range(MOST_CALLS):
        assert not calls.is_spent
        with machine.call(READY_PORT):
            calls.hears_ready()
    assert calls.is_spent
    assert not hears_ready(calls)
    with pytest.raises((FileNotFoundError, ConnectionRefusedError)):
        machine.call(READY_PORT)


# What is said to it.


def program(directory: Path, *words: str) -> list[str]:
    """What says something to a machine."""
    own = own_program("hutch.backends.cloud_hypervisor_calls", sys.executable, Path(hutch.__file__).parent)
    return [*own, str(directory), *words]


@pytest.fixture
def asking(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Begins to ask for the end. What asks ends with the machine's service, and says nothing."""
    begun: list[subprocess.Popen[bytes]] = []

    def ask() -> subprocess.Popen[bytes]:
        begun.append(subprocess.Popen(program(tmp_path, "end"), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE))
        return begun[-1]

    yield ask
    for process in begun:
        process.kill()
        assert process.communicate(timeout=10)[1] == b""


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


Ask = Callable[[], "subprocess.Popen[bytes]"]


def test_it_is_asked_to_end_in_both_ways(machine: FakeMachine, asking: Ask) -> None:
    process = asking()
    wait_for(lambda: machine.connected and machine.requests)
    time.sleep(2 * AGAIN)
    assert machine.connected == [POWEROFF_PORT]
    assert machine.requests == [("PUT", "/vm.power-button")]
    assert machine.refused == []
    assert process.poll() is None  # it stays on the line


def test_a_guest_that_did_not_listen_yet_is_asked_again(machine: FakeMachine, asking: Ask) -> None:
    machine.ports = ()
    asking()
    wait_for(lambda: machine.missed[:2] == [POWEROFF_PORT] * 2)
    assert machine.connected == []
    machine.ports = (POWEROFF_PORT,)
    wait_for(lambda: POWEROFF_PORT in machine.connected)
    assert machine.requests == [("PUT", "/vm.power-button")]


def test_asking_a_machine_that_is_gone_harms_nothing(machine: FakeMachine, asking: Ask) -> None:
    machine.close()
    processes = [asking()]
    time.sleep(2 * AGAIN)
    for name in ("vm", "api"):
        (machine.directory / name).unlink()
    processes.append(asking())
    time.sleep(2 * AGAIN)
    assert [process.poll() for process in processes] == [None, None]


def leave(directory: Path, size: int) -> str:
    """Tell the balloon; why it cannot be."""
    result = subprocess.run(program(directory, "balloon", str(size)), capture_output=True, text=True, timeout=60)
    assert (result.returncode != 0) == bool(result.stderr)
    return result.stderr.strip()


def test_its_balloon_is_told(machine: FakeMachine) -> None:
    assert leave(machine.directory, 424 << 20) == ""
    assert machine.requests == [("PUT", "/vm.resize")]
    assert json.loads(machine.bodies[0]) == {"desired_balloon": 424 << 20}
    machine.status = "500 \x1b[31mno"
    assert leave(machine.directory, 424 << 20) == "cloud-hypervisor refuses: HTTP/1.1 500 [31mno"
    (machine.directory / "api").unlink()
    assert leave(machine.directory, 424 << 20) == "cloud-hypervisor does not answer"


def test_links_that_a_machine_puts_there_are_not_followed(
    machine: FakeMachine, asking: Ask, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    other = FakeMachine(elsewhere, (POWEROFF_PORT,))
    for name in ("vm", "api"):
        (machine.directory / name).unlink()
        (machine.directory / name).symlink_to(elsewhere / name)
    asking()
    assert leave(machine.directory, 1 << 20) == "cloud-hypervisor does not answer"
    assert not other.heard.wait(2 * AGAIN)
    other.close()


# In its jail, with a program that plays the machine.

PLAYER = Path(__file__).parents[1] / "support" / "machine_in_its_jail.py"


@pytest.fixture
def player(tmp_path: Path) -> Path:
    """A program that can be run by the name of cloud-hypervisor."""
    path = tmp_path / "player"
    path.write_text(f"#!/usr/bin/python3 -I\n{PLAYER.read_text()}")
    path.chmod(0o755)
    tmp_path.chmod(0o755)
    return path


def play(directory: Path, player: Path, how: str) -> dict[str, Any]:
    namespaces = ("unshare", "--mount", "--propagation", "private", "--net", "--")
    program = (sys.executable, "-m", "tests.support.cloud_hypervisor_bench", str(directory), str(player), how)
    result = subprocess.run(
        [*namespaces, *program],
        cwd=PLAYER.parents[2],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert isinstance(found, dict)
    return found


needs_device = pytest.mark.skipif(not os.path.exists("/dev/kvm"), reason="there is no /dev/kvm to hand in")


@needs_device
def test_what_a_machine_finds_in_its_jail(tmp_path: Path, player: Path) -> None:
    found = play(tmp_path, player, "stopped")
    assert (found["is_ready"], found["how"]) == (True, "success exited 0"), found["log"]
    assert (found["state"], found["reason"]) == ("stopped", "")
    assert "ready, says the guest over vsock\n" in found["log"]
    seen = json.loads(next(line for line in found["log"].splitlines() if line.startswith("{")))
    uid = str(0x7000_0000)
    assert seen["uids"] == [uid] * 4
    assert seen["groups"] == ["4242"]
    assert set(seen["capabilities"]) == {"0000000000000000"}
    assert seen["no_new_privs"] == "1"
    assert seen["processes"] < 10  # its own, and what is around it
    assert seen["interfaces"] == ["lo"]
    assert seen["tap"] == "vm-web"
    assert seen["writable"] == ["/sockets", "/disk"]
    assert seen["devices"] == ["kvm", "null", "urandom"]
    assert set(seen["root"]) == {
        *("bin", "cloud-hypervisor", "dev", "disk", "initrd", "kernel", "lib", "lib64", "proc", "root.erofs"),
        *("sockets", "usr", "vm"),
    }
    assert seen["mode"] == 0o400
    assert seen["told"]["shares"] == "share0 rw /home/dev\n"
    assert seen["told"]["credentials/hutch.ssh-host-key"] == "the ssh_host_ed25519_key"
    assert seen["told"]["credentials/system.hostname"] == "web"
    assert not seen["is_terminal"]


@needs_device
def test_a_machine_that_resets_is_ended_in_its_jail(tmp_path: Path, player: Path) -> None:
    player.write_text(player.read_text().replace("RESETS = False", "RESETS = True"))
    found = play(tmp_path, player, "ended")
    assert (found["is_ready"], found["how"]) == (True, "success exited 133"), found["log"]
    assert (found["state"], found["reason"]) == ("stopped", "rebooting")


# A real one.


def installed() -> str:
    """Why there can be no real boot here, "" when there can."""
    program = shutil.which("cloud-hypervisor")
    if program is None:
        return "cloud-hypervisor is not installed"
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10).stdout
    version = parse_version(said)
    if version is None or version < OLDEST:
        return f"this cloud-hypervisor is older than {OLDEST}: {said.strip()!r}"
    return "" if os.path.exists("/dev/kvm") else "there is no /dev/kvm"


@pytest.mark.skipif(bool(why := installed()), reason=why or "it can run")
def test_a_machine_boots_reboots_and_ends_in_order(instance: Instance) -> None:
    mount = instance.directory / "shared place"
    mount.mkdir()
    shutil.chown(mount, 1000, 1000)
    instance.declare("vm", real=f'disk = "256MiB"\nmounts = [{{ source = "{mount}", target = "/srv/a b" }}]')
    instance.hutch("up", timeout=600)
    found = instance.status("real")
    if found["accelerator"] != "kvm":
        pytest.skip("/dev/kvm runs no guest on this host")
    assert (found["state"], found["hypervisor"]) == ("running", "cloud-hypervisor")

    instance.ssh("real", "echo seen > '/srv/a b/file' && hostname")
    assert (mount / "file").read_text() == "seen\n"
    assert (mount / "file").stat().st_uid == 1000
    key = "/run/credentials/@system/hutch.ssh-host-key"
    assert instance.ssh("real", f"cat {key}", check=False).returncode != 0
    assert "/dev/vdb" in instance.ssh("real", "doas findmnt --noheadings --output SOURCE /run/hutch/disk").stdout

    first = instance.ssh("real", "cat /proc/sys/kernel/random/boot_id").stdout
    instance.ssh("real", "doas systemctl reboot", check=False)
    wait_for_boot(instance, first)

    begun = time.monotonic()
    instance.hutch("stop", "real")
    assert time.monotonic() - begun < 10  # in order: by force it takes 15 s and more
    assert instance.status("real")["state"] == "stopped"


def wait_for_boot(instance: Instance, first: str) -> None:
    """Wait for another boot than the first."""
    deadline = time.monotonic() + 60
    while True:
        said = instance.ssh("real", "cat /proc/sys/kernel/random/boot_id", check=False)
        if said.returncode == 0 and said.stdout != first:
            return
        assert time.monotonic() < deadline, instance.status("real")
        time.sleep(0.5)
