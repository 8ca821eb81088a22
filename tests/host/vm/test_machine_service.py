"""A machine as its service runs it under systemd, without systemd: what the unit says is done by tests/support/service.
What else may come through the pipes is tried in tests/host/test_machine_service.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hutch.runtime.monitor import leave_memory

from hutch.apply.hardware import accelerator_of
from hutch.apply.starting import public_keys, surroundings_of
from hutch.backends import launch
from hutch.backends.launch import REBOOT, Launch
from hutch.spec.names import Places
from hutch.state import read_network, read_records, write_record
from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.support.service import Service
from tests.support.world import World

LEFT = 300 << 20


@pytest.fixture(scope="module")
def lab(world: World, images: Path) -> Iterator[Instance]:
    """A machine that has never been started, on a host that is ready for it."""
    with open_instance(world, images) as instance:
        instance.declare("vm", lab="")
        instance.hutch("up", "--no-start", timeout=300)
        yield instance


def places_of(instance: Instance) -> Places:
    return Places(instance.state, instance.run)


def launched(instance: Instance) -> Launch:
    """What its unit is made of on a host with systemd."""
    places = places_of(instance)
    record, network = read_records(places)["lab"], read_network(places)
    assert network is not None
    keys = tuple(path.read_text().strip() for path in public_keys(places, record))
    host = surroundings_of(places, record, network.network, keys, accelerator_of(places, record.image))
    write_record(places, record.with_booted())
    return launch("lab", record.wanted, replace(host, by_systemd=True))


@pytest.fixture
def service(lab: Instance, tmp_path: Path) -> Iterator[Service]:
    """One start of it, ready."""
    service = Service(launched(lab), places_of(lab), tmp_path)
    try:
        assert service.is_ready(service.launch.start_seconds), service.text
        yield service
    finally:
        service.end()


def test_it_is_there_and_goes_when_it_is_told_to(lab: Instance, service: Service) -> None:
    status = lab.status("lab")
    assert (status["state"], status["hypervisor"], status["pid"]) == ("running", "qemu", service.process.pid)
    assert status["accelerator"] in ("kvm", "tcg")
    assert 0 < status["ready_seconds"] < service.launch.start_seconds
    assert lab.ssh("lab", "uname -n").stdout == "lab\n"
    assert lab.inside("lab", "id", "-un").stdout == "dev\n"
    check_console(lab, service)
    check_memory(lab, service)
    check_unheard(lab)
    began = time.monotonic()
    assert service.stop() == 0
    assert time.monotonic() - began < service.launch.stop_seconds
    status = lab.status("lab")
    assert status["state"] == "stopped"
    lab.hutch("stop", "lab")  # nothing is left to do


def check_console(lab: Instance, service: Service) -> None:
    """Whoever attaches sees it and types there; the journal has it in any case."""
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(places_of(lab).console("lab")))
        link.settimeout(30)
        lab.inside("lab", "sh", "-c", "echo to the console >/dev/ttyS0", root=True)
        seen = b""
        while b"to the console" not in seen:
            seen += link.recv(4096)
        reader = 'read -r line </dev/ttyS0; echo "<$line>" >/dev/ttyS0'
        lab.inside("lab", "systemd-run", "--quiet", "sh", "-c", reader, root=True)
        deadline = time.monotonic() + 60
        while b"<heard>" not in (seen := seen + received(link)):
            assert time.monotonic() < deadline, seen
            link.sendall(b"heard\n")  # what is typed before somebody reads is lost
    service.until(lambda: "to the console" in service.text)


def received(link: socket.socket) -> bytes:
    """What comes within a second."""
    link.settimeout(1)
    try:
        return link.recv(4096)
    except TimeoutError:
        return b""


def check_memory(lab: Instance, service: Service) -> None:
    """What a command has to say to a machine's monitor while it runs."""
    total = "awk '/^MemTotal/ { print $2 * 1024 }' /proc/meminfo"
    assert int(lab.inside("lab", "sh", "-c", total).stdout) > LEFT
    assert leave_memory(f"{service.runtime}/control", service.launch.library, LEFT) == ""
    lab.inside("lab", "sh", "-c", f"until [ $({total}) -le {LEFT} ]; do sleep 0.1; done", timeout=30)
    assert leave_memory(f"{service.runtime}/control", service.launch.library, 1 << 30) == ""


def check_unheard(lab: Instance) -> None:
    """Once it is ready, nobody listens at its port; what a guest says there all the same stops nothing."""
    flood = "timeout 2 head -c 1000000 /dev/zero >/dev/vport1p1 || :"
    lab.inside("lab", "sh", "-c", flood.replace("vport1p1", "$(cd /dev && echo vport*p1)"), root=True)


def test_a_reboot_inside_is_another_start(lab: Instance, service: Service) -> None:
    lab.inside("lab", "systemctl", "reboot", root=True, check=False)
    assert service.ended(60) == REBOOT
    assert service.status["reason"] == "rebooting"


@pytest.mark.long
def test_a_panic_is_told(lab: Instance, service: Service) -> None:
    lab.ssh("lab", "(sleep 0.2; echo c | doas tee /proc/sysrq-trigger) >/dev/null 2>&1 & exit")
    assert service.ended(60) == 1
    assert lab.status("lab")["state"] == "failed"
    assert lab.status("lab")["reason"] == "the guest's kernel panicked"
