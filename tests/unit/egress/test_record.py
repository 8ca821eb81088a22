"""Lines that are records, and lines that are none; and many records as one."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.egress.record import LONGEST_NAME, EgressEvent, aggregate, escaped, lost, parse_line

DNS = EgressEvent(1000.25, "dns", "refused", "evil.example", count=3, why="not listed")
CONNECTION = EgressEvent(1001.0, "connection", "allowed", "api.example.org", "203.0.113.5", 443, "tcp")


def test_a_line_has_the_keys_in_their_order() -> None:
    assert DNS.line == (
        '{"time":1000.25,"what":"dns","verdict":"refused","name":"evil.example","address":null,"port":null,'
        '"protocol":null,"count":3,"why":"not listed"}\n'
    )


@pytest.mark.parametrize("record", [DNS, CONNECTION, lost(1.0, 7, "too many")])
def test_a_line_is_read_as_what_was_written(record: EgressEvent) -> None:
    assert parse_line(record.line.encode()) == record


@pytest.mark.parametrize(
    "change",
    [
        {"time": "now"},
        {"time": math.nan},
        {"time": math.inf},
        {"time": 1e300},
        {"time": 10**400},
        {"time": -1},
        {"time": True},
        {"what": "ftp"},
        {"what": ["dns"]},
        {"verdict": "fine"},
        {"name": "a b"},
        {"name": "a\x1b[2J"},
        {"name": "é.fr"},
        {"name": "a" * 256},
        {"name": 7},
        {"address": "2001:db8::1"},
        {"address": "203.0.113"},
        {"address": "203.0.113.05"},
        {"address": 7},
        {"port": 65536},
        {"port": "443"},
        {"port": True},
        {"protocol": "t\n"},
        {"count": 0},
        {"count": 1 << 70},
        {"count": 1.5},
        {"why": "a\x07"},
        {"why": "a" * 81},
        {"more": 1},
    ],
    ids=lambda change: repr(change)[:40],
)
def test_what_is_no_record(change: dict[str, Any]) -> None:
    assert parse_line(json.dumps({**vars(DNS), **change}).encode()) is None


@pytest.mark.parametrize("line", [b"", b"{", b"null", b"[]", b"{}", b"\xff", b"[" * 1000, b"1" * 1000, b" " * 2000])
def test_damaged_lines(line: bytes) -> None:
    assert parse_line(line) is None


@given(st.binary(max_size=200))
def test_any_line_is_a_record_or_nothing(line: bytes) -> None:
    assert parse_line(line) is None


@given(st.text(max_size=400))
def test_a_name_is_made_safe(name: str) -> None:
    safe = escaped(name)
    assert len(safe) <= LONGEST_NAME
    record = EgressEvent(1.0, "dns", "refused", safe)
    assert parse_line(record.line.encode()) == record


def test_a_name_is_shown_as_in_presentation_format() -> None:
    assert escaped("a\x1b \udcffé.org") == "a\\027\\032\\255\\195\\169.org"


def test_records_become_one() -> None:
    later = EgressEvent(**{**vars(CONNECTION), "time": 1005.0, "count": 4, "why": "on the list"})
    earlier = EgressEvent(**{**vars(CONNECTION), "time": 900.0})
    other = EgressEvent(**{**vars(CONNECTION), "port": 80})
    seen = aggregate([CONNECTION, DNS, later, earlier, other])
    assert [(s.time, s.first, s.name, s.port, s.count, s.why) for s in seen] == [
        (1000.25, 1000.25, "evil.example", None, 3, "not listed"),
        (1001.0, 1001.0, "api.example.org", 80, 1, ""),
        (1005.0, 900.0, "api.example.org", 443, 6, ""),
    ]
    assert seen[0].to_json() == {
        "time": "1970-01-01T00:16:40.250+00:00",
        "first": "1970-01-01T00:16:40.250+00:00",
        "what": "dns",
        "verdict": "refused",
        "name": "evil.example",
        "address": None,
        "port": None,
        "protocol": None,
        "count": 3,
        "why": "not listed",
    }
