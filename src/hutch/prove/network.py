"""The probes of the network: places that are reached, places that are not, and the rules that stop packets. Pure."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Iterator

from hutch.host.network.firewall import EGRESS_PORT, RESOLVER_PORT, UPSTREAM_PORT
from hutch.prove import frames
from hutch.prove.frames import datagram, mark
from hutch.prove.link import link_probes
from hutch.prove.model import FENCED, FORWARD, HOST_DOOR, INPUT, NOWHERE, Ground, Need, Probe
from hutch.spec.ranges import NEVER, PRIVATE, is_never, is_private

NOT_REACHED = r"timeout|E(HOSTUNREACH|NETUNREACH|ACCES|INVAL|PERM|ADDRNOTAVAIL|NETDOWN|AFNOSUPPORT)"
CLOSED = rf"ECONNREFUSED|{NOT_REACHED}"
UNANSWERED = r"rcode [235]|rcode 0|timeout"
"""A refusal, or no address."""
UNLISTED = "unlisted.hutch-prove.example"
LOOPBACK = "127.0.0.1"
METADATA = "169.254.169.254"
RANGES = {
    "10.0.0.0/8": ("private-10", "10.11.12.13"),
    "172.16.0.0/12": ("private-172", "172.20.1.1"),
    "192.168.0.0/16": ("private-192", "192.168.254.253"),
    "100.64.0.0/10": ("cgnat", "100.100.100.100"),
    "169.254.0.0/16": ("link-local", "169.254.3.4"),
    "192.0.0.0/24": ("protocol-assignments", "192.0.0.170"),
    "198.18.0.0/15": ("benchmark", "198.19.1.1"),
    "240.0.0.0/4": ("reserved", "250.1.2.3"),
    "0.0.0.0/8": ("this-network", "0.1.2.3"),
    "127.0.0.0/8": ("loopback", "127.0.0.1"),
    "224.0.0.0/4": ("multicast", "239.255.255.250"),
}
"""An address of each range that is denied, by the range: a new range needs a line here, or its probe fails."""
DROPPED_BY_ROUTING = ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4")
"""Ranges that the kernel does not route at all, so the rule never sees them."""


def network_probes(ground: Ground) -> list[Probe]:
    """All probes of the network, positive controls first."""
    reached = [*gateway_answers(ground), *leads_out(ground), *opened(ground), *leads_in(ground)]
    probes = [*names(ground), *listed(ground), *ranges(ground), *host(ground), *gateway(ground)]
    return [*reached, *probes, *others(ground), *link_probes(ground)]


def stopped_by(ground: Ground, ip: str, *, tcp: bool = False) -> str | None:
    """The rule that drops packets to an address; "" where the kernel's routing does, None where they arrive."""
    policy, address = ground.policy, ipaddress.ip_address(ip)
    if any(address in ipaddress.ip_network(range_) for range_ in DROPPED_BY_ROUTING):
        return ""
    if is_never(ip):
        return f"{FORWARD}never"
    if ip in (*ground.host_addresses, ground.uplink[0]) or (
        ground.outside and ground.outside.is_known and ip == ground.outside.gate
    ):
        return f"{FORWARD}host"
    if is_private(ip):
        return None if policy.opens(ip) else f"{FORWARD}denied"
    is_listed = any(address in ipaddress.ip_network(reach.network) for reach in policy.networks)
    if not policy.is_watched or policy.learn or is_listed:
        return None
    return f"{FORWARD}not-listed{'-tcp' if tcp else ''}"


def blocked(
    ground: Ground,
    name: str,
    says: str,
    ip: str,
    port: int = 80,
    rule: str | None = None,
    *,
    may_leave: bool = False,
    needs: Need = "router",
) -> Iterator[Probe]:
    """A connection that must fail, and a packet that must be counted; nothing where the policy opens that address."""
    rule = stopped_by(ground, ip) if rule is None else rule
    if rule is not None:
        ask, frame = ("tcp", ip, str(port)), datagram(ground, name, ip, port)
        refused = CLOSED if "not-listed" in rule else NOT_REACHED
        command = f"nc -zw1 {ip} {port}"
        yield Probe(3, name, says, command, ask, refused, frame=frame, rule=rule, may_leave=may_leave, needs=needs)


