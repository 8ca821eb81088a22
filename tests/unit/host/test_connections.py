"""What nft lists of the connections to port 22 that the router has seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from hutch import files
from hutch.host.network import connections
from hutch.host.network.connections import Connection, new_connections, parse
from hutch.spec.names import Layout


def listing(*elements: Any) -> str:
    body = {"family": "inet", "name": "met_ssh", "table": "hutch", "timeout": 3600, "elem": list(elements)}
    return json.dumps({"nftables": [{"metainfo": {"version": "1.1.3"}}, {"set": body}]})


def element(port: int, expires: int) -> dict[str, Any]:
    return {"elem": {"val": {"concat": ["192.168.83.2", port]}, "expires": expires}}


def test_each_has_the_time_at_which_it_was_opened() -> None:
    found = parse(listing(element(40002, 3590), element(40001, 600)), 100_000.0)
    assert found == [Connection("192.168.83.2", 40001, 97_000.0), Connection("192.168.83.2", 40002, 99_990.0)]


@pytest.mark.parametrize("text", ["", '{"nftables": []}', listing(), listing(element(4, 90_000))])
def test_where_there_are_none(text: str) -> None:
    assert parse(text, 100_000.0) == []


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A host with a router, of which `met` sets what it lists."""
    monkeypatch.setattr(connections, "has_namespace", lambda layout: True)
    layout = Layout(tmp_path / "state", tmp_path / "run")
    layout.services.mkdir(parents=True)
    return layout


@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def have(*ports: int) -> None:
        listed = CompletedProcess([], 0, listing(*(element(port, 3000) for port in ports)), "")
        monkeypatch.setattr(connections, "run", lambda argv: listed)

    return have


def look(layout: Layout) -> tuple[list[int], bool]:
    with new_connections(layout) as found:
        return [each.port for each in found.connections], found.is_full


def test_each_is_seen_once(layout: Layout, met: Callable[..., None]) -> None:
    met(40001)
    assert look(layout) == ([40001], False)
    met(40001, 40002)
    assert look(layout) == ([40002], False)
    assert look(layout) == ([], False)


def test_two_do_not_look_at_once(layout: Layout, met: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    met(40001)
    monkeypatch.setattr(files, "TURN", 0.0)
    with new_connections(layout), pytest.raises(TimeoutError), new_connections(layout):
        pytest.fail("two have looked at once")
    assert look(layout) == ([], False)


def test_what_is_not_recorded_is_seen_again(layout: Layout, met: Callable[..., None]) -> None:
    met(40001)
    with pytest.raises(KeyboardInterrupt), new_connections(layout):
        raise KeyboardInterrupt
    assert look(layout) == ([40001], False)


def test_no_room_for_more_is_seen_once(
    layout: Layout, met: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "FULL", 3)
    met(1, 2)
    assert look(layout) == ([1, 2], False)
    met(1, 2, 3)
    assert look(layout) == ([3], True)
    assert look(layout) == ([], False)
    met(1)
    assert look(layout) == ([], False)
    met(1, 4, 5)
    assert look(layout) == ([4, 5], True)


def test_another_hutch_s_note_is_as_good_as_none(layout: Layout, met: Callable[..., None]) -> None:
    (layout.services / "met.json").write_text('{"192.168.83.2:40001": 5.0}')
    met(40001)
    assert look(layout) == ([40001], False)
