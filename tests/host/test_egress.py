"""Lists of names: which are answered and which are not, what their answers open, for whom, and for how long."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.host.egress import (
    AT_ONCE,
    NOERROR,
    NXDOMAIN,
    REFUSED,
    SERVFAIL,
    Agent,
    connection,
    egress_proxies,
    eventually,
    first_at_once,
    open_hutch,
    start_agent,
)
from tests.host.instance import Instance
from tests.support.world import (
    FAR,
    FAR_PORTS,
    FAR_UDP,
    HOST,
    HOST_PORT,
    LAN,
    METADATA,
    PUBLIC,
    RESOLVERS,
    ZONE_PUBLIC,
    ZONE_RESOLVER,
    World,
)
from tests.support.world_zone import ZoneFile

PORT, OTHER_PORT = FAR_PORTS
LIST = ["far.example", "port.example:8001", "*.t.example", "*.p.example:8001"]
FRESH = iter(FAR[1:40])  # each test takes addresses that no other one has opened
MANY = FAR[40:]


class Place:
    """A workspace `listed`, another one with a list, `second`, and one without, `free`; an agent in each."""

    def __init__(self, instance: Instance, agents: dict[str, Agent]) -> None:
        self.instance = instance
        self.zone = instance.world.zone
        self.listed, self.second, self.free = agents["listed"], agents["second"], agents["free"]

    def ip(self, name: str) -> str:
        ip = self.instance.status(name)["ip"]
        assert isinstance(ip, str)
        return ip


@pytest.fixture(scope="module")
def place(world: World, images: Path, workspace_type: str) -> Iterator[Place]:
    with open_hutch(world, images) as instance, ExitStack() as stack:
        instance.write(
            f'[workspaces.listed]\ntype = "{workspace_type}"\negress = {json.dumps(LIST)}\n'
            '[workspaces.second]\ntype = "container"\negress = ["*.s.example"]\n'
            '[workspaces.free]\ntype = "container"\n'
        )
        instance.up()
        agents = {name: stack.enter_context(start_agent(instance, name)) for name in ("listed", "second", "free")}
        yield Place(instance, agents)


@pytest.fixture
def address() -> str:
    """A public address that nothing else in this file has to do with."""
    return next(FRESH)


def upstream(zone: ZoneFile, since: int) -> list[str]:
    """The test's names that the name server was asked for, since it had been asked `since` questions."""
    names = (question["name"].lower() for question in zone.asked()[since:])
    return [name for name in names if "example" in name or "evil" in name]


# Names.


@pytest.mark.vm
@pytest.mark.parametrize("port", [PORT, OTHER_PORT])
@pytest.mark.parametrize("name", ["far.example", "FAR.eXample", "a.t.example", "a.b.c.T.example"])
def test_a_listed_name_is_reached_at_every_port(place: Place, name: str, port: int) -> None:
    assert place.listed.reach(name, port) == FAR[0]


def test_a_name_with_a_port_is_reached_at_that_port_only(place: Place, address: str) -> None:
    place.zone.put_all({"port.example": {"a": [address]}, "a.p.example": {"a": [address]}})
    for name in ("port.example", "a.p.example"):
        assert place.listed.reach(name, PORT) == address
        refused = place.listed.dial(address, OTHER_PORT)
        assert refused.error and refused.seconds < AT_ONCE


def test_a_listed_name_is_reached_by_udp(place: Place) -> None:
    place.zone.put("udp.t.example", a=[FAR[1]])
    (found,) = place.listed.ask("udp.t.example").ips
    assert place.listed.dial(found, FAR_UDP, "udp").said == FAR[1]


def test_programs_inside_resolve_what_is_listed_and_are_refused_the_rest_at_once(place: Place) -> None:
    assert place.listed.resolve("far.example").addresses == (FAR[0],)
    refused = place.listed.resolve("other.example")
    assert refused.error and refused.seconds < AT_ONCE


