"""What is told of virtual machines: status, ls, and a file that asks for more than the host has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hutch.api import Hutch
from hutch.api.describing import describe
from hutch.backends.launch import encode_launch
from hutch.cli.show import absent, show_type
from hutch.errors import ConfigError
from hutch.host.hardware import capacity
from hutch.host.hardware.capacity import Capacity
from hutch.runtime.observe import observe_facts
from hutch.spec.names import Layout
from hutch.spec.record import Observation, Record
from hutch.state import write_record
from tests.support.statuses import write_status
from tests.unit.backends.test_qemu import machine
from tests.unit.facts import workspace

VM = Record("web", "/srv/hutch.toml", workspace(type="vm"), "image-1", 0x7000_0000, "0" * 32).with_booted()
FACTS = {"hypervisor": "qemu", "accelerator": "tcg"}


@pytest.fixture
def hutch(tmp_path: Path) -> Hutch:
    """With one machine, whose main process is this very one."""
    hutch = Hutch(Layout(tmp_path / "state", tmp_path / "run"))
    stand(hutch, VM)
    hutch.layout.launch("web").write_bytes(encode_launch(machine()))
    return hutch


def stand(hutch: Hutch, record: Record, state: str = "running") -> None:
    write_record(hutch.layout, record)
    write_status(hutch.layout, "web", state, ready_seconds=5.0)


def say(hutch: Hutch, launch: str) -> None:
    hutch.layout.launch("web").write_text(launch)


def told(hutch: Hutch) -> tuple[object, object, object]:
    status = hutch.status("web")
    return status["hypervisor"], status["accelerator"], status["cid"]


def test_what_a_machine_runs_under(hutch: Hutch) -> None:
    assert told(hutch) == ("qemu", "tcg", 4939451)


@pytest.mark.parametrize("state", ["stopped", "failed"])
def test_nothing_is_told_of_what_does_not_run(state: str, hutch: Hutch) -> None:
    stand(hutch, VM, state)
    assert told(hutch) == (None, None, 4939451)


def test_what_runs_counts_and_not_what_is_wanted(hutch: Hutch) -> None:
    stand(hutch, replace(VM, wanted=workspace()))
    assert told(hutch) == ("qemu", "tcg", None)
    container = replace(VM, wanted=workspace()).with_booted()
    stand(hutch, replace(container, wanted=workspace(type="vm")))
    say(hutch, "{}")
    assert told(hutch) == (None, None, 4939451)


@pytest.mark.parametrize("launch", ["", "{", "[]", "{}", '{"facts": 3}', '{"facts": {"hypervisor": 3}}'])
def test_a_launch_that_cannot_be_read(launch: str, hutch: Hutch) -> None:
    say(hutch, launch)
    assert told(hutch) == (None, None, 4939451)


def test_a_launch_that_is_not_there(hutch: Hutch) -> None:
    assert observe_facts(hutch.layout, "lab") == {}


@pytest.mark.parametrize(("facts", "shown"), [(FACTS, "vm (tcg)"), ({**FACTS, "accelerator": "kvm"}, "vm"), ({}, "vm")])
def test_emulation_is_told_apart(facts: dict[str, str], shown: str) -> None:
    assert show_type(describe(VM, Observation("running"), facts)) == shown


def test_the_type_of_what_is_only_declared() -> None:
    assert show_type(absent("web", "vm", "")) == "vm"
    assert show_type(absent("web", None, "")) == "-"


def test_a_machine_larger_than_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "observe_capacity", lambda: Capacity(4 << 30, 2))
    file = tmp_path / "hutch.toml"
    file.write_text('[defaults]\nvcpus = 9\nowner = 65533\n[workspaces.web]\ntype = "vm"\nmemory = "5GiB"\n')
    file.chmod(0o644)
    with pytest.raises(ConfigError) as caught:
        Hutch(Layout(tmp_path / "state", tmp_path / "run")).load(file)
    found = {problem.key: (problem.line, problem.value, problem.message) for problem in caught.value.problems}
    assert found["defaults.vcpus"] == (2, "9", "is more than 4 for each processor of the host, which has 2")
    assert found["workspaces.web.memory"] == (6, '"5GiB"', "is more than all of the host's memory, 4.0GiB")
