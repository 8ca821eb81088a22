"""Whose questions are answered, and how."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.egress.views import AAAA, ANY, HTTPS, A, Ruling, View, listed_by, plain_name, read_views, rule_on
from hutch.host.network.egress_proxy import render_views
from hutch.host.network.firewall import Endpoint
from hutch.spec.decisions import ruled
from hutch.spec.policy import Domain, Policy, Reach
from hutch.spec.record import Decision
from tests.unit.facts import LAYOUT, NETWORK

TXT = 16
LIST = Policy(
    "list",
    (Domain("example.org", True, None), Domain("api.example.com", False, 443), Domain("api.example.com", False, 80)),
    (Reach("10.1.0.0/16", None), Reach("203.0.113.0/24", 443)),
)


DECISIONS = (
    Decision("pkg.example.net", True, 1.0),
    Decision("api.example.com:8080", True, 2.0, 10.0),
    Decision("*.evil.example", False, 3.0),
)


def view(policy: Policy) -> View:
    return View("web", "192.168.83.2", policy.epoch, policy, listed_by(policy))


def labels(name: str) -> list[bytes]:
    return [label.encode("latin-1") for label in name.split(".")]


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        (labels("API.Example.Com"), "api.example.com"),
        (labels("_dmarc.example.org"), "_dmarc.example.org"),
        ([b"api.example", b"com"], None),  # a dot within a label
        ([b"api\0", b"example", b"com"], None),
        ([b"api", b"example", b"com\0evil", b"org"], None),
        ([b"\xe9", b"example"], None),
        ([b"a b", b"example"], None),
        ([b"-a", b"example"], None),
        ([], None),
    ],
)
def test_a_name_has_one_form(asked: list[bytes], name: str | None) -> None:
    assert plain_name(asked) == name


@pytest.mark.parametrize(
    ("name", "kind", "ruling"),
    [
        ("api.example.com", A, Ruling("forward", "allowed", (80, 443))),
        ("api.example.com", TXT, Ruling("forward", "allowed", (80, 443))),
        ("api.example.com", AAAA, Ruling("empty", "allowed", (80, 443))),
        ("api.example.com", HTTPS, Ruling("empty", "allowed", (80, 443))),
        ("api.example.com", ANY, Ruling("refuse", "refused", why="not a question for a name")),
        ("www.a.example.org", A, Ruling("forward", "allowed", None)),
        ("example.org", A, Ruling("refuse", "refused", why="not listed")),
        ("evil-example.org", A, Ruling("refuse", "refused", why="not listed")),
        ("www.api.example.com", A, Ruling("refuse", "refused", why="not listed")),
        ("other.example", AAAA, Ruling("refuse", "refused", why="not listed")),
        (None, A, Ruling("refuse", "refused", why="not listed")),
    ],
)
def test_a_list(name: str | None, kind: int, ruling: Ruling) -> None:
    assert rule_on(view(LIST), name, kind, 0.0) == ruling


@pytest.mark.parametrize(
    ("policy", "name", "answer", "verdict"),
    [
        (Policy("none"), "a.example", "refuse", "refused"),
        (Policy("none", learn=True), "a.example", "forward", "learned"),
        (Policy("list", LIST.domains, learn=True), "a.example", "forward", "learned"),
        (Policy("list", LIST.domains, learn=True), "a.example.org", "forward", "allowed"),
        (Policy("internet", learn=True), "a.example", "forward", "allowed"),
        (Policy("internet", learn=True), "hostname", "refuse", "refused"),
        (Policy("internet", learn=True), None, "refuse", "refused"),
    ],
)
def test_other_policies(policy: Policy, name: str | None, answer: str, verdict: str) -> None:
    ruling = rule_on(view(policy), name, A, 0.0)
    assert (ruling.answer, ruling.verdict) == (answer, verdict)


@pytest.mark.parametrize("policy", [Policy("none"), LIST])
def test_what_people_have_decided_stands_beside_the_list(policy: Policy) -> None:
    decided = replace(view(policy), ruled=ruled(DECISIONS))
    _newest, port, name = decided.ruled
    assert rule_on(decided, "pkg.example.net", A, 5.0) == Ruling("forward", "allowed", (), permits=(name,))
    assert rule_on(decided, "pkg.example.net", AAAA, 5.0) == Ruling("empty", "allowed", (), permits=(name,))
    assert rule_on(decided, "a.evil.example", A, 5.0) == Ruling("refuse", "refused", why="denied by a person")
    listed = (80, 443) if policy.domains else ()
    assert rule_on(decided, "api.example.com", A, 5.0) == Ruling("forward", "allowed", listed, permits=(port,))
    after = rule_on(decided, "api.example.com", A, 10.0)
    assert (after.verdict, after.permits) == ("allowed" if listed else "refused", ())
    assert decided.terms(5.0) == {name.mark: None, port.mark: 10.0}
    assert decided.terms(10.0) == {name.mark: None}


def test_what_the_egress_proxy_is_told_is_what_it_reads() -> None:
    endpoints = (
        Endpoint("web", "ve-web", "02:00:00:00:00:01", "192.168.83.2", policy=LIST, decisions=DECISIONS),
        Endpoint("free", "ve-free", "02:00:00:00:00:02", "192.168.83.3"),
        Endpoint("none", "ve-none", "02:00:00:00:00:03", "192.168.83.4", policy=Policy("none", learn=True)),
    )
    told = read_views(render_views(LAYOUT, NETWORK, endpoints))
    assert told.views == {
        "192.168.83.2": replace(view(LIST), ruled=ruled(DECISIONS)),
        "192.168.83.4": replace(view(endpoints[2].policy), workspace="none", address="192.168.83.4"),
    }
    assert (told.listen, told.upstream, told.table) == (("192.168.83.1", 5300), ("192.168.84.1", 40), "hutch")
    assert render_views(LAYOUT, NETWORK, endpoints[1:2]) == ""


NAMES = st.lists(st.sampled_from(["a", "b", "evil-a"]), min_size=1, max_size=4).map(".".join)
ENTRIES = st.builds(Domain, NAMES, st.booleans(), st.sampled_from([None, 80, 443]))


@given(st.lists(ENTRIES, max_size=6), NAMES)
def test_what_is_found_quickly_is_what_the_list_says(domains: list[Domain], name: str) -> None:
    ports = {domain.port for domain in domains if domain.covers(name)}
    wanted = None if None in ports else tuple(sorted(port for port in ports if port is not None))
    assert listed_by(Policy("list", tuple(domains))).ports(name) == wanted


NETWORKS = st.builds(
    lambda number, length: str(ipaddress.IPv4Network((0x0A00_0000 + number, length), strict=False)),
    st.integers(0, 1 << 12),
    st.integers(20, 32),
)


@given(st.lists(NETWORKS, max_size=6), st.integers(0, 1 << 12))
def test_private_networks_are_found_too(networks: list[str], number: int) -> None:
    policy = Policy("list", networks=tuple(Reach(network, None) for network in networks))
    address = str(ipaddress.IPv4Address(0x0A00_0000 + number))
    assert listed_by(policy).opens(address) is policy.opens(address)
