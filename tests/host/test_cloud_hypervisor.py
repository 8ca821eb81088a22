"""Machines under cloud-hypervisor: what its supervisor hears and says, against a server that takes nothing but what is
published; and a real boot, on hosts that have the program and a KVM that runs guests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from _socket import socket as link
from _socket import socketpair
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hutch.runtime.calls import MOST_AT_ONCE, MOST_CALLS
from hutch.runtime.cloud_hypervisor import (
    MOST_EVENT_BYTES,
    PANIC,
    POWEROFF_PORT,
    READY_PORT,
    RESET,
    CloudHypervisor,
)

from hutch.backends.hypervisor import OLDEST, parse_version
from tests.host.instance import Instance
from tests.support.fake_cloud_hypervisor import FakeMachine

Said = list[tuple[str, str]]
REBOOTING = b'{\n  "source": "vm",\n  "event": "rebooting",\n  "properties": null\n}\n\n'
PANICKED = b'{"source": "guest", "event": "panic", "properties": {"event": "panic"}}\n\n'


class Bench:
    """A source, and both ends of what it hears; the machine's process is one that sleeps."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ours, self.theirs = socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.process = subprocess.Popen(["sleep", "60"])
        self.pidfd = os.pidfd_open(self.process.pid)
        self.source = CloudHypervisor(self.ours, str(directory), self.pidfd)
        self.machine = FakeMachine(directory, (POWEROFF_PORT,))

    def hear(self, until: Callable[[Said], object] = bool) -> Said:
        """What is said, until there is enough of it, or for a moment."""
        said: Said = []
        deadline = time.monotonic() + 0.3
        while not until(said) and time.monotonic() < deadline:
            said += self.source.hear()
            time.sleep(0.005)
        return said

    def is_killed(self) -> bool:
        """Whether the machine's process has been; one that has not been lives on."""
        try:
            return self.process.wait(0.2) == -signal.SIGKILL
        except subprocess.TimeoutExpired:
            return False

    def close(self) -> None:
        self.source.close()
        self.machine.close()
        for end in (self.ours, self.theirs):
            end.close()
        os.close(self.pidfd)
        self.process.kill()
        self.process.wait()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    try:
        yield bench
    finally:
        bench.close()


# Being ready.


def call(bench: Bench, text: bytes) -> None:
    with bench.machine.call(READY_PORT) as connection:
        connection.sendall(text)


def test_a_guest_that_calls_is_ready(bench: Bench) -> None:
    for text in (b"STATUS=Starting\n", b"X_SYSTEMD_UNIT_ACTIVE=multi-user.target", b"READY=0\n", b"NOT_READY=1\n"):
        call(bench, text)
        assert bench.hear() == []
    call(bench, b"STATUS=Up\nREADY=1\nX=2")
    assert bench.hear() == [("ready", "vsock")]
    with pytest.raises((FileNotFoundError, ConnectionRefusedError)):  # at once, so nothing inside waits for an answer
        bench.machine.call(READY_PORT)
    assert not bench.is_killed()


def test_a_call_is_over_once_something_was_said(bench: Bench) -> None:
    with bench.machine.call(READY_PORT) as connection:
        connection.sendall(b"STATUS=Starting")
        bench.hear()
        assert connection.recv(1) == b""  # systemd waits for it, before it goes on with the boot


def test_calls_that_say_nothing_or_too_much_change_nothing(bench: Bench) -> None:
    held = [bench.machine.call(READY_PORT) for _ in range(MOST_AT_ONCE)]
    bench.hear()
    with bench.machine.call(READY_PORT) as one_too_many:
        bench.hear()
        assert one_too_many.recv(1) == b""
    for connection in held:
        connection.sendall(b"x" * 8192)
    assert bench.hear() == []
    for connection in held:
        connection.close()
    call(bench, b"READY=1")
    assert bench.hear() == [("ready", "vsock")]


def test_calls_without_end_are_not_answered_without_end(bench: Bench) -> None:
    for _ in range(MOST_CALLS):
        with bench.machine.call(READY_PORT):
            list(bench.source.hear())
    assert list(bench.source.hear()) == []
    with pytest.raises((FileNotFoundError, ConnectionRefusedError)):
        bench.machine.call(READY_PORT)


