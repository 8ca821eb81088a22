"""What is refused before a virtual machine starts."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from hutch.apply.machines import Starting, check_context_ids, check_hypervisors, check_machines
from hutch.errors import ConfigError, HutchError
from hutch.host import capacity, tools, vsock
from hutch.host.accelerator import Accelerator
from hutch.host.capacity import Capacity
from tests.unit.facts import workspace

GIB = 1 << 30
VM = workspace(type="vm", memory=2 * GIB)
FILE = "/srv/hutch.toml"
TCG = Accelerator("tcg", 2_600_000, None, "no /dev/kvm")
KVM = Accelerator("kvm", None, None, "a guest has run under it")


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with all programs, 4 GiB, two processors."""
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Linux", "h", "6.12", "#1", "x86_64")))
    monkeypatch.setattr(capacity, "observe_capacity", lambda: Capacity(4 * GIB, 2))
    monkeypatch.setattr(tools, "find_program", lambda name: f"/usr/bin/{name}")


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
    monkeypatch.setattr(tools, "find_program", lambda name: None)
    check_machines([(FILE, "box", workspace())])
    check_machines([(FILE, "far", replace(VM, engine="incus"))])
    with pytest.raises(HutchError, match="web, lab: this host cannot run virtual machines yet") as caught:
        check_machines([(FILE, "web", VM), (FILE, "box", workspace()), (FILE, "lab", VM)])
    for package in ("qemu-system-x86", "virtiofsd", "bubblewrap", "erofs-utils"):
        assert package in caught.value.resolution.split("`")[1].split()


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
    assert "no /dev/kvm" in problem.message and '"qemu"' in problem.hint


def test_a_context_id_of_somebody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vsock, "is_free", lambda cid: cid != 77)
    check_context_ids([(FILE, "web", VM), (FILE, "box", workspace(cid=77))])
    with pytest.raises(ConfigError) as caught:
        check_context_ids([(FILE, "web", VM), (FILE, "lab", replace(VM, cid=77))])
    (problem,) = caught.value.problems
    assert (problem.key, problem.value) == ("workspaces.lab.cid", "77")
