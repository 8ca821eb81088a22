"""What a report says of the record that it is made from."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from hutch.api.reporting import report_on
from hutch.audit.chain import GENESIS, chained
from hutch.audit.events import Entry
from hutch.errors import UsageError
from hutch.spec.names import Layout


class Removed:
    """A hutch whose workspace is gone."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def record(self, name: str) -> None:
        raise UsageError(f"no {name}")


def test_where_a_record_ends_is_known_by_whoever_may_read_what_the_state_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hutch: Any = Removed(Layout(tmp_path / "state", tmp_path / "run"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    path, head = hutch.layout.audit("web"), hutch.layout.audit_head("web")
    line, link = chained(GENESIS, Entry(1e9, "allowed", "ann", {"host": "a", "until": None}), workspace="web")
    for file in (path, head):
        file.parent.mkdir(parents=True)
    path.write_bytes(line)
    for content, is_known in (({"seq": 1, "hash": link.hash, "first": 1}, True), ({}, False)):
        head.write_text(json.dumps(content))
        report = report_on(hutch, "web", None, verify=True, files=False)
        assert (report.lines, report.is_verified, report.is_end_known) == (1, True, is_known)
