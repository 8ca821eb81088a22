"""snapshot, snapshots, restore and fork as they are typed; the engine is one of the tests."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from hutch.api import Hutch
from hutch.spec.snapshot import Snapshot
from tests.unit.cli.conftest import Run

WHOLE = Snapshot("monday", 1795000000.0, 300 << 20)
HALF = Snapshot("tuesday", 1795086400.0, None, ("home",), "half: it has the home alone")


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the engine was called with."""
    found: list[tuple[Any, ...]] = []

    def note(name: str, answer: Any = None) -> None:
        def take(self: Hutch, *arguments: Any, **options: Any) -> Any:
            if "confirm" in options:
                options["confirm"]("web runs: it is stopped")
                del options["confirm"]
            found.append((name, *arguments, options))
            return answer

        monkeypatch.setattr(Hutch, name, take)

    monkeypatch.setattr("os.geteuid", lambda: 0)
    note("snapshot", "20261128-120000")
    note("snapshots", [WHOLE.to_json(), HALF.to_json()])
    note("delete_snapshot")
    note("restore")
    note("fork")
    monkeypatch.setattr(Hutch, "load", lambda self, path: "config")
    return found


def test_the_tag_is_the_result(hutch: Run, called: list[tuple[Any, ...]]) -> None:
    assert hutch("snapshot", "web").out == "20261128-120000\n"
    assert called == [("snapshot", "web", "", {})]


def test_they_are_listed(hutch: Run, called: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.localtime", time.gmtime)
    assert hutch("snapshots", "web").out.splitlines() == [
        "TAG      TAKEN                SIZE     STATE",
        "monday   2026-11-18 11:06:40  300 MiB  complete",
        "tuesday  2026-11-19 11:06:40  -        half: it has the home alone",
    ]
    first, second = json.loads(hutch("snapshots", "web", "--json").out)
    assert first == {
        "tag": "monday",
        "taken": 1795000000.0,
        "size": 300 << 20,
        "complete": True,
        "parts": ["root", "home"],
        "memory": False,
        "problem": "",
    }
    assert not second["complete"]


def test_one_is_deleted(hutch: Run, called: list[tuple[Any, ...]]) -> None:
    assert hutch("snapshots", "web", "--delete", "monday").out == ""
    assert called == [("delete_snapshot", "web", "monday", {})]


def test_a_restore_asks_first(hutch: Run, called: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    result = hutch("restore", "web", "monday")
    assert (result.code, called) == (1, [])
    assert result.err == "hutch: nothing was changed: web runs: it is stopped\n  → --yes does not ask\n"
    assert hutch("restore", "web", "monday", "-y").code == 0
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("click.confirm", lambda text, err: True)
    assert hutch("restore", "web", "monday").code == 0
    assert called == [("restore", "web", "monday", {})] * 2


def test_forks_are_named_or_counted(hutch: Run, called: list[tuple[Any, ...]]) -> None:
    assert hutch("fork", "web", "copy", "--snapshot", "monday").code == 0
    assert hutch("fork", "web", "--count", "3", "--start").code == 0
    assert called == [
        ("fork", "config", "web", ("copy",), {"tag": "monday", "start": False}),
        ("fork", "config", "web", ["web-1", "web-2", "web-3"], {"tag": "", "start": True}),
    ]
    for wrong in (["web"], ["web", "copy", "--count", "2"]):
        result = hutch("fork", *wrong)
        assert (result.code, result.err) == (2, "hutch: name the new workspaces, or give --count\n")
