"""What a workspace's service tells of its starts and ends."""

from __future__ import annotations

import json
from typing import Any

from hutch.audit.ends import parse

LINE: dict[str, Any] = {
    "state": "running",
    "by": None,
    "boot": "b",
    "at": 1000,
    "ran": 500,
    "ready_seconds": 0.9,
    "reason": "",
    "memory_peak": None,
    "cpu_usec": None,
    "tasks_peak": None,
}
NOON = 1_764_417_600.0


def parsed(*changes: dict[str, Any]) -> list[tuple[float, str, str | None]]:
    data = "".join(json.dumps({**LINE, **change}) + "\n" for change in changes).encode()
    return [(entry.time - NOON, entry.event, entry.by) for entry in parse(data + b'{"state": "run', NOON)]


def test_times_are_told_by_the_last_line_and_when_it_was_written() -> None:
    assert parsed({"at": 700}, {"at": 950, "state": "stopped"}, {}) == [
        (-3, "started", None),
        (-0.5, "stopped", None),
        (0, "started", None),
    ]


def test_what_was_told_before_the_host_booted_counts_as_of_then() -> None:
    assert parsed({"boot": "a", "at": 99_999}, {"at": 600}, {}) == [
        (-10, "started", None),
        (-4, "started", None),
        (0, "started", None),
    ]


def test_who_asked_is_told_by_the_number_of_an_account() -> None:
    asked, *others = parsed({"by": 0}, {"by": 4_000_000}, {"by": "root"}, {"state": "stopped", "reason": "rebooting"})
    assert asked[1:] == ("started", "root")
    assert [each[1:] for each in others] == [("started", "4000000"), ("restarted", None)]


def test_what_is_no_line_is_passed_over() -> None:
    assert parsed({"at": "1"}, {"state": "flown"}, {"boot": None}) == [(0, "started", None)]
    assert list(parse(b"[]\n\xff\n" + b"[" * 9999, NOON)) == []
