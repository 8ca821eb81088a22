"""What of an answer reaches who asked."""

from __future__ import annotations

import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from hutch.egress.answers import LONGEST_VALID, MOST_ADDRESSES, judge
from hutch.spec.policy import Policy, Reach

NAME = dns.name.from_text("api.example.com")
LIST = Policy("list")


def response(*records: str) -> dns.message.Message:
    """Records as "name seconds type data"."""
    message = dns.message.make_response(dns.message.make_query(NAME, "A"))
    for record in records:
        name, seconds, kind, data = record.split(" ", 3)
        message.answer.append(dns.rrset.from_text(f"{name}.", int(seconds), "IN", kind, *data.split(",")))
    return dns.message.from_wire(message.to_wire())


def judged(*records: str, policy: Policy = LIST, kind: dns.rdatatype.RdataType = dns.rdatatype.A) -> object:
    found = judge(NAME, kind, response(*records), policy.opens)
    shown = ["\n".join(sorted(str(rrset).splitlines())) for rrset in found.rrsets]  # rendering shuffles them
    return shown, tuple(sorted(found.addresses)), tuple(sorted(found.private)), found.rest and found.rest.to_text()


@pytest.mark.parametrize(
    ("records", "shown", "addresses", "private", "rest"),
    [
        (
            ["api.example.com 30 A 203.0.113.1,203.0.113.2"],
            ["api.example.com. 30 IN A 203.0.113.1\napi.example.com. 30 IN A 203.0.113.2"],
            (("203.0.113.1", 30), ("203.0.113.2", 30)),
            (),
            None,
        ),
        (  # a name is valid for as long as each step to it
            ["api.example.com 9 CNAME b.example.", "b.example 300 CNAME c.example.", "c.example 60 A 203.0.113.1"],
            [
                "api.example.com. 9 IN CNAME b.example.",
                "b.example. 9 IN CNAME c.example.",
                "c.example. 9 IN A 203.0.113.1",
            ],
            (("203.0.113.1", 9),),
            (),
            None,
        ),
        (  # what was not asked for does not count
            ["api.example.com 30 A 203.0.113.1", "other.example 30 A 203.0.113.9"],
            ["api.example.com. 30 IN A 203.0.113.1"],
            (("203.0.113.1", 30),),
            (),
            None,
        ),
        (["other.example 30 A 203.0.113.9"], [], (), (), None),
        (
            ["api.example.com 30 A 203.0.113.1,10.0.0.1,169.254.169.254,127.0.0.1"],
            ["api.example.com. 30 IN A 203.0.113.1"],
            (("203.0.113.1", 30),),
            ("10.0.0.1", "127.0.0.1", "169.254.169.254"),
            None,
        ),
        (["api.example.com 30 A 192.168.1.1"], [], (), ("192.168.1.1",), None),
        (
            ["api.example.com 30 CNAME b.example.", "b.example 30 A 192.168.1.1"],
            [],
            (),
            ("192.168.1.1",),
            None,
        ),
        (
            ["api.example.com 30 CNAME b.example."],
            ["api.example.com. 30 IN CNAME b.example."],
            (),
            (),
            "b.example.",
        ),
        (
            ["api.example.com 999999 A 203.0.113.1"],
            [f"api.example.com. {LONGEST_VALID} IN A 203.0.113.1"],
            (("203.0.113.1", LONGEST_VALID),),
            (),
            None,
        ),
    ],
)
def test_judge(records: list[str], shown: object, addresses: object, private: object, rest: object) -> None:
    assert judged(*records) == (shown, addresses, private, rest)


def test_a_loop_of_names_ends() -> None:
    found = judge(NAME, dns.rdatatype.A, response("api.example.com 9 CNAME api.example.com."), LIST.opens)
    assert (found.addresses, found.rest) == ((), None)


def test_there_is_an_end_to_the_addresses_of_a_name() -> None:
    many = ",".join(f"203.0.{number // 250}.{number % 250}" for number in range(1000))
    found = judge(NAME, dns.rdatatype.A, response(f"api.example.com 9 A {many}"), LIST.opens)
    assert len(found.addresses) == MOST_ADDRESSES


def test_a_private_address_that_the_list_opens_is_answered_and_opens_nothing_more() -> None:
    policy = Policy("list", networks=(Reach("10.1.0.0/16", None),))
    found = judge(NAME, dns.rdatatype.A, response("api.example.com 9 A 10.1.2.3,10.2.0.1"), policy.opens)
    assert [str(rrset) for rrset in found.rrsets] == ["api.example.com. 9 IN A 10.1.2.3"]
    assert (found.addresses, found.private) == ((), ("10.2.0.1",))


def test_other_types_open_nothing() -> None:
    found = judge(NAME, dns.rdatatype.TXT, response('api.example.com 9 TXT "10.0.0.1"'), LIST.opens)
    assert len(found.rrsets) == 1
    assert (found.addresses, found.private) == ((), ())


def test_what_follows_is_valid_no_longer_than_the_way_there() -> None:
    way = judge(NAME, dns.rdatatype.A, response("api.example.com 5 CNAME b.example."), LIST.opens)
    end = judge(dns.name.from_text("b.example"), dns.rdatatype.A, response("b.example 60 A 203.0.113.1"), LIST.opens)
    whole = way.followed_by(end)
    assert whole.addresses == (("203.0.113.1", 5),)
    assert len(whole.rrsets) == 2
    private = judge(dns.name.from_text("b.example"), dns.rdatatype.A, response("b.example 60 A 10.0.0.1"), LIST.opens)
    assert way.followed_by(private).rrsets == ()


def test_only_addresses_are_looked_for_behind_another_name() -> None:
    records = response("api.example.com 9 CNAME secret.corp.", 'secret.corp 9 TXT "told"')
    found = judge(NAME, dns.rdatatype.TXT, records, LIST.opens)
    assert [str(rrset) for rrset in found.rrsets] == ["api.example.com. 9 IN CNAME secret.corp."]
    assert found.rest is None
