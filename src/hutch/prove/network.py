"""The probes of the network: what is reached, what is not, and which rule is to have stopped it. Pure."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Iterator

from hutch.host.network.firewall import RESOLVER_PORT, WARDEN_PORT
from hutch.prove import frames
from hutch.prove.link import link_probes
from hutch.prove.model import Ground, Probe
from hutch.prove.packets import FENCED, FORWARD, HOST_DOOR, INPUT, NOWHERE, datagram, mark
from hutch.spec.ranges import NEVER, PRIVATE, is_never, is_private

NOT_REACHED = r"timeout|E(HOSTUNREACH|NETUNREACH|ACCES|INVAL|PERM|ADDRNOTAVAIL|NETDOWN|AFNOSUPPORT)"
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
"""The kernel does not route these at all, so the rule never sees them."""


def network_probes(ground: Ground) -> list[Probe]:
    """All of them, positive controls first."""
    probes = [*reached(ground), *names(ground), *listed(ground), *ranges(ground), *host(ground), *gateway(ground)]
    return [*probes, *others(ground), *link_probes(ground)]


def stopped_by(ground: Ground, ip: str, *, tcp: bool = False) -> str | None:
    """The rule that drops what goes to an address; "" where the kernel's routing does, None for what is reached."""
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
    if not policy.is_watched or policy.learn or lists(ground, ip):
        return None
    return f"{FORWARD}not-listed{'-tcp' if tcp else ''}"


def lists(ground: Ground, ip: str) -> bool:
    """Whether the workspace's file lists a network with this address."""
    address = ipaddress.ip_address(ip)
    return any(address in ipaddress.ip_network(reach.network) for reach in ground.policy.networks)


def blocked(
    ground: Ground, name: str, says: str, ip: str, port: int = 80, rule: str | None = None, *, may_leave: bool = False
) -> Iterator[Probe]:
    """A connection that must fail, and a packet that must be counted; nothing where the policy opens that address."""
    rule = stopped_by(ground, ip) if rule is None else rule
    if rule is not None:
        ask, frame = ("tcp", ip, str(port)), datagram(ground, name, ip, port)
        refused = rf"ECONNREFUSED|{NOT_REACHED}" if "not-listed" in rule else NOT_REACHED
        command = f"nc -zw1 {ip} {port}"
        yield Probe(3, name, says, command, ask, refused, frame=frame, rule=rule, may_leave=may_leave)


# What is reached.


def reached(ground: Ground) -> Iterator[Probe]:
    """The positive controls: without them, a probe that reaches nothing says nothing."""
    yield from gateway_answers(ground)
    yield from leads_out(ground)
    yield from opened(ground)
    yield from leads_in(ground)


def gateway_answers(ground: Ground) -> Iterator[Probe]:
    nobody = "00:00:00:00:00:00"
    question = frames.arp(1, (ground.mac, ground.ip), (nobody, ground.gateway))
    frame = frames.ethernet(frames.EVERYBODY, ground.mac, frames.ARP, question)
    command = f"arping -c1 {ground.gateway}"
    ask = ("arp", frame.hex(), ground.gateway)
    yield Probe(3, "gateway-arp", "the gateway says who it is", command, ask, f"is at {ground.gateway_mac}")
    name, says = "gateway-ping", "the gateway answers a ping"
    ask = ("ping", ground.gateway, frames.echo(mark(ground, name)).hex())
    yield Probe(3, name, says, f"ping -c1 {ground.gateway}", ask, "pong")


def leads_out(ground: Ground) -> Iterator[Probe]:
    policy, (name, _) = ground.policy, ground.target
    if not policy.is_watched or policy.learn or any(domain.covers(name) for domain in policy.domains):
        yield from named(ground)
    if ground.outside and stopped_by(ground, ground.outside.ip) is None:
        ip, beyond = ground.outside.ip, str(ground.outside.port)
        says = "what is beyond the host is reached, and sees the host's address only"
        yield Probe(3, "translated", says, f"nc -zw1 {ip} {beyond}", ("tcp", ip, beyond), "open")


def opened(ground: Ground) -> Iterator[Probe]:
    """Private networks that the workspace's own file opens: an address of each."""
    policy = ground.policy
    wide = (RANGES["10.0.0.0/8"][1],) if policy.kind == "all" else ()
    for network in (*wide, *(reach.network for reach in policy.networks if is_private(reach.network))):
        addresses = itertools.islice(map(str, ipaddress.ip_network(network)), 8)
        open_ = [ip for ip in addresses if stopped_by(ground, ip) is None and not ip.endswith(".0")]
        for ip in open_[:1]:
            frame = datagram(ground, f"opened-{ip}", ip, ports_to(ground, network))
            says = f"the private {network}, which its file opens, is let through"
            yield Probe(5, f"opened-{ip}", says, f"nping --udp {ip}", frame=frame, must_leave=True)


