"""Who is bound by the ceiling of members in a process, and what that refuses at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from hutch.apply import allowing
from hutch.errors import ConfigError, HutchError, Problem, UsageError
from hutch.spec.ceiling import Ceiling, Members
from hutch.spec.member import Member
from hutch.spec.model import Network
from hutch.spec.record import Record
from tests.unit.facts import LAYOUT, workspace

ALICE = Member(1000, 1000, "alice", Path("/home/alice"))


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A host that has the entry point, where alice is the member who is concerned; the network is not set up. Returns
    the entry point."""
    entry = tmp_path / "member"
    entry.touch()
    monkeypatch.setattr(allowing, "has_entry", entry.exists)
    monkeypatch.setattr(allowing, "concerned", lambda uid: ALICE)
    monkeypatch.setattr(allowing, "member_of", lambda uid: ALICE if uid == 1000 else None)
    monkeypatch.setattr(allowing, "network_of_host", lambda layout: None)
    monkeypatch.setattr(allowing, "ceiling_of_host", lambda: Ceiling(Members(workspaces=1, egress=("a.example",))))
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return entry


def test_roots_process_works_for_a_member(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = allowing.find_allowance(LAYOUT)
    assert found is not None
    assert (found.member, found.network) == (ALICE, Network())
    monkeypatch.setattr(allowing, "concerned", lambda uid: None)
    assert allowing.find_allowance(LAYOUT) is None


def test_a_member_is_bound_where_the_entry_point_is(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    found = allowing.find_allowance(LAYOUT)
    assert found is not None
    assert found.network is None  # which it may not see
    host.unlink()
    assert allowing.find_allowance(LAYOUT) is None


def test_a_broken_file_allows_nothing(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Ceiling:
        raise ConfigError([Problem("is not a size", "members.memory")])

    assert allowing.policy_problem() is None
    monkeypatch.setattr(allowing, "ceiling_of_host", broken)
    assert allowing.policy_problem() is not None
    with pytest.raises(ConfigError, match="1 problem"):
        allowing.find_allowance(LAYOUT)
    monkeypatch.setattr(allowing, "concerned", lambda uid: None)
    assert allowing.find_allowance(LAYOUT) is None


def test_a_kept_home_is_not_brought_back_beyond_the_ceiling(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = {
        name: Record(name, "/x", workspace(name), "image", 0, "0", removed=name == "old") for name in ("a", "old")
    }
    allowing.refuse_brought(LAYOUT, records["old"], records)  # it counts already
    monkeypatch.setattr(allowing, "ceiling_of_host", lambda: Ceiling(Members(total_memory=1 << 30)))
    sized = {name: workspace(name, memory=1 << 30) for name in records}
    records = {name: Record(name, "/x", sized[name], "image", 0, "0", removed=name == "old") for name in records}
    with pytest.raises(HutchError, match="above the ceiling of members"):
        allowing.refuse_brought(LAYOUT, records["old"], records)


def test_allow_opens_nothing_beyond_the_ceiling(host: Path) -> None:
    allowing.refuse_opening(LAYOUT, "web", "a.example:443")
    with pytest.raises(UsageError, match=r"b\.example is not web's to reach"):
        allowing.refuse_opening(LAYOUT, "web", "b.example")
