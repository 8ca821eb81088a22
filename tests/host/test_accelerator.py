"""Real guests of a few bytes under the host's real accelerators: a firmware that gives the answer, or hangs.

They stand for a machine's kernel, which takes seconds to make and to boot; what is tried here is who runs them, what is
heard of them, and that nothing of them is left.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from hutch.host.doctor.tools import QEMU, find_program
from hutch.host.hardware import accelerator, clock
from hutch.host.hardware.accelerator import ANSWER, DEVICE, KvmAccess, Verdict, run_guest
from hutch.spec.names import Layout

UID = 0x7FFF_0001
OPEN = KvmAccess(None, "")
ANSWERING = bytes.fromhex("fa be0001 2eac 84c0 7406 baf803 ee ebf4 f4 ebfd")
"""cli; mov si, 0x100; next: cs lodsb; test al, al; jz end; mov dx, 0x3f8; out dx, al; jmp next; end: hlt; jmp end"""
HANGING = bytes.fromhex("fa ebfe")
"""cli; here: jmp here"""

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="machines run on x86_64 only")
CREATE_VM = 0xAE01  # KVM_CREATE_VM: see linux/kvm.h


def has_kvm() -> bool:
    """Whether KVM makes a machine that QEMU can set up, which does not say that it runs one."""
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.close(fcntl.ioctl(device, CREATE_VM, 0))
    except OSError:
        return False
    finally:
        os.close(device)
    program = shutil.which(QEMU)
    if program is None:
        return True  # which the tests say in their own words
    machine = ("-M", "microvm,accel=kvm", "-cpu", "host", "-m", "64M", "-nodefaults", "-no-user-config")
    stopped = [program, *machine, "-display", "none", "-S", "-monitor", "stdio"]
    return subprocess.run(stopped, input=b"quit\n", capture_output=True, timeout=20).returncode == 0


needs_kvm = pytest.mark.skipif(not has_kvm(), reason=f"no {DEVICE} that makes a machine")


@dataclass(frozen=True)
class Machine:
    kernel: Path
    initrd: Path
    firmware: Path


def make_machine(directory: Path, code: bytes) -> Machine:
    """A machine whose firmware does it all; its kernel is the least that QEMU takes for one. Nobody but root can get at
    the files by name."""
    directory.chmod(0o700)
    rom = bytearray(1 << 16)
    rom[: len(code)] = code
    rom[0x100 : 0x100 + len(ANSWER)] = ANSWER
    rom[0xFFF0:0xFFF3] = bytes.fromhex("e90d00")  # where a processor begins: jmp 0
    header = bytearray(4096)
    header[0x1F1], header[0x202:0x206], header[0x206:0x208] = 1, b"HdrS", b"\x04\x02"
    header[0x22C:0x230] = (0x37FFFFFF).to_bytes(4, "little")  # how far up the initrd may be
    machine = Machine(directory / "kernel", directory / "initrd", directory / "firmware")
    for path, content in ((machine.kernel, header), (machine.initrd, b"x"), (machine.firmware, rom)):
        path.write_bytes(content)
        path.chmod(0o644)
    return machine


def qemu() -> str:
    found = find_program(QEMU)
    assert found is not None
    return found


def children(parent: int | str = "self") -> dict[int, str]:
    """The processes that this one has started, or another, and what they are."""
    found = {}
    for task in Path(f"/proc/{parent}/task").iterdir():
        for pid in (task / "children").read_text().split():
            found[int(pid)] = Path(f"/proc/{pid}/comm").read_text().strip()
    return found


def wait_for_guest(parent: int | str = "self") -> int:
    """The QEMU that this process has started, or another."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for child, name in children(parent).items():
            if name.startswith("qemu"):
                return child
        time.sleep(0.02)
    raise AssertionError("no guest was started")


@pytest.mark.parametrize("under", ["tcg", pytest.param("kvm", marks=needs_kvm)])
def test_a_guest_that_answers(under: str, tmp_path: Path) -> None:
    access = OPEN if under == "tcg" else accelerator.observe_access(DEVICE)
    machine = make_machine(tmp_path, ANSWERING)
    before = children()  # other files' tests may have left some
    verdict = run_guest(machine, qemu(), access, UID, accelerator=under)
    assert verdict == Verdict("")
    assert children().keys() <= before.keys()


