"""What is opened, what is remembered, and what may ask."""

from __future__ import annotations

import dns.message
import dns.name
import dns.rdatatype
import pytest

from hutch.egress import known as known_module
from hutch.egress.front import parse_question
from hutch.egress.known import LINGERS, MOST_NAMES, MOST_OPEN, Known
from hutch.egress.sets import Element, lent_element, listed_elements, render_put
from hutch.egress.upstream import PAYLOAD, Question


def test_what_a_list_opens() -> None:
    source, address = "192.168.83.2", "203.0.113.1"
    assert listed_elements(source, 7, address, None) == [("allowed", f"{source} . {address} . 7")]
    assert listed_elements(source, 7, address, (80, 443)) == [
        ("allowed_ports", f"{source} . {address} . 80 . 7"),
        ("allowed_ports", f"{source} . {address} . 443 . 7"),
    ]
    assert listed_elements(source, 7, address, ()) == []


def test_what_a_person_opens() -> None:
    source, address = "192.168.83.2", "203.0.113.1"
    assert lent_element(source, address, None) == ("allowed_lent", f"{source} . {address}")
    assert lent_element(source, address, 443) == ("allowed_lent_ports", f"{source} . {address} . 443")


def test_an_element_that_is_there_gets_another_time() -> None:
    one, other = ("allowed", "192.168.83.2 . 203.0.113.1 . 7"), ("allowed", "192.168.83.2 . 203.0.113.2 . 7")
    assert render_put("hutch", {one: (30.2, None, None), other: (1.0, None, None)}).splitlines() == [
        "add element inet hutch allowed { 192.168.83.2 . 203.0.113.1 . 7, 192.168.83.2 . 203.0.113.2 . 7 }",
        "delete element inet hutch allowed { 192.168.83.2 . 203.0.113.1 . 7, 192.168.83.2 . 203.0.113.2 . 7 }",
        (
            "add element inet hutch allowed { 192.168.83.2 . 203.0.113.1 . 7 timeout 31s,"
            " 192.168.83.2 . 203.0.113.2 . 7 timeout 1s }"
        ),
    ]
    assert render_put("hutch", {}) == ""


@pytest.mark.parametrize(("there", "before"), [(None, 9), (9, 9), (8, 8)])
def test_one_of_another_decision_is_taken_out_by_its_mark(there: int | None, before: int) -> None:
    """The kernel takes none with another mark than the one that is there."""
    lent = ("allowed_lent_ports", "192.168.83.2 . 203.0.113.1 . 443")
    assert render_put("hutch", {lent: (31.0, 9, there)}).splitlines() == [
        f"add element inet hutch allowed_lent_ports {{ 192.168.83.2 . 203.0.113.1 . 443 : {before} }}",
        f"delete element inet hutch allowed_lent_ports {{ 192.168.83.2 . 203.0.113.1 . 443 : {before} }}",
        "add element inet hutch allowed_lent_ports { 192.168.83.2 . 203.0.113.1 . 443 timeout 31s : 9 }",
    ]


def test_the_newest_answer_counts() -> None:
    known = Known()
    assert known.tell(0.0, "a.example", {"203.0.113.1": 100.0, "203.0.113.2": 100.0})
    assert known.tell(0.0, "b.example", {"203.0.113.1": 50.5})
    assert known.tell(0.0, "a.example", {"203.0.113.1": 90.0})
    one, other = "203.0.113.1", "203.0.113.2"
    assert list(known.valid(50.0)) == [
        *(("b.example", one, 50.5), ("a.example", one, 90.0), ("a.example", other, 100.0)),
    ]
    assert list(known.valid(90.0)) == [("a.example", other, 100.0)]


ELEMENT = ("allowed", "192.168.83.2 . 203.0.113.1 . 7")


def until(
    known: Known, name: str, end: float, mark: int | None = None, in_force: tuple[int | None, ...] = (None, 1, 2)
) -> tuple[float, int | None]:
    """Until when the element is open, and by which mark, once a name has said its time."""
    assert known.open(0.0, name, {ELEMENT: (end, mark)}, in_force)
    ((left, by, _),) = known.places([ELEMENT], 0.0).values()
    return left, by


