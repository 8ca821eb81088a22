"""`hutch diff` and `hutch fetch`: what is said of a clone, whose every word is the workspace's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hutch.api.result import Fetched, FetchedBranch
from hutch.api.workspace import Workspace
from tests.unit.cli.conftest import Run

ONE, TWO = "1" * 40, "2" * 40
FETCHED = Fetched(
    (FetchedBranch("fix", "refs/remotes/web/fix", "", ONE), FetchedBranch("main", "refs/remotes/web/main", ONE, TWO)),
    ("old",),
    ("the branch 'a b', which cannot be called that here",),
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []

    def fetch(self: Workspace, branch: str, *, prune: bool, limit: int) -> Fetched:
        found.append((branch, prune, limit))
        return FETCHED

    monkeypatch.setattr(Workspace, "fetch", fetch)
    return found


def test_what_was_fetched(hutch: Run, asked: list[Any]) -> None:
    said = hutch("fetch", "web")
    assert [line.split() for line in said.out.splitlines()] == [
        ["BRANCH", "BEFORE", "NOW", "REF"],
        ["fix", "-", ONE[:12], "refs/remotes/web/fix"],
        ["main", ONE[:12], TWO[:12], "refs/remotes/web/main"],
    ]
    assert "left out: the branch 'a b'" in said.err and "old is gone inside, and stays" in said.err
    assert json.loads(hutch("fetch", "web", "main", "--prune", "--limit", "1MiB", "--json").out)[1] == {
        "name": "main",
        "ref": "refs/remotes/web/main",
        "before": ONE,
        "now": TWO,
    }
    assert asked == [("", False, 4 << 30), ("main", True, 1 << 20)]


def test_no_terminal_is_told_what_to_do(hutch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workspace, "diff", lambda self, *, stat: f"+a\x1b[2J\r\n+b\rc\u202e\n{stat}\n")
    assert hutch("diff", "web", "--stat").out == "+a\ufffd[2J\r\n+b\ufffdc\ufffd\nTrue\n"