def unanswered(ground: Ground, name: str, says: str, ip: str, rule: str, *, needs: Need = "router") -> Probe:
    """A ping that must have no answer."""
    content = frames.echo(mark(ground, name))
    ask, frame = ("ping", ip, content.hex()), frames.packet(ground, ip, frames.ICMP, content)
    return Probe(3, name, says, f"ping -c1 {ip}", ask, NOT_REACHED, frame=frame, rule=rule, needs=needs)


# Positive controls, of places that are reached: without them, a probe that reaches nothing says nothing.


def gateway_answers(ground: Ground) -> Iterator[Probe]:
    nobody = "00:00:00:00:00:00"
    question = frames.arp(1, (ground.mac, ground.ip), (nobody, ground.gateway))
    frame = frames.ethernet(frames.EVERYBODY, ground.mac, frames.ARP, question)
    command = f"arping -c1 {ground.gateway}"
    ask = ("arp", frame.hex(), ground.gateway)
    says, want = "the gateway says who it is", f"is at {ground.gateway_mac}"
    yield Probe(3, "gateway-arp", says, command, ask, want, needs="gateway")
    name, says = "gateway-ping", "the gateway answers a ping"
    ask = ("ping", ground.gateway, frames.echo(mark(ground, name)).hex())
    yield Probe(3, name, says, f"ping -c1 {ground.gateway}", ask, "pong", needs="gateway")


def leads_out(ground: Ground) -> Iterator[Probe]:
    policy, (name, _) = ground.policy, ground.target
    if not policy.is_watched or policy.learn or any(domain.covers(name) for domain in policy.domains):
        yield from named(ground)
    if ground.outside and stopped_by(ground, ground.outside.ip) is None:
        ip, beyond = ground.outside.ip, str(ground.outside.port)
        says = "machines beyond the host are reached, and see the host's address only"
        yield Probe(3, "translated", says, f"nc -zw1 {ip} {beyond}", ("tcp", ip, beyond), "open", needs="host")


def opened(ground: Ground) -> Iterator[Probe]:
    """Probes of private networks that the workspace's own file opens: an address of each."""
    policy = ground.policy
    wide = (RANGES["10.0.0.0/8"][1],) if policy.kind == "all" else ()
    for network in (*wide, *(reach.network for reach in policy.networks if is_private(reach.network))):
        addresses = itertools.islice(map(str, ipaddress.ip_network(network)), 8)
        open_ = [ip for ip in addresses if stopped_by(ground, ip) is None and not ip.endswith(".0")]
        for ip in open_[:1]:
            port = next((reach.port for reach in policy.networks if reach.network == network and reach.port), 9)
            frame = datagram(ground, f"opened-{ip}", ip, port)
            says = f"the private {network}, which its file opens, is let through"
            yield Probe(5, f"opened-{ip}", says, f"nping --udp {ip}", frame=frame, must_leave=True)


def leads_in(ground: Ground) -> Iterator[Probe]:
    for port in sorted({item.guest_port for item in ground.published}):
        says, command = "the workspace listens at a published port", f"nc -l {port}"
        want = "listening" if ground.is_ours else "listening|EADDRINUSE"
        yield Probe(3, f"listen-{port}", says, command, ("serve", str(port)), want, needs="ports")
    asking_router = f"ip netns exec {ground.table} nc -zuw1 {ground.gateway} {RESOLVER_PORT}"
    for name, says, command in (
        ("host-ssh", "the host reaches sshd in the workspace", f"ssh-keyscan {ground.ip}"),
        ("host-to-workspace-ping", "the host's ping is answered", f"ping -c1 {ground.ip}"),
        ("host-to-gateway-ping", "the router answers the host's ping", f"ping -c1 {ground.uplink[1]}"),
        ("router-to-itself", "programs in the router reach each other", asking_router),
        ("host-listener", "the host itself reaches ports closed to workspaces", f"nc -zw1 HOST {ground.host_port}"),
    ):
        yield Probe(3, name, says, command, needs="host")
    if ground.published:
        says = "published ports answer the host"
        yield Probe(3, "published-here", says, "nc -z 127.0.0.1 PORT", needs="ports")
        if ground.outside and any(item.host_ip != LOOPBACK for item in ground.published):
            says = "ports published to the network answer there"
            yield Probe(3, "published-outside", says, "from another machine: nc -z HOST PORT", needs="ports")
        if ground.outside:
            says = "the host's traffic to others at such a port is theirs"
            yield Probe(3, "published-elsewhere", says, f"nc -z {ground.outside.ip} PORT", needs="ports")


