"""What may stand in a record, and what an inbox may tell."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest

from hutch import inboxes
from hutch.audit import inbox, telling
from hutch.audit.budget import BUDGETS, Budgets
from hutch.audit.chain import GENESIS, LONGEST_LINE, chained
from hutch.audit.events import FIELDS, MOST_ITEMS, TOLD_BY_PEOPLE, Entry, shown, unstamped, why_wrong, words_of
from hutch.spec.record import stamp

SESSION = "0123456789abcdef"
EXEC: dict[str, Any] = {"session": SESSION, "argv": ["make"], "root": False}
TOLD = {"time": "2026-11-28T12:00:00.000Z", "event": "exec", **EXEC}
ME = os.getuid() or 4_000_000
STARTED = {"start_kind": "cold", "seconds": 1.0}
ALLOWED = {"host": "api.example.org", "until": None}
CUT: dict[str, Any] = {"why": "they were no events", "count": 1, "kinds": []}


def test_times() -> None:
    assert stamp(0.0004) == "1970-01-01T00:00:00.000Z"
    assert unstamped(stamp(1_764_417_600.25)) == 1_764_417_600.25
    assert [unstamped(text) for text in (None, 3, "", "2026-13-01T00:00:00.000Z", "2026-11-28 12:00:00")] == [None] * 5


def test_a_text_is_on_one_line_and_not_too_long() -> None:
    assert shown("a\x1b[31m\nb\udc80ü") == "a\\x1b[31m\\nb\\udc80ü"
    for text in ("x" * 9000, "\N{PILE OF POO}" * 9000, '"' * 9000, "\n" * 9000):
        assert len(json.dumps(shown(text))) <= 514
        assert shown(text).endswith("...")


def test_the_longest_events_fit_into_a_line() -> None:
    hostile = "\N{PILE OF POO}" * 4096
    words = words_of([hostile] * 100)
    reason = dict.fromkeys(("key", "old", "new"), shown(hostile, 256))
    longest = {
        "exec": {**EXEC, "argv": words},
        "plan": {"command": "up", "file": shown(hostile), "action": "restart", "reasons": [reason] * MOST_ITEMS},
    }
    for event, values in longest.items():
        assert why_wrong(event, values) == ""
        line, _ = chained(GENESIS, Entry(0, event, shown(hostile), values), workspace="web")
        assert len(line) < LONGEST_LINE
    assert len(words) == MOST_ITEMS
    assert len(json.dumps({**TOLD, "argv": words})) < inboxes.LONGEST


def test_events_have_exactly_their_fields() -> None:
    assert why_wrong("exec", EXEC) == ""
    assert why_wrong("flown", EXEC) == "no such event"
    assert why_wrong("exec", {**EXEC, "by": "root"}) == "its fields are argv, by, root, session"
    assert why_wrong("exec", {**EXEC, "argv": "make"}) == "argv is wrong"
    assert why_wrong("exec", {**EXEC, "argv": ["a\nb"]}) == "argv is wrong"
    assert FIELDS.keys() > TOLD_BY_PEOPLE


def parse(value: object, uid: int = ME) -> Entry | None:
    line = value if isinstance(value, bytes) else json.dumps(value).encode()
    return inbox.parse(line, TOLD_BY_PEOPLE, telling.account(uid), may_name=uid == 0)


def test_an_inbox_tells_what_its_account_did() -> None:
    entry = parse(TOLD)
    assert entry is not None
    assert (entry.event, entry.by, entry.values) == ("exec", telling.account(ME), EXEC)
    assert stamp(entry.time) == TOLD["time"]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"[" * 30000,
        b"9" * 6000,
        b"\xff\xfe",
        json.dumps(TOLD).encode() + b" " * inboxes.LONGEST,
        {**TOLD, "by": "root"},
        {**TOLD, "seq": 1},
        {**TOLD, "hash": "0" * 64},
        {**TOLD, "event": "started"},
        {**TOLD, "event": "removed"},
        {**TOLD, "event": ["exec"]},
        {**TOLD, "time": 5},
        {**TOLD, "argv": ["\x1b[2J"]},
        {**TOLD, "argv": ["x" * 300]},
        {**TOLD, "argv": [["x"]]},
        {**TOLD, "session": "../../x"},
        {**TOLD, "root": 1},
        {"time": TOLD["time"], "event": "exec-ended", "session": SESSION, "code": 0, "seconds": float("nan")},
    ],
)
def test_what_an_inbox_may_not_tell(line: object) -> None:
    assert parse(line) is None


def test_roots_inbox_alone_says_who_was_behind_it() -> None:
    entry = parse({**TOLD, "by": "ann"}, 0)
    assert entry is not None
    assert entry.by == "ann"
    assert parse({**TOLD, "by": ["ann"]}, 0) is None


def test_nothing_told_happens_later_than_now() -> None:
    entry = parse({**TOLD, "time": "9000-01-01T00:00:00.000Z"})
    assert entry is not None
    assert entry.time <= time.time()


EGRESS = {
    "name": "a.example",
    "address": None,
    "port": None,
    "protocol": None,
    "verdict": "refused",
    "count": 3,
    "first": TOLD["time"],
    "last": TOLD["time"],
    "why": "not listed",
}


def test_a_flood_is_left_out_and_counted_and_takes_nobody_elses_place() -> None:
    budgets, flood = Budgets.parse(b""), [Entry(0, "egress", None, EGRESS)] * 40_000
    kept = list(budgets.admitted(flood, 1000.0))
    assert sum(len(chained(GENESIS, entry)[0]) for entry in kept) <= BUDGETS["guest"].most
    assert 5_000 < len(kept) < 40_000
    own = [Entry(0, "exec", "ann", EXEC), Entry(0, "started", "root", STARTED), Entry(0, "allowed", "ann", ALLOWED)]
    assert list(budgets.admitted(own, 1001.0)) == own
    again = Budgets.parse(json.dumps(budgets.body).encode())
    assert list(again.admitted(flood[:1], 1002.0)) == []
    [told, entry] = again.admitted(flood[:1], 1002.0 + 86_400)
    assert (told.event, told.values["count"], told.values["kinds"]) == ("cut", (40_001 - len(kept)) * 3, ["egress"])
    assert entry == flood[0]


@pytest.mark.parametrize(
    ("flood", "others"),
    [
        (Entry(0, "allowed", "ann", ALLOWED), [("exec", "ann"), ("started", None), ("allowed", "root")]),
        (Entry(0, "started", None, STARTED), [("exec", "ann"), ("started", "ann"), ("started", "root")]),
        (Entry(0, "exec", "ann", EXEC), [("denied", "ann"), ("started", None), ("denied", "root")]),
        (Entry(0, "cut", "ann", CUT), [("denied", "ann"), ("started", None), ("cut", None)]),
    ],
)
def test_whoever_goes_on_and_on_pushes_nobody_out(flood: Entry, others: list[tuple[str, str | None]]) -> None:
    """Ninety days of it leave room for what root did, and hide nothing of others."""
    budgets, size = Budgets.parse(b""), 0
    for day in range(90):
        many = [flood] * (100_000 if day == 0 else 1_500)
        size += sum(len(chained(GENESIS, entry)[0]) for entry in budgets.admitted(many, day * 86_400.0))
    assert 4 << 20 < size < 34 << 20
    assert budgets.body["out"][flood.source][flood.event] > 100
    values = {"exec": EXEC, "started": STARTED, "allowed": ALLOWED, "denied": ALLOWED, "cut": CUT}
    own = [Entry(0, event, by, values[event]) for event, by in others]
    assert list(budgets.admitted(own, 89 * 86_400.0)) == own


def test_all_budgets_together_leave_room() -> None:
    assert sum(budget.most + 90 * budget.a_day for budget in BUDGETS.values()) < 57 << 20


@pytest.mark.parametrize(
    "head", [b"", b"{}", b'{"left": {}, "then": 1, "out": {}}', b"[" * 9999, b'{"left":1,"then":NaN}']
)
def test_budgets_of_a_damaged_note_are_full(head: bytes) -> None:
    budgets = Budgets.parse(head)
    assert list(budgets.admitted([Entry(0, "egress", None, EGRESS)], 5.0)) != []
