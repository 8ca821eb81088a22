"""Whatever is done to rules and processes on the host, nothing opens: probers inside try every closed target all the
time, and not one answer may come."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from tests.host.egress import eventually, kill_egress_proxy, open_hutch
from tests.host.faults import count, strike
from tests.host.instance import Instance
from tests.host.processes import Process, kill_processes, main_of, runner_of
from tests.host.test_network import uplink_of_host
from tests.support.world import (
    BENCHMARK,
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
    ZONE_PUBLIC,
    World,
)

PROBER = Path(__file__).with_name("guest_prober.py")
CONTROL = "control"
LISTED = 'egress = ["far.example", "203.0.113.129/32"]'
ROUNDS = 12  # of a prober, twenty a second, after a fault


@pytest.fixture(
    scope="module", params=["container", pytest.param("vm", marks=[pytest.mark.vm, pytest.mark.long])]
)  # fmt: skip
def workspace_type(request: pytest.FixtureRequest) -> str:
    assert isinstance(request.param, str)
    return request.param


def target(name: str, host: str, port: int = 0, protocol: str = "tcp", asked: str = "") -> dict[str, object]:
    """Something to try. Where a name is `asked`, only a record in the answer is one."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in (asked or "far.example").split("."))
    question = b"\x12\x34\x01\x00\x00\x01" + b"\0" * 6 + labels + b"\0\0\x01\0\x01"
    common = {"name": name, "host": host, "port": port, "protocol": protocol}
    return {**common, "question": question.hex(), "wants_record": bool(asked)}


class Prober:
    """A prober in a workspace, and what it has said."""

    def __init__(self, instance: Instance, name: str, targets: list[dict[str, object]], log: Path) -> None:
        self._log, self._seen = log, 0
        argv = ("exec", "--root", name, "--", "python3", "-c", PROBER.read_text(), json.dumps(targets))
        with log.open("wb") as output:
            self._process: Popen[bytes] = instance.spawn(*argv, stdin=PIPE, stdout=output)
        assert eventually(lambda: self.rounds() > 2, patience=20)

    def lines(self) -> list[str]:
        return self._log.read_text().splitlines()

    def rounds(self) -> int:
        return sum(line.startswith("round ") for line in self.lines())

    def answers(self) -> set[str]:
        """Who has answered since this was asked last: each line is looked at once."""
        seen, self._seen = self._seen, len(self.lines())
        return {line.split()[1] for line in self.lines()[seen : self._seen] if line.startswith("answer ")}

    def goes_on(self, rounds: int = ROUNDS) -> bool:
        """Whether it makes so many rounds more."""
        until = self.rounds() + rounds
        return eventually(lambda: self.rounds() >= until)

    def reaches(self) -> bool:
        """Whether what is open is reached from now on."""
        since = len(self.lines())
        return eventually(lambda: f"answer {CONTROL}" in self.lines()[since:])

    def close(self) -> None:
        with self._process:
            self._process.kill()


