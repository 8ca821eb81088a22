"""What was refused and may be wanted, for a person to look at."""

from __future__ import annotations

from typing import Any

import pytest

from hutch.egress.approvals import FAMILY, MOST, refusals, shown
from hutch.egress.record import DENIED, NOT_LISTED, EgressEvent, lost
from hutch.spec.policy import Domain, Policy
from hutch.spec.record import Decision

LIST = Policy("list", (Domain("api.example.com", False, 443),))


def asked(name: str, count: int = 1, time: float = 1.0, why: str = NOT_LISTED) -> EgressEvent:
    return EgressEvent(time, "dns", "refused", name, count=count, why=why)


def reached(name: str | None, address: str, port: int, **more: Any) -> EgressEvent:
    values = {"why": NOT_LISTED, **more}
    return EgressEvent(2.0, "connection", values.pop("verdict", "refused"), name, address, port, "tcp", **values)


def hosts(*records: EgressEvent, policy: Policy = LIST, decisions: list[Decision] | None = None) -> list[str]:
    return [refusal.host for refusal in refusals("web", records, policy, decisions or [], 10.0)]


def test_names_are_counted_with_their_ports_and_times() -> None:
    records = [
        asked("Pkg.Example.Org.", 2, 5.0),
        asked("pkg.example.org", 1, 3.0),
        reached("api.example.com", "203.0.113.1", 80),
        reached(None, "203.0.113.7", 22, count=4),
    ]
    found = refusals("web", records, LIST, [], 10.0)
    assert [(w.host, w.ports, w.count, w.time, w.first) for w in found] == [
        ("203.0.113.7", (22,), 4, 2.0, 2.0),
        ("pkg.example.org", (), 3, 5.0, 3.0),
        ("api.example.com", (80,), 1, 2.0, 2.0),
    ]
    assert [refusal.is_name for refusal in found] == [False, True, True]
    assert found[1].to_json() == {
        "workspace": "web",
        "host": "pkg.example.org",
        "ports": [],
        "count": 3,
        "time": "1970-01-01T00:00:05.000+00:00",
        "first": "1970-01-01T00:00:03.000+00:00",
        "names": 1,
        "is_denied": False,
    }


def test_what_no_decision_opens_is_no_refusal() -> None:
    assert (
        hosts(
            asked("x.example", why="not a public name"),
            asked("10.0.0.1"),
            asked("*.example.org"),
            asked("a.example/8"),
            asked("\\027[31m.example"),
            reached(None, "10.0.0.1", 80),
            reached("a.example", "10.0.0.1", 80, why="a private network"),
            reached("a.example", "203.0.113.1", 80, verdict="allowed", why=""),
            EgressEvent(1.0, "dns", "refused", "inner.example", "10.0.0.1", why="private answer"),
            lost(1.0, 5, "x"),
        )
        == []
    )


def test_what_learning_lets_pass_is_one() -> None:
    assert hosts(reached("a.example", "203.0.113.1", 443, verdict="learned")) == ["a.example"]


def test_what_is_open_by_now_is_none() -> None:
    records = [asked("a.example"), asked("b.example.net"), asked("api.example.com")]
    decisions = [Decision("a.example", True, 1.0), Decision("*.example.net", True, 1.0, 9.0)]
    assert hosts(*records, decisions=decisions) == ["b.example.net"]
    assert hosts(reached("a.example", "203.0.113.1", 80), decisions=[Decision("a.example:443", True, 1.0)]) == [
        "a.example"
    ]
    assert hosts(*records, policy=Policy("none")) == ["a.example", "api.example.com", "b.example.net"]


def test_what_was_denied_comes_last_and_is_not_shown() -> None:
    records = [asked("a.example", 9), asked("a.example", why=DENIED), asked("b.example")]
    found = refusals("web", records, LIST, [Decision("a.example", False, 1.0)], 10.0)
    assert [(refusal.host, refusal.is_denied, refusal.count) for refusal in found] == [
        ("b.example", False, 1),
        ("a.example", True, 10),
    ]
    assert [refusal.host for refusal in shown(found)] == ["b.example"]


def test_a_flood_of_names_pushes_nothing_out() -> None:
    flood = [asked(f"x{number}.evil.example", time=9.0) for number in range(5000)]
    (wanted, evil) = refusals("web", [asked("pkg.example.org", 2), *flood[:1]], LIST, [], 10.0)
    assert (wanted.host, evil.host) == ("pkg.example.org", "x0.evil.example")
    found = refusals("web", [asked("pkg.example.org", 2), *flood], LIST, [], 10.0)
    assert [(refusal.host, refusal.names) for refusal in found] == [("*.evil.example", 5000), ("pkg.example.org", 1)]
    many = [asked(f"evil{number}.example", time=9.0) for number in range(5000)]
    found = shown(refusals("web", [*many, asked("pkg.example.org", 2)], LIST, [], 10.0))
    assert len(found) == MOST
    assert found[0].host == "pkg.example.org"


@pytest.mark.parametrize(("count", "lines"), [(FAMILY - 1, FAMILY - 1), (FAMILY, 1)])
def test_from_so_many_on_siblings_are_one(count: int, lines: int) -> None:
    assert len(hosts(*(asked(f"x{number}.cdn.example") for number in range(count)))) == lines
    assert len(hosts(*(asked(f"x{number}.co.uk") for number in range(count)))) == count
