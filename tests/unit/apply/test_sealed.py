"""Looks into what guests wrote: how many at a time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hutch.access.git_changes import Changes
from hutch.apply import sealed
from hutch.apply.sealed import look_for_changes
from hutch.host.services.lock import LOOKS, Busy, take_place
from hutch.spec import member
from hutch.spec.member import Member
from hutch.spec.names import Layout
from hutch.spec.record import Record
from tests.unit.facts import workspace


def test_root_looks_for_one_member_once_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, found = Layout(tmp_path / "state", tmp_path / "run"), Changes()
    record = Record("web", "/f", workspace(), "image-1", 1 << 30, "0" * 32)
    monkeypatch.setattr(sealed, "_look_for_changes", lambda *words: found)
    monkeypatch.setattr(sealed, "LOOKS_PATIENCE", 0.0)
    taken = take_place(layout, 1002, LOOKS, "a look", patience=0.0)
    assert look_for_changes(layout, record, 0.0) is found  # for root
    monkeypatch.setattr(member, "acting", Member(1002, 1002, "carol", None))
    with pytest.raises(Busy, match="a look at changed files of yours"):
        look_for_changes(layout, record, 0.0)
    os.close(taken)
    for _ in range(2):
        assert look_for_changes(layout, record, 0.0) is found