class Siege:
    """Two workspaces, one with a list, each with a prober of all that is closed to it."""

    def __init__(self, instance: Instance, workspace_type: str, logs: Path, stack: ExitStack) -> None:
        self.instance = instance
        self._type = workspace_type
        self._logs, self._stack, self._count = logs, stack, 0
        self.probers: dict[str, Prober] = {}
        self.up()
        for name in ("web", "other"):
            self.probe(name)

    def declare(self, egress: str) -> None:
        self.instance.declare(self._type, web=egress, other="")

    def up(self, egress: str = LISTED) -> None:
        self.declare(egress)
        self.instance.up()

    def probe(self, name: str) -> None:
        self._count += 1
        log = self._logs / f"{name}-{self._count}"
        prober = Prober(self.instance, name, self._targets(name), log)
        self._stack.callback(prober.close)
        self.probers[name] = prober

    def _targets(self, name: str) -> list[dict[str, object]]:
        neighbour = self.instance.status("web" if name == "other" else "other")["ip"]
        uplink, gateway = uplink_of_host(), self.instance.gateway
        closed = [
            *(target("metadata", METADATA, 80), target("cgnat", CGNAT, 80), target("benchmark", BENCHMARK, 80)),
            *(target("lan", LAN, 80), target("lan-udp", LAN, 7000, "udp"), target("lan-ping", LAN, 0, "icmp")),
            *(target(f"host-{host}", host, HOST_PORT) for host in (HOST, HOST_LAN, uplink, gateway)),
            *(target("host-udp", HOST, HOST_PORT, "udp"), target("host-ping", HOST, 0, "icmp")),
            *(target("resolver", RESOLVERS[0], 53, "udp"), target("uplink-dns", uplink, 53, "udp")),
            *(target("neighbour-ssh", neighbour, 22), target("neighbour-ping", neighbour, 0, "icmp")),
        ]
        unlisted = [
            *(target("unlisted", FAR[1], FAR_PORTS[0]), target("unlisted-80", PUBLIC, 80)),
            *(target("unlisted-udp", PUBLIC, 7000, "udp"), target("unlisted-dns", ZONE_PUBLIC, 53, "udp")),
            target("unlisted-name", gateway, 53, "udp", asked="unlisted.example"),
        ]
        return [target(CONTROL, FAR[0], FAR_PORTS[0]), *closed, *(unlisted if name == "web" else ())]

    def closed(self) -> bool:
        """Whether both go on probing, and nothing that is closed has answered since this was asked last. A machine's
        prober tells over the bridge: while that is down, what it saw is heard, and judged, afterwards."""
        is_heard = self._type == "container" or not bridge_is_down(self)
        assert not is_heard or all(prober.goes_on() for prober in self.probers.values())
        found = {name: prober.answers() - {CONTROL} for name, prober in self.probers.items()}
        assert found == {"web": set(), "other": set()}
        return True

    def open_again(self) -> bool:
        return all(prober.reaches() for prober in self.probers.values())


