"""Lists that are made of what was seen. The golden files are what a person would paste."""

from __future__ import annotations

import random
import tomllib
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.egress.record import DENIED, NOT_LISTED, EgressEvent, lost
from hutch.egress.suggest import SIBLINGS, suggest
from hutch.spec.entries import Egress
from hutch.spec.model import WorkspaceSpec
from hutch.spec.record import Decision
from tests.unit.facts import check_golden, workspace


def dns(name: str, verdict: str = "refused", why: str = NOT_LISTED, address: str | None = None) -> EgressEvent:
    values: dict[str, Any] = {"verdict": verdict, "why": "" if verdict != "refused" else why}
    return EgressEvent(1.0, "dns", name=name, address=address, **values)


def reached(
    name: str | None, port: int | None = 443, address: str | None = None, verdict: str = "learned", **more: Any
) -> EgressEvent:
    values: dict[str, Any] = {"verdict": verdict, "protocol": "tcp" if port else "icmp", **more}
    return EgressEvent(1.0, "connection", name=name, address=address or address_of(name), port=port, **values)


def address_of(name: str | None) -> str:
    """One of its own."""
    number = zlib.crc32((name or "").lower().removesuffix(".").encode())
    return f"5.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


WITH_LIST = workspace(egress=("api.example.com:443", "*.cdn.example.net", "198.51.100.0/24", "10.1.0.0/16"))
CASES: dict[str, tuple[WorkspaceSpec, list[EgressEvent]]] = {
    "nothing": (workspace(egress="none"), []),
    "nothing-new": (
        WITH_LIST,
        [
            reached("api.example.com", verdict="allowed"),
            reached("a.cdn.example.net", 80),
            reached(None, 22, "10.1.2.3"),
        ],
    ),
    "ports": (
        workspace(egress="internet", learn=True),
        [
            reached("one.example.org"),
            *[reached("two.example.org", port) for port in (443, 80, 80)],
            *[reached("many.example.net", port) for port in (443, 80, 8080)],
            reached(None, 53, "203.0.113.9", protocol="udp"),
            reached(None, 53, "203.0.113.9"),
            reached(None, 22, "203.0.113.10"),
            *[reached(None, port, "203.0.113.100") for port in (1, 2, 3)],
            reached("One.Example.Org.", verdict="allowed"),
        ],
    ),
    "beyond-a-list": (
        WITH_LIST,
        [
            dns("asked.example.org"),
            dns("asked-and-reached.example.org"),
            reached("asked-and-reached.example.org", 8443),
            dns("only-asked.example.org", "learned"),
            dns("only-asked.example.org", "allowed"),
            dns("api.example.com"),  # before it was listed
            reached("api.example.com", 80, verdict="refused", why=NOT_LISTED),
            reached("listed-address.example.org", 443, "198.51.100.7", "allowed"),
            reached(None, 443, "198.51.101.7", "refused", why=NOT_LISTED),
        ],
    ),
    "one-address-many-names": (
        workspace(egress=("one.example.org:443", "203.0.113.0/28"), learn=True),
        [
            dns("one.example.org", "allowed", address="203.0.113.80"),
            dns("two.example.org", "learned", address="203.0.113.80"),
            dns("three.example.net", "learned", address="203.0.113.80"),
            dns("four.example.net", "learned", address="203.0.113.81"),
            reached("one.example.org", 443, "203.0.113.80", "allowed"),
            reached("one.example.org", 443, "203.0.113.80", "allowed"),
            # Its address is open, and its name is not.
            dns("five.example.net", "learned", address="203.0.113.5"),
            reached("five.example.net", 443, "203.0.113.5", "allowed"),
            reached(None, 22, "203.0.113.6", "allowed"),
        ],
    ),
    "left-out": (
        workspace(egress=("example.org",), learn=True),
        [
            reached(None, 22, "10.0.0.5", "refused", why="private network"),
            reached("rebind.example.org", 80, "192.168.1.1", "refused", why=NOT_LISTED),
            reached(None, 80, "169.254.169.254", "refused"),
            reached(None, 443, "203.0.113.77", "refused", why="the host"),
            reached("ping.example.org", None, "203.0.113.8"),
            reached(None, None, "203.0.113.6", protocol="47"),
            reached(None, 0, "203.0.113.6", protocol="udp"),
            dns("rebind.example.org", why="private answer"),
            dns("nas"),
            dns("*.com"),
            dns("*.example.net"),
            dns("203.0.113.0/24"),
            dns("203.0.113.9"),
            dns("a.example:443"),
            dns('x"]\\010egress.example'),
            dns("-a.example"),
            *[dns(f"bad-{number}.\\000.example") for number in range(20)],
            lost(1.0, 17, "too many"),
            lost(2.0, 3, "too many"),
        ],
    ),
    "siblings": (
        workspace(egress=("x.example.org",)),
        [
            *[reached(f"{one}.example.org") for one in "xabc"],
            *[reached(f"{one}.deep.example.org", port) for one in ("a.b", "c") for port in (80, 443)],
            *[dns(f"{one}.asked.example.net") for one in "abcdefghijkl"],
            dns("asked.example.net"),
            *[reached(f"{one}.ports.example.net", 443 + number) for number, one in enumerate("abcd")],
            *[reached(f"{one}.co.uk") for one in "abc"],
            *[reached(f"{one}.shop.co.uk") for one in "abc"],
            *[reached(f"{one}.com") for one in ("one", "two", "three", "four")],
            *[reached(f"{one}.two.example.com") for one in "ab"],
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    where, records = CASES[case]
    text = suggest(records, where)
    check_golden(f"egress/{case}.toml", text)
    shuffled = list(records)
    random.Random(7).shuffle(shuffled)
    assert suggest(shuffled * 2, where).replace("40 more were", "20 more were") == text
    entries = tomllib.loads(text)["egress"]
    assert tuple(entries) == Egress().parse(entries)
    assert entries[: len(where.egress)] == list(where.egress) or isinstance(where.egress, str)
    # With that list, the same events give no more entries.
    again = suggest(records, workspace(egress=tuple(entries)))
    assert tomllib.loads(again)["egress"] == entries


@given(st.lists(st.tuples(st.text(min_size=1, max_size=30), st.booleans(), st.none() | st.integers(0, 65535))))
def test_no_name_becomes_anything_else(found: list[tuple[str, bool, int | None]]) -> None:
    """Whatever a guest asks for, an entry is a name that it asked for, or the parent of several."""
    from hutch.egress.record import escaped

    records = [dns(escaped(name)) if is_dns else reached(escaped(name), port) for name, is_dns, port in found]
    entries = tomllib.loads(suggest(records, workspace(egress="none")))["egress"]
    asked = {record.name.removesuffix(".").lower() for record in records if record.name}
    for entry in entries:
        host = entry.partition(":")[0]
        assert "/" not in host
        children = [name for name in asked if name.endswith(host[1:])]
        assert host in asked or (host.startswith("*.") and len(children) >= SIBLINGS)


def test_what_people_have_decided_counts() -> None:
    events = [dns(name) for name in ("yes.example.net", "a.cdn.example", "b.cdn.example", "c.cdn.example")]
    events += [
        reached("no.cdn.example"),
        reached("while.example.net", verdict="allowed"),
        dns("back.example", why=DENIED),
    ]
    decisions = [
        Decision("yes.example.net:443", True, 1.0),
        Decision("while.example.net", True, 1.0, 100.0),
        Decision("no.cdn.example", False, 1.0),
    ]
    found = suggest(events, workspace(egress=("api.example.com",)), decisions)
    assert tomllib.loads(found)["egress"] == [
        *("api.example.com", "yes.example.net:443", "back.example"),
        *("a.cdn.example", "b.cdn.example", "c.cdn.example", "while.example.net:443"),
    ]
    assert "# left out, denied by a person: no.cdn.example:443" in found
