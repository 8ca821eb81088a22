"""Choosing a network that the host has room for, and seeing whether the router is as wanted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hutch.errors import HutchError
from hutch.host.network.firewall import host_tables, router_tables
from hutch.host.network.namespace import inside
from hutch.host.network.router import (
    HostNetwork,
    Part,
    RouterFacts,
    check_overlap,
    choose_uplink,
    differences,
    is_ours,
    loose_ports,
    tag,
    wanted_rules,
    wanted_sysctls,
)
from hutch.host.network.ruleset import shape_of
from hutch.spec.model import Network
from tests.unit.facts import ENDPOINTS, LAYOUT, NETWORK, SECOND, endpoint

OPEN = Network()


def link(*addresses: str, up: bool = True, family: str = "inet") -> dict[str, Any]:
    info = [
        {"family": family, "local": address.split("/")[0], "prefixlen": int(address.split("/")[1])}
        for address in addresses
    ]
    return {"flags": ["BROADCAST", *(["UP"] if up else [])], "addr_info": info}


def host(*routes: str, **links: dict[str, Any]) -> HostNetwork:
    return HostNetwork(links, routes)


def test_addresses_of_the_host() -> None:
    found = host(
        lo=link("127.0.0.1/8"),
        eth0=link("203.0.113.7/24", "10.0.0.5/8"),
        wlan0=link("10.0.0.5/8"),
        six=link("fe80::1/64", family="inet6"),
        **{"hutch-up": link("192.168.84.1/30")},
    )
    assert found.addresses(without="hutch-up") == ("10.0.0.5", "203.0.113.7")
    assert found.addresses() == ("10.0.0.5", "192.168.84.1", "203.0.113.7")


@pytest.mark.parametrize(
    ("routes", "uplink"),
    [
        ((), "192.168.84.0/30"),
        (("192.168.84.0/30",), "192.168.84.4/30"),
        (("192.168.84.1",), "192.168.84.4/30"),
        (("192.168.84.0/25",), "192.168.84.128/30"),
        (("10.0.0.0/8", "192.168.1.0/24"), "192.168.84.0/30"),
        (("0.0.0.0/1", "128.0.0.0/1"), "192.168.84.0/30"),  # how a VPN takes the default route
    ],
)
def test_choose_uplink(routes: tuple[str, ...], uplink: str) -> None:
    assert choose_uplink(OPEN, host(*routes)) == uplink


def test_the_uplink_is_outside_the_subnet() -> None:
    assert choose_uplink(Network(subnet="192.168.84.0/25"), host()) == "192.168.84.128/30"


def test_no_uplink_is_left() -> None:
    with pytest.raises(HutchError, match=r"no free /30 is left in 192\.168\.84\.0/24") as caught:
        choose_uplink(OPEN, host("192.168.0.0/16"))
    assert "uplink" in caught.value.resolution


@pytest.mark.parametrize(
    ("routes", "key"),
    [
        (("192.168.83.0/24",), "subnet"),
        (("192.168.83.77",), "subnet"),
        (("192.168.0.0/16",), "subnet"),
        (("192.168.84.0/28",), "uplink"),
    ],
)
def test_an_overlap_is_refused(routes: tuple[str, ...], key: str) -> None:
    with pytest.raises(HutchError, match=rf"\[network\] {key} .* overlaps {routes[0]}"):
        check_overlap(LAYOUT, NETWORK, host(*routes))


def test_own_routes_are_no_overlap() -> None:
    ours = {"hutch-up": link("192.168.84.1/30")}
    check_overlap(LAYOUT, NETWORK, host("192.168.83.0/24", "192.168.84.0/30", "10.0.0.0/8", **ours))
    with pytest.raises(HutchError):
        check_overlap(LAYOUT, NETWORK, host("192.168.83.128/25", **ours))


def test_a_vpn_that_takes_the_default_route_is_no_overlap() -> None:
    check_overlap(LAYOUT, NETWORK, host("0.0.0.0/1", "128.0.0.0/1"))


# Reconciled or not.

HOST = host(
    "10.0.0.0/24",
    "192.168.83.0/24",
    "192.168.84.0/30",
    **{"eth0": link("10.0.0.5/24"), "hutch-up": link("192.168.84.1/30")},
)
ROUTER = RouterFacts(
    links={"lo": link(), "up0": link("192.168.84.2/30"), "hutch0": link("192.168.83.1/24")},
    gateway="192.168.84.1",
    way_out="192.168.84.1",
    fenced="192.168.83.0/24",
    fence="hutch0",
    rules=shape_of(router_tables(LAYOUT, NETWORK, ENDPOINTS, ("10.0.0.5",))),
    host_rules=shape_of(host_tables(LAYOUT, NETWORK, ENDPOINTS)),
)


def found_wrong(found: HostNetwork, facts: RouterFacts) -> dict[Part, str]:
    return differences(LAYOUT, NETWORK, wanted_rules(LAYOUT, NETWORK, ENDPOINTS, found), found, facts)


def test_reconciled() -> None:
    assert found_wrong(HOST, ROUTER) == {}


def without(rules: dict[str, Any], key: str) -> dict[str, Any]:
    assert key in rules
    return {name: value for name, value in rules.items() if name != key}


LINKS = ROUTER.links or {}
BRIDGE = "hutch0 has lost its address 192.168.83.1/24"
# (the host, the router, the parts that are wrong, each with what is said of it)
UNRECONCILED: dict[str, tuple[HostNetwork, RouterFacts, dict[str, str]]] = {
    "a set is gone": (
        HOST,
        replace(ROUTER, rules=without(ROUTER.rules, "inet hutch/@denied")),
        {"router rules": "inet hutch/@denied: missing"},
    ),
    "the host's rules are gone": (
        HOST,
        replace(ROUTER, host_rules={}),
        {
            "host rules": "inet hutch/answers: missing, inet hutch/from-router: missing, "
            "inet hutch/publish: missing, and 3 more"
        },
    ),
    "the host got another address": (
        replace(HOST, links={**HOST.links, "eth1": link("172.16.0.2/16")}),
        ROUTER,
        {"router rules": "inet hutch/@host: changed"},
    ),
    "workspaces are not fenced": (
        HOST,
        replace(ROUTER, fenced=""),
        {"fence": "workspaces are routed as the router is"},
    ),
    "the bridge is down": (
        HOST,
        replace(ROUTER, links={**LINKS, "hutch0": link("192.168.83.1/24", up=False)}),
        {"bridge": "hutch0 is down"},
    ),
    "the bridge was renamed": (
        HOST,
        replace(ROUTER, links={"up0": LINKS["up0"], "br": LINKS["hutch0"]}),
        {"bridge": "hutch0 is gone"},
    ),
    "the bridge has another address": (
        HOST,
        replace(ROUTER, links={**LINKS, "hutch0": link("192.168.83.1/25")}),
        {"bridge": BRIDGE},
    ),
    "the router's end is gone": (
        HOST,
        replace(ROUTER, links={"hutch0": LINKS["hutch0"]}),
        {"uplink": "up0 is gone"},
    ),
    "the host's end is gone": (
        replace(HOST, links={"eth0": HOST.links["eth0"]}),
        ROUTER,
        {"uplink": "hutch-up is gone"},
    ),
    "the way in is gone": (
        replace(HOST, routes=("10.0.0.0/24", "192.168.84.0/30")),
        ROUTER,
        {"way in": "the host has no route to 192.168.83.0/24"},
    ),
    "the way out is gone": (
        HOST,
        replace(ROUTER, gateway=""),
        {"way out": "the router has no default route to the host"},
    ),
}


@pytest.mark.parametrize(("found", "facts", "wrong"), UNRECONCILED.values(), ids=UNRECONCILED.keys())
def test_what_is_yet_to_be_reconciled(found: HostNetwork, facts: RouterFacts, wrong: dict[str, str]) -> None:
    assert found_wrong(found, facts) == wrong


def test_a_router_that_is_gone_is_said_to_be() -> None:
    found = found_wrong(HOST, RouterFacts(host_rules=ROUTER.host_rules))
    assert found["router"] == "the network namespace hutch is gone"
    assert {"router rules", "uplink", "bridge", "way out"} < found.keys()


def port(master: str = "hutch0", *, up: bool = True, isolated: bool = True) -> dict[str, Any]:
    return {**link(up=up), "master": master, "linkinfo": {"info_slave_data": {"isolated": isolated}}}


@pytest.mark.parametrize(
    ("there", "wrong"),
    [
        (port(), ""),
        (link(), "ve-web is not on the bridge"),
        (port("br"), "ve-web is not on the bridge"),
        (port(up=False), "ve-web is down"),
        (port(isolated=False), "ve-web is not isolated from the others"),
    ],
    ids=["as wanted", "on none", "on another", "down", "not isolated"],
)
def test_ports(there: dict[str, Any], wrong: str) -> None:
    found = loose_ports(NETWORK, ENDPOINTS, replace(ROUTER, links={**LINKS, "ve-web": there}))
    assert found == ({"web": wrong} if wrong else {})


def test_a_bridge_that_is_repaired_takes_its_ports_anew() -> None:
    down = {**LINKS, "hutch0": link("192.168.83.1/24", up=False), "ve-web": port()}
    assert loose_ports(NETWORK, ENDPOINTS, replace(ROUTER, links=down)).keys() == {"web"}
    assert loose_ports(NETWORK, ENDPOINTS, RouterFacts()) == {}


def test_sysctls() -> None:
    quiet = (endpoint("web", "192.168.83.2"),)
    assert wanted_sysctls(LAYOUT, quiet) == {"net/ipv4/ip_forward": "1"}
    assert wanted_sysctls(SECOND, ENDPOINTS) == {
        "net/ipv4/ip_forward": "1",
        f"net/ipv4/conf/{SECOND.uplink_host}/route_localnet": "1",
    }


def test_what_a_crash_left_untagged_is_known_by_its_address() -> None:
    made = {"ifname": "hutch-up", "address": LAYOUT.uplink_mac}
    assert is_ours(LAYOUT, made)
    assert is_ours(LAYOUT, {"ifname": "hutch-up", "address": "02:00:00:00:00:01", "ifalias": "hutch /var/lib/hutch"})
    assert not is_ours(SECOND, made)
    assert not is_ours(LAYOUT, {**made, "ifalias": "somebody else's"})
    assert not is_ours(LAYOUT, {"ifname": "hutch-up", "address": "02:00:00:00:00:01"})
    assert not is_ours(LAYOUT, {"ifname": "lo", "address": "00:00:00:00:00:00"})
    assert not is_ours(LAYOUT, {"ifname": "lo"})
    assert len({LAYOUT.uplink_mac, LAYOUT.uplink_router_mac, SECOND.uplink_mac, SECOND.uplink_router_mac}) == 4


def test_interfaces_say_whose_they_are() -> None:
    assert tag(LAYOUT) == "hutch /var/lib/hutch"
    assert tag(SECOND) == "hutch /srv/second"
    assert inside(LAYOUT, ["nft"]) == ["nsenter", "--net=/run/netns/hutch", "--", "nft"]