@pytest.fixture(scope="module")
def siege(world: World, images: Path, workspace_type: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    with open_hutch(world, images) as instance, ExitStack() as stack:
        yield Siege(instance, workspace_type, tmp_path_factory.mktemp("probers"), stack)


@pytest.fixture(autouse=True)
def _before_and_after(siege: Siege) -> Iterator[None]:
    """What is open is reached before and after each fault; what is closed never."""
    assert siege.open_again()
    yield
    siege.up()
    assert siege.open_again()
    assert siege.closed()


def inside_router(siege: Siege, *argv: str, check: bool = True) -> str:
    """Run a command where the bridge is."""
    for path in Path("/run/netns").glob("hutch*"):
        command = ["ip", "netns", "exec", path.name, *argv]
        there = subprocess.run(["ip", "-n", path.name, "-o", "-4", "address"], capture_output=True, text=True)
        if f" {siege.instance.gateway}/" in there.stdout:
            return subprocess.run(command, capture_output=True, text=True, timeout=20, check=check).stdout
    raise AssertionError("there is no router")


def bridge_is_down(siege: Siege) -> bool:
    links = json.loads(inside_router(siege, "ip", "-j", "link", "show", "type", "bridge"))
    return all("UP" not in link["flags"] for link in links)


def test_the_closed_targets_are_there(siege: Siege) -> None:
    """The positive control: from the host each answers."""
    for host, port in [
        (METADATA, 80),
        (CGNAT, 80),
        (BENCHMARK, 80),
        (LAN, 80),
        (HOST, HOST_PORT),
        (FAR[1], FAR_PORTS[0]),
    ]:
        command = ["curl", "--silent", "--max-time", "5", f"http://{host}:{port}/"]
        assert subprocess.run(command, capture_output=True, timeout=20).stdout, host


def test_a_prober_notices_what_is_open(siege: Siege) -> None:
    """The positive control of the probers themselves."""
    web = siege.probers["web"]
    public = {"unlisted", "unlisted-80", "unlisted-udp", "unlisted-dns", "unlisted-name"}
    private = {"lan", "lan-udp", "lan-ping", "cgnat", "resolver"}
    siege.up('egress = "all"')
    assert web.goes_on()
    assert public | private <= web.answers()
    siege.up()
    assert web.goes_on(2)
    web.answers()


def test_without_the_hosts_rules_nothing_opens(siege: Siege) -> None:
    subprocess.run(["nft", "flush", "ruleset"], check=True, timeout=10)
    assert siege.closed()


@pytest.mark.parametrize("fault", ["flush ruleset", "flush table inet", "delete table inet", "delete table bridge"])
def test_without_the_routers_rules_traffic_stops(siege: Siege, fault: str) -> None:
    tables = json.loads(inside_router(siege, "nft", "-j", "list", "tables"))["nftables"]
    names = {item["table"]["family"]: item["table"]["name"] for item in tables if "table" in item}
    family = fault.rpartition(" ")[2]
    inside_router(siege, "nft", *fault.split(), *([names[family]] if family in names else []))
    assert eventually(lambda: bridge_is_down(siege), patience=2)
    assert siege.closed()


def test_a_rule_that_is_added_by_hand_stops_traffic(siege: Siege) -> None:
    tables = json.loads(inside_router(siege, "nft", "-j", "list", "tables"))["nftables"]
    (name,) = {item["table"]["name"] for item in tables if "table" in item}
    inside_router(siege, "nft", "add", "rule", "inet", name, "forward", "counter", "accept")
    assert eventually(lambda: bridge_is_down(siege), patience=2)
    assert siege.closed()


@pytest.mark.parametrize("effects", [1, *(pytest.param(number, marks=pytest.mark.slow) for number in (0, 2, 3))])
def test_a_command_that_is_killed_while_it_loads_rules_leaves_them_watched(siege: Siege, effects: int) -> None:
    """So many effects after it began to load them. They are those that were noted, or traffic stops; and one that is
    added by hand stops it."""
    siege.declare('egress = "none"')
    seen = count(siege.instance, "up")
    siege.up()
    load = next(number for number, line in enumerate(seen, 1) if "nft -f -" in line and "nsenter" in line)
    siege.declare('egress = "none"')
    assert strike(siege.instance, "kill", load + effects, "up").is_struck
    (watch,) = pids_of("watch.pid", siege.instance)
    assert Path(f"/proc/{watch}").exists()
    if not bridge_is_down(siege):
        test_a_rule_that_is_added_by_hand_stops_traffic(siege)
    assert siege.closed()


def test_while_resolvers_are_restarted_nothing_opens(siege: Siege) -> None:
    run = str(siege.instance.run)
    for _ in range(3):
        assert kill_processes(lambda command: "dnsmasq" in command[0] and any(run in word for word in command))
        siege.up()
    assert siege.closed()


def test_while_policies_change_nothing_opens(siege: Siege) -> None:
    lists = ('egress = ["far.example", "*.t.example:443"]', 'egress = "none"', 'egress = ["192.0.2.0/24"]', LISTED)
    for egress in (*lists, *lists):
        siege.up(egress)
    assert siege.closed()


@pytest.mark.parametrize("victim", [runner_of, main_of])
def test_without_what_runs_it_nothing_opens(siege: Siege, victim: Callable[[Instance, str], Process]) -> None:
    web, other = siege.probers["web"], siege.probers["other"]
    os.kill(victim(siege.instance, "web").pid, signal.SIGKILL)
    goes_on = other.goes_on() and other.reaches()
    siege.up()
    siege.probe("web")
    assert goes_on
    assert web.answers() <= {CONTROL}
    assert siege.closed()


@pytest.mark.parametrize("victim", ["proxy", "watch"])
def test_without_its_helpers_nothing_opens(siege: Siege, victim: str) -> None:
    if victim == "proxy":
        kill_egress_proxy(siege.instance)
    else:
        (pid,) = pids_of("watch.pid", siege.instance)
        os.kill(pid, signal.SIGKILL)
    assert siege.closed()


def pids_of(file: str, instance: Instance) -> list[int]:
    return [int(path.read_text()) for path in instance.run.rglob(file)]