UNLISTED: list[str | list[str]] = [
    "other.example",
    "t.example",
    "p.example",
    "sub.far.example",
    "evil-far.example",
    "evilfar.example",
    "evil-t.example",
    "a.evilt.example",
    "far.example.evil.example",
    "a.t.example.evil.example",
    "far.examples.example",
    "example",
    ["far.example"],
    ["far\0", "example"],
    ["far", "example\0"],
    ["far\0.example"],
    ["x.t", "example"],
    ["x.t.example"],
    ["\0", "t", "example"],
    ["a.b", "t", "example"],
    ["f\xe1r", "example"],
    [],
]


@pytest.mark.vm
@pytest.mark.parametrize("name", UNLISTED, ids=repr)
def test_any_other_name_is_refused_at_once_and_never_sent_on(place: Place, name: str | Sequence[str]) -> None:
    since = len(place.zone.asked())
    for via in ("udp", "tcp"):
        found = first_at_once(place.listed.ask(name, via=via) for _ in range(3))
        assert (found.code, found.records) == (REFUSED, ())
        assert found.seconds < AT_ONCE
    assert upstream(place.zone, since) == []


def test_the_refused_names_are_there_for_who_has_no_list(place: Place) -> None:
    """The positive control."""
    for name in UNLISTED[:11]:
        assert place.free.ask(name).ips == [FAR[0]], name


@pytest.mark.parametrize("kind", ["AAAA", "HTTPS", "TXT", "ANY"])
def test_no_kind_of_question_gets_an_unlisted_name_out(place: Place, kind: str) -> None:
    since = len(place.zone.asked())
    found = place.listed.ask("data.other.example", kind)
    assert (found.code, found.records) == (REFUSED, ())
    assert upstream(place.zone, since) == []


def test_neither_the_host_nor_other_workspaces_are_known_by_name(place: Place) -> None:
    names = (socket.gethostname(), "second", "workspace-second", "listed", "workspace-listed", "_gateway")
    for name in names:
        for agent in (place.listed, place.free):
            found = agent.ask(name)
            assert found.ips == [], name
        assert place.listed.ask(name).code == REFUSED, name


# Addresses.


@pytest.mark.vm
def test_an_address_that_no_listed_name_has_is_refused_at_once(place: Place, address: str) -> None:
    assert place.free.dial(address).said == address
    tcp, udp, page = place.listed.all(
        connection(address), connection(PUBLIC, 7000, "udp"), connection(PUBLIC, 80)
    )  # fmt: skip
    for refused in (tcp, udp, page):
        assert refused.error and refused.error != "timeout"
        assert refused.seconds < AT_ONCE


@pytest.mark.parametrize("via", ["udp", "tcp"])
@pytest.mark.parametrize("server", [ZONE_PUBLIC, ZONE_RESOLVER, RESOLVERS[0]])
def test_no_other_name_server_is_reached(place: Place, server: str, via: str) -> None:
    since = len(place.zone.asked())
    found = place.listed.ask("direct.t.example", server=server, via=via, patience=1.0)
    assert found.error
    assert upstream(place.zone, since) == []


def test_without_a_list_a_public_name_server_is_reached(place: Place) -> None:
    """The positive control."""
    assert place.free.ask("far.example", server=ZONE_PUBLIC).ips == [FAR[0]]


@pytest.mark.vm
def test_what_one_workspace_has_learned_is_closed_to_another(place: Place, address: str) -> None:
    place.zone.put("mine.s.example", a=[address])
    assert place.second.reach("mine.s.example") == address
    assert place.listed.dial(address).error
    assert place.second.dial(address).said == address


@pytest.mark.vm
def test_an_address_is_closed_when_its_ttl_ends_and_open_connections_go_on(place: Place, address: str) -> None:
    place.zone.put("short.t.example", a=[address], ttl=1)
    start = time.monotonic()
    assert place.listed.reach("short.t.example") == address
    place.listed.hold("short", address)
    assert eventually(lambda: bool(place.listed.dial(address).error), pause=0.1)
    assert 0.8 < time.monotonic() - start < 4
    assert place.listed.lives("short")