def leads_in(ground: Ground) -> Iterator[Probe]:
    for port in sorted({item.guest_port for item in ground.published}):
        says, command = "the workspace listens at a published port", f"nc -l {port}"
        want = "listening" if ground.is_ours else "listening|EADDRINUSE"
        yield Probe(3, f"listen-{port}", says, command, ("serve", str(port)), want)
    yield Probe(3, "host-ssh", "the host reaches sshd in the workspace", f"ssh-keyscan {ground.ip}")
    yield Probe(3, "host-to-workspace-ping", "the host's ping is answered", f"ping -c1 {ground.ip}")
    yield Probe(3, "host-to-gateway-ping", "the router answers the host's ping", f"ping -c1 {ground.uplink[1]}")
    yield Probe(
        3,
        "router-to-itself",
        "programs in the router reach each other",
        f"ip netns exec {ground.table} nc -zuw1 {ground.gateway} {RESOLVER_PORT}",
    )
    yield Probe(
        3, "host-listener", "the host itself reaches what the workspace must not", f"nc -zw1 HOST {ground.host_port}"
    )
    if ground.published:
        yield Probe(3, "published-here", "what is published answers the host", "nc -z 127.0.0.1 PORT")
        if ground.outside and any(item.host_ip != LOOPBACK for item in ground.published):
            says = "what is published to the network answers there"
            yield Probe(3, "published-outside", says, "from another machine: nc -z HOST PORT")


def named(ground: Ground) -> Iterator[Probe]:
    """A public server, by its name."""
    name, port = ground.target
    asked, gateway = frames.question(name).hex(), ground.gateway
    resolved = r"rcode 0 .*\d+\.\d+\.\d+\.\d+.*"
    says = "the gateway resolves a public name"
    yield Probe(3, "dns-udp", says, f"dig @{gateway} {name}", ("udp", gateway, "53", asked), resolved)
    yield Probe(3, "dns-tcp", "by TCP too", f"dig +tcp @{gateway} {name}", ("dns_tcp", gateway, asked), resolved)
    says = "a public server is reached by its name"
    yield Probe(3, "internet", says, f"nc -zw1 {name} {port}", ("reach", gateway, asked, str(port)), "open")


def ports_to(ground: Ground, network: str) -> int:
    """A port at which a listed network is open."""
    return next((reach.port for reach in ground.policy.networks if reach.network == network and reach.port), 9)


def listed(ground: Ground) -> Iterator[Probe]:
    """What a workspace with a list does not reach."""
    if stopped_by(ground, NOWHERE) is None:
        return
    name, asked = UNLISTED, frames.question(UNLISTED).hex()
    says = "a name that is not listed is refused at once"
    yield Probe(
        5, "unlisted-name", says, f"dig @{ground.gateway} {name}", ("udp", ground.gateway, "53", asked), "rcode 5"
    )
    says = "and no question leaves by another type of record"
    command = f"dig @{ground.gateway} -t AXFR {ground.target[0]}"
    asked = frames.question(ground.target[0], 252).hex()
    yield Probe(5, "unlisted-type", says, command, ("udp", ground.gateway, "53", asked), "rcode [1-5]")
    segment = frames.tcp(ground.ip, NOWHERE, (40000, 80), frames.SYN, mark(ground, "unlisted-tcp"))
    yield Probe(
        5,
        "unlisted-tcp",
        "an address that no listed name has is refused",
        f"nc -zw1 {NOWHERE} 80",
        ("tcp", NOWHERE, "80"),
        rf"ECONNREFUSED|{NOT_REACHED}",
        frame=frames.ethernet(
            ground.gateway_mac, ground.mac, frames.IPV4, frames.ipv4(ground.ip, NOWHERE, frames.TCP, segment)
        ),
        rule=f"{FORWARD}not-listed-tcp",
    )
    says, frame = "by whatever protocol", datagram(ground, "unlisted-udp", NOWHERE)
    yield Probe(5, "unlisted-udp", says, f"nping --udp {NOWHERE}", frame=frame, rule=f"{FORWARD}not-listed")


def names(ground: Ground) -> Iterator[Probe]:
    """What the resolver must not tell."""

    def asks(name: str, says: str, question: str, kind: int = 1, want: str = UNANSWERED) -> Probe:
        word = "-t PTR " if kind == 12 else ""
        return Probe(
            3,
            name,
            says,
            f"dig @{ground.gateway} {word}{question}",
            ("udp", ground.gateway, "53", frames.question(question, kind).hex()),
            want,
        )

    yield asks("dns-host-name", "the host's own name is not told", ground.hostname.partition(".")[0])
    yield asks("dns-localhost", "nor what the host calls localhost", "ip6-localhost")
    yield asks("dns-other-name", "the names of workspaces are not told", f"workspace-{ground.other[0]}")
    yield asks("dns-own-name", "not even its own", f"workspace-{ground.workspace}")
    reverse = ipaddress.ip_address(ground.other[1]).reverse_pointer
    yield asks("dns-other-address", "nor whose a workspace's address is", reverse, 12)
    reverse = ipaddress.ip_address(ground.uplink[0]).reverse_pointer
    yield asks("dns-host-address", "nor whose the host's private address is", reverse, 12)


