"""What whoever asked for a name is told: the rule, and the command."""

from __future__ import annotations

import dns.edns
import dns.message
import dns.rcode
import pytest

from hutch.egress.answers import reply
from hutch.egress.reasons import LONGEST, WHY, asks_why, reason_of, tell
from hutch.egress.views import A, View, listed_by, rule_on
from hutch.spec.decisions import ruled
from hutch.spec.policy import Domain, Policy
from hutch.spec.record import Decision

POLICY = Policy("list", (Domain("api.example.com", False, 443), Domain("example.org", True, None)))
DECISIONS = [Decision("open.example:80", True, 1.0, 100.0), Decision("no.example", False, 2.0)]
VIEW = View("web", "192.168.83.2", 7, POLICY, listed_by(POLICY), ruled(DECISIONS))


def reason(name: str, view: View = VIEW, now: float = 5.0) -> str:
    return reason_of(view, name, rule_on(view, name, A, now))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "x.example",
            "egress of web does not list it. A person on the host can open it: hutch allow web x.example",
        ),
        ("no.example", "a person has said no: hutch deny web. Only they can take that back"),
        ("api.example.com", "egress of web lists it, at port 443 only"),
        ("a.example.org", "egress of web lists it"),
        ("open.example", "a person has opened open.example:80 until 1970-01-01T00:01:40+00:00"),
    ],
)
def test_the_reason_names_the_rule(name: str, text: str) -> None:
    assert reason(name) == text


def test_what_is_over_is_refused_like_anything_else() -> None:
    assert reason("open.example", now=100.0).endswith("hutch allow web open.example")


def test_learning_says_so() -> None:
    view = View("web", "192.168.83.2", 7, Policy("none", learn=True), listed_by(Policy("none")))
    assert reason("a.example", view) == "learn = true lets unlisted traffic pass, and records it"


@pytest.mark.parametrize("payload", [512, 1232, 65535])
@pytest.mark.parametrize("name", ["a.example", f"{'x' * 60}.{'y' * 60}.{'z' * 60}.{'w' * 60}.example", "\\027[31m.e"])
def test_the_answer_with_its_reason_fits(name: str, payload: int) -> None:
    question = dns.message.make_query(name, "A", use_edns=0, payload=payload)
    text = reason(name)
    assert len(text) <= LONGEST
    assert text.isascii()
    assert text.isprintable()
    answer = reply(question, dns.rcode.REFUSED)
    tell(answer, question, dns.edns.EDECode.BLOCKED, text)
    read = dns.message.from_wire(answer.to_wire(max_size=512, prefer_truncation=True))
    (option,) = read.options
    assert isinstance(option, dns.edns.EDEOption)
    assert (option.code, option.text) == (15, text)


def test_who_does_not_understand_it_gets_none() -> None:
    question = dns.message.make_query("a.example", "A", use_edns=False)
    answer = reply(question, dns.rcode.REFUSED)
    tell(answer, question, dns.edns.EDECode.BLOCKED, "x")
    assert dns.message.from_wire(answer.to_wire()).edns == -1


def test_why_is_asked_by_an_option() -> None:
    option = dns.edns.GenericOption(dns.edns.OptionType.make(WHY), b"")
    assert asks_why(dns.message.make_query("a.example", "A", use_edns=0, options=[option]))
    assert not asks_why(dns.message.make_query("a.example", "A", use_edns=0))
    assert not asks_why(dns.message.make_query("a.example", "A", use_edns=False))
