"""What is refused before a virtual machine starts."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from hutch.apply import hardware
from hutch.apply.machines import (
    Starting,
    check_accelerator,
    check_hypervisors,
    check_machines,
    prepare_machines,
)
from hutch.apply.up import apply_plan
from hutch.errors import ConfigError, HutchError
from hutch.host.doctor import tools
from hutch.host.hardware.accelerator import Accelerator
from hutch.host.hardware.capacity import Capacity
from hutch.images import machine as images_machine
from hutch.plan.actions import Action, Plan, Wanted
from hutch.spec.names import Layout
from hutch.spec.record import Record
from tests.unit.facts import NETWORK, workspace

GIB = 1 << 30
VM = workspace(type="vm", memory=2 * GIB)
FILE = "/srv/hutch.toml"
TCG = Accelerator("tcg", 2_600_000, None, "no /dev/kvm")
KVM = Accelerator("kvm", None, None, "a guest has run under it")


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with all programs and the firmware, 4 GiB, two processors."""
    monkeypatch.setattr(images_machine, "FIRMWARES", (os.path.abspath(__file__),))
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "h", "6.12", "#1", "x86_64")))
    monkeypatch.setattr("hutch.apply.machines.observe_capacity", lambda: Capacity(4 * GIB, 2))
    monkeypatch.setattr(tools, "find_program", lambda name: f"/usr/bin/{name}")
    answer_as(monkeypatch, "virtiofsd 1.13.2\n")


def answer_as(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    """Have virtiofsd say this of its version."""
    done = subprocess.CompletedProcess((), 0, said, "")
    monkeypatch.setattr("hutch.run.run", lambda argv, **options: done)


@pytest.mark.parametrize(("said", "is_old"), [("virtiofsd 1.10.0", True), ("virtiofsd 1.13.0", False), ("", False)])
def test_a_virtiofsd_that_is_too_old(monkeypatch: pytest.MonkeyPatch, said: str, is_old: bool) -> None:
    """It would end with its options, and the machine with it."""
    answer_as(monkeypatch, said)
    check_machines([(FILE, "box", workspace())])
    if not is_old:
        check_machines([(FILE, "web", VM)])
        return
    with pytest.raises(HutchError, match=r"web: /\S+ 1\.10 is older than 1\.13, which"):
        check_machines([(FILE, "web", VM)])


def test_all_is_well() -> None:
    check_machines([(FILE, "web", VM), (FILE, "box", workspace())])
    check_machines([])


def test_all_problems_of_all_files_at_once() -> None:
    starting: list[Starting] = [
        (FILE, "web", replace(VM, memory=5 * GIB, vcpus=9)),
        ("/other.toml", "lab", replace(VM, vcpus=100)),
        (FILE, "box", workspace(memory=5 * GIB, vcpus=100)),
    ]
    with pytest.raises(ConfigError) as caught:
        check_machines(starting)
    assert [(problem.file, problem.key, problem.value) for problem in caught.value.problems] == [
        (FILE, "workspaces.web.memory", "5GiB"),
        (FILE, "workspaces.web.vcpus", "9"),
        ("/other.toml", "workspaces.lab.vcpus", "100"),
    ]
    assert "more than all of the host's memory, 4.0GiB" in caught.value.details


def test_programs_are_for_machines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "find_program", {"apt-get": "/usr/bin/apt-get"}.get)
    check_machines([(FILE, "box", workspace())])
    check_machines([(FILE, "far", replace(VM, engine="incus"))])
    with pytest.raises(HutchError, match="web, lab: this host cannot run virtual machines yet") as caught:
        check_machines([(FILE, "web", VM), (FILE, "box", workspace()), (FILE, "lab", VM)])
    for package in ("qemu-system-x86", "virtiofsd", "bubblewrap", "erofs-utils"):
        assert package in caught.value.resolution.split("`")[1].split()


def test_the_firmware_is_looked_for_where_a_machine_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_machine, "FIRMWARES", ("/nowhere/qboot.rom",))
    check_machines([(FILE, "box", workspace())])
    with pytest.raises(HutchError, match="no firmware for virtual machines"):
        check_machines([(FILE, "web", VM), (FILE, "box", workspace())])


def test_another_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "h", "6.12", "#1", "aarch64")))
    check_machines([(FILE, "box", workspace())])
    with pytest.raises(HutchError, match="web: virtual machines run on x86_64 only so far, and this host is aarch64"):
        check_machines([(FILE, "web", VM)])


def test_a_hypervisor_that_needs_kvm() -> None:
    starting: list[Starting] = [(FILE, "web", replace(VM, hypervisor="cloud-hypervisor")), (FILE, "lab", VM)]
    check_hypervisors(starting, KVM)
    check_hypervisors(starting[1:], TCG)
    check_hypervisors([(FILE, "box", workspace(hypervisor="cloud-hypervisor"))], TCG)
    with pytest.raises(ConfigError) as caught:
        check_hypervisors(starting, TCG)
    (problem,) = caught.value.problems
    assert (problem.file, problem.key, problem.value) == (FILE, "workspaces.web.hypervisor", "cloud-hypervisor")
    assert "needs KVM" in problem.message and "`hutch doctor`" in problem.message
    assert problem.hint == 'use "qemu" or "auto"'


def test_a_command_asks_for_the_accelerator_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, answers = Layout(tmp_path / "state", tmp_path / "run"), iter([TCG])
    monkeypatch.setattr(hardware, "machine_of", lambda layout, image: image)
    monkeypatch.setattr(hardware, "hardware_of", lambda *arguments, with_vsock: None)
    monkeypatch.setattr(hardware, "observe_accelerator", lambda layout, machine: next(answers))
    for _ in range(2):  # before anything is stopped, and before anything is started
        assert check_accelerator(layout, [((FILE, "web", VM), "image-1")]) == TCG


@pytest.mark.parametrize(
    ("vsock", "has_it", "warned"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_who_asks_for_vsock_where_there_is_none_is_told(
    vsock: bool, has_it: bool, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hutch.apply.machines.check_accelerator", lambda *arguments: TCG)
    monkeypatch.setattr("hutch.apply.machines.has_vsock", lambda: has_it)
    said: list[tuple[str, ...]] = []
    record = Record("web", FILE, replace(VM, vsock=vsock), "image-1", 0x7000_0000, "0" * 32)
    prepare_machines(Layout(tmp_path / "state", tmp_path / "run"), [record], lambda *words: said.append(words))
    assert [words[:2] for words in said if "no vsock" in words[2]] == [("web", "warning")] * warned


def test_a_hypervisor_that_cannot_run_here_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hutch.apply.hardware.accelerator_of", lambda layout, image: TCG)
    layout = Layout(tmp_path / "state", tmp_path / "run")
    machine = replace(VM, hypervisor="cloud-hypervisor")
    plan = Plan(FILE, NETWORK, (Action("web", "create", wanted=Wanted(machine, "image-1")),))
    with pytest.raises(ConfigError) as caught:
        apply_plan(layout, plan, lambda *words: None)
    assert caught.value.problems[0].key == "workspaces.web.hypervisor"
    assert [*tmp_path.iterdir()] == []
