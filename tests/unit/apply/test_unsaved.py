"""What would be lost with a workspace."""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess

import pytest

from hutch.apply import unsaved
from hutch.apply.unsaved import count_vsock, vsock_connections
from hutch.spec.names import Layout
from hutch.spec.record import Record
from tests.unit.facts import workspace

LISTING = """\
v_str ESTAB 0      0       2:1077    77:22
v_str ESTAB 0      0       2:1078    77:22
v_str ESTAB 0      0       2:1079    77:23
v_str ESTAB 0      0       2:1080    7:22
v_str CONNECTING 0 0       2:1081    77:22
v_dgr UNCONN
"""


def test_connections_by_vsock() -> None:
    assert [count_vsock(LISTING, cid) for cid in ("77", "7", "22")] == [2, 1, 0]
    assert count_vsock("", "77") == 0


def test_only_who_has_vsock_now_is_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by who may read nothing else of the machine's: its owner, without root."""
    layout = Layout(tmp_path / "state", tmp_path / "run")
    record = Record("web", "/f", workspace(type="vm", vsock=True), "image-1", 0x7000_0000, "0" * 32)
    asked: list[list[str]] = []

    def run(argv: list[str]) -> CompletedProcess[str]:
        asked.append(argv)
        return CompletedProcess(argv, 0, LISTING, "")

    monkeypatch.setattr(unsaved, "run", run)
    assert (vsock_connections(layout, record), asked) == (0, [])
    layout.cid("web").parent.mkdir(parents=True)
    layout.cid("web").write_text("77\n")
    assert vsock_connections(layout, record) == 2
