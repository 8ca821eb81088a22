"""Policies beside lists of names, what is told of them, and what changes while workspaces run."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from hutch.host.network.egress_proxy import views_file
from hutch.host.network.firewall import EGRESS_PORT, RESOLVER_PORT
from hutch.host.services.cgroup import Cgroup
from hutch.spec.names import Layout
from tests.host.egress import (
    AT_ONCE,
    PORT,
    REFUSED,
    Agent,
    connection,
    egress_proxies,
    eventually,
    kill_egress_proxy,
    open_hutch,
    records,
    start_agent,
)
from tests.host.instance import Instance
from tests.host.processes import Process, status_of
from tests.support.world import (
    CGNAT,
    FAR,
    FAR_PORTS,
    HOST,
    HOST_LAN,
    HOST_PORT,
    LAN,
    METADATA,
    PUBLIC,
    RESOLVERS,
    ZONE_RESOLVER,
    World,
)

POLICIES = {
    "networks": 'egress = ["192.168.77.0/24", "203.0.113.160/28:8001"]',
    "none": 'egress = "none"',
    "all": 'egress = "all"',
    "learns": 'egress = ["far.example"]\nlearn = true',
    "changes": 'egress = ["far.example"]',
}
FIELDS = ["time", "first", "what", "verdict", "name", "address", "port", "protocol", "count", "why"]
CAP_NET_ADMIN = 12
FRESH = iter(FAR[60:])


class Policies:
    """A workspace for each policy, named after it, with an agent inside."""

    def __init__(self, instance: Instance, stack: ExitStack) -> None:
        self.instance = instance
        self.zone = instance.world.zone
        self._keys = dict(POLICIES)
        self.change()
        self.agents = {name: stack.enter_context(start_agent(instance, name)) for name in POLICIES}

    def change(self, **keys: str) -> None:
        """Give workspaces other keys, and bring them up."""
        self._keys.update(keys)
        self.instance.declare("container", **self._keys)
        self.instance.up()

    def ip(self, name: str) -> str:
        return str(self.instance.status(name)["ip"])


@pytest.fixture(scope="module")
def policies(world: World, images: Path) -> Iterator[Policies]:
    with open_hutch(world, images) as instance, ExitStack() as stack:
        yield Policies(instance, stack)


@pytest.fixture
def address() -> str:
    return next(FRESH)


def said(agent: Agent, *targets: tuple[str, int]) -> list[str]:
    """Who answers at each, "" for nobody."""
    return [found.said for found in agent.all(*(connection(host, port, patience=1.0) for host, port in targets))]


# What each lets through.


def test_listed_networks_are_reached_private_ones_too_and_nothing_beside_them(policies: Policies) -> None:
    agent = policies.agents["networks"]
    assert said(agent, (LAN, 80), (FAR[31], PORT)) == ["lan", FAR[31]]
    beside = [(FAR[31], FAR_PORTS[1]), (FAR[30], PORT), (PUBLIC, 80), (METADATA, 80), (CGNAT, 80), (RESOLVERS[0], 53)]
    own = [(HOST_LAN, HOST_PORT), (HOST, HOST_PORT), (policies.ip("all"), 22), (policies.instance.gateway, HOST_PORT)]
    assert set(said(agent, *beside, *own)) == {""}
    assert agent.ask("far.example").code == REFUSED


def test_with_none_nothing_gets_out_and_the_host_still_gets_in(policies: Policies) -> None:
    agent, since = policies.agents["none"], len(policies.zone.asked())
    name = agent.ask("far.example", patience=1.0)
    assert name.error or name.code == REFUSED
    assert name.seconds < AT_ONCE
    assert set(said(agent, (PUBLIC, 80), (FAR[0], PORT), (LAN, 80), (HOST, HOST_PORT), (METADATA, 80))) == {""}
    assert agent.dial(PUBLIC, 7000, "udp", patience=1.0).error
    assert not [question for question in policies.zone.asked()[since:] if "example" in question["name"]]
    assert policies.instance.ssh("none", "echo in").stdout == "in\n"


def test_with_all_private_networks_are_reached_and_neither_host_nor_neighbours(policies: Policies) -> None:
    agent = policies.agents["all"]
    assert said(agent, (LAN, 80), (CGNAT, 80), (PUBLIC, 80)) == ["lan", "cgnat", "internet"]
    assert agent.reach("far.example") == FAR[0]
    closed = [(METADATA, 80), (HOST, HOST_PORT), (HOST_LAN, HOST_PORT), (policies.instance.gateway, HOST_PORT)]
    assert set(said(agent, *closed, (policies.ip("none"), 22), (policies.ip("networks"), 22))) == {""}


def test_learning_lets_pass_what_is_public_records_it_and_is_loud(policies: Policies, address: str) -> None:
    agent = policies.agents["learns"]
    policies.zone.put("learned.example", a=[address])
    assert agent.reach("learned.example") == address
    unnamed = next(FRESH)
    assert said(agent, (unnamed, PORT), (LAN, 80), (METADATA, 80), (HOST, HOST_PORT)) == [unnamed, "", "", ""]
    policies.zone.put("inner.example", a=[LAN])
    assert agent.ask("inner.example").ips == []

    def learned() -> set[tuple[str | None, str | None]]:
        found = [record for record in records(policies.instance, "learns") if record["verdict"] == "learned"]
        return {(record["name"], record["address"]) for record in found if record["what"] == "connection"}

    assert eventually(lambda: {("learned.example", address), (None, unnamed)} <= learned())
    listing = policies.instance.hutch("ls").stdout.splitlines()
    assert "learn" in next(line for line in listing if line.startswith("learns")).removeprefix("learns").lower()


# What is told.


def test_what_was_asked_allowed_and_refused_is_told(policies: Policies, address: str) -> None:
    agent = policies.agents["changes"]
    agent.reach("far.example")
    agent.ask("told.example")
    agent.dial(address)

    def told() -> set[tuple[object, ...]]:
        found = records(policies.instance, "changes")
        assert all(list(record) == FIELDS for record in found), found
        keys = ("what", "verdict", "name", "address", "port", "protocol")
        return {tuple(record[key] for key in keys) for record in found}

    wanted: set[tuple[object, ...]] = {
        ("connection", "allowed", "far.example", FAR[0], PORT, "tcp"),
        ("connection", "refused", None, address, PORT, "tcp"),
        ("dns", "refused", "told.example", None, None, None),
    }
    assert eventually(lambda: wanted <= told()), told()


def test_the_suggested_list_lets_the_same_pass(policies: Policies, address: str) -> None:
    policies.change(changes='egress = ["far.example"]\nlearn = true')
    agent = policies.agents["changes"]
    visits = {"one.seen.example": address, "two.seen.example": next(FRESH), "far.example": FAR[0]}
    policies.zone.put_all({name: {"a": [where], "ttl": 1} for name, where in visits.items()})
    for name, where in visits.items():
        assert agent.reach(name) == where

    def suggested() -> list[str]:
        text = policies.instance.hutch("egress", "changes", "--suggest").stdout
        found = tomllib.loads(text)["egress"]
        assert isinstance(found, list)
        return found

    wanted = {f"{name}:{PORT}" for name in visits if name != "far.example"} | {"far.example"}
    assert eventually(lambda: wanted <= set(suggested())), suggested()
    policies.change(changes=f"egress = {json.dumps(suggested())}")
    try:
        for name, where in visits.items():
            assert agent.reach(name) == where
        assert agent.ask("unseen.example").code == REFUSED
    finally:
        policies.change(changes=POLICIES["changes"])


# What changes while they run.


def test_a_changed_list_applies_at_once_and_to_what_is_open(policies: Policies, address: str) -> None:
    stays, goes, comes = address, next(FRESH), next(FRESH)
    names = {"stays.example": stays, "goes.example": goes, "comes.example": comes}
    policies.zone.put_all({name: {"a": [where]} for name, where in names.items()})
    policies.change(changes='egress = ["stays.example", "goes.example"]')
    agent, pid = policies.agents["changes"], policies.instance.status("changes")["pid"]
    for name in ("stays", "goes"):
        assert agent.reach(f"{name}.example") == names[f"{name}.example"]
        agent.hold(name, names[f"{name}.example"])
    assert agent.ask("comes.example").code == REFUSED
    policies.change(changes='egress = ["stays.example", "comes.example"]')
    assert not agent.lives("goes")
    assert agent.lives("stays")
    assert agent.dial(goes).error
    assert agent.dial(stays).said == stays
    assert agent.ask("goes.example").code == REFUSED
    assert agent.reach("comes.example") == comes
    assert policies.instance.status("changes")["pid"] == pid
    policies.change(changes='egress = "none"')
    assert not agent.lives("stays")
    assert agent.dial(comes).error
    policies.change(changes='egress = "internet"')
    assert agent.dial(goes).said == goes
    policies.change(changes=POLICIES["changes"])
    assert agent.dial(goes).error


def test_a_name_beyond_ascii_is_one_name(policies: Policies, address: str) -> None:
    policies.zone.put("bücher.example", a=[address])
    policies.change(changes='egress = ["bücher.example", "far.example"]')
    try:
        assert policies.agents["changes"].reach("xn--bcher-kva.example") == address
        assert policies.agents["changes"].ask("bucher.example").code == REFUSED
    finally:
        policies.change(changes=POLICIES["changes"])


def test_a_second_up_changes_nothing(policies: Policies) -> None:
    before = state(policies.instance)
    policies.instance.up()
    assert {action["action"] for action in policies.instance.plan().values()} == {"no change"}
    assert state(policies.instance) == before


def state(instance: Instance) -> tuple[object, ...]:
    """Processes and rules, without what counts and what runs out."""
    (name,) = router_namespaces(instance)
    command = ["ip", "netns", "exec", name, "nft", "--stateless", "--terse", "list", "ruleset"]
    rules = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    return [(process.pid, process.command) for process in egress_proxies(instance)], rules


def router_namespaces(instance: Instance) -> list[str]:
    """The namespaces where this hutch's gateway is."""
    found = []
    for path in Path("/run/netns").iterdir():
        command = ["ip", "-n", path.name, "-o", "-4", "address"]
        if f" {instance.gateway}/" in subprocess.run(command, capture_output=True, text=True, timeout=10).stdout:
            found.append(path.name)
    return found


