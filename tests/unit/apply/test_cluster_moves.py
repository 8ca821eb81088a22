"""Moves between members of a cluster: what is refused stops nothing, and what runs is not started anew."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from hutch.apply import cluster_moves
from hutch.errors import HutchError
from hutch.spec.names import Layout
from hutch.spec.record import Observation
from hutch.state import write_record
from tests.unit.engines.incus.cluster import record


class Mover:
    def __init__(self, done: list[str], bad: str) -> None:
        self.done, self.bad, self.state = done, bad, "running"

    def member(self) -> str:
        return "m1"

    def check_member(self, member: str) -> None:
        if member == self.bad:
            raise HutchError(f"there is no member {member!r}")

    def move_to(self, member: str) -> None:
        self.done.append(f"move to {member}")
        if member == "late":
            self.state = "stopped"
        raise HutchError("it cannot be moved")


@pytest.mark.parametrize(
    ("member", "work", "force", "done"),
    [
        ("typo", [], False, []),
        ("m2", [], False, ["move to m2"]),
        ("late", [], False, ["move to late", "start"]),
        ("m2", ["/srv/x: stashed changes"], False, []),
        ("m2", ["/srv/x: stashed changes"], True, ["move to m2"]),
    ],
)
def test_only_what_was_stopped_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, member: str, work: list[str], force: bool, done: list[str]
) -> None:
    layout, seen = Layout(tmp_path / "state", tmp_path / "run"), list[str]()
    write_record(layout, record())
    mover = Mover(seen, "typo")
    monkeypatch.setattr(cluster_moves, "lock", lambda layout: nullcontext())
    monkeypatch.setattr(cluster_moves, "recover", lambda layout, listen: None)
    monkeypatch.setattr(cluster_moves, "sessions_of", lambda layout, record: [])
    monkeypatch.setattr(cluster_moves, "unsaved_in_root", lambda layout, record: work)
    monkeypatch.setattr(cluster_moves, "mover_of", lambda layout, record: mover)
    monkeypatch.setattr(cluster_moves, "observe_all", lambda layout, records: {"web": Observation(mover.state)})  # type: ignore[arg-type]

    def start(*words: Any) -> None:
        seen.append("start")

    monkeypatch.setattr(cluster_moves, "start_all_the_same", start)
    with pytest.raises(HutchError):
        cluster_moves.move_to_member(
            layout, "web", member, lambda plan: seen.append("confirm"), lambda *said: None, force=force
        )
    assert [each for each in seen if each != "confirm"] == done
    assert layout.journal.exists() == bool(done)
