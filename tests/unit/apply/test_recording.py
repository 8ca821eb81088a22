"""What the router has seen of ssh, in the records of workspaces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hutch.apply.recording import fold_connections
from hutch.audit.events import why_wrong
from hutch.host.network.connections import Connection, Met
from hutch.spec.names import Layout
from hutch.spec.record import Record
from hutch.state import write_record
from tests.unit.facts import workspace

Fold = Callable[[Met], dict[str, list[tuple[str, Any]]]]


@pytest.fixture
def fold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fold:
    """Folds what a look has found: the events by the names of the workspaces."""
    layout = Layout(tmp_path / "state", tmp_path / "run")
    layout.state.mkdir()
    for name, ip in (("web", "192.168.83.2"), ("lab", "192.168.83.3")):
        write_record(layout, Record(name, "/srv/hutch.toml", workspace(name, ip=ip), "image", 100_000, "0" * 32))

    def look(found: Met) -> dict[str, list[tuple[str, Any]]]:
        told: dict[str, list[tuple[str, Any]]] = {}

        @contextmanager
        def looked(layout: Layout) -> Iterator[Met]:
            yield found

        def record(layout: Layout, name: str, entries: Any, warn: Any) -> None:
            told[name] = [(each.event, each.values.get("port")) for each in entries]
            assert not any(why_wrong(each.event, each.values) for each in entries)

        monkeypatch.setattr("hutch.host.network.connections.new_connections", looked)
        monkeypatch.setattr("hutch.audit.writing.record", record)
        fold_connections(layout)
        return told

    return look


def test_a_connection_goes_to_whom_it_was_for(fold: Fold) -> None:
    found = Met((Connection("192.168.83.2", 40001, 5.0), Connection("192.168.83.9", 40002, 5.0)))
    assert fold(found) == {"web": [("connected", 40001)], "lab": []}


def test_no_room_for_more_is_told_to_all(fold: Fold) -> None:
    found = Met((Connection("192.168.83.3", 40001, 5.0),), is_full=True)
    assert fold(found) == {"web": [("cut", None)], "lab": [("connected", 40001), ("cut", None)]}


def test_another_look_fails_no_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(layout: Layout) -> None:
        raise TimeoutError("another look goes on")

    monkeypatch.setattr("hutch.host.network.connections.new_connections", busy)
    fold_connections(Layout(tmp_path / "state", tmp_path / "run"))
