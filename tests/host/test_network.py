"""What a workspace reaches, and what it does not: probed by root inside, with positive controls beside."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.host.network.firewall import UPSTREAM_PORT
from tests.host.instance import Instance, Target
from tests.host.opening import open_instance
from tests.host.processes import kill_processes
from tests.support.world import (
    BENCHMARK,
    CGNAT,
    FAR,
    FAR_PORTS,
    HOST,
    HOST6,
    HOST_EXTRA,
    HOST_LAN,
    HOST_PORT,
    LAN,
    METADATA,
    PUBLIC,
    PUBLIC_NAME,
    RESOLVERS,
    ROUTER6,
    SECOND_NAME,
    World,
)

pytestmark = pytest.mark.vm(slow=True)  # of machines, test_prove tries the promises in every run

REACHED = [
    Target("internet", PUBLIC, 80),
    Target("internet-udp", PUBLIC, 7000, "udp"),
    Target("gateway-dns", "GATEWAY", 53, "udp"),
    Target("gateway-dns-tcp", "GATEWAY", 53),
    Target("gateway-ping", "GATEWAY"),
]

BLOCKED = [
    Target("metadata", METADATA, 80),
    Target("lan", LAN, 80),
    Target("lan-udp", LAN, 7000, "udp"),
    Target("lan-ping", LAN),
    Target("cgnat", CGNAT, 80),
    Target("benchmark", BENCHMARK, 80),
    Target("resolver", RESOLVERS[0], 53, "udp"),
    Target("host", HOST, HOST_PORT),
    Target("host-udp", HOST, HOST_PORT, "udp"),
    Target("host-lan", HOST_LAN, HOST_PORT),
    Target("host-extra", HOST_EXTRA, HOST_PORT),
    Target("host-uplink", "UPLINK", HOST_PORT),
    Target("host-uplink-dns", "UPLINK", 53, "udp"),
    Target("host-ping", HOST),
    Target("gateway-port", "GATEWAY", HOST_PORT),
    Target("other-ssh", "OTHER", 22),
    Target("other-port", "OTHER", 8080),
    Target("other-ping", "OTHER"),
    Target("host-ipv6", HOST6, HOST_PORT),
    Target("internet-ipv6", ROUTER6, 80),
]


class Network:
    """Two running workspaces, `web` and `other`, and what stands for the names in the targets."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.addresses = {name: instance.status(name)["ip"] for name in ("web", "other")}

        routes = instance.inside("web", "ip", "route", "show", "default").stdout.split()
        self.device = routes[routes.index("dev") + 1]

    def target(self, target: Target) -> Target:
        places = {"GATEWAY": self.instance.gateway, "OTHER": self.addresses["other"], "UPLINK": uplink_of_host()}
        return Target(target.name, places.get(target.host, target.host), target.port, target.protocol, target.source)

    def probe(self, targets: list[Target] | None = None, around: tuple[str, str] = (":", ":")) -> dict[str, str]:
        wanted = [self.target(target) for target in targets or [*REACHED, *BLOCKED]]
        return self.instance.probe("web", wanted, around=around)


def uplink_of_host() -> str:
    """The host's own address on the way to the workspaces."""
    for line in subprocess.run(["ip", "-o", "-4", "address"], capture_output=True, text=True).stdout.splitlines():
        fields = line.split()
        if fields[3].startswith("192.168.84."):
            return fields[3].split("/")[0]
    raise AssertionError("the host has no uplink")


def fetch(host: str, port: int, *, source: str = "") -> str:
    """What an HTTP server answers the host itself."""
    options = ["--interface", source] if source else []
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    command = ["curl", "--silent", "--max-time", "5", "--noproxy", "*", *options, url]
    return subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip()


@pytest.fixture(scope="module")
def network(world: World, images: Path, workspace_type: str) -> Iterator[Network]:
    with open_instance(world, images) as instance:
        published = '"8080:8080", "127.0.0.1:8081:8080", "8082:8082/udp", "127.0.0.1:8083:8083"'
        instance.declare(workspace_type, web="", other=f"publish = [{published}]")
        instance.up()
        # A new address of the host's, taken after the rules were loaded, in no private range.
        subprocess.run(["ip", "address", "add", f"{HOST_EXTRA}/32", "dev", "eth0"], check=True, timeout=10)
        instance.inside("other", "python3", "-c", SERVER)
        try:
            yield Network(instance)
        finally:
            subprocess.run(["ip", "address", "del", f"{HOST_EXTRA}/32", "dev", "eth0"], check=True, timeout=10)