def test_a_name_that_moves_takes_its_opening_with_it(place: Place, address: str) -> None:
    there = next(FRESH)
    place.zone.put("moves.t.example", a=[address], ttl=1)
    assert place.listed.reach("moves.t.example") == address
    place.zone.put("moves.t.example", a=[there], ttl=60)
    assert eventually(lambda: place.listed.ask("moves.t.example").ips == [there], pause=0.1)
    assert place.listed.dial(there).said == there
    assert eventually(lambda: bool(place.listed.dial(address).error), pause=0.1)


def test_a_ttl_of_nothing_is_long_enough_to_connect(place: Place) -> None:
    for number in range(5):
        address = next(FRESH)
        place.zone.put(f"now{number}.t.example", a=[address], ttl=0)
        assert place.listed.reach(f"now{number}.t.example") == address


def test_a_long_ttl_is_told_to_the_guest_no_longer_than_it_is_kept(place: Place, address: str) -> None:
    place.zone.put("long.t.example", a=[address], ttl=2_000_000)
    ((_, _, ttl),) = place.listed.ask("long.t.example").records
    assert 0 < ttl <= 2_000_000
    assert place.listed.dial(address).said == address


# Answers that lie.


def test_private_addresses_are_taken_out_of_an_answer(place: Place, address: str) -> None:
    private = [LAN, METADATA, "127.0.0.1", "10.53.0.1", place.instance.gateway, "0.0.0.0", "224.0.0.1"]
    place.zone.put_all({"mixed.t.example": {"a": [*private, address]}, "private.t.example": {"a": private}})
    assert place.listed.ask("mixed.t.example").ips == [address]
    assert place.listed.ask("private.t.example").ips == []
    lan, metadata, public = place.listed.all(connection(LAN, 80), connection(METADATA, 80), connection(address))
    assert (lan.said, metadata.said, public.said) == ("", "", address)


@pytest.mark.parametrize("then", ["lan", "metadata", "host", "gateway", "neighbour"])
def test_a_name_that_is_bound_again_opens_nothing_private(place: Place, address: str, then: str) -> None:
    targets = {"lan": (LAN, 80), "metadata": (METADATA, 80), "host": (HOST, HOST_PORT)}
    targets |= {"gateway": (place.instance.gateway, HOST_PORT), "neighbour": (place.ip("second"), 22)}
    target, port = targets[then]
    name = f"{then}.again.t.example"
    place.zone.put(name, turns=[[address], [target], [target]], ttl=0)
    assert place.listed.reach(name) == address
    assert place.listed.ask(name).ips in ([], [HOST])
    assert place.listed.dial(target, port, patience=1.0).said == ""


def test_the_hosts_own_public_address_stays_closed_when_a_listed_name_has_it(place: Place) -> None:
    place.zone.put("host.t.example", a=[HOST])
    place.listed.ask("host.t.example")
    assert place.listed.dial(HOST, HOST_PORT, patience=1.0).said == ""


def test_a_chain_of_names_is_followed_and_its_links_are_not_listed_by_it(place: Place, address: str) -> None:
    place.zone.put_all({
        "chain.t.example": {"cname": "x.cdn.example"},
        "x.cdn.example": {"cname": "y.cdn.example"},
        "y.cdn.example": {"a": [address], "ttl": 60},
    })  # fmt: skip
    assert place.listed.reach("chain.t.example") == address
    assert place.listed.ask("y.cdn.example").code == REFUSED


def test_a_chain_to_a_private_address_or_round_in_a_circle_opens_nothing(place: Place) -> None:
    place.zone.put_all({
        "inward.t.example": {"cname": "db.corp.example"},
        "db.corp.example": {"a": [LAN]},
        "circle.t.example": {"cname": "round.t.example"},
        "round.t.example": {"cname": "circle.t.example"},
    })  # fmt: skip
    assert place.listed.ask("inward.t.example").ips == []
    assert place.listed.dial(LAN, 80, patience=1.0).said == ""
    assert place.listed.ask("circle.t.example").ips == []
    assert place.listed.reach("far.example") == FAR[0]


