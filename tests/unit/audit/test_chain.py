"""The chain of a record: what a line looks like, and which damage shows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hutch.audit.chain import GENESIS, Damage, Head, Link, chained, follows, read_line, verified
from hutch.audit.events import Entry
from tests.unit.facts import check_golden

NOON = 1_764_417_600.25
ENTRIES = (
    Entry(NOON, "created", "ann", {"type": "container", "image": "debian-trixie-1", "file": "/home/ann/hutch.toml"}),
    Entry(NOON + 1, "started", "ann", {"start_kind": "cold", "seconds": 0.7}),
    Entry(NOON + 2, "exec", "ann", {"session": "0123456789abcdef", "argv": ["cat", "ü", '"'], "root": False}),
    Entry(NOON + 3, "exec-ended", "ann", {"session": "0123456789abcdef", "code": 0, "seconds": 0.04}),
    Entry(NOON + 4, "allowed", "ann", {"host": "api.example.org", "until": None}),
    Entry(NOON + 5, "cut", None, {"why": "there were too many of them", "count": 12, "kinds": ["egress"]}),
)


def written(*entries: Entry, name: str = "web", after: Link = GENESIS) -> tuple[list[bytes], Link]:
    lines: list[bytes] = []
    link = after
    for entry in entries:
        line, link = chained(link, entry, workspace=None if lines else name)
        lines.append(line)
    return lines, link


def told(lines: list[bytes], head: Head | None = None, name: str = "web", *, is_whole: bool = True) -> list[str]:
    found = verified((("web.jsonl", line) for line in lines), head, name, is_whole=is_whole)
    return [str(damage) for damage in found]


LINES, LAST = written(*ENTRIES)
HEAD = Head(LAST)


def test_a_record_as_it_stands_in_its_file() -> None:
    check_golden("audit/web.jsonl", b"".join(LINES).decode())


def test_the_hash_is_what_the_page_says() -> None:
    import hashlib

    before = "0" * 64
    for line in LINES:
        body = json.loads(line)
        hash = body.pop("hash")
        text = json.dumps(body, separators=(",", ":"))
        assert hashlib.sha256((before + text).encode()).hexdigest() == hash
        before = hash


def test_a_whole_record_has_no_damage() -> None:
    assert told(LINES, HEAD) == []
    assert told(LINES) == []
    assert told([]) == told([], Head(GENESIS)) == []


def test_lines_that_no_head_knows_yet_and_half_of_one_are_no_damage() -> None:
    _, link = written(*ENTRIES[:4])
    assert told(LINES, Head(link)) == []
    assert told([*LINES, b'{"seq":7,"ti'], HEAD) == []


@pytest.mark.parametrize("number", range(len(LINES)))
def test_every_changed_byte_shows(number: int) -> None:
    line = LINES[number]
    for place in range(len(line) - 1):
        changed = line[:place] + bytes([line[place] ^ 1]) + line[place + 1 :]
        found = told([*LINES[:number], changed, *LINES[number + 1 :]], HEAD)
        assert found, changed


def test_the_same_said_in_other_bytes_shows() -> None:
    spaced = json.dumps(json.loads(LINES[2])).encode() + b"\n"
    assert told([*LINES[:2], spaced, *LINES[3:]], HEAD) == ["web.jsonl: line 3 is not as it was written"]


@pytest.mark.parametrize("number", range(len(LINES)))
def test_other_keys_and_keys_in_another_order_show(number: int) -> None:
    body = json.loads(LINES[number])
    opening = {"workspace": "web", "previous": json.loads(LINES[number - 1])["hash"]}
    orders = [[*list(body)[:place], *reversed(list(body)[place:])] for place in range(len(body) - 1)]
    others = [{key: body[key] for key in order} for order in orders]
    if number:
        others += [{**body, "workspace": "web"}, {**body, **opening}, {**body, "previous": None}]
    for other in others:
        changed = json.dumps(other, separators=(",", ":")).encode() + b"\n"
        assert told([*LINES[:number], changed, *LINES[number + 1 :]], HEAD), changed


@pytest.mark.parametrize("values", [{"hash": "\ud800"}, {"previous": "\ud800"}, {"seq": 10**4299}, {"seq": -1}])
def test_what_no_chain_has_is_no_line(values: dict[str, Any]) -> None:
    """Surrogates have no hash, and a number can be too long to be said."""
    changed = json.dumps({**json.loads(LINES[0]), **values}, separators=(",", ":")).encode() + b"\n"
    assert told([changed, *LINES[1:]], HEAD)[0] == "web.jsonl: line 1 is not as it was written"


def test_keys_in_another_order_within_a_value_show() -> None:
    reason = {"key": "memory", "old": None, "new": "1 GiB"}
    values = {"command": "up", "file": "/f", "action": "restart", "reasons": [reason]}
    lines, last = written(Entry(NOON, "plan", "ann", values))
    assert told(lines, Head(last)) == []
    body = json.loads(lines[0])
    body["reasons"] = [dict(reversed(reason.items()))]
    changed = json.dumps(body, separators=(",", ":")).encode() + b"\n"
    assert told([changed], Head(last)) == ["web.jsonl: line 1 does not follow from the one before it"]


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        (LINES[:4], "the lines of numbers 5 to 6 are missing at its end"),
        ([*LINES[:4], LINES[4][:9]], "the lines of numbers 5 to 6 are missing at its end"),
        ([], "the lines of numbers 1 to 6 are missing at its end"),
        (LINES[2:], "its first lines are missing"),
        ([*LINES[:2], *LINES[4:]], "the lines of numbers 3 to 4 are missing before its line 3"),
        ([LINES[0], LINES[2], LINES[1], *LINES[3:]], "the line of number 2 is missing before its line 2"),
        ([*LINES[:3], LINES[2], *LINES[3:]], "line 4 has the number 3, which is not the next one"),
        (written(*ENTRIES, name="lab")[0], "it is the record of lab"),
        (written(*ENTRIES[1:], ENTRIES[0])[0], "line 6 is not the one that hutch's state knows by its number"),
    ],
)
def test_what_is_wrong_is_said(lines: list[bytes], what: str) -> None:
    assert what in "\n".join(told(lines, HEAD))


def test_files_that_were_dropped_are_no_damage_and_files_that_were_taken_away_are() -> None:
    older, link = written(*ENTRIES[:3])
    newer, last = written(*ENTRIES[3:], after=link)
    assert told(newer, Head(last, first=4)) == []
    assert told(newer, Head(last)) == ["web.jsonl: the lines of numbers 1 to 3 are missing before it"]
    assert told(newer, Head(last), is_whole=False) == told(newer) == []
    both = [("web.jsonl.1", line) for line in older] + [("web.jsonl", line) for line in newer]
    assert list(verified(both, Head(last), "web")) == []
    swapped = [("web.jsonl.1", line) for line in newer] + [("web.jsonl", line) for line in older]
    assert [damage.file for damage in verified(swapped, Head(last), "web")] == ["web.jsonl.1", "web.jsonl"]


def test_a_line_is_read_as_it_was_written() -> None:
    line = read_line(LINES[2])
    assert line is not None
    assert line.entry == ENTRIES[2]
    assert (line.seq, line.workspace) == (3, None)
    assert follows(Link(2, json.loads(LINES[1])["hash"]), line)


@pytest.mark.parametrize(
    "data",
    [b"", b"[]\n", b"{}\n", b"1" * 5000, b"[" * 5000, b"\xff\n", b"{" + b" " * (1 << 16) + b"}\n", b'{"seq":NaN}\n'],
)
def test_what_is_no_line(data: bytes) -> None:
    assert read_line(data) is None
    assert told([data + b"\n"], Head(GENESIS)) != []


def test_damage_tells_its_file() -> None:
    assert str(Damage(3, "line 3 is odd", "web.jsonl")) == "web.jsonl: line 3 is odd"
    assert str(Damage(3, "it is gone")) == "it is gone"