# Binds first and goes to the background then: when the command has ended, the servers listen.
SERVER = """
import http.server, os, socket, sys, threading
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"other {self.client_address[0]}".encode())
webs = [http.server.ThreadingHTTPServer(("0.0.0.0", port), Handler) for port in (8080, 8083)]
echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
echo.bind(("0.0.0.0", 8082))
if os.fork():
    os._exit(0)
os.setsid()
null = os.open("/dev/null", os.O_RDWR)
for stream in (0, 1, 2):
    os.dup2(null, stream)
for web in webs:
    threading.Thread(target=web.serve_forever).start()
while True:
    data, peer = echo.recvfrom(4096)
    echo.sendto(b"echo " + data, peer)
"""


@pytest.fixture(scope="module")
def answers(network: Network) -> dict[str, str]:
    return network.probe()


@pytest.mark.parametrize("name", [target.name for target in REACHED])
def test_reached(answers: dict[str, str], name: str) -> None:
    assert answers[name]


@pytest.mark.parametrize("name", [target.name for target in BLOCKED])
def test_not_reached(answers: dict[str, str], name: str) -> None:
    assert answers["internet"].startswith("internet ")
    assert answers[name] == ""


def test_the_host_reaches_all_that_the_workspace_must_not(network: Network) -> None:
    """The positive control: every blocked target is really there."""
    for host, port in [(METADATA, 80), (LAN, 80), (CGNAT, 80), (BENCHMARK, 80), (ROUTER6, 80)]:
        assert fetch(host, port), host
    for host in (HOST, HOST_LAN, HOST_EXTRA, HOST6, uplink_of_host()):
        assert fetch(host, HOST_PORT).startswith("host"), host
    assert network.instance.ssh("other").returncode == 0


def test_the_ends_of_the_uplink_know_each_other_for_good(network: Network) -> None:
    """A container can fill the host's table of neighbours, which is one for all network namespaces."""
    device = json.loads(ip("-o", "route", "get", network.addresses["web"]))[0]["dev"]
    (host_end,) = json.loads(ip("neighbour", "show", "dev", device))
    (router_end,) = json.loads(ip("-n", device.removesuffix("-up"), "neighbour", "show", "dev", "up0"))
    assert host_end["state"] == router_end["state"] == ["PERMANENT"]
    assert network.instance.ssh("web").returncode == 0


def ip(*words: str) -> str:
    return subprocess.run(["ip", "-j", *words], capture_output=True, text=True, timeout=20, check=True).stdout


SHARING = """
import socket, sys
listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind((sys.argv[1], int(sys.argv[2])))
"""


def test_a_user_of_the_host_cannot_share_the_resolvers_port(network: Network) -> None:
    uplink, bob = uplink_of_host(), network.instance.world.accounts["bob"]
    listening = subprocess.run(["ss", "-Hlun", "src", uplink], capture_output=True, text=True, timeout=20).stdout
    (port,) = {line.split()[3].rpartition(":")[2] for line in listening.splitlines()}
    for address in (uplink, "0.0.0.0"):
        command = bob.command(sys.executable, "-c", SHARING, address, port)
        tried = subprocess.run(command, capture_output=True, text=True, timeout=20, env=bob.environment())
        assert "PermissionError" in tried.stderr


def test_the_workspace_has_no_ipv6_beyond_itself(network: Network) -> None:
    addresses = network.instance.inside("web", "ip", "-6", "-o", "address", "show", "scope", "global").stdout
    assert addresses == ""


@pytest.mark.parametrize("source", ["OTHER", HOST, "203.0.113.11", "192.168.77.50"])
def test_a_source_address_that_is_not_its_own_gets_nowhere(network: Network, source: str) -> None:
    source = network.addresses["other"] if source == "OTHER" else source
    network.instance.inside("web", "ip", "address", "add", f"{source}/32", "dev", network.device, root=True)
    try:
        answers = network.probe([
            Target("own", PUBLIC, 80, source=network.addresses["web"]),
            Target("spoofed", PUBLIC, 80, source=source),
            Target("spoofed-gateway", "GATEWAY", 53, source=source),
        ])  # fmt: skip
    finally:
        network.instance.inside("web", "ip", "address", "del", f"{source}/32", "dev", network.device, root=True)
    assert answers["own"].startswith("internet ")
    assert (answers["spoofed"], answers["spoofed-gateway"]) == ("", "")


