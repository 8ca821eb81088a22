"""The bridge of a project and its ACL: what is made, finished, put right, refused and removed."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import replace
from typing import Any

import pytest

from hutch.engines.incus.network import (
    acl_name,
    check_ground,
    check_subnet,
    ensure_network,
    network_name,
    remove_network,
    render_acl,
    render_network,
)
from hutch.engines.incus.server import Server
from hutch.errors import HutchError
from hutch.spec.names import IFNAMSIZ
from tests.unit.engines.incus.fake import PLACE, Fake, refused
from tests.unit.engines.incus.test_server import CLUSTER, OWNER, SERVER
from tests.unit.facts import check_golden

NAME = network_name(PLACE)
NETWORK, ACL = f"/1.0/networks/{NAME}", f"/1.0/network-acls/{acl_name(PLACE)}"
LIST = "/1.0/networks?recursion=1"
ONLINE = replace(CLUSTER, members=tuple(replace(member, status="Online") for member in CLUSTER.members))
ETH0 = {"name": "eth0", "type": "physical", "managed": False}


def listening(*addresses: str) -> Server:
    return replace(SERVER, listeners=tuple((address, 8443) for address in addresses))


def made(**keys: Any) -> dict[str, Any]:
    """The network as the server has it."""
    body = render_network(PLACE, OWNER)
    kept = {"volatile.bridge.hwaddr": "10:66:6a:00:00:01"}
    return {"managed": True, "status": "Created", "used_by": [], **body, "config": {**body["config"], **kept}, **keys}


def everything(**keys: Any) -> Fake:
    return Fake({LIST: [], ACL: render_acl(PLACE, (), OWNER), NETWORK: made(**keys)})


def test_bodies() -> None:
    acl = render_acl(PLACE, ("198.51.100.7", "10.99.0.1"), OWNER)
    bodies = {"network": render_network(PLACE, OWNER), "acl": acl}
    check_golden("incus/network.json", json.dumps(bodies, indent=1) + "\n")


def test_names_follow_from_the_project() -> None:
    other = replace(PLACE, project="a-project-whose-name-is-long-and-longer", remote="elsewhere")
    assert len(NAME) <= IFNAMSIZ
    assert network_name(other) != NAME
    assert len(network_name(other)) <= IFNAMSIZ
    assert network_name(replace(PLACE, remote="elsewhere", target="m1")) == NAME


def test_the_acl_closes_what_workspaces_of_this_host_cannot_reach() -> None:
    *closed, rest = render_acl(PLACE, ("198.51.100.7",), OWNER)["egress"]
    ranges = [ipaddress.IPv4Network(each) for rule in closed for each in rule["destination"].split(",")]
    for address in (
        "10.83.0.1",
        "100.64.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "192.168.1.1",
        "224.0.0.1",
        "127.0.0.1",
    ):
        assert any(ipaddress.IPv4Address(address) in range for range in ranges), address
    assert ipaddress.IPv4Network("198.51.100.7/32") in ranges
    assert not any(ipaddress.IPv4Address("9.9.9.9") in range for range in ranges)
    assert (rest["action"], rest["destination"]) == ("allow", "0.0.0.0/0")


def test_a_network_is_made_once() -> None:
    client = Fake({LIST: []})
    assert ensure_network(client, SERVER, PLACE, OWNER) == NAME
    ensure_network(client, SERVER, PLACE, OWNER)
    assert client.told() == [("POST", "/1.0/network-acls"), ("POST", "/1.0/networks")]


def test_a_cluster_is_told_of_each_member_first() -> None:
    client = Fake({LIST: []})
    ensure_network(client, ONLINE, PLACE, OWNER)
    defined = [(path, body["config"]) for method, path, body in client.changes[1:-1] if method == "POST"]
    assert defined == [(f"/1.0/networks?target=m{number}", {}) for number in (1, 2, 3)]
    assert client.changes[-1] == ("POST", "/1.0/networks", render_network(PLACE, OWNER))


def test_a_cluster_with_a_member_that_is_away_gets_no_network() -> None:
    client = Fake({LIST: []})
    with pytest.raises(HutchError, match="members do not answer: m3"):
        ensure_network(client, CLUSTER, PLACE, OWNER)
    assert ("POST", "/1.0/networks") not in client.told()


def test_a_network_that_is_there_needs_no_member() -> None:
    client = everything()
    ensure_network(client, CLUSTER, PLACE, OWNER)
    assert client.changes == []


def test_a_network_that_was_killed_while_members_were_told_is_finished() -> None:
    half = made(status="Pending", locations=["m1", "m2"], config={})
    client = Fake({LIST: [], ACL: render_acl(PLACE, (), OWNER), NETWORK: half})
    client.failing["POST", "/1.0/networks?target=m3"] = refused(409, "already defined")
    ensure_network(client, ONLINE, PLACE, OWNER)
    assert client.told() == [("POST", "/1.0/networks?target=m3"), ("POST", "/1.0/networks")]
    assert client.changes[-1][2]["config"]["user.hutch.id"] == OWNER


def test_a_network_whose_making_failed_is_made_without_its_configuration() -> None:
    client = Fake({LIST: [], ACL: render_acl(PLACE, (), OWNER), NETWORK: made(status="Errored")})
    ensure_network(client, ONLINE, PLACE, OWNER)
    assert client.changes == [("POST", "/1.0/networks", {**render_network(PLACE, OWNER), "config": {}})]


def test_two_that_make_it_at_once() -> None:
    client = everything(status="Errored")
    client.failing["POST", "/1.0/networks"] = refused(500, "The network is already created")
    with pytest.raises(HutchError, match="already created"):
        ensure_network(client, SERVER, PLACE, OWNER)

    class Late(Fake):
        def change(self, method: str, path: str, *rest: Any, **options: Any) -> Any:
            if path == "/1.0/networks":
                self.objects[NETWORK] = made()
                raise refused(409, "already exists")
            return super().change(method, path, *rest, **options)

    assert ensure_network(Late({LIST: []}), SERVER, PLACE, OWNER) == NAME


def test_what_somebody_changed_is_put_right() -> None:
    client = everything()
    client.objects[NETWORK]["config"] |= {"raw.dnsmasq": "server=/x/1.2.3.4", "user.note": "x"}
    del client.objects[NETWORK]["config"]["security.acls"]
    client.objects[ACL]["egress"].pop(0)
    ensure_network(client, SERVER, PLACE, OWNER)
    assert client.told() == [("PUT", ACL), ("PUT", NETWORK)]
    assert client.objects[NETWORK]["config"] == {**made()["config"], "user.note": "x"}
    assert client.objects[ACL]["egress"] == render_acl(PLACE, (), OWNER)["egress"]


def test_a_network_that_becomes_anothers_meanwhile_is_left_alone() -> None:
    client = everything()
    for path, says in ((NETWORK, "a network"), (ACL, "a network ACL")):
        client.objects[path] |= {"egress": [], "config": {**client.objects[path]["config"], "dns.mode": "managed"}}
        client.meanwhile = lambda path=path: client.objects[path].update(config={})
        with pytest.raises(HutchError, match=f"has {says} .* that is not hutch's"):
            ensure_network(client, SERVER, PLACE, OWNER)
        assert client.changes == []
        client.objects[path] = everything().objects[path]


def test_what_members_tell_of_themselves_adds_up() -> None:
    client = everything()
    for addresses in (("198.51.100.1", "10.99.0.1"), ("198.51.100.2",), ("198.51.100.1",)):
        ensure_network(client, listening(*addresses), PLACE, OWNER)
    assert client.told() == [("PUT", ACL)] * 2
    assert client.objects[ACL]["egress"][1]["destination"] == "198.51.100.1,198.51.100.2"


def test_another_hutchs_network_is_shared_and_stays_its_own() -> None:
    client = everything()
    client.objects[NETWORK]["config"]["user.hutch.id"] = "another"
    client.objects[ACL]["config"]["user.hutch.id"] = "another"
    ensure_network(client, SERVER, PLACE, OWNER)
    assert client.changes == []
    assert not remove_network(client, PLACE, OWNER)


@pytest.mark.parametrize(
    "change",
    [
        {"config": {"ipv4.address": "10.83.0.1/16"}},
        {"managed": False},
        {"type": "physical"},
        {"status": "Pending", "config": {}, "description": "mine"},
    ],
)
def test_a_network_that_is_not_hutchs_is_refused_by_name(change: dict[str, Any]) -> None:
    client = everything(**change)
    with pytest.raises(HutchError, match=f"has a network {NAME} that is not hutch's"):
        ensure_network(client, SERVER, PLACE, OWNER)
    assert client.changes == []


def test_an_acl_that_is_not_hutchs_is_refused_by_name() -> None:
    client = everything()
    client.objects[ACL]["config"] = {}
    with pytest.raises(HutchError, match=f"ACL {acl_name(PLACE)} that is not hutch's"):
        ensure_network(client, SERVER, PLACE, OWNER)


def test_another_subnet_is_refused_while_it_is_in_use() -> None:
    other = replace(PLACE, subnet="10.84.0.0/16")
    client = everything(used_by=["/1.0/instances/web?project=hutch"])
    with pytest.raises(HutchError, match=r"whose gateway is 10\.83\.0\.1/16"):
        ensure_network(client, SERVER, other, OWNER)
    client = everything()
    ensure_network(client, SERVER, other, OWNER)
    assert client.objects[NETWORK]["config"]["ipv4.address"] == "10.84.0.1/16"


@pytest.mark.parametrize(
    ("networks", "says"),
    [
        ([{"name": "incusbr0", "managed": True, "config": {"ipv4.address": "10.83.4.1/24"}}], "the network incusbr0"),
        ([{"name": "wide", "managed": True, "config": {"ipv4.address": "10.0.0.1/8"}}], "the network wide"),
        ([{"name": "r", "managed": True, "config": {"ipv4.routes": "1.2.3.0/24, 10.83.9.0/24"}}], "the network r"),
        ([ETH0], "the network of its interface eth0"),
    ],
)
def test_a_subnet_that_is_in_use_is_refused_by_name(networks: list[dict[str, Any]], says: str) -> None:
    state = {"addresses": [{"family": "inet", "address": "10.83.200.7", "netmask": "24"}]}
    client = Fake({LIST: networks, "/1.0/networks/eth0/state": state})
    with pytest.raises(HutchError, match=says):
        check_subnet(client, SERVER, PLACE)


def test_the_ground_is_looked_at_before_anything_is_touched() -> None:
    for client in (Fake({LIST: []}), everything()):
        check_ground(client, SERVER, PLACE)
        assert client.changes == []
    with pytest.raises(HutchError, match="the network wide"):
        check_ground(Fake({LIST: [{"name": "wide", "config": {"ipv4.address": "10.0.0.1/8"}}]}), SERVER, PLACE)
    with pytest.raises(HutchError, match=f"has a network {NAME} that is not hutch's"):
        check_ground(everything(type="physical"), SERVER, PLACE)
    client = everything()
    client.objects[ACL]["config"] = {}
    with pytest.raises(HutchError, match="ACL"):
        check_ground(client, SERVER, PLACE)


def test_a_members_own_address_is_refused() -> None:
    with pytest.raises(HutchError, match=r"the server's address 10\.83\.1\.1"):
        check_subnet(Fake({LIST: []}), listening("10.83.1.1"), PLACE)


def test_a_subnet_beside_all_others() -> None:
    networks = [
        {"name": "incusbr0", "managed": True, "config": {"ipv4.address": "10.82.0.1/16"}},
        {"name": "six", "managed": True, "config": {"ipv4.address": "none", "ipv6.address": "auto"}},
        {"name": NAME, "managed": True, "config": {"ipv4.address": "10.83.0.1/16"}},
        {"name": "../x", "managed": False, "type": "physical"},
        {"name": "lo", "managed": False, "type": "loopback"},
        {"name": "gone", "managed": False, "type": "unknown"},
        ETH0,
    ]
    addresses = [
        {"family": "inet6", "address": "fe80::1", "netmask": "64"},
        {"family": "inet", "address": "x", "netmask": "24"},
        {"family": "inet", "address": "192.168.1.7", "netmask": "24"},
    ]
    client = Fake({LIST: networks, "/1.0/networks/eth0/state": {"addresses": addresses}})
    check_subnet(client, listening("10.99.0.1"), PLACE)
    assert client.asked == [LIST, "/1.0/networks/gone/state", "/1.0/networks/eth0/state"]


def test_a_network_is_removed_by_its_owner_when_nothing_uses_it() -> None:
    client = everything()
    assert remove_network(client, PLACE, OWNER)
    assert client.told() == [("DELETE", NETWORK), ("DELETE", ACL)]
    assert remove_network(client, PLACE, OWNER)
    client = everything(used_by=["/1.0/instances/web?project=hutch"])
    assert not remove_network(client, PLACE, OWNER)
    assert client.changes == []
    client = everything()
    client.failing["DELETE", NETWORK] = refused(400, "The network is currently in use")
    assert not remove_network(client, PLACE, OWNER)
    assert ACL in client.objects
