"""The ground of the probes: a place beyond the host and two ports on the bridge, hutch's own and there for the time of
a run; and the sockets by which the host sends and sees.

All of it hangs on one network namespace and goes with it, so a killed run leaves one thing with our name.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from hutch.errors import HutchError
from hutch.files import kept_open
from hutch.frozen import dataclass
from hutch.host.network import router, ruleset
from hutch.host.network.namespace import RULES, inside
from hutch.libc import call
from hutch.prove.model import Outside
from hutch.run import run
from hutch.spec import names
from hutch.spec.model import Network
from hutch.spec.names import Layout

DOCUMENTATION = tuple(map(ipaddress.IPv4Network, ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")))
"""Networks that are public by the rules, and nobody's: the place beyond the host gets an address of these."""
BEYOND, ALONE, PLAIN = "out0", "alone", "plain"
"""Interfaces in the namespace of the run."""
ON_BRIDGE = {ALONE: "pv-alone", PLAIN: "pv-plain"}
"""The other ends of these, on the bridge: isolated as all are, and not isolated."""
HIGHEST = {ALONE: "fe:ff:ff:ff:ff:f1", PLAIN: "fe:ff:ff:ff:ff:f2"}
"""The MACs of these: a bridge that was made without one of its own takes the lowest of its ports'."""
ALL_PROTOCOLS, PACKET_OUTGOING = 3, 4
AT_PORT = "at the workspace's port"
NOBODYS = 0x6875_7463
CLONE_NEWNET = 0x4000_0000
BUFFER = 4 << 20


@contextmanager
def only_one(layout: Layout) -> Iterator[None]:
    """A lock for one run at a time of one hutch: a name that the kernel gives back when we end, however that is."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mutex:
        try:
            mutex.bind(f"\0{layout.proof_namespace}")
        except OSError:
            raise HutchError("another `hutch prove` is running", resolution="wait for it to end") from None
        yield


@contextmanager
def in_namespace(path: Path | None) -> Iterator[None]:
    """Have this thread in another network namespace: sockets that are made meanwhile belong there. None is its own."""
    if path is None:
        yield
        return
    flags = os.O_RDONLY | os.O_CLOEXEC
    with kept_open(os.open("/proc/thread-self/ns/net", flags)) as own, kept_open(os.open(path, flags)) as there:
        call("setns", there, CLONE_NEWNET)
        try:
            yield
        finally:
            call("setns", own, CLONE_NEWNET)


# The place beyond the host.


def namespace_path(layout: Layout) -> Path:
    return Path("/run/netns") / layout.proof_namespace


def remove_ground(layout: Layout) -> None:
    """Remove the things that a run made, or one that was killed. Interfaces go first: the kernel takes its time with a
    namespace. One with our name and without our tag is not ours."""
    for namespace, interface in (
        ("", layout.proof_interface),
        *((layout.namespace, end) for end in ON_BRIDGE.values()),
    ):
        if link_of(namespace, interface, check=False).get("ifalias") == router.tag(layout):
            run([*ip_in(namespace), "link", "delete", interface], check=False)
    if namespace_path(layout).exists():
        with suppress(HutchError):  # a file that a crash left and that is no namespace
            run(["ip", "netns", "delete", layout.proof_namespace])
        namespace_path(layout).unlink(missing_ok=True)


def ip_in(namespace: str) -> list[str]:
    """The beginning of a command of `ip` in a namespace, "" for the host's own."""
    return ["ip", "-n", namespace] if namespace else ["ip"]


def link_of(namespace: str, interface: str, *, check: bool = True) -> dict[str, Any]:
    """An interface as `ip` shows it; without `check`, {} where there is none."""
    found = run([*ip_in(namespace), "-j", "link", "show", "dev", interface], check=check)
    return dict(json.loads(found.stdout)[0]) if found.returncode == 0 else {}


def choose_outside(network: Network, host: router.HostNetwork) -> tuple[str, str] | None:
    """(gate, address beyond it) in a /30 that the host has no other use for."""
    used = list(router.networks_of(host).values())
    used += [ipaddress.IPv4Network(address) for address in host.addresses()]
    for range_ in DOCUMENTATION:
        for candidate in range_.subnets(new_prefix=30):
            if not any(candidate.overlaps(other) for other in used):
                gate, beyond = map(str, candidate.hosts())
                return gate, beyond
    return None


@contextmanager
def start_outside(layout: Layout, network: Network) -> Iterator[tuple[str, str] | None]:
    """Make the namespace, and the way from the host into it, where an address is free for that."""
    remove_ground(layout)
    run(["ip", "netns", "add", layout.proof_namespace])
    try:
        found = choose_outside(network, router.observe_host())
        if found is not None:
            gate, beyond = found
            ours = layout.proof_interface
            run(
                ["ip", "-batch", "-"],
                stdin=f"link add {ours} type veth peer name {BEYOND} netns {layout.proof_namespace}\n"
                f'link set {ours} alias "{router.tag(layout)}"\nlink set {ours} addrgenmode none\n'
                f"addr add {gate}/30 dev {ours}\nlink set {ours} up\n",
            )
            run(
                ["ip", "-n", layout.proof_namespace, "-batch", "-"],
                stdin=f"link set lo up\nlink set {BEYOND} addrgenmode none\naddr add {beyond}/30 dev {BEYOND}\n"
                f"link set {BEYOND} up\nroute add default via {gate}\n",
            )
        yield found
    finally:
        remove_ground(layout)


