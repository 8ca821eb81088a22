"""What is written down about a workspace before anything is made for it."""

from __future__ import annotations

from pathlib import Path

from hutch.apply.up import _write_down
from hutch.plan.actions import Action, Kind, Plan, Wanted
from hutch.spec.entries import Publish
from hutch.spec.names import Layout
from hutch.spec.record import Booted, Record
from hutch.state import read_record
from tests.unit.facts import NETWORK, workspace


def noted(tmp_path: Path, kind: Kind) -> Record:
    layout = Layout(tmp_path / "state", tmp_path / "run")
    before = Record(
        "web", "/f", workspace(), "image-1", 0x7000_0000, "0" * 32, booted=Booted(workspace(vcpus=1), "image-0")
    )
    target = workspace(publish=(Publish("", 80, 80, "tcp"),), vcpus=2, autostart=True)
    action = Action("web", kind, wanted=Wanted(target, "image-1"))
    _write_down(layout, Plan("/f", NETWORK, (action,)), {"web": before}, {}, lambda *said: None)
    found = read_record(layout, "web")
    assert found is not None and found.wanted == target
    return found


def test_what_is_live_is_in_force_once_it_has_been_done(tmp_path: Path) -> None:
    assert noted(tmp_path, "live").booted == Booted(workspace(vcpus=1), "image-0")


def test_nothing_is_left_of_a_root_that_is_made_anew(tmp_path: Path) -> None:
    assert noted(tmp_path, "recreate").booted is None