def both(instance: Instance) -> tuple[Process, Process]:
    """The keeper of the sets, and the egress proxy, its child."""
    found = egress_proxies(instance)
    (proxy,) = (each for each in found if each.parent in {other.pid for other in found})
    (keeper,) = (each for each in found if each.pid == proxy.parent)
    return keeper, proxy


def test_what_reads_questions_has_no_right(policies: Policies) -> None:
    keeper, proxy = both(policies.instance)
    kinds = ("CapInh", "CapPrm", "CapEff", "CapAmb")
    rights = {process: [int(status_of(process.pid)[kind], 16) for kind in kinds] for process in (keeper, proxy)}
    assert rights == {keeper: [0, 1 << CAP_NET_ADMIN, 1 << CAP_NET_ADMIN, 0], proxy: [0, 0, 0, 0]}
    assert [status_of(process.pid)["NoNewPrivs"] for process in (keeper, proxy)] == ["1", "1"]
    assert status_of(proxy.pid)["NSpid"].split()[-1] == "1"
    limits = Path(f"/proc/{proxy.pid}/limits").read_text()
    for kind in ("file size", "processes"):
        assert re.search(rf"^Max {kind} +0 +0 ", limits, re.MULTILINE)
    assert status_of(proxy.pid)["Seccomp"] == "2"
    assert os.stat(f"/proc/{proxy.pid}/ns/pid").st_ino != os.stat(f"/proc/{keeper.pid}/ns/pid").st_ino


