"""A machine as its service runs it: what is said to it and heard of it while it runs, and how it ends. What else may
come through the pipes is tried in tests/host/test_machine_service, with a program that plays the machine.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from hutch.runtime.observe import read_launch
from hutch.runtime.status import Status, read_status
from hutch.spec.names import Layout
from hutch.spec.programs import own_program
from tests.host.egress import eventually
from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.support.world import World

LEFT = 300 << 20


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


def test_it_is_there_and_goes_when_it_is_told_to(running: Instance) -> None:
    launch = read_launch(layout_of(running).launch("lab"))
    assert launch is not None
    status = running.status("lab")
    assert (status["state"], status["hypervisor"], status["pid"]) == ("running", "qemu", said(running).pid)
    assert status["accelerator"] in ("kvm", "tcg")
    assert 0 < status["ready_seconds"] < launch.start_seconds
    assert running.ssh("lab", "uname -n").stdout == "lab\n"
    assert running.inside("lab", "id", "-un").stdout == "dev\n"
    check_console(running)
    check_memory(running)
    check_unheard(running)
    began = time.monotonic()
    running.hutch("stop", "lab")
    assert time.monotonic() - began < launch.stop_seconds
    assert (said(running).state, said(running).reason) == ("stopped", "")
    assert running.status("lab")["state"] == "stopped"
    running.hutch("stop", "lab")  # nothing is left to do


def check_console(lab: Instance) -> None:
    """Whoever attaches sees it and types there; the log has it in any case."""
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(layout_of(lab).console("lab")))
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
    log = layout_of(lab).log("lab")
    assert eventually(lambda: b"to the console" in log.read_bytes(), 60)


def received(link: socket.socket) -> bytes:
    """What comes within a second."""
    link.settimeout(1)
    try:
        return link.recv(4096)
    except TimeoutError:
        return b""


def check_memory(lab: Instance) -> None:
    """What a command has to say to a machine's monitor while it runs."""
    total = "awk '/^MemTotal/ { print $2 * 1024 }' /proc/meminfo"
    assert int(lab.inside("lab", "sh", "-c", total).stdout) > LEFT
    leave_memory(lab, LEFT)
    lab.inside("lab", "sh", "-c", f"until [ $({total}) -le {LEFT} ]; do sleep 0.1; done", timeout=30)
    leave_memory(lab, 1 << 30)


def leave_memory(lab: Instance, size: int) -> None:
    spec = find_spec("qemu.qmp")
    assert spec is not None and spec.origin is not None
    program = own_program("hutch.backends.qemu_monitor", sys.executable, needs_others=True)
    library = str(Path(spec.origin).parents[2])
    argv = (*program, str(layout_of(lab).runtime("lab") / "control"), library, str(size))
    result = subprocess.run(argv, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    assert (result.returncode, result.stderr) == (0, "")


def check_unheard(lab: Instance) -> None:
    """Once it is ready, nobody listens at its port; what a guest says there all the same stops nothing."""
    flood = "timeout 2 head -c 1000000 /dev/zero >/dev/vport1p1 || :"
    lab.inside("lab", "sh", "-c", flood.replace("vport1p1", "$(cd /dev && echo vport*p1)"), root=True)


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