def test_a_hardware_address_that_is_not_its_own_gets_nowhere(network: Network) -> None:
    own = network.instance.status("web")["mac"]
    change = f"ip link set {network.device} address {{}} && ip route replace default via {network.instance.gateway}"
    # In one go, since a machine cannot be reached meanwhile either.
    as_another = (change.format("02:00:00:00:00:99"), change.format(own))
    assert network.probe(REACHED, around=as_another) == {target.name: "" for target in REACHED}
    assert network.probe(REACHED[:1])["internet"]


def test_claiming_the_gateways_address_redirects_nobody(network: Network) -> None:
    """A burst of ARP claims from one workspace leaves the other's way out as it was."""
    web = network.instance
    web.inside("web", "python3", "-c", ARP_BURST, web.gateway, web.status("web")["mac"], network.device, root=True)
    answers = web.probe("other", [Target("internet", PUBLIC, 80)])
    assert answers["internet"].startswith("internet ")
    neighbours = web.inside("other", "ip", "neighbour").stdout
    assert web.status("web")["mac"] not in neighbours


ARP_BURST = """
import socket, sys
gateway, mac = socket.inet_aton(sys.argv[1]), bytes.fromhex(sys.argv[2].replace(":", ""))
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind((sys.argv[3], 0x0806))
everyone = b"\\xff" * 6
for operation in (1, 2) * 20:
    arp = b"\\x00\\x01\\x08\\x00\\x06\\x04" + operation.to_bytes(2, "big") + mac + gateway + everyone + gateway
    s.send(everyone + mac + b"\\x08\\x06" + arp)
"""


def test_the_lan_cannot_open_a_connection_to_a_workspace(network: Network) -> None:
    command = ["curl", "--silent", "--max-time", "2", f"http://{network.addresses['other']}:8080/"]
    for place in ("lan", "internet"):
        assert network.instance.world.inside(place, *command).returncode == 28, place
    assert fetch(HOST_LAN, 8080)  # the server is there: published, the host reaches it


@pytest.mark.parametrize("place", ["lan", "internet"])
def test_a_published_port_is_open_to_the_network(network: Network, place: str) -> None:
    address = HOST_LAN if place == "lan" else HOST
    result = network.instance.world.inside(place, "curl", "--silent", "--max-time", "5", f"http://{address}:8080/")
    assert result.stdout.startswith("other ")


@pytest.mark.parametrize("address", ["127.0.0.1", HOST, HOST_LAN])
def test_a_published_port_is_open_to_the_host_itself(network: Network, address: str) -> None:
    assert fetch(address, 8080).startswith("other ")


def test_a_port_published_on_one_address_is_on_that_address_only(network: Network) -> None:
    assert fetch("127.0.0.1", 8081).startswith("other ")
    assert fetch(HOST, 8081) == ""
    lan = network.instance.world.inside("lan", "curl", "--silent", "--max-time", "1", f"http://{HOST_LAN}:8081/")
    assert lan.returncode != 0


def test_a_published_udp_port_answers(network: Network) -> None:
    ask = (
        "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5);"
        "s.connect((sys.argv[1], 8082)); s.send(b'hello'); print(s.recv(100).decode())"
    )
    assert network.instance.world.inside("lan", "python3", "-c", ask, HOST_LAN).stdout == "echo hello\n"


def test_an_address_that_is_not_the_hosts_is_left_to_its_owner(instance: Instance) -> None:
    """From the beginning, and when the host has lost it."""
    address, port = FAR[0], FAR_PORTS[0]
    owners = fetch(address, port)
    assert owners
    instance.declare("container", web=f'publish = ["{address}:{port}:8080"]')
    refused = instance.hutch("plan", check=False)
    assert refused.returncode == 2
    assert re.search(rf"{instance.file}:\d+: .*{address} is no address of this host", refused.stderr), refused.stderr
    subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "eth0"], check=True, timeout=10)
    try:
        instance.up()
        instance.inside("web", "python3", "-c", SERVER)
        assert fetch(address, port).startswith("other ")
    finally:
        subprocess.run(["ip", "address", "del", f"{address}/32", "dev", "eth0"], check=True, timeout=10)
    assert fetch(address, port) == owners
    lost = f"tcp port {port} leads nowhere: {address} is no address of this host"
    assert lost in instance.hutch("plan").stdout


def test_publishing_opens_nothing_to_other_workspaces(network: Network) -> None:
    places = (HOST, HOST_LAN, HOST_EXTRA, network.instance.gateway)
    answers = network.probe([Target(address, address, 8080) for address in places])
    assert set(answers.values()) == {""}


# What happens on the host while workspaces run.