def test_what_reads_questions_can_write_nowhere(policies: Policies) -> None:
    """Nor meet anybody: it sees no directory of its own, no socket and no pipe by a name."""
    keeper, proxy = both(policies.instance)
    uid = str(Layout(policies.instance.state, policies.instance.run).egress_uid)
    assert status_of(proxy.pid)["Uid"].split() == [uid] * 4
    kinds = ("(", "-type", "s", "-o", "-type", "p", "-o", "(", "-type", "d", "-o", "-type", "f", ")", "-writable", ")")
    found = {}
    for process in (keeper, proxy):
        own = ("nsenter", f"--mount=/proc/{process.pid}/ns/mnt", f"--root=/proc/{process.pid}/root", "setpriv")
        look = (f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "find", "/", *kinds)
        done = subprocess.run([*own, *look], capture_output=True, text=True, timeout=60)
        found[process] = {*done.stdout.split()} - {"/dev/null", "/dev/urandom"}  # files to find, by what they lie on
    assert found[proxy] == set()
    assert f"{policies.instance.run}/egress/control" in found[keeper]  # so it would have been found
    opened = {os.readlink(path) for path in Path(f"/proc/{proxy.pid}/fd").iterdir()}
    assert {each.partition(":")[0] for each in opened} <= {"socket", "anon_inode", "pipe", "/dev/null"}