# The end.


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_it_is_asked_to_end_in_both_ways(bench: Bench) -> None:
    bench.source.power_off()
    wait_for(lambda: bench.machine.connected and bench.machine.requests)
    assert bench.machine.connected == [POWEROFF_PORT]
    assert bench.machine.requests == [("PUT", "/vm.power-button")]
    assert bench.machine.refused == []
    assert not bench.is_killed()


def test_its_balloon_is_told(bench: Bench) -> None:
    assert bench.source.leave_memory(600 << 20, 1 << 30) == ""
    assert bench.machine.requests == [("PUT", "/vm.resize")]
    assert json.loads(bench.machine.bodies[0]) == {"desired_balloon": 424 << 20}
    (bench.machine.directory / "api").unlink()
    assert "does not answer" in (bench.source.leave_memory(600 << 20, 1 << 30) or "")


def test_a_guest_that_did_not_listen_yet_is_asked_again(bench: Bench) -> None:
    bench.machine.ports = ()
    bench.source.power_off()
    wait_for(lambda: bench.machine.missed == [POWEROFF_PORT])
    assert bench.machine.connected == []
    bench.machine.ports = (POWEROFF_PORT,)
    call(bench, b"READY=1")
    assert bench.hear() == [("ready", "vsock")]
    wait_for(lambda: POWEROFF_PORT in bench.machine.connected)


def test_asking_a_machine_that_is_gone_harms_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.machine.close()
    bench.source.power_off()
    for name in ("vm", "api"):
        (tmp_path / name).unlink()
    bench.source.power_off()
    bench.close()


def test_links_that_a_machine_puts_there_are_not_followed(
    bench: Bench, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    other = FakeMachine(elsewhere, (POWEROFF_PORT,))
    for name in ("vm", "api"):
        (bench.directory / name).unlink()
        (bench.directory / name).symlink_to(elsewhere / name)
    bench.source.power_off()
    assert not other.heard.wait(0.2)
    other.close()


@pytest.mark.parametrize(("said", "outcome"), [(REBOOTING, RESET), (PANICKED + REBOOTING, PANIC)])
def test_a_machine_that_would_go_on_is_ended(bench: Bench, said: bytes, outcome: str) -> None:
    bench.theirs.send(said[:20])
    assert bench.hear() == []
    assert not bench.is_killed()
    bench.theirs.send(said[20:])
    assert bench.hear() == [("outcome", outcome)]
    assert bench.is_killed()
    bench.theirs.send(REBOOTING)
    assert list(bench.source.last_words()) == []  # the first outcome counts


def test_what_it_said_last_is_heard(bench: Bench) -> None:
    bench.theirs.send(b'{"source": "vmm", "event": "starting"}\n\n' + REBOOTING)
    bench.theirs.close()
    assert list(bench.source.last_words()) == [("outcome", RESET)]


def test_events_without_end_are_not_read_without_end(bench: Bench) -> None:
    noise = b'{"source": "virtio-device", "event": "reset", "properties": {"id": "_net1"}}\n\n' * 40
    bench.theirs.settimeout(0.05)
    sent = 0
    while sent < 2 * MOST_EVENT_BYTES:
        try:
            sent += bench.theirs.send(noise)
        except TimeoutError:
            if not bench.hear(lambda said: True) and not flows(bench.theirs):
                break
        list(bench.source.hear())
    assert MOST_EVENT_BYTES <= sent < 2 * MOST_EVENT_BYTES
    call(bench, b"READY=1")
    assert bench.hear() == [("ready", "vsock")]


def flows(connection: link) -> bool:
    """Whether there is room for one more byte."""
    try:
        return bool(connection.send(b"\n"))
    except TimeoutError:
        return False


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


def play(directory: Path, player: Path) -> dict[str, Any]:
    namespaces = ("unshare", "--mount", "--propagation", "private", "--net", "--")
    program = (sys.executable, "-m", "tests.support.cloud_hypervisor_bench", str(directory), str(player))
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
    found = play(tmp_path, player)
    assert (found["said"], found["code"]) == ([["ready", "vsock"]], 0), found["log"]
    seen = json.loads(found["log"].splitlines()[0])
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
    assert seen["is_terminal"]


@needs_device
def test_a_machine_that_resets_is_ended_in_its_jail(tmp_path: Path, player: Path) -> None:
    player.write_text(player.read_text().replace("RESETS = False", "RESETS = True"))
    found = play(tmp_path, player)
    assert found["said"] == [["ready", "vsock"], ["outcome", RESET]]
    assert found["code"] == -signal.SIGKILL


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