def named(ground: Ground) -> Iterator[Probe]:
    """Probes of a public server, by its name."""
    name, port = ground.target
    asked, gateway = frames.question(name).hex(), ground.gateway
    resolved = r"rcode 0 .*\d+\.\d+\.\d+\.\d+.*"
    says = "the gateway resolves a public name"
    yield Probe(3, "dns-udp", says, f"dig @{gateway} {name}", ("udp", gateway, "53", asked), resolved)
    command = f"dig +tcp @{gateway} {name}"
    if ground.resolves_by_tcp:
        yield Probe(3, "dns-tcp", "by TCP too", command, ("dns_tcp", gateway, asked), resolved, needs="gateway")
    else:
        says = "by TCP too: the host's own resolver does not answer that"
        yield Probe(3, "dns-tcp", says, command, needs="gateway")
    says = "a public server is reached by its name"
    yield Probe(3, "internet", says, f"nc -zw1 {name} {port}", ("reach", gateway, asked, str(port)), "open")


def listed(ground: Ground) -> Iterator[Probe]:
    """Probes of places that a workspace with a list does not reach."""
    if stopped_by(ground, NOWHERE) is None:
        return
    gateway, public = ground.gateway, ground.target[0]
    says, ask = "a name that is not listed is refused at once", asks(gateway, UNLISTED)
    yield Probe(5, "unlisted-name", says, f"dig @{gateway} {UNLISTED}", ask, "rcode 5")
    says, ask = "and no question leaves by another type of record", asks(gateway, public, 252)
    yield Probe(5, "unlisted-type", says, f"dig @{gateway} -t AXFR {public}", ask, "rcode [1-5]")
    name, says = "unlisted-tcp", "an address that no listed name has is refused"
    ask, frame, rule = ("tcp", NOWHERE, "80"), frames.segment(ground, name, NOWHERE), f"{FORWARD}not-listed-tcp"
    yield Probe(5, name, says, f"nc -zw1 {NOWHERE} 80", ask, CLOSED, frame=frame, rule=rule)
    says, frame = "by whatever protocol", datagram(ground, "unlisted-udp", NOWHERE)
    yield Probe(5, "unlisted-udp", says, f"nping --udp {NOWHERE}", frame=frame, rule=f"{FORWARD}not-listed")


def asks(resolver: str, name: str, kind: int = 1) -> tuple[str, ...]:
    """The words for a question to a resolver."""
    return ("udp", resolver, "53", frames.question(name, kind).hex())


def names(ground: Ground) -> Iterator[Probe]:
    """Probes of names that the resolver must not tell."""
    gateway = ground.gateway
    for name, says, question in (
        ("dns-host-name", "the host's own name is not told", ground.hostname.partition(".")[0]),
        ("dns-localhost", "nor the host's names for localhost", "ip6-localhost"),
        ("dns-other-name", "the names of workspaces are not told", f"workspace-{ground.other[0]}"),
        ("dns-own-name", "not even its own", f"workspace-{ground.workspace}"),
    ):
        command, ask = f"dig @{gateway} {question}", asks(gateway, question)
        yield Probe(3, name, says, command, ask, UNANSWERED, needs="resolver")
    for name, says, ip in (
        ("dns-other-address", "nor whose a workspace's address is", ground.other[1]),
        ("dns-host-address", "nor whose the host's private address is", ground.uplink[0]),
    ):
        pointer = ipaddress.ip_address(ip).reverse_pointer
        command, ask = f"dig @{gateway} -t PTR {pointer}", asks(gateway, pointer, 12)
        yield Probe(3, name, says, command, ask, UNANSWERED, needs="resolver")