def still_isolated(network: Network) -> None:
    answers = network.probe()
    assert {name for name, answer in answers.items() if answer} == {target.name for target in REACHED}


def test_a_new_resolver_of_the_host_is_followed(network: Network) -> None:
    world = network.instance.world
    resolve = ("resolvectl", "query", "--cache=no", SECOND_NAME)
    assert network.instance.inside("web", *resolve, check=False).returncode != 0
    world.use_resolver(RESOLVERS[1])
    try:
        assert PUBLIC in network.instance.inside("web", *resolve).stdout
    finally:
        world.use_resolver(RESOLVERS[0])
    assert PUBLIC in network.instance.inside("web", "resolvectl", "query", "--cache=no", PUBLIC_NAME).stdout


def test_killed_resolvers_come_back_with_the_next_up(network: Network) -> None:
    run = str(network.instance.run)
    assert kill_processes(lambda command: "dnsmasq" in command[0] and any(run in word for word in command))
    network.instance.up()
    resolve = ("resolvectl", "query", "--cache=no", PUBLIC_NAME)
    assert PUBLIC in network.instance.inside("web", *resolve).stdout
    still_isolated(network)


def test_a_resolver_at_every_address_of_the_host_leaves_room(network: Network) -> None:
    """As dnsmasq, bind and Pi-hole are set up by many."""
    with socket.create_server(("", 53)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("", 53))
        test_killed_resolvers_come_back_with_the_next_up(network)


# Listens where the host's resolver does, hears a question in its place, and answers each with an address.
IMPOSTOR = """
import contextlib, socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
    udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    udp.bind((sys.argv[1], int(sys.argv[2])))
    print("listens", flush=True)
    while True:
        data, peer = udp.recvfrom(4096)
        end = data.index(b"\\0", 12) + 5
        found = b"\\xc0\\x0c\\0\\1\\0\\1\\0\\0\\0\\x3c\\0\\4" + socket.inet_aton(sys.argv[3])
        print("heard", flush=True)
        with contextlib.suppress(PermissionError):
            udp.sendto(data[:2] + b"\\x81\\x80\\0\\1\\0\\1\\0\\0\\0\\0" + data[12:end] + found, peer)
"""


def test_nobody_answers_in_place_of_the_hosts_resolver(network: Network) -> None:
    """Where any account may take its port, too."""
    ask = ("dig", "+short", "+tries=1", "+time=3", f"@{network.instance.gateway}", PUBLIC_NAME)
    setting = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
    before = setting.read_text()
    impostor = [sys.executable, "-c", IMPOSTOR, uplink_of_host(), str(UPSTREAM_PORT), FAR[0]]
    as_bob = network.instance.world.accounts["bob"].command(*impostor)
    assert subprocess.run(as_bob, capture_output=True, timeout=10).returncode == 1
    setting.write_text("0")
    try:
        with subprocess.Popen(as_bob, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "listens\n"
            answer = network.instance.inside("web", *ask, check=False)
            process.terminate()
            assert "heard\n" in process.stdout.read()
    finally:
        setting.write_text(before)
    assert answer.returncode == 9, answer.stdout  # nobody has answered
    assert network.instance.inside("web", *ask).stdout == f"{PUBLIC}\n"


def test_the_loopback_is_the_hosts_alone_without_the_hosts_rules(network: Network) -> None:
    """A neighbour routes to the workspace's own address. What is published to the network is his to reach there."""
    ip = network.addresses["other"]
    subprocess.run(["nft", "flush", "ruleset"], check=True, timeout=10)
    try:
        codes = {
            port: network.instance.world.inside("lan", "curl", "--silent", "--max-time", "2", f"http://{ip}:{port}/")
            for port in (8080, 8083)
        }
    finally:
        network.instance.up()
    assert (codes[8080].returncode, codes[8083].returncode) == (0, 28)
    assert fetch("127.0.0.1", 8083).startswith("other ")


def test_flushing_the_hosts_firewall_opens_nothing(network: Network) -> None:
    rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, timeout=10, check=True).stdout
    subprocess.run(["nft", "flush", "ruleset"], check=True, timeout=10)
    try:
        answers = network.probe(BLOCKED)
        assert {name for name, answer in answers.items() if answer} == set()
    finally:
        network.instance.up()
    still_isolated(network)
    after = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, timeout=10, check=True).stdout
    assert without_counters(after) == without_counters(rules)


def without_counters(rules: str) -> str:
    return re.sub(r"packets \d+ bytes \d+", "", rules)
