"""What the egress proxy can ask its keeper for, and what it cannot, however it asks."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from hutch.egress import journal
from hutch.egress.keeper import AT_ONCE, KEYS, LONGEST, Keeper, Kept, answer_of
from hutch.egress.sets import LONGEST_TIMEOUT, Element, Place, Sets, SetsFailed, lent_element, listed_elements
from hutch.inboxes import HEADING, HEADING_SIZE, LARGEST, left_out

SOURCE, FAR = "192.168.83.2", "203.0.113.1"
LISTED = ("allowed", f"{SOURCE} . {FAR} . 7")


class Noted(Sets):
    """Sets of a kernel that takes no address which ends in .9."""

    def __init__(self) -> None:
        self.done: list[object] = []

    def put(self, places: Mapping[Element, Place]) -> None:
        if any(".9 " in key for _, key in places):
            raise SetsFailed("no room")
        self.done.append(dict(places))

    def forget_terms(self) -> None:
        self.done.append("forgotten")

    def add_term(self, source: str, mark: int, seconds: int | None) -> None:
        self.done.append((source, mark, seconds))

    def end_term(self, source: str, mark: int) -> None:
        self.done.append((source, mark))


def keeper_of(sets: Sets, directory: Path = Path("/nonexistent")) -> Keeper:
    return Keeper(sets, directory / "egress", directory / "inbox")


def test_what_is_asked_for_is_done() -> None:
    sets, (near, far) = Noted(), socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    places = {LISTED: (30.5, None, None), ("allowed_lent", f"{SOURCE} . {FAR}"): (2.0, 9, 8)}
    many = {("allowed", f"{SOURCE} . {FAR} . {number}"): (1.0, None, None) for number in range(AT_ONCE + 1)}
    refused = {("allowed", f"{SOURCE} . 203.0.113.9 . 7"): (1.0, None, None)}

    def serve() -> None:
        with far:
            for _ in range(8):
                far.send(answer_of(keeper_of(sets), far.recv(LONGEST)))
            far.recv(LONGEST)

    keeper = threading.Thread(target=serve)
    keeper.start()
    near.settimeout(10)
    with near:
        asking = Kept(near)
        asking.forget_terms()
        asking.add_term(SOURCE, 9, None)
        asking.put(places)
        asking.end_term(SOURCE, 9)
        with pytest.raises(SetsFailed, match="no room"):
            asking.put(refused)
        asking.put({})
        asking.put(many)
        asking.add_term(SOURCE, 8, 10**9)
        for _ in range(2):
            with pytest.raises(SetsFailed, match=r"nobody keeps the sets|Broken pipe"):
                asking.forget_terms()
    keeper.join(10)
    assert sets.done[:4] == ["forgotten", (SOURCE, 9, None), places, (SOURCE, 9)]
    first, second, last = sets.done[4:]
    assert last == (SOURCE, 8, LONGEST_TIMEOUT)
    assert isinstance(first, dict) and isinstance(second, dict) and first | second == many


def test_the_keeper_takes_every_key_that_there_is() -> None:
    elements = [
        *listed_elements(SOURCE, 0xFFFFFFFF, FAR, None),
        *listed_elements(SOURCE, 1, FAR, (65535,)),
        lent_element(SOURCE, FAR, None),
        lent_element(SOURCE, FAR, 443),
    ]
    assert {where for where, _ in elements} == KEYS.keys()
    for element in elements:
        mark = 9 if "lent" in element[0] else None
        assert answer_of(keeper_of(Noted()), json.dumps(["put", [[*element, 3601.0, mark, None]]]).encode()) == b"done"


@pytest.mark.parametrize(
    "request_",
    [
        ["put", [["allowed", f"{SOURCE} . {FAR} . 7 }}\nflush ruleset #", 1, None, None]]],
        ["put", [["allowed", f"{SOURCE} . {FAR} . 7\n", 1, None, None]]],
        ["put", [["allowed", f"{SOURCE} . {FAR} . \u0667", 1, None, None]]],
        ["put", [["allowed", f"{SOURCE} . {FAR}", 1, None, None]]],
        ["put", [["allowed", f"{SOURCE} . 203.0.113.256 . 7", 1, None, None]]],
        ["put", [["allowed", f"{SOURCE} . 010.0.113.1 . 7", 1, None, None]]],
        ["put", [["allowed_lent", f"{SOURCE} . {FAR}", 1, None, None]]],
        ["put", [[*LISTED, 1, 9, None]]],
        ["put", [["allowed_lent", f"{SOURCE} . {FAR}", 1, -9, None]]],
        ["put", [["allowed_lent", f"{SOURCE} . {FAR}", 1, 0, None]]],
        ["put", [[*LISTED, 3700, None, None]]],
        ["put", [["allowed", "0.0.0.0/0", 1, None, None]]],
        ["put", [["allowed", 7, 1, None, None]]],
        ["put", [["open", f"{SOURCE} . 7", 1, None, None]]],
        ["put", [["everywhere", SOURCE, 1, None, None]]],
        ["put", [["allowed_terms", f"{SOURCE} . 7", 1, None, None]]],
        ["put", [[["allowed"], f"{SOURCE} . {FAR} . 7", 1, None, None]]],
        ["put", [[*LISTED, "1s }", None, None]]],
        ["put", [[*LISTED, float("inf"), None, None]]],
        ["put", [[*LISTED, float("nan"), None, None]]],
        ["put", [[*LISTED, 0, None, None]]],
        ["put", [["allowed_lent", f"{SOURCE} . {FAR}", 1, "9 }", None]]],
        ["put", [["allowed_lent", f"{SOURCE} . {FAR}", 1, 9, 9.5]]],
        ["put", [["allowed_lent", f"{SOURCE} . {FAR}", 1, True, None]]],
        ["put", [["allowed_lent", f"{SOURCE} . {FAR}", 1, 10**30, None]]],
        pytest.param(["put", [[*LISTED, 1, None, None]] * (AT_ONCE + 1)], id="too many"),
        ["put", [list(LISTED)]],
        ["put", []],
        ["put", "allowed"],
        ["put"],
        ["add_term", f"{SOURCE} . 7 }}", 7, None],
        ["add_term", SOURCE, "7", None],
        ["add_term", SOURCE, 7, "1s"],
        ["add_term", SOURCE, 7, 10**8],
        ["add_term", SOURCE],
        ["end_term", SOURCE, [7]],
        ["forget_terms", 1],
        ["_run", "flush ruleset"],
        ["__init__", "other"],
        ["record", "../web", "{}\n"],
        ["record", "web/../../web", "{}\n"],
        ["record", "", "{}\n"],
        ["record", ["web"], "{}\n"],
        ["record", "web", ["{}"]],
        ["record", "web", "\udc80\n"],
        ["record", "web", "{}\n", "records.jsonl"],
        ["tell", "web\0", "{}\n"],
        ["tell", "..", "{}\n"],
        ["tell", "web"],
        ["tell_last", "web", "{}\n", 1, 1e9],
        ["tell_last", "web", "{}\n", 1, float("nan")],
        ["tell_last", "web", "{}\n", 1, -1],
        ["tell_last", "web", "{}\n", 10**10, 1],
        ["tell_last", "/", "{}\n", 1, 1],
        ["serve", 7],
        [["put"], []],
        [],
        {},
        "put",
        None,
    ],
    ids=str,
)
def test_nothing_else_can_be_asked_for(request_: object) -> None:
    sets = Noted()
    with pytest.raises(ValueError):
        answer_of(keeper_of(sets), json.dumps(request_).encode())
    assert sets.done == []


def test_lines_have_a_place_only_where_root_made_one(tmp_path: Path) -> None:
    """And a bound, in the journal as in the inbox."""
    keeper, told = keeper_of(Noted(), tmp_path), '{"a":1}\n'
    for request in (["record", "web", told], ["tell", "web", told]):
        assert b"No such file" in answer_of(keeper, json.dumps(request).encode())
    assert answer_of(keeper, json.dumps(["tell_last", "web", told, 1, 1]).encode()) == b"done"
    assert list(tmp_path.iterdir()) == []
    for directory in (keeper.journal, keeper.inboxes):
        (directory / "web").mkdir(parents=True)
    keeper.inbox("web").write_text(HEADING % 0)
    long = "x" * (LONGEST // 2) + "\n"
    for _ in range(80):
        assert answer_of(keeper, json.dumps(["record", "web", long]).encode()) == b"done"
    said = {answer_of(keeper, json.dumps(["tell", "web", long]).encode()) for _ in range(80)}
    assert len(said) == 2 and any(b"too large" in answer for answer in said)
    assert answer_of(keeper, json.dumps(["tell_last", "web", long, 3, 0.5]).encode()) == b"done"
    assert left_out(keeper.inbox("web").read_bytes()[:HEADING_SIZE]) == 3
    sizes = {path.name: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    assert sorted(sizes) == sorted(["records.jsonl", "records.jsonl.1", keeper.inbox("web").name])
    assert sizes.pop(keeper.inbox("web").name) <= LARGEST
    assert all(size <= journal.LARGEST for size in sizes.values())


@pytest.mark.parametrize("sent", [b"\xff", b"[", b" " * LONGEST], ids=("no text", "no JSON", "too long"))
def test_what_cannot_be_read_is_no_request(sent: bytes) -> None:
    with pytest.raises(ValueError):
        answer_of(keeper_of(Noted()), sent)