def ranges(ground: Ground) -> Iterator[Probe]:
    """Probes of all ranges that are not public."""
    for range_ in (*NEVER, *PRIVATE):
        name, ip = RANGES.get(range_, (range_, str(ipaddress.ip_network(range_)[1])))
        rule = stopped_by(ground, ip)
        if rule is not None:
            frame = datagram(ground, name, ip)
            yield Probe(3, name, f"nothing gets to {range_}", f"nping --udp {ip}", frame=frame, rule=rule)
    yield from blocked(ground, "metadata", "the cloud's metadata service is out of reach", METADATA)
    for number, ip in enumerate(ground.resolvers, 1):
        if is_private(ip):
            yield from blocked(ground, f"resolver-{number}", "the host's own resolver is asked by hutch only", ip, 53)


def host(ground: Ground) -> Iterator[Probe]:
    """Probes of every address of the host's."""
    for ip in ground.host_addresses:
        says = f"the host's {ip} is out of reach"
        first, *others = [port for address, port in ground.host_listeners if address == ip]
        yield from blocked(ground, f"host-{ip}", says, ip, first)
        for port in others:
            yield from blocked(ground, f"host-{ip}-{port}", says, ip, port)
        yield from blocked(ground, f"host-ssh-{ip}", "its sshd too", ip, 22)
    here, there = ground.uplink
    yield unanswered(ground, "host-ping", "the host does not answer a ping", here, f"{FORWARD}host", needs="host")
    for name, says, ip, port, rule in (
        ("uplink-host", "nor the host's end of the uplink", here, ground.host_port, None),
        ("uplink-resolver", "nor the resolver there", here, UPSTREAM_PORT, None),
        ("uplink-router", "the router's other address answers nobody", there, 53, INPUT),
    ):
        yield from blocked(ground, name, says, ip, port, rule, needs="host")
    if ground.outside:
        gate, known = ground.outside.gate, ground.outside.is_known
        says = "nor a public address of the host's" if known else "nor one that it took after the rules were loaded"
        rule = stopped_by(ground, gate)
        barrier = rule is None
        rule = f"{HOST_DOOR}host" if barrier else rule
        name, port = "new-host-address", ground.host_port
        yield from blocked(ground, name, says, gate, port, rule, may_leave=barrier, needs="host")


def gateway(ground: Ground) -> Iterator[Probe]:
    """Probes of the gateway, which answers questions about names, and a few pings."""
    for port in dict.fromkeys((22, 111, ground.host_port, *(port for _, port in ground.host_listeners))):
        yield from blocked(
            ground, f"gateway-{port}", f"the gateway's port {port} is closed", ground.gateway, port, INPUT
        )
    for port in (EGRESS_PORT, RESOLVER_PORT):
        name, says = f"resolver-port-{port}", "who answers questions is asked by way of the gateway only"
        frame, command = datagram(ground, name, ground.gateway, port), f"nping --udp -p {port} {ground.gateway}"
        yield Probe(3, name, says, command, frame=frame, rule="router inet door/behind-the-door")
    says, command = "the gateway hands out no addresses", f"nping --udp -p 67 {ground.gateway}"
    frame = datagram(ground, "gateway-dhcp", ground.gateway, 67)
    yield Probe(3, "gateway-dhcp", says, command, frame=frame, rule=INPUT)
    name, says = "gateway-ping-flood", "of a flood of pings, most are dropped"
    frame = frames.packet(ground, ground.gateway, frames.ICMP, frames.echo(mark(ground, name)))
    yield Probe(3, name, says, f"ping -f -c60 {ground.gateway}", frame=frame, rule=INPUT, copies=60, least=20)
    group, says = "01:80:c2:00:00:03", "a frame for the bridge itself goes by no other way"
    frame = datagram(ground, "group-address", ground.gateway, 53, to=group)
    yield Probe(3, "group-address", says, f"a frame to {group}", frame=frame, rule=INPUT)


def others(ground: Ground) -> Iterator[Probe]:
    """Probes of other workspaces, and of the place that is kept for image builds."""
    name, ip = ground.other
    yield from blocked(ground, "other-ssh", f"the workspace {name} is out of reach", ip, 22, FENCED)
    yield from blocked(ground, "other-port", "any port of it", ip, 8080, FENCED)
    yield unanswered(ground, "other-ping", "it does not answer a ping", ip, FENCED)
    yield from blocked(ground, "builder", "nor are image builds", ground.builder, 22, FENCED)