def test_nobody_is_asked_in_place_of_the_resolver(policies: Policies) -> None:
    """dnsmasq lets others have its address and port, where these may have the port at all."""
    (name,) = router_namespaces(policies.instance)
    uid = str(Layout(policies.instance.state, policies.instance.run).egress_uid)
    program = (
        "import socket, sys; s = socket.socket(type=socket.SOCK_DGRAM);"
        " s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind((sys.argv[1], int(sys.argv[2])))"
    )
    command = ("ip", "netns", "exec", name, "setpriv", f"--reuid={uid}", "--clear-groups", "--bounding-set=-all")
    for port, said in ((RESOLVER_PORT, "Permission denied"), (RESOLVER_PORT + 5000, "")):
        bound = (*command, sys.executable, "-c", program, policies.instance.gateway, str(port))
        done = subprocess.run(bound, capture_output=True, text=True, timeout=60)
        assert (done.returncode == 0) is (not said) and said in done.stderr, done.stderr


SENDS = """
import socket, sys
kind, patience, host, port, *source = sys.argv[1:]
with socket.socket(type=getattr(socket, kind)) as made:
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    made.settimeout(float(patience))
    if source:
        made.bind((source[0], int(source[1])))
    try:
        made.connect((host, int(port)))
        made.send(b"x")
    except (PermissionError, TimeoutError):
        print("closed")
"""
"""A program that sends by a socket to a host and a port, perhaps from an address and a port. What the kernel does not
let out, it tells, or tries once more."""


def test_what_reads_questions_reaches_nobody_else(policies: Policies) -> None:
    """Neither what a workspace reaches, nor private networks, nor itself; by the port of answers it opens nothing. The
    ways out are closed to root too: packets without an owner are nobody's."""
    layout, own = Layout(policies.instance.state, policies.instance.run), policies.instance.gateway
    watched, unwatched = policies.ip("changes"), policies.ip("all")
    upstream = [*map(str, json.loads(views_file(layout).read_text())["upstream"])]
    answering = (str(ipaddress.ip_address(upstream[0]) + 1), str(EGRESS_PORT))  # the proxy has the gateway's
    broadcast = f"{watched.rpartition('.')[0]}.255"
    inside = ("ip", "netns", "exec", layout.namespace)
    as_proxy = ("setpriv", f"--reuid={layout.egress_uid}", "--clear-groups", "--bounding-set=-all")
    accounts: dict[str, tuple[str, ...]] = {"proxy": as_proxy, "own": ()}

    def sends(account: str, kind: str, patience: str, *where: str) -> str:
        argv = (*inside, *accounts[account], sys.executable, "-c", SENDS, kind, patience, *where)
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert not done.stderr, (where, done)
        return done.stdout.strip()

    def counted(account: str) -> int:
        chain = [*inside, "nft", "-j", "list", "chain", "inet", layout.table, "own"]
        done = subprocess.run(chain, capture_output=True, text=True, timeout=60, check=True)
        rules = [item["rule"] for item in json.loads(done.stdout)["nftables"] if "rule" in item]
        counts = [rule["expr"] for rule in rules if rule["comment"].startswith(account)]
        return sum(part["counter"]["packets"] for parts in counts for part in parts if "counter" in part)

    def is_closed(account: str, *what: str) -> bool:
        before = counted(account)
        return sends(account, what[0], "0.5", *what[1:]) == "closed" and counted(account) > before

    for kind in ("SOCK_DGRAM", "SOCK_STREAM"):
        for account in accounts:
            assert sends(account, kind, "20", *upstream) == ""
            for address in (PUBLIC, LAN, METADATA):
                assert is_closed(account, kind, address, "80"), (account, kind, address)
        for address in (own, unwatched):
            assert is_closed("proxy", kind, address, "22"), (kind, address)
        assert is_closed("proxy", kind, unwatched, "22", *answering)
    for account in accounts:
        assert is_closed(account, "SOCK_STREAM", watched, "22", *answering)
        assert sends(account, "SOCK_DGRAM", "20", watched, "22", *answering) == ""
    assert is_closed("proxy", "SOCK_DGRAM", broadcast, "22", *answering)


