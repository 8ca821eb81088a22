"""The model: a probe, the ground that it runs on, and a result. Pure."""

from __future__ import annotations

from typing import Literal

from hutch.frozen import dataclass
from hutch.spec.entries import Publish
from hutch.spec.policy import Policy

PROMISES = {
    1: "a machine's processes have nothing",
    2: "a container's root is nobody on the host",
    3: "the public Internet, and nothing else",
    4: "no filter, no traffic",
    5: "the egress list of its file, and nothing else",
    6: "files",
    7: "keys",
    11: "limits",
    12: "proof on your own machine",
}
"""The promises, by their numbers in docs/threat-model.md. Those about hutch itself (its file, crashes, residue) are not
a guest's to break, so its tests are what shows them."""

# The rules of the firewall that probes meet.
SPOOFED = "router bridge prerouting/spoofed"
INPUT = "router inet input/input-denied"
FORWARD = "router inet forward/"
HOST_DOOR = "host inet from-router/"
FENCED = ""  # between workspaces nothing is routed, which the kernel counts nowhere
NOWHERE = "192.0.2.77"
"""An address that is public by the rules and nobody's, for packets that are never to get that far."""

Verdict = Literal["held", "broken", "unknown"]
Via = Literal["guest", "router", "host", "outside"]
Need = Literal[
    "", "router", "rules", "gateway", "resolver", "host", "ports", "processes", "filter", "files", "limits", "key"
]
"""A thing of hutch's, or of this host's, without which an answer from inside, or this host's ssh, does not decide about
a probe: lacking says what becomes of it where a server runs the workspace."""


@dataclass(frozen=True)
class Probe:
    """A trial, or a look at a fact.

    `ask` is what inside.pl is told, and `want` a regular expression that its whole answer must match. `frame` is sent
    `copies` times from `via`; `rule` must count them all: "router bridge prerouting/spoofed". One without a rule is
    dropped by the kernel or the bridge, which count nothing. Neither kind may be seen where it must not come out. A
    probe with neither is a fact, found out by the host itself.
    """

    promise: int
    name: str
    says: str
    command: str
    ask: tuple[str, ...] = ()
    want: str = ""
    frame: bytes = b""
    via: Via = "guest"
    rule: str = ""
    copies: int = 3
    least: int = 0
    """The least number of packets that the rule must count, where that is not all."""
    may_leave: bool = False
    """Whether the packet may leave the router: it is stopped on the host."""
    must_leave: bool = False
    """Whether the packet is not to be stopped at all."""
    stands: bool = False
    """Whether the probe only looks if the rule is loaded: no packet gets to it while the one before it stands."""
    needs: Need = ""
    """What it is judged by, beside answers from inside; packets and rules need the router without saying so."""


@dataclass(frozen=True)
class Fact:
    """A finding of the host's own."""

    verdict: Verdict
    detail: str = ""


@dataclass(frozen=True)
class ProbeResult:
    """The result of a probe."""

    workspace: str
    type: str
    promise: int
    probe: str
    says: str
    command: str
    result: Verdict
    detail: str

    def as_json(self) -> dict[str, str]:
        """One entry of `hutch prove --json`."""
        shown = {key: value for key, value in self.__dict__.items() if key != "promise"}
        return {**shown, "promise": f"{self.promise}: {PROMISES[self.promise]}"}


@dataclass(frozen=True)
class Outside:
    """A place beyond the host, which stands for the Internet and for a neighbour: hutch's own, for the time of a run.
    `gate` is the host's address there."""

    gate: str
    gate_mac: str
    is_known: bool
    """Whether the router knows that address as the host's: it was there when its rules were loaded."""
    ip: str
    mac: str
    port: int


@dataclass(frozen=True)
class Ground:
    """The data from which the probes of one workspace are made."""

    workspace: str
    type: str
    is_machine: bool
    ip: str
    mac: str
    user: str
    uid: int
    token: str
    """A mark in every packet that is sent, so that it is known again."""
    table: str
    bridge: str
    gateway: str
    gateway_mac: str
    uplink: tuple[str, str]
    """(the host's end, the router's end)"""
    uplink_macs: tuple[str, str]
    host_listeners: tuple[tuple[str, int], ...]
    """(address, port) of each address of the host's, or of all that a server says it listens at."""
    host_port: int
    """A port on which the host listens at all of its addresses, for the time of the run."""
    resolvers: tuple[str, ...]
    resolves_by_tcp: bool
    """Whether one of the host's own resolvers answers by TCP; where none does, nobody behind them can."""
    hostname: str
    state: str
    marker: str
    """hutch's state directory, and a file of the host's that is there for the time of the run."""
    target: tuple[str, int]
    """A public name and port, as a positive control."""
    other: tuple[str, str]
    """(name, address) of another workspace, or of one that could be."""
    builder: str
    alone: str
    plain: str
    """The addresses of two ports of hutch's own on the bridge: one isolated as all are, one not."""
    outside: Outside | None = None
    published: tuple[Publish, ...] = ()
    """The ports that are published by TCP; the probe listens there."""
    is_ours: bool = False
    """Whether the workspace is there for the probes alone, so that nothing else can be at these ports."""
    policy: Policy = Policy()
    nesting: bool = False
    vsock: bool = False
    """Whether a machine has a device of vsock, as its file asks for."""
    vsock_port: int = 22
    """A port on which the host listens by vsock, if it has any, for the time of the run."""
    machine: str = "x86_64"
    boot_id: str = ""
    """The host's boot id, from /proc/sys/kernel/random/boot_id."""

    @property
    def host_addresses(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(address for address, _ in self.host_listeners))