def make_decoys(layout: Layout, network: Network) -> None:
    """Make the two ports. They are bound to nothing, so nothing can be sent from them."""
    for inner, outer in ON_BRIDGE.items():
        isolated = "on" if inner == ALONE else "off"
        run(
            ["ip", "-n", layout.namespace, "-batch", "-"],
            stdin=f"link add {outer} address {HIGHEST[inner]} "
            f"type veth peer name {inner} netns {layout.proof_namespace}\n"
            f'link set {outer} alias "{router.tag(layout)}"\nlink set {outer} addrgenmode none\n'
            f"link set {outer} master {network.bridge}\n"
            f"link set {outer} type bridge_slave isolated {isolated} learning off flood off mcast_flood off\n"
            f"link set {outer} up\n",
        )
        run(
            ["ip", "-n", layout.proof_namespace, "-batch", "-"],
            stdin=f"link set {inner} addrgenmode none\nlink set {inner} up\n",
        )
        mac = mac_of(layout.proof_namespace, inner)
        run(["bridge", "-n", layout.namespace, "fdb", "replace", mac, "dev", outer, "master", "static"])


def mac_of(namespace: str, interface: str) -> str:
    return str(link_of(namespace, interface)["address"])


# Sockets.


@dataclass(frozen=True)
class Eye:
    """A socket that sees the packets which pass an interface, in one direction. `place` is its name for people."""

    place: str
    socket: socket.socket
    outgoing: bool = False

    def drain(self, token: bytes) -> Iterator[str]:
        """The names of the probes whose packets passed since it was last asked."""
        for _ in range(100_000):
            try:
                data, address = self.socket.recvfrom(2048)
            except BlockingIOError:
                return
            if (address[2] == PACKET_OUTGOING) == self.outgoing:
                found = data.partition(token + b":")[2].partition(b";")
                if found[1]:
                    yield found[0].decode("ascii", "replace")


@dataclass(frozen=True)
class Sockets:
    """The sockets by which the host sends, and by which it looks."""

    senders: Mapping[str, socket.socket]
    eyes: tuple[Eye, ...]
    listener: socket.socket
    beyond: socket.socket | None
    vsock: socket.socket | None

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    @property
    def vsock_port(self) -> int:
        """A port at which the host listens by vsock; without vsock here, one at which nobody does inside either."""
        return int(self.vsock.getsockname()[1]) if self.vsock is not None else NOBODYS


def _packet_socket(interface: str, protocol: int) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
    if protocol:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        made.setblocking(False)
    made.bind((interface, protocol))
    return made


@contextmanager
def open_sockets(layout: Layout, port: str, outside: tuple[str, str] | None, *, with_vsock: bool) -> Iterator[Sockets]:
    """All sockets for one workspace, whose port on the bridge is given; of a machine one of vsock as well."""
    there = namespace_path(layout)
    with ExitStack() as undo:

        def packets(namespace: Path | None, interface: str, protocol: int = 0) -> socket.socket:
            with in_namespace(namespace):
                return undo.enter_context(_packet_socket(interface, protocol))

        def listen(namespace: Path | None, address: str) -> socket.socket:
            with in_namespace(namespace):
                made = undo.enter_context(socket.socket())
            made.bind((address, 0))
            made.listen(64)
            made.setblocking(False)
            return made

        senders = {
            "router": packets(layout.namespace_path, layout.uplink_router),
            "host": packets(None, layout.uplink_host),
        }
        eyes = [
            Eye("at the host's end of the uplink", packets(None, layout.uplink_host, ALL_PROTOCOLS)),
            Eye("at another port of the bridge", packets(there, ALONE, ALL_PROTOCOLS)),
            Eye("at a port of the bridge", packets(there, PLAIN, ALL_PROTOCOLS)),
            Eye(AT_PORT, packets(layout.namespace_path, port, ALL_PROTOCOLS), outgoing=True),
        ]
        if outside is not None:
            senders["outside"] = packets(there, BEYOND)
            eyes.append(Eye("beyond the host", packets(there, BEYOND, ALL_PROTOCOLS)))
        beyond = listen(there, outside[1]) if outside else None
        vsock = undo.enter_context(made) if with_vsock and (made := listen_to_vsock()) is not None else None
        yield Sockets(senders, tuple(eyes), listen(None, "0.0.0.0"), beyond, vsock)


def listen_to_vsock() -> socket.socket | None:
    """A socket that listens to every machine of this host; None where the kernel has no vsock."""
    with ExitStack() as undo, suppress(OSError):
        made = undo.enter_context(socket.socket(socket.AF_VSOCK))
        made.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        made.listen(64)
        undo.pop_all()
        return made
    return None


def outside_of(layout: Layout, found: tuple[str, str] | None, sockets: Sockets) -> Outside | None:
    """The data for probes on the place beyond the host; None where there is no such place."""
    if found is None or sockets.beyond is None:
        return None
    gate_mac, mac = mac_of("", layout.proof_interface), mac_of(layout.proof_namespace, BEYOND)
    listing = run(inside(layout, RULES)).stdout
    known = ruleset.observed_shape(listing, layout.table).get(f"inet {layout.table}/@host", [])
    return Outside(found[0], gate_mac, found[0] in known, found[1], mac, int(sockets.beyond.getsockname()[1]))


def subnet_address(subnet: str, taken: set[str]) -> str:
    """An address of the subnet that nobody has."""
    gateway, builder = names.gateway(subnet), names.builder_address(subnet)
    addresses = (str(address) for address in ipaddress.IPv4Network(subnet).hosts())
    return next((address for address in addresses if address not in {gateway, builder, *taken}), builder)
