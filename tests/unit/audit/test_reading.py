"""Reading the files of a record while somebody writes and moves them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hutch.audit import reading
from hutch.audit.chain import GENESIS, Link, chained
from hutch.audit.events import Entry
from hutch.audit.reading import damages, files_of
from hutch.spec.names import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "state", tmp_path / "run")
    made.audits.mkdir(parents=True)
    made.workspace("web").mkdir(parents=True)
    write(made)
    return made


def write(layout: Layout, first: int = 1, files: int = 3) -> None:
    """Three files of two lines, of which the state knows the last, and that it begins with `first`."""
    link, parts = GENESIS, [b""] * files
    for number in range(2 * files):
        name = None if number % 2 else "web"
        line, link = chained(link, Entry(1e9, "allowed", "ann", {"host": "a", "until": None}), workspace=name)
        parts[number // 2] += line
    for number, part in enumerate(parts):
        age = files - 1 - number
        layout.audit("web").with_name(f"web.jsonl.{age}" if age else "web.jsonl").write_bytes(part)
    note(layout, link, first)


def note(layout: Layout, link: Link, first: int) -> None:
    layout.audit_head("web").write_text(json.dumps({"seq": link.seq, "hash": link.hash, "first": first}))


def rotate(layout: Layout) -> None:
    for path in files_of(layout, "web"):
        age = int(path.suffix[1:]) if path.suffix != ".jsonl" else 0
        path.rename(path.with_name(f"web.jsonl.{age + 1}"))


def drop(layout: Layout) -> None:
    """As a rotation drops the oldest: the state says so first."""
    head = json.loads(layout.audit_head("web").read_bytes())
    note(layout, Link(head["seq"], head["hash"]), 3)
    files_of(layout, "web")[0].unlink()
    rotate(layout)


@pytest.mark.parametrize("change", [rotate, drop])
@pytest.mark.parametrize("moment", ["files_of", "_open", "_lines_of"])
def test_a_file_that_becomes_an_older_one_is_no_damage(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, change: Callable[[Layout], None], moment: str
) -> None:
    """Once the files are listed, once the first is open, and when it is read."""
    known = getattr(reading, moment)

    def changing(*words: object) -> object:
        monkeypatch.undo()
        found = known(*words)
        change(layout)
        return found

    monkeypatch.setattr(reading, moment, changing)
    assert damages(layout, "web") == []
    assert not layout.audit("web").exists()
    assert damages(layout, "web") == []


def test_a_state_that_knows_no_end_is_damage_and_no_line_needs_none(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert damages(layout, "web") == []
    for content in ("{}", None):
        layout.audit_head("web").unlink()
        if content is not None:
            layout.audit_head("web").write_text(content)
        assert list(map(str, damages(layout, "web"))) == ["hutch's own note of its end is lost"]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert damages(layout, "web") == []  # who may not look
    monkeypatch.undo()
    for path in files_of(layout, "web"):
        path.unlink()
    assert damages(layout, "web") == []
