"""When repairs are made again, and given back; whose network is looked at, and what KVM is tried with."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from hutch.apply import hardware, leaving, removal, repairing, repeating
from hutch.errors import HutchError
from hutch.host.doctor.repairs import Made, RepairStep, write_made
from hutch.host.hardware.accelerator import Accelerator
from hutch.host.network.foreign_firewalls import check_foreign_firewalls
from hutch.spec.names import Layout
from tests.unit.apply.test_coexistence import NETWORK, listing
from tests.unit.host.test_foreign_firewalls import DOCKER, FIREWALLD, UFW


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(Path("/var/lib/hutch"), tmp_path / "run")


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, ...]]]:
    """Sets the scene: what is noted and what is in force; returns what will have been run."""

    def set_scene(*steps: RepairStep, in_force: tuple[RepairStep, ...] = ()) -> list[tuple[str, ...]]:
        ran: list[tuple[str, ...]] = []
        monkeypatch.setattr(repeating, "read_made", lambda layout: Made(steps))
        monkeypatch.setattr(repeating, "is_made", lambda step: step in in_force)
        monkeypatch.setattr(repeating, "run", lambda argv, timeout: ran.append(argv))
        monkeypatch.setattr(repeating, "host_lock", nullcontext)
        return ran

    return set_scene


def steps_of(*entries: dict[str, Any]) -> tuple[RepairStep, ...]:
    found = check_foreign_firewalls(listing(*entries), "hutch-up", "192.168.84.1")
    return tuple(step for obstacle in found for step in obstacle.repair)


def test_a_start_makes_again_what_a_reboot_has_lost(layout: Layout, noted: Callable[..., Any]) -> None:
    steps = steps_of(*DOCKER)
    ran = noted(*steps)
    repeating.repeat_repairs(layout, NETWORK, listing(*DOCKER))
    assert ran == [step.make for step in steps]
    ran = noted(*steps, in_force=steps[1:])
    repeating.repeat_repairs(layout, NETWORK, listing(*DOCKER))
    assert ran == [steps[0].make]


@pytest.mark.parametrize("entries", [(), UFW])
def test_only_what_is_noted_and_only_where_something_is_in_the_way(
    layout: Layout, noted: Callable[..., Any], entries: tuple[dict[str, Any], ...]
) -> None:
    ran = noted(*steps_of(*DOCKER))
    repeating.repeat_repairs(layout, NETWORK, listing(*entries))
    assert ran == []


def test_a_start_goes_on_without_it(layout: Layout, noted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    scene = (*DOCKER, *FIREWALLD)
    back, _, permanent, _ = steps = steps_of(*scene)
    noted(*steps)
    tried = []

    def fail(argv: tuple[str, ...], timeout: float) -> None:
        tried.append(argv)
        raise HutchError("that failed")

    monkeypatch.setattr(repeating, "run", fail)
    repeating.repeat_repairs(layout, NETWORK, listing(*scene))
    assert tried == [back.make, permanent.make]  # after one that fails nothing of the same, and all of the others

    def refuse(layout: Layout) -> Made:
        raise HutchError("it is damaged")

    monkeypatch.setattr(repeating, "read_made", refuse)
    repeating.repeat_repairs(layout, NETWORK, listing(*scene))


def test_what_a_disk_refuses_holds_up_no_other_repair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def refuse() -> None:
        raise OSError(errno.EROFS, "Read-only file system", "/etc/x")

    monkeypatch.setattr(repairing, "changing", nullcontext)
    monkeypatch.setattr(repairing, "look", lambda *arguments: None)
    monkeypatch.setattr(repairing, "wanted_repairs", lambda seen: None)
    monkeypatch.setattr(repairing, "_repairs", lambda *arguments: [refuse, lambda: done.append(True)])
    (failure,) = repairing.repair(Layout(tmp_path, tmp_path), None, print)
    assert "/etc/x cannot be written or read: Read-only file system" in failure.brief and done == [True]


def test_what_leaves_gives_back_and_deletes_no_note_of_what_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout(tmp_path / "state", tmp_path / "run")
    write_made(layout, Made(shells=("bash",)))
    stays = ["/etc/x has been changed"]

    def take_back(layout: Layout, tell: object, **how: bool) -> list[str]:
        write_made(layout, Made(shells=("bash",)) if stays else Made())
        return stays

    monkeypatch.setattr(removal, "host_lock", nullcontext)
    monkeypatch.setattr("hutch.host.doctor.repairs.take_back", take_back)
    monkeypatch.setattr("hutch.host.identity.shells.remove", lambda layout: [])
    (note,) = leaving.take_away(layout)
    assert "/etc/x has been changed" in note
    with pytest.raises(HutchError, match="the note of changes by `hutch doctor --fix`"):
        leaving.delete_state(layout)
    stays.clear()
    assert leaving.take_away(layout) == ()
    leaving.delete_state(layout)
    assert not layout.state.exists()


def test_the_purge_of_the_last_gives_back_what_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(tmp_path / "state", tmp_path / "run")
    assert removal.give_back(layout) == ()
    write_made(layout, Made(shells=("bash",)))
    monkeypatch.setattr(removal, "host_lock", nullcontext)
    monkeypatch.setattr("hutch.host.doctor.repairs.take_back", lambda *given, **how: ["/etc/x has been changed"])
    (note,) = removal.give_back(layout)
    assert "/etc/x has been changed" in note and "`hutch doctor --undo`" in note
    monkeypatch.undo()
    monkeypatch.setattr(removal, "host_lock", nullcontext)
    layout.repairs.write_bytes(b"{}")
    assert "is damaged" in removal.give_back(layout)[0]


def test_the_declared_network_is_meant_where_none_is_set_up(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "state", tmp_path / "run")
    file = tmp_path / "hutch.toml"
    file.write_text('[network]\nsubnet = "10.9.0.0/24"\n')
    assert repairing.declared_network(layout, file).subnet == "10.9.0.0/24"
    file.write_text('[network]\nsubnet = "nonsense"\n')
    assert repairing.declared_network(layout, file).subnet == "192.168.83.0/24"
    with pytest.raises(HutchError, match="no such file"):
        repairing.declared_network(layout, tmp_path / "other.toml")


def test_kvm_is_tried_once_and_with_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = Layout(tmp_path / "state", tmp_path / "run")
    tried: list[object] = []
    known: list[Accelerator | None] = [None]
    monkeypatch.setattr(repairing, "recall_accelerator", lambda layout: known[0])

    def observe(layout: Layout, machine: object) -> Accelerator:
        tried.append(machine)
        return Accelerator("tcg", None, None, "no answer")

    monkeypatch.setattr(repairing, "observe_accelerator", observe)
    monkeypatch.setattr(repairing, "find_program", lambda name: name)
    said: list[str] = []
    repairing.try_kvm(layout, said.append)
    assert tried == [] and said == []
    monkeypatch.setattr(hardware, "observe_machine", lambda layout, image: image if image == "b" else None)
    for image in "abc":
        (layout.images / image).mkdir(parents=True)
    repairing.try_kvm(layout, said.append)
    assert tried == ["b"] and said == ["boot a guest under KVM: no answer"]
    known[0] = Accelerator("tcg", None, None, "it hung")
    repairing.try_kvm(layout, said.append)
    assert len(tried) == 1
