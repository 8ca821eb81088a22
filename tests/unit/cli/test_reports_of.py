"""`hutch report` and `hutch events` of workspaces that did nothing, are gone or never were, and of odd records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hutch.audit.chain import GENESIS, chained
from hutch.audit.events import Entry
from hutch.spec.names import Layout
from hutch.spec.record import Record
from hutch.state import write_record
from tests.unit.cli.conftest import Run
from tests.unit.facts import workspace

NOON = 1_764_417_600.0
LINE, _ = chained(GENESIS, Entry(NOON, "removed", "ann", {"kept": "/home"}), workspace="web")


@pytest.fixture
def web(layout: Layout) -> Path:
    """The record file of a workspace that is declared, and was never started."""
    layout.audits.mkdir(parents=True)
    write_record(layout, Record("web", "/srv/hutch.toml", workspace("web"), "image", 100_000, "0" * 32))
    return layout.audit("web")


def test_one_that_never_was(hutch: Run, web: Path) -> None:
    for command in ("report", "events"):
        found = hutch(command, "lab")
        assert (found.code, found.out) == (2, "")
        assert found.err.startswith("hutch: there is no workspace lab")


def test_one_that_was_never_started(hutch: Run, web: Path) -> None:
    found = hutch("report", "web", "--no-files")
    assert (found.code, found.out.splitlines()[1]) == (0, "span    nothing is recorded")
    assert hutch("events", "web").out == ""


def test_one_that_is_removed(hutch: Run, web: Path, layout: Layout) -> None:
    gone = Record("web", "/srv/hutch.toml", workspace("web"), "image", 100_000, "0" * 32, removed=True)
    write_record(layout, gone)
    web.write_bytes(LINE)
    found = hutch("report", "web")
    assert "home kept: /home" in found.out and "it is removed, so nobody looks into its files" in found.out
    assert json.loads(hutch("events", "web").out)["event"] == "removed"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        LINE[:40],
        b"\xff\x00\n" * 5,
        b"[" * 100_000 + b"\n",
        LINE + LINE[:-1],
        LINE.replace(b'"removed"', b'"sighted"'),
        LINE.replace(b'"kept":"/home",', b""),
        LINE.replace(b'"ann"', b'"\\u001b[2J\\ud800"'),
    ],
)
@pytest.mark.parametrize("form", ["text", "json", "html"])
def test_odd_files(hutch: Run, web: Path, content: bytes, form: str) -> None:
    """Each is a page, of which a terminal takes nothing as a command."""
    web.write_bytes(content)
    found = hutch("report", "web", "--no-files", "--verify", "--format", form)
    assert found.code in (0, 1) and "web" in found.out
    assert all(char.isprintable() or char == "\n" for char in found.out)
    assert hutch("events", "web").code == 0