@pytest.mark.parametrize("under", ["tcg", pytest.param("kvm", marks=needs_kvm)])
def test_a_guest_that_hangs_is_ended(under: str, tmp_path: Path) -> None:
    access = OPEN if under == "tcg" else accelerator.observe_access(DEVICE)
    began, before = time.monotonic(), children()
    verdict = run_guest(make_machine(tmp_path, HANGING), qemu(), access, UID, accelerator=under, seconds=2)
    assert verdict == Verdict("a guest under KVM did not come up within 2 s")
    assert time.monotonic() - began < 5
    assert children().keys() <= before.keys()


def test_a_kernel_that_is_none(tmp_path: Path) -> None:
    machine = make_machine(tmp_path, ANSWERING)
    machine.kernel.write_bytes(b"\0" * 10)
    verdict = run_guest(machine, qemu(), OPEN, UID, accelerator="tcg")
    assert verdict.problem.startswith("QEMU ended before a guest under KVM came up: ")
    assert not verdict.is_lasting


@pytest.mark.parametrize(("name", "is_believed"), [("ABRT", True), ("KILL", False)])
def test_a_qemu_that_gives_up(name: str, is_believed: bool, tmp_path: Path) -> None:
    """By itself, or since somebody ended it, who may not do so again."""
    program = tmp_path / "qemu"
    program.write_text(f"#!/bin/sh\necho it cannot be\nkill -{name} $$\n")
    program.chmod(0o755)
    verdict = run_guest(make_machine(tmp_path, HANGING), str(program), KvmAccess(None, "root's alone"), UID)
    assert verdict == Verdict("QEMU ended before a guest under KVM came up: it cannot be", is_believed)


@pytest.mark.parametrize(
    ("access", "uids", "gids"),
    [
        (OPEN, UID, UID),
        (KvmAccess(12345, ""), UID, 12345),
        (KvmAccess(None, "root's alone"), 0, 0),
    ],
)
def test_as_whom_a_guest_runs(access: KvmAccess, uids: int, gids: int, tmp_path: Path) -> None:
    machine = make_machine(tmp_path, HANGING)
    run = partial(run_guest, machine, qemu(), access, UID, accelerator="tcg", seconds=2)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        text = Path(f"/proc/{wait_for_guest()}/status").read_text()
    finally:
        thread.join()
    status = {key: value.split() for key, _, value in (line.partition(":") for line in text.splitlines())}
    assert (status["Uid"], status["Gid"], status["Groups"]) == ([str(uids)] * 4, [str(gids)] * 4, [])
    assert {status[f"Cap{kind}"][0] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert status["NoNewPrivs"] == ["1"]


KILLED = """
import sys
from pathlib import Path
from tests.host.test_accelerator import *
run_guest(make_machine(Path(sys.argv[1]), HANGING), qemu(), OPEN, UID, accelerator="tcg", seconds=60)
"""


def test_a_guest_ends_with_hutch(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=root, env={**os.environ, "PYTHONPATH": str(root)})
    try:
        guest = os.pidfd_open(wait_for_guest(process.pid))
    finally:
        process.kill()
        process.wait(10)
    assert select.select([guest], [], [], 60)[0], "it still runs"
    os.close(guest)


@needs_kvm
def test_the_host_waits_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "machine").mkdir()
    machine = make_machine(tmp_path / "machine", HANGING)
    layout = Layout(tmp_path / "state", tmp_path / "run")
    monkeypatch.setattr(accelerator, "run_guest", partial(run_guest, seconds=1))
    found = accelerator.observe_accelerator(layout, machine)
    assert found.name == "tcg" and found.tsc_khz is not None
    assert found.why == "a guest under KVM did not come up within 1 s"
    began = time.monotonic()
    assert accelerator.observe_accelerator(layout, machine) == found == accelerator.recall_accelerator(layout)
    assert time.monotonic() - began < 0.5
    assert not layout.run.exists()  # a runtime directory that is not empty would stay behind
    assert accelerator.memory_path(layout).stat().st_mode & 0o777 == 0o600


# The clock.


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Beside loops that want all of the processors."""
    loops = [subprocess.Popen(["sh", "-c", "while :; do :; done"], stdin=subprocess.DEVNULL) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def test_the_rate_is_the_same_on_a_busy_host() -> None:
    quiet = clock.measure_rate()
    with busy(2 * (os.cpu_count() or 1)):
        loaded = [clock.measure_rate() for _ in range(3)]
    assert quiet is not None and quiet in clock.PLAUSIBLE
    for rate in loaded:
        assert rate is not None and abs(rate - quiet) <= quiet * 1e-4, (quiet, loaded)


def test_the_counter_counts() -> None:
    read = clock.make_reader()
    readings = [read() for _ in range(1000)]
    assert readings == sorted(readings) and readings[0] < readings[-1]
