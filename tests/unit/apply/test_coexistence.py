"""What is said of others on a host, and what is repaired: facts in, findings and repairs out."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from hutch.apply.coexistence import Repairs, check_neighbours, free_subnet, wanted_repairs
from hutch.apply.doctor import Finding, is_broken
from hutch.host.network.firewall import UPSTREAM_PORT
from hutch.host.network.neighbours import Neighbours, Workspaces, parse_servers, parse_upstream
from hutch.host.network.router import HostNetwork
from hutch.spec.model import Network
from tests.unit.facts import check_golden
from tests.unit.host.test_foreign_firewalls import DOCKER, FIREWALLD, UFW, chain

NETWORK = Network(uplink="192.168.84.0/30")


def link(name: str, *addresses: str) -> dict[str, Any]:
    there = [dict(zip(("local", "prefixlen"), address.split("/"), strict=True), family="inet") for address in addresses]
    return {"ifname": name, "addr_info": there}


def listing(*entries: dict[str, Any]) -> str:
    return json.dumps({"nftables": [*entries]})


def host(*links: dict[str, Any], routes: tuple[str, ...] = ()) -> HostNetwork:
    return HostNetwork({item["ifname"]: item for item in (*LINKS, *links)}, (*ROUTES, *routes))


LINKS = (link("lo", "127.0.0.1/8"), link("eth0", "198.51.100.2/24"), link("hutch-up", "192.168.84.1/30"))
ROUTES = ("198.51.100.0/24", "192.168.84.0/30", "192.168.83.0/24")
QUIET = Neighbours(
    workspaces=Workspaces(NETWORK, {"web": "192.168.83.2"}),
    state="/var/lib/hutch",
    uplink="hutch-up",
    guarded=("hutch-up", "hutch-pv"),
    is_linked=True,
    is_foreign=False,
    listing=listing(),
    host=HostNetwork({item["ifname"]: item for item in LINKS}, ROUTES),
    upstream=("eth0",),
    forwards=True,
    managed=None,
    servers=("198.51.100.1",),
    answers=None,
    drop_in="/etc/NetworkManager/conf.d/90-hutch.conf",
    without_aliases=(),
    orphans=(),
    first_free_port=1024,
)
NOBODY = replace(
    QUIET, workspaces=Workspaces(NETWORK, {}), is_linked=False, host=HostNetwork({"eth0": LINKS[1]}, ROUTES[:1])
)
SCENES = {
    "nobody-yet": replace(NOBODY, forwards=False, without_aliases=("bash", "zsh")),
    "quiet": QUIET,
    "without-root": replace(NOBODY, listing=None),
    "docker-first": replace(NOBODY, listing=listing(*DOCKER)),
    "docker": replace(QUIET, listing=listing(*DOCKER)),
    "ufw": replace(QUIET, listing=listing(*UFW)),
    "firewalld": replace(QUIET, listing=listing(*FIREWALLD)),
    "libvirt": replace(
        QUIET,
        listing=listing(chain("guest_input", table="ip libvirt_network")),
        host=host(link("virbr0", "192.168.83.1/24"), routes=("192.168.83.0/24",)),
    ),
    "vpn-over-the-uplink": replace(QUIET, host=host(routes=("192.168.84.0/24", "0.0.0.0/1"))),
    "own-rules": replace(QUIET, listing=listing(chain("forward", "drop", "inet filter", "forward"))),
    "networkmanager": replace(QUIET, managed="connected (externally)"),
    "networkmanager-leaves-it": replace(QUIET, managed="unmanaged"),
    "networkmanager-not-seen": replace(NOBODY, managed=""),
    "resolved": replace(QUIET, servers=("127.0.0.53",), answers={"web": "192.168.83.2"}),
    "resolved-led-past": replace(QUIET, answers={}),
    "resolved-without-hosts": replace(QUIET, servers=("127.0.0.53",), answers={"web": ""}),
    "everybodys-port": replace(QUIET, first_free_port=40),
    "no-names": replace(QUIET, servers=()),
    "no-way-out": replace(QUIET, upstream=()),
    "forwarding-off": replace(QUIET, forwards=False),
    "state-directory-gone": replace(QUIET, orphans=("/srv/other hutch", "/var/lib/hutch")),
    "a-strangers-interface": replace(QUIET, is_foreign=True),
    "no-uplink-left": replace(NOBODY, workspaces=Workspaces(Network(), {}), listing=listing(*DOCKER)),
    "damaged": replace(QUIET, workspaces=Workspaces(NETWORK, {}, "/var/lib/hutch/network.json is damaged: it is gone")),
}


def render(findings: list[Finding], repairs: Repairs) -> str:
    lines = [f"exit code {int(is_broken(findings))}"]
    for finding in findings:
        lines.append(f"{finding.name}: {finding.state}: {finding.means}")
        lines += [f"    {finding.do}"] if finding.do else []
    lines += [f"+ {step}" for obstacle in repairs.obstacles for step in obstacle.repair]
    for file in repairs.files:
        lines += [f"+ {file}", *(f"    {line}" for line in file.content.splitlines())]
    lines += [f"+ aliases for {shell}" for shell in repairs.shells]
    lines += ["+ forwarding on"] if repairs.forwarding else []
    return "".join(f"{line}\n" for line in lines)


@pytest.mark.parametrize("scene", SCENES)
def test_what_is_said_and_repaired(scene: str) -> None:
    seen = SCENES[scene]
    check_golden(f"doctor/{scene}", render(check_neighbours(seen), wanted_repairs(seen)))


def test_a_quiet_host_has_nothing_to_do() -> None:
    assert {finding.state for finding in check_neighbours(QUIET)} == {"ok"}
    assert [finding.do for finding in check_neighbours(QUIET) if finding.do] == []
    assert wanted_repairs(QUIET) == Repairs()


@pytest.mark.parametrize(("first_free_port", "is_said"), [(0, True), (UPSTREAM_PORT + 1, False)])
def test_users_of_the_host_cannot_listen_in_the_resolvers_place(first_free_port: int, is_said: bool) -> None:
    assert QUIET.first_free_port > UPSTREAM_PORT
    found = check_neighbours(replace(QUIET, first_free_port=first_free_port))
    assert ("resolver's port" in {finding.name for finding in found}) is is_said


def test_another_subnet_is_free() -> None:
    taken = host(link("virbr0", "192.168.83.1/24"), routes=("192.168.85.0/24",))
    assert free_subnet(replace(NOBODY, host=taken)) == "192.168.86.0/24"
    assert free_subnet(replace(NOBODY, host=host(routes=("192.168.0.0/16",)))) == "10.83.0.0/24"


def test_what_commands_and_files_say() -> None:
    routes = [{"dev": "wlan0", "metric": 600}, {"dev": "eth0", "metric": 100}, {"dev": "eth0", "metric": 200}]
    assert parse_upstream(json.dumps(routes)) == ("eth0", "wlan0")
    assert parse_upstream("") == ()
    assert parse_servers("# x\nnameserver 127.0.0.53\noptions edns0\nnameserver\nnameserver 9.9.9.9\n") == (
        "127.0.0.53",
        "9.9.9.9",
    )