@pytest.mark.parametrize("which", ["keeper", "proxy"])
def test_neither_goes_on_without_the_other(policies: Policies, which: str) -> None:
    keeper, proxy = both(policies.instance)
    os.kill({"keeper": keeper, "proxy": proxy}[which].pid, signal.SIGKILL)
    assert eventually(lambda: not egress_proxies(policies.instance))
    policies.instance.up()


def test_one_that_will_not_end_is_no_hindrance(policies: Policies, address: str) -> None:
    """Frozen, it hears no signal, and does not see that its keeper is gone: as if it were somebody else's by now. If it
    were only stopped, the kernel would have it go on, once nobody is left who could."""
    keeper, proxy = both(policies.instance)
    services = Layout(policies.instance.state, policies.instance.run).services_cgroup
    with closing(Cgroup(services)) as cgroup:
        cgroup.freeze("egress")
    os.kill(keeper.pid, signal.SIGKILL)
    assert eventually(lambda: [each.pid for each in egress_proxies(policies.instance)] == [proxy.pid])
    policies.zone.put("far.example", a=[address])
    policies.instance.up()
    assert proxy.pid not in {each.pid for each in both(policies.instance)}
    assert policies.agents["changes"].reach("far.example") == address


def test_what_is_open_is_bounded_so_that_rules_can_be_looked_at(policies: Policies) -> None:
    (name,) = router_namespaces(policies.instance)
    nft = ["ip", "netns", "exec", name, "nft"]
    table = Layout(policies.instance.state, policies.instance.run).table

    def add(count: int) -> subprocess.CompletedProcess[str]:
        addresses = (f"20.{i >> 16}.{i >> 8 & 255}.{i & 255}" for i in range(count))
        elements = ", ".join(f"192.0.2.1 . {address} . 1 timeout 60s" for address in addresses)
        text = f"add element inet {table} allowed {{ {elements} }}"
        return subprocess.run([*nft, "-f", "-"], input=text, capture_output=True, text=True, timeout=60)

    try:
        add(1 << 14).check_returncode()
        assert "Too many open files in system" in add((1 << 15) + 1).stderr
    finally:
        subprocess.run([*nft, "flush", "set", "inet", table, "allowed"], check=True, timeout=60)


def test_without_the_egress_proxy_nothing_opens_and_up_brings_it_back(policies: Policies, address: str) -> None:
    agent, since = policies.agents["changes"], len(policies.zone.asked())
    policies.zone.put("far.example", a=[address], ttl=1)
    assert agent.reach("far.example") == address
    kill_egress_proxy(policies.instance)
    assert eventually(lambda: not egress_proxies(policies.instance))
    asked = len(policies.zone.asked())
    for via in ("udp", "tcp"):
        assert not agent.ask("far.example", via=via, patience=1.0).records
    assert agent.ask("far.example", server=ZONE_RESOLVER, patience=0.5).error
    assert len(policies.zone.asked()) == asked > since
    assert eventually(lambda: bool(agent.dial(address).error))
    assert policies.agents["all"].reach("unwatched.example") == FAR[0]
    policies.instance.up()
    assert agent.reach("far.example") == address
    policies.zone.put("far.example", a=[FAR[0]])


def test_the_last_watched_workspace_takes_the_egress_proxy_with_it(instance: Instance) -> None:
    instance.declare("container", listed='egress = ["far.example"]', free="")
    instance.up()
    assert len(egress_proxies(instance)) == 2
    instance.hutch("rm", "--purge", "listed")
    assert egress_proxies(instance) == []
    left = [path for path in instance.state.rglob("*listed*") if "images" not in path.parts]
    assert left == []
    assert instance.inside("free", "curl", "--silent", "--max-time", "5", f"http://{PUBLIC}/").stdout