def test_an_address_is_open_as_long_as_the_name_says_that_says_the_longest() -> None:
    known = Known()
    assert until(known, "a.example", 100.0) == (100.0, None)
    assert until(known, "b.example", 50.0) == (100.0, None)
    assert until(known, "a.example", 10.0) == (10.0, None)  # its newest answer; b's is asked for again
    assert until(known, "b.example", 50.0) == (50.0, None)


def test_of_two_decisions_about_one_address_the_longer_answer_counts_while_its_own_is_in_force() -> None:
    known = Known()
    assert until(known, "a.example", 3600.0, 1) == (3600.0, 1)
    assert until(known, "b.example", 10.0, 2) == (3600.0, 1)
    assert until(known, "b.example", 10.0, 2, (None, 2)) == (10.0, 2)
    assert known.places([ELEMENT], 0.0)[ELEMENT][2] is None
    known.note_there([ELEMENT])
    assert until(known, "a.example", 3600.0, 1) == (3600.0, 1)
    assert known.places([ELEMENT], 0.0)[ELEMENT][2] == 2  # what the kernel has meanwhile


def test_what_the_kernel_may_have_counts() -> None:
    """Also where it did not take the newer, shorter time."""
    known = Known()
    assert until(known, "a.example", 100.0) == (100.0, None)
    known.note_there([ELEMENT])
    assert until(known, "a.example", 10.0) == (10.0, None)
    assert not known.is_over(50.0)
    assert known.is_over(100.0 + LINGERS)


def test_the_name_that_led_there_last() -> None:
    known = Known()
    known.note_name("b.example", "203.0.113.1")
    known.note_name("a.example", "203.0.113.1")
    assert known.name_of("203.0.113.1") == "a.example"
    for number in range(MOST_NAMES):
        known.note_name("a.example", str(number))
    assert known.name_of("203.0.113.1") is None


Wanted = dict[Element, tuple[float, int | None]]


def elements(first: int, count: int, ports: tuple[int, ...] | None = None, epoch: int = 7) -> Wanted:
    """Those of so many addresses, until 10."""
    addresses = (str(number) for number in range(first, first + count))
    return {element: (10.0, None) for address in addresses for element in listed_elements("ws", epoch, address, ports)}


def test_no_workspace_opens_more_than_its_share() -> None:
    """A name with many ports takes an element for each; those of an old list are there until they are over."""
    known = Known()
    assert known.open(0.0, "a.example", elements(0, MOST_OPEN // 4, (80, 443)))
    assert known.open(0.0, "a.example", elements(0, MOST_OPEN // 4, (80, 443)))  # asked again: they are there already
    assert known.open(0.0, "a.example", elements(0, MOST_OPEN // 4, (80, 443), epoch=8))
    assert not known.open(0.0, "a.example", elements(0, 1))
    assert known.open(0.0, "b.example", elements(0, MOST_OPEN // 4, (80, 443)))
    assert not known.open(10.5, "a.example", elements(0, 1))  # the kernel may have them yet
    assert known.open(10.5 + LINGERS, "a.example", elements(0, MOST_OPEN))


def test_what_does_not_fit_takes_nothing() -> None:
    known = Known()
    assert known.open(0.0, "a.example", elements(0, MOST_OPEN - 1))
    assert not known.open(0.0, "a.example", elements(MOST_OPEN, 2))
    assert known.open(0.0, "a.example", elements(MOST_OPEN, 1))


def test_who_goes_leaves_what_is_open_and_no_answers() -> None:
    known = Known()
    assert known.tell(0.0, "a.example", {"1": 10.0})
    assert known.open(0.0, "a.example", elements(0, MOST_OPEN))
    known.forget_answers()
    assert list(known.valid(0.0)) == []
    assert not known.is_over(10.5) and not known.open(10.5, "a.example", elements(MOST_OPEN, 1))
    assert known.is_over(10.0 + LINGERS)


def test_no_workspace_is_told_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_module, "MOST_TOLD", 3)
    known = Known()
    assert known.tell(0.0, "a.example", dict.fromkeys("123", 10.0))
    assert known.tell(0.0, "a.example", {"1": 20.0})
    assert not known.tell(0.0, "b.example", {"1": 20.0})
    assert known.tell(15.0, "b.example", {"1": 20.0, "2": 20.0})
    assert sorted(known.valid(15.0)) == [("a.example", "1", 20.0), ("b.example", "1", 20.0), ("b.example", "2", 20.0)]


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
