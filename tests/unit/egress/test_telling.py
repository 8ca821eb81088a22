"""What the egress proxy tells records: folded, bounded, and kept where it cannot be written."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from hutch.audit import inbox
from hutch.egress import telling
from hutch.egress.record import EgressEvent, lost
from hutch.egress.telling import (
    BURST,
    LONGEST,
    MOST_DIFFERENT,
    PER_SECOND,
    SHORTEST,
    TOO_MANY,
    Folding,
    Teller,
)
from hutch.inboxes import HEADING, HEADING_SIZE, LARGEST, left_out
from tests.support.keeping import kept_in

NOON = 1_764_417_600.0
ASKED = EgressEvent(NOON, "dns", "allowed", "api.example.org", "203.0.113.5")
REFUSED = EgressEvent(NOON, "dns", "refused", "evil.example", why="not listed")
REACHED = EgressEvent(NOON, "connection", "allowed", "api.example.org", "203.0.113.5", 443, "tcp")
STRANGER = EgressEvent(NOON, "connection", "refused", None, "203.0.113.9", 22, "tcp", why="not listed")


def at(event: EgressEvent, seconds: float, count: int = 1) -> EgressEvent:
    return replace(event, time=NOON + seconds, count=count)


def told(folding: Folding, seconds: float, *, is_end: bool = False) -> list[tuple[Any, ...]]:
    return [
        (each.last.name or each.last.address, telling.verdict_of(each.last), each.count, each.first - NOON)
        for each in folding.due(NOON + seconds, is_end=is_end)
    ]


def test_a_line_is_an_event_of_a_record() -> None:
    folding = Folding(NOON)
    for event in (ASKED, REFUSED, REACHED, STRANGER, lost(NOON, 7, "a reason")):
        folding.note(event)
    lines = [tally.line.encode() for tally in folding.due(NOON + 1)]
    entries = [inbox.parse(line, {"egress"}, None) for line in lines]
    assert [entry and entry.values["verdict"] for entry in entries] == [
        *("asked", "refused", "allowed", "refused", "lost"),
    ]
    assert json.loads(lines[2]) == {
        "time": "2025-11-29T12:00:00.000Z",
        "event": "egress",
        "name": "api.example.org",
        "address": "203.0.113.5",
        "port": 443,
        "protocol": "tcp",
        "verdict": "allowed",
        "count": 1,
        "first": "2025-11-29T12:00:00.000Z",
        "last": "2025-11-29T12:00:00.000Z",
        "why": "",
    }


def test_equal_ones_become_one_in_windows_that_grow() -> None:
    folding = Folding(NOON)
    folding.note(at(REFUSED, 0))
    assert told(folding, 1) == [("evil.example", "refused", 1, 0)]
    lines = 0
    for second in range(2, 7200):
        folding.note(at(REFUSED, second))
        lines += len(told(folding, second + 0.5))
    assert lines == 6  # after 1, 2, 4, 8, 16 and 32 minutes
    assert told(folding, 7200, is_end=True) == [("evil.example", "refused", 7200 - 3782, 3782)]


def test_a_name_is_one_at_all_of_its_addresses_and_ports_are_apart() -> None:
    folding = Folding(NOON)
    folding.note(REACHED)
    folding.note(replace(REACHED, address="203.0.113.6"))
    folding.note(replace(REACHED, port=80))
    folding.note(STRANGER)
    folding.note(replace(STRANGER, address="203.0.113.10"))
    assert [found[:3] for found in told(folding, 1)] == [
        ("api.example.org", "allowed", 2),
        ("api.example.org", "allowed", 1),
        ("203.0.113.9", "refused", 1),
        ("203.0.113.10", "refused", 1),
    ]


def test_a_quiet_one_is_forgotten_and_written_at_once_when_it_comes_again() -> None:
    folding = Folding(NOON)
    folding.note(REFUSED)
    assert len(told(folding, 1)) == 1
    due = folding.next_due
    assert due == NOON + 1 + SHORTEST
    assert told(folding, 1 + SHORTEST) == []
    due = folding.next_due
    assert due is None
    folding.note(at(REFUSED, 100))
    assert told(folding, 101) == [("evil.example", "refused", 1, 100)]


def test_a_flood_of_names_is_counted_and_does_not_push_out_what_comes_later() -> None:
    folding = Folding(NOON)
    lines: list[tuple[Any, ...]] = []
    for second in range(600):
        for number in range(100):
            folding.note(replace(REFUSED, name=f"n{second}-{number}.example", time=NOON + second))
        lines += told(folding, second + 0.5)
    count = sum(line[2] for line in [*lines, *told(folding, 600, is_end=True)])
    assert count == 60_000  # none is lost without being counted
    assert len(lines) <= BURST + 600 * PER_SECOND + 600 / SHORTEST + 1
    folding.note(at(ASKED, 600 + 1 / PER_SECOND))
    assert ("api.example.org", "asked", 1, 600 + 1 / PER_SECOND) in told(folding, 601 + 1 / PER_SECOND)


def test_more_different_ones_than_there_is_room_for_are_one() -> None:
    folding = Folding(NOON)
    for number in range(MOST_DIFFERENT + 5):
        folding.note(replace(REFUSED, name=f"n{number}.example"))
    last = folding.due(NOON + 1)[-1]
    assert (last.last.verdict, last.last.why) == ("lost", TOO_MANY)
    assert last.count == MOST_DIFFERENT + 5 - BURST


def test_a_clock_that_was_set_back_holds_nothing_up() -> None:
    folding = Folding(NOON)
    folding.note(at(REFUSED, 0))
    folding.due(NOON)
    folding.note(at(REFUSED, -10 * LONGEST))
    assert told(folding, -10 * LONGEST + 1) == [("evil.example", "refused", 1, -10 * LONGEST)]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The inbox of `web`, as root makes it."""
    (tmp_path / "web").mkdir()
    path = tmp_path / "web" / str(os.geteuid())
    path.write_text(HEADING % 0)
    return path