def test_records_that_were_not_asked_for_open_nothing(place: Place, address: str) -> None:
    unasked, poison = next(FRESH), next(FRESH)
    beside = {"other.example": [unasked], "far.example": [poison]}
    place.zone.put("beside.t.example", a=[address], beside=beside)
    assert place.listed.reach("beside.t.example") == address
    assert place.listed.dial(unasked).error
    assert place.listed.dial(poison).error


def test_other_kinds_of_a_listed_name_are_no_way_around(place: Place, address: str) -> None:
    place.zone.put("kinds.t.example", a=[LAN], aaaa=["2001:db8:51::1"], https=[f"1 . ipv4hint={address}"])
    for kind in ("AAAA", "HTTPS", "ANY"):
        found = place.listed.ask("kinds.t.example", kind)
        assert {"A", "AAAA"} & {record[0] for record in found.records} == set(), kind
    assert place.listed.dial(address).error


@pytest.mark.parametrize(("rcode", "code"), [("NXDOMAIN", NXDOMAIN), ("SERVFAIL", SERVFAIL)])
def test_what_the_name_server_says_of_a_listed_name_is_passed_on(place: Place, rcode: str, code: int) -> None:
    place.zone.put(f"{rcode}.t.example", rcode=rcode)
    assert place.listed.ask(f"{rcode}.t.example").code == code


def test_slow_and_silent_names_keep_nobody_waiting(place: Place) -> None:
    place.zone.put_all({"slow.t.example": {"a": [FAR[0]], "delay": 1.0}, "silent.t.example": {"silent": True}})
    slow, silent, quick = place.listed.all(
        place.listed.question("slow.t.example"),
        place.listed.question("silent.t.example", patience=1.0),
        place.listed.question("far.example"),
    )
    assert slow.ips == [FAR[0]]
    assert silent.ips == []
    assert quick.ips == [FAR[0]]
    assert quick.seconds < AT_ONCE


# Much, large and broken.


def test_a_large_answer_comes_by_tcp_and_all_that_it_tells_is_open(place: Place) -> None:
    place.zone.put("large.t.example", a=list(MANY))
    by_datagram = place.listed.ask("large.t.example")
    assert by_datagram.cut or len(by_datagram.ips) == len(MANY)
    by_stream = place.listed.ask("large.t.example", via="tcp")
    assert by_stream.code == NOERROR
    assert set(by_stream.ips) <= set(MANY)
    assert len(by_stream.ips) > 30  # more than what fits in a datagram
    assert [found.said for found in place.listed.all(*map(connection, by_stream.ips))] == by_stream.ips


def test_garbage_does_not_stop_the_resolver(place: Place) -> None:
    before = [process.pid for process in egress_proxies(place.instance)]
    place.listed.garbage(300)
    # What comes faster than it is read is lost, as with any datagrams; who asks, asks again.
    assert eventually(lambda: place.listed.ask("far.example", patience=1.0).ips == [FAR[0]])
    assert [process.pid for process in egress_proxies(place.instance)] == before


@pytest.mark.slow
def test_ten_thousand_questions_are_answered_rightly_in_bounded_memory(place: Place) -> None:
    place.listed.flood("t.example", "u.example", 500, 8)
    since, before = len(place.zone.asked()), memory(place.instance)
    outcomes = place.listed.flood("t.example", "u.example", 10_000, 8)
    assert outcomes == {f"listed {NOERROR} {FAR[0]}": 5000, f"unlisted {REFUSED}": 5000}
    assert not [name for name in upstream(place.zone, since) if name.endswith("u.example.")]
    assert memory(place.instance) - before < 16 * 2**20
    assert place.second.reach("b.s.example") == FAR[0]


def memory(instance: Instance) -> int:
    """What the processes hold that answer, in bytes."""
    total = 0
    for process in egress_proxies(instance):
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))
    assert total
    return total