def ranges(ground: Ground) -> Iterator[Probe]:
    """Everything that is not a public address."""
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
    """Every address of the host's."""
    for ip in ground.host_addresses:
        says = f"the host's {ip} is out of reach"
        yield from blocked(ground, f"host-{ip}", says, ip, ground.host_port)
        yield from blocked(ground, f"host-ssh-{ip}", "its sshd too", ip, 22)
    here, there = ground.uplink
    probe = frames.echo(mark(ground, "host-ping"))
    content = frames.ipv4(ground.ip, here, frames.ICMP, probe)
    yield Probe(
        3,
        "host-ping",
        "the host does not answer a ping",
        f"ping -c1 {here}",
        ("ping", here, probe.hex()),
        NOT_REACHED,
        frame=frames.ethernet(ground.gateway_mac, ground.mac, frames.IPV4, content),
        rule=f"{FORWARD}host",
    )
    yield from blocked(ground, "uplink-host", "nor the host's end of the uplink", here, ground.host_port)
    yield from blocked(ground, "uplink-resolver", "nor the resolver there", here, 53)
    yield from blocked(ground, "uplink-router", "the router's other address answers nobody", there, 53, INPUT)
    if ground.outside:
        gate, known = ground.outside.gate, ground.outside.is_known
        says = "nor a public address of the host's" if known else "nor one that it took after the rules were loaded"
        rule = stopped_by(ground, gate)
        barrier = rule is None
        rule = f"{HOST_DOOR}host" if barrier else rule
        yield from blocked(ground, "new-host-address", says, gate, ground.host_port, rule, may_leave=barrier)


def gateway(ground: Ground) -> Iterator[Probe]:
    """The gateway answers questions about names, and a few pings."""
    for port in (22, 111, ground.host_port):
        yield from blocked(
            ground, f"gateway-{port}", f"the gateway's port {port} is closed", ground.gateway, port, INPUT
        )
    for port in (WARDEN_PORT, RESOLVER_PORT):
        name, says = f"resolver-port-{port}", "who answers questions is asked by way of the gateway only"
        frame, command = datagram(ground, name, ground.gateway, port), f"nping --udp -p {port} {ground.gateway}"
        yield Probe(3, name, says, command, frame=frame, rule="router inet door/behind-the-door")
    yield Probe(
        3,
        "gateway-dhcp",
        "the gateway hands out no addresses",
        f"nping --udp -p 67 {ground.gateway}",
        frame=datagram(ground, "gateway-dhcp", ground.gateway, 67),
        rule=INPUT,
    )
    flood = frames.ipv4(ground.ip, ground.gateway, frames.ICMP, frames.echo(mark(ground, "gateway-ping-flood")))
    yield Probe(
        3,
        "gateway-ping-flood",
        "of a flood of pings, most are dropped",
        f"ping -f -c60 {ground.gateway}",
        frame=frames.ethernet(ground.gateway_mac, ground.mac, frames.IPV4, flood),
        rule=INPUT,
        copies=60,
        least=20,
    )
    yield Probe(
        3,
        "group-address",
        "a frame for the bridge itself goes by no other way",
        "a frame to 01:80:c2:00:00:03",
        frame=datagram(ground, "group-address", ground.gateway, 53, to="01:80:c2:00:00:03"),
        rule=INPUT,
    )


def others(ground: Ground) -> Iterator[Probe]:
    """Other workspaces, and the place that is kept for image builds."""
    name, ip = ground.other
    yield from blocked(ground, "other-ssh", f"the workspace {name} is out of reach", ip, 22, FENCED)
    yield from blocked(ground, "other-port", "any port of it", ip, 8080, FENCED)
    probe = frames.echo(mark(ground, "other-ping"))
    yield Probe(
        3,
        "other-ping",
        "it does not answer a ping",
        f"ping -c1 {ip}",
        ("ping", ip, probe.hex()),
        NOT_REACHED,
        frame=frames.ethernet(
            ground.gateway_mac, ground.mac, frames.IPV4, frames.ipv4(ground.ip, ip, frames.ICMP, probe)
        ),
    )
    yield from blocked(ground, "builder", "nor are image builds", ground.builder, 22, FENCED)
