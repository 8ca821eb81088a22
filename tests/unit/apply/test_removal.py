"""Removing: what happens once for all that leave, and what each is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from hutch.apply import reconcile, removal
from hutch.apply.removal import remove
from hutch.errors import HutchError
from hutch.runtime import control
from hutch.spec.names import Layout
from hutch.spec.record import Record, present
from hutch.state import read_records, write_record
from tests.unit.facts import workspace
from tests.unit.scale import PLACE


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state", tmp_path / "run")


def test_the_host_is_reconciled_once(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[list[str]] = []
    left: list[list[str]] = []
    told: list[tuple[str, str, str]] = []

    def stop_all(layout: Layout, names: Iterable[str]) -> None:
        stopped.append(list(names))

    def reconcile_again(layout: Layout, network: None, records: Mapping[str, Record]) -> None:
        left.append(list(present(records)))

    monkeypatch.setattr(control, "stop_all", stop_all)
    monkeypatch.setattr(reconcile, "reconcile_again", reconcile_again)
    for name in ("a", "b", "c"):
        own = workspace(name, home=str(layout.home(name)))
        write_record(layout, Record(name, "/f", own, "image-1", 1 << 30, "0" * 32))
    leaving = {name: record for name, record in read_records(layout).items() if name != "b"}
    remove(layout, leaving, lambda *words: told.append(words), purge=False)
    assert (stopped, left) == ([["a", "c"]], [["b"]])
    assert told == [(name, "removed", f"(home is kept in {layout.home(name)})") for name in ("a", "c")]
    assert not layout.journal.exists()
    layout.record("a").unlink()
    layout.record("a").with_name("workspace.json.copy").unlink()
    with pytest.raises(HutchError, match="a has just been removed"):
        remove(layout, leaving, lambda *words: None, purge=False)
    assert len(stopped) == 1


def test_the_engine_tells_of_a_home_on_a_server(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, str, str]] = []

    class Farm:
        def stop(self, records: Mapping[str, Record]) -> None:
            pass

        def remove(self, record: Record, *, purge: bool) -> tuple[str, ...]:
            return ("its home stays there",)

    monkeypatch.setattr(removal, "engine_of", lambda layout, record: Farm())
    monkeypatch.setattr(removal, "stop", lambda layout, records: None)
    monkeypatch.setattr(reconcile, "reconcile_again", lambda layout, network, records: None)
    far = Record("far", "/f", workspace("far", engine="incus"), "image-1", 1 << 30, "0" * 32, place=PLACE)
    write_record(layout, far)
    remove(layout, {"far": far}, lambda *words: told.append(words), purge=False)
    assert told == [("far", "removed", "(its home stays there)")]
