"""What people have decided about names: which decision counts, and what becomes of the others."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.spec.decisions import (
    is_denied,
    is_partly_listed,
    parse_host,
    permits,
    ruled,
    standing,
    unlisted,
    why_not,
    with_decision,
)
from hutch.spec.field_types import Invalid
from hutch.spec.policy import Domain, Policy, policy_of
from hutch.spec.record import Decision
from tests.unit.facts import workspace

LIST = Policy("list", (Domain("example.org", True, None), Domain("api.example.com", False, 443)))


def yes(host: str, since: float = 1.0, until: float | None = None) -> Decision:
    return Decision(host, True, since, until)


def no(host: str, since: float = 2.0) -> Decision:
    return Decision(host, False, since)


def opened(decisions: list[Decision], name: str, now: float = 5.0) -> list[str]:
    return [each.decision.host for each in permits(ruled(decisions), name, now)]


@pytest.mark.parametrize(
    ("host", "is_open"),
    [("a.example.org", True), ("api.example.com", True), ("*.example.com", True), ("*.example.org", True),
     ("www.example.com", False), ("*.example.net", False)],
)  # fmt: skip
def test_what_a_list_opens_in_part_no_decision_closes(host: str, is_open: bool) -> None:
    assert is_partly_listed(LIST, host) is is_open


@pytest.mark.parametrize(
    ("decisions", "name", "found"),
    [
        ([yes("a.example")], "a.example", ["a.example"]),
        ([yes("a.example")], "b.a.example", []),
        ([yes("*.example.net")], "a.b.example.net", ["*.example.net"]),
        ([yes("*.example.net")], "example.net", []),
        ([yes("a.example:443"), yes("a.example:80")], "a.example", ["a.example:80", "a.example:443"]),
        ([yes("a.example", until=5.0)], "a.example", []),
        ([yes("a.example", until=5.1)], "a.example", ["a.example"]),
        ([yes("*.example.net"), no("a.example.net")], "a.example.net", []),
        ([yes("*.example.net"), no("a.example.net")], "b.example.net", ["*.example.net"]),
        ([no("*.example.net"), yes("a.example.net")], "a.example.net", ["a.example.net"]),
        ([no("*.example.net"), yes("a.example.net")], "b.example.net", []),
        ([yes("a.example:443"), no("a.example"), yes("a.example:80")], "a.example", ["a.example:80"]),
    ],
)
def test_the_newest_decision_about_a_name_counts(decisions: list[Decision], name: str, found: list[str]) -> None:
    assert opened(decisions, name) == found


def test_a_name_that_is_none_is_open_to_nobody() -> None:
    assert permits(ruled([yes("*.example.net")]), None, 0.0) == ()


def test_a_no_is_told_from_nothing_said() -> None:
    newest_first = ruled([no("*.example.net"), yes("a.example.net:443", until=4.0)])
    assert is_denied(newest_first, "b.example.net", None, 5.0)
    assert is_denied(newest_first, "a.example.net", 443, 5.0)  # the yes is over
    assert not is_denied(newest_first, "a.example.net", 443, 3.0)
    assert not is_denied(newest_first, "a.example", None, 5.0)


def test_a_no_takes_away_all_that_it_closes_and_a_yes_what_it_repeats() -> None:
    before = (yes("a.example.net:443"), yes("*.example.net"), yes("b.example"), yes("c.example", until=3.0))
    assert with_decision(before, no("*.example.net"), 5.0) == (yes("b.example"), no("*.example.net"))
    assert with_decision(before, no("a.example.net"), 2.0) == (*before[1:], no("a.example.net"))
    again = yes("b.example", 5.0, 9.0)
    assert with_decision(before, again, 2.0) == (*before[:2], before[3], again)
    assert with_decision((no("b.example"),), again, 2.0) == (again,)


def test_connections_are_judged_anew_when_a_part_of_what_let_them_out_is_denied() -> None:
    """By their mark, which then is another one."""

    def mark(decisions: list[Decision]) -> int:
        return next(each.mark for each in ruled(decisions) if each.decision.host == "*.example.net")

    before = [yes("*.example.net")]
    assert mark([*before, no("a.example.net")]) != mark(before)
    assert mark([*before, no("a.example.org"), yes("b.example.net")]) == mark(before)
    assert mark([yes("*.example.net", since=7.0)]) != mark(before)


def test_what_the_list_opens_needs_no_decision() -> None:
    decisions = [yes("a.example.org"), yes("*.b.example.org:80"), yes("example.org"), yes("api.example.com")]
    decisions += [yes("api.example.com:443"), no("x.example.org"), yes("old.example", until=3.0)]
    assert [each.host for each in unlisted(decisions, LIST)] == [
        *("example.org", "api.example.com", "x.example.org", "old.example")
    ]
    assert [each.host for each in standing(decisions, LIST, 5.0)] == ["example.org", "api.example.com"]
    assert standing(decisions, Policy("internet"), 5.0) == ()


@pytest.mark.parametrize(
    ("value", "is_allowed", "host"),
    [
        ("API.Example.com.", True, "api.example.com"),
        ("api.example.com:443", True, "api.example.com:443"),
        ("*.example.com", False, "*.example.com"),
        ("bücher.example", True, "xn--bcher-kva.example"),
    ],
)
def test_a_host_has_one_form(value: str, is_allowed: bool, host: str) -> None:
    assert parse_host(value, is_allowed=is_allowed) == host


@pytest.mark.parametrize(
    "value",
    [
        *("10.0.0.1", "10.0.0.1:443", "10.0.0.0/8", "203.0.113.0/24:443", "::1", "localhost", "*", "*.", ".example"),
        *("https://example.org/", "a b.example", "a.example\n", "a.example:0", "a.example:x", "a*.example", "", "-"),
        *("none", "internet", "a.example:443:80", "a..example", "\x1b[31m.example"),
    ],
)
def test_what_is_no_name_cannot_be_allowed(value: str) -> None:
    with pytest.raises(Invalid):
        parse_host(value, is_allowed=True)


def test_a_name_is_denied_at_all_ports() -> None:
    with pytest.raises(Invalid, match="has a port"):
        parse_host("a.example:443", is_allowed=False)


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"egress": ("a.example",)}, ""),
        ({"egress": "none"}, ""),
        ({"egress": "none", "learn": True}, ""),
        ({"egress": "internet"}, "nothing is refused by name"),
        ({"egress": "all"}, "nothing is refused by name"),
        ({"egress": "internet", "learn": True}, "nothing is refused by name"),
        ({"engine": "incus"}, "Incus server"),
    ],
)
def test_where_nothing_is_refused_by_name_nothing_is_allowed_so(keys: dict[str, Any], why: str) -> None:
    declared = workspace(**keys)
    found = why_not("web", declared, policy_of(declared))
    assert why in found
    assert bool(why) == bool(found)


NAMES = st.lists(st.sampled_from(["a", "b", "evil-a"]), min_size=2, max_size=4).map(".".join)
HOSTS = st.builds(lambda star, name: f"*.{name}" if star else name, st.booleans(), NAMES)


@given(st.lists(st.builds(Decision, HOSTS, st.booleans(), st.just(1.0)), max_size=6), HOSTS, NAMES)
def test_after_a_no_nothing_that_it_covers_is_open(decisions: list[Decision], host: str, name: str) -> None:
    after = with_decision(decisions, no(host), 5.0)
    (newest,) = ruled([no(host)])
    if newest.domain.covers(name):
        assert permits(ruled(after), name, 5.0) == ()
    else:
        assert opened(list(after), name) == opened(decisions, name)
