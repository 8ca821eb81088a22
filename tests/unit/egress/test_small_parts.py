"""What is opened, what is remembered, and what may ask."""

from __future__ import annotations

import dns.message
import dns.name
import dns.rdatatype
import pytest

from hutch.egress.front import parse_question
from hutch.egress.known import MOST_NAMES, MOST_TOLD, Known
from hutch.egress.sets import render_allow, render_key, render_lend
from hutch.egress.upstream import PAYLOAD, Question


def test_render_allow() -> None:
    assert render_allow("hutch", "192.168.83.2", 7, [("203.0.113.1", 30)], None).splitlines() == [
        "add element inet hutch allowed { 192.168.83.2 . 203.0.113.1 . 7 }",
        "delete element inet hutch allowed { 192.168.83.2 . 203.0.113.1 . 7 }",
        "add element inet hutch allowed { 192.168.83.2 . 203.0.113.1 . 7 timeout 31s }",
    ]
    ports = render_allow("hutch", "192.168.83.2", 7, [("203.0.113.1", 0)], (80, 443)).splitlines()
    assert ports[2] == "add element inet hutch allowed_ports { 192.168.83.2 . 203.0.113.1 . 80 . 7 timeout 2s }"
    assert len(ports) == 6
    assert render_allow("hutch", "192.168.83.2", 7, [], None) == ""


def test_render_lend() -> None:
    where, key = render_key("hutch", "192.168.83.2", "203.0.113.1", 443)
    assert (where, key) == ("inet hutch allowed_lent_ports", "192.168.83.2 . 203.0.113.1 . 443")
    assert render_lend(where, key, 30, 9).splitlines() == [
        "add element inet hutch allowed_lent_ports { 192.168.83.2 . 203.0.113.1 . 443 : 9 }",
        "delete element inet hutch allowed_lent_ports { 192.168.83.2 . 203.0.113.1 . 443 : 9 }",
        "add element inet hutch allowed_lent_ports { 192.168.83.2 . 203.0.113.1 . 443 timeout 31s : 9 }",
    ]
    assert render_key("hutch", "192.168.83.2", "203.0.113.1", None) == (
        "inet hutch allowed_lent",
        "192.168.83.2 . 203.0.113.1",
    )


def test_what_is_known() -> None:
    known = Known()
    known.note_told("a.example", "203.0.113.1", 100.0)
    known.note_told("b.example", "203.0.113.1", 50.5)
    known.note_told("a.example", "203.0.113.1", 90.0)  # a shorter answer takes nothing away
    assert list(known.valid(50.0)) == [("a.example", "203.0.113.1", 51), ("b.example", "203.0.113.1", 1)]
    assert list(known.valid(51.0)) == [("a.example", "203.0.113.1", 50)]


def test_the_name_that_led_there_last() -> None:
    known = Known()
    known.note_name("b.example", "203.0.113.1")
    known.note_name("a.example", "203.0.113.1")
    assert known.name_of("203.0.113.1") == "a.example"
    for number in range(MOST_NAMES):
        known.note_name("a.example", str(number))
    assert known.name_of("203.0.113.1") is None


def test_no_workspace_opens_more_than_its_share() -> None:
    known = Known()
    for number in range(MOST_TOLD):
        assert known.has_room(0.0, 1)
        known.note_told("a.example", str(number), 10.0)
    assert not known.has_room(0.0, 1)
    assert known.has_room(11.0, MOST_TOLD)


QUESTION = dns.message.make_query("a.example", "A")


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 11, b"\xff" * 512, QUESTION.to_wire()[:-3], dns.message.make_response(QUESTION).to_wire()],
)
def test_what_is_no_question(data: bytes) -> None:
    assert parse_question(data) is None


def test_a_question() -> None:
    assert parse_question(QUESTION.to_wire()) is not None


def test_what_is_asked_upstream() -> None:
    name = dns.name.from_text("a.example")
    question = Question(7, name, dns.rdatatype.A)
    parsed = dns.message.from_wire(question.render())
    assert (parsed.id, parsed.question[0].to_text(), parsed.payload) == (7, "a.example. IN A", PAYLOAD)
    answer = dns.message.make_response(parsed)
    assert question.is_answered_by(answer)
    assert not question.is_answered_by(parsed)
    assert not Question(8, name, dns.rdatatype.A).is_answered_by(answer)
    assert not Question(7, dns.name.from_text("b.example"), dns.rdatatype.A).is_answered_by(answer)
    assert not Question(7, name, dns.rdatatype.TXT).is_answered_by(answer)


def test_what_would_take_long_to_read_is_not_read() -> None:
    many = b"\0\1\1\0" + (10_000).to_bytes(2, "big") + b"\0" * 6 + QUESTION.to_wire()[12:] + b"\xc0\x0c\0\1\0\1" * 9_999
    assert parse_question(many) is None
    assert parse_question(many[:500]) is None
    answers = QUESTION.to_wire()[:6] + b"\0\1" + QUESTION.to_wire()[8:]
    assert parse_question(answers) is None


def test_the_size_that_a_question_has_room_for_is_read() -> None:
    found = parse_question(dns.message.make_query("a.example", "A", use_edns=0, payload=1232).to_wire())
    assert found is not None
    assert found.payload == 1232