def counts(place: Path) -> list[int]:
    return [json.loads(line)["count"] for line in place.read_text().splitlines()[1:]]


def test_lines_go_into_the_inbox_of_their_workspace(tmp_path: Path, place: Path) -> None:
    teller = Teller(kept_in(tmp_path))
    teller.note("web", [REFUSED, at(REFUSED, 1), ASKED])
    teller.tell(NOON + 1)
    assert counts(place) == [2, 1]
    teller.note("web", [at(REFUSED, 2)])
    teller.close(NOON + 3)
    assert counts(place) == [2, 1, 1]
    assert teller.next_due is None


def test_what_cannot_be_written_waits(tmp_path: Path, place: Path) -> None:
    """For root that has just taken the inbox, or reads it, and for one that is full."""
    teller = Teller(kept_in(tmp_path))
    place.rename(tmp_path / "taken")
    teller.note("web", [REFUSED])
    teller.tell(NOON + 1)
    place.write_text(HEADING % 0)
    teller.note("web", [at(REFUSED, 2)])
    with place.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        teller.tell(NOON + 20)
    assert counts(place) == []
    os.truncate(place, LARGEST)
    teller.tell(NOON + 40)
    place.write_text(HEADING % 0)
    assert teller.next_due is not None
    teller.tell(teller.next_due)
    assert counts(place) == [2]
    assert json.loads(place.read_text().splitlines()[1])["first"] == "2025-11-29T12:00:00.000Z"


def test_last_words_wait_for_root_which_reads(tmp_path: Path, place: Path) -> None:
    """Once it has the inbox, and once it has taken it away and makes another."""
    teller = Teller(kept_in(tmp_path))
    teller.note("web", [REFUSED])
    with place.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        later = Timer(0.1, lambda: fcntl.flock(held, fcntl.LOCK_UN))
        later.start()
        teller.forget("web", NOON + 1)
        later.join()
    assert counts(place) == [1]
    place.unlink()
    teller.note("web", [REFUSED, at(REFUSED, 1)])
    new = tmp_path / "new"
    new.write_text(HEADING % 0)
    later = Timer(0.1, lambda: new.rename(place))
    later.start()
    teller.close(NOON + 2)
    later.join()
    assert counts(place) == [2]


def test_last_words_without_room_are_counted(tmp_path: Path, place: Path) -> None:
    os.truncate(place, LARGEST)
    teller = Teller(kept_in(tmp_path))
    teller.note("web", [REFUSED, at(REFUSED, 1), ASKED])
    teller.tell(NOON + 1)
    assert left_out(place.read_bytes()[:HEADING_SIZE]) == 0  # there may be room later
    teller.close(NOON + 2)
    assert left_out(place.read_bytes()[:HEADING_SIZE]) == 3


def test_last_words_wait_a_second_at_most(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "LAST", 0.05)
    place.unlink()
    teller = Teller(kept_in(tmp_path))
    for workspace in ("web", "gone"):
        teller.note(workspace, [REFUSED])
    teller.close(NOON + 1)
    assert teller.next_due is None


def test_an_inbox_is_not_made_and_no_link_is_followed(tmp_path: Path, place: Path) -> None:
    place.unlink()
    place.symlink_to(tmp_path / "other")
    (tmp_path / "other").write_text("")
    teller = Teller(kept_in(tmp_path))
    teller.note("web", [REFUSED])
    teller.note("gone", [REFUSED])
    teller.close(NOON + 1)
    assert (tmp_path / "other").read_text() == ""
    assert not (tmp_path / "gone").exists()
