"""The probes below and around a workspace's addresses: forged senders, ports of the bridge that see each other, packets
from elsewhere. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from hutch.host.network.firewall import UPSTREAM_PORT
from hutch.prove import frames
from hutch.prove.frames import datagram, mark
from hutch.prove.model import FORWARD, HOST_DOOR, NOWHERE, SPOOFED, Ground, Probe


def link_probes(ground: Ground) -> list[Probe]:
    """All probes of the link."""
    probes = [*other_ports(ground), *identities(ground), *ipv6(ground)]
    return [*probes, *second_barrier(ground), *from_outside(ground)]


def other_ports(ground: Ground) -> Iterator[Probe]:
    """Probes from port to port of the bridge, past the gateway. ARP, because packets of IPv4 would be for another rule
    where the kernel shows those to the firewall on bridges too (br_netfilter, which Docker loads)."""
    bridge = "router bridge forward/between-workspaces"

    def asks(name: str, to: str) -> bytes:
        content = frames.arp(1, (ground.mac, ground.ip), ("00:00:00:00:00:00", ground.other[1]))
        return frames.ethernet(to, ground.mac, frames.ARP, content + mark(ground, name))

    says, command = "ports of the bridge are isolated from each other", f"a frame to {ground.alone}"
    yield Probe(3, "port-to-port", says, command, frame=asks("port-to-port", ground.alone))
    says = "the bridge is told so of its port"
    yield Probe(3, "port-isolated", says, f"ip -n {ground.table} -d link", needs="router")
    says = "packets from workspaces are routed to the way out and nowhere else"
    yield Probe(3, "fence", says, f"ip -n {ground.table} rule", needs="router")
    says = "its address is pinned to its MAC"
    yield Probe(3, "port-address", says, f"ip -n {ground.table} neighbour", needs="router")
    says, command = "a port that is not isolated gets nothing either", f"a frame to {ground.plain}"
    yield Probe(3, "port-to-open-port", says, command, frame=asks("port-to-open-port", ground.plain), rule=bridge)
    says, command = "broadcasts reach no other workspace", f"arping {ground.other[1]}"
    yield Probe(3, "broadcast", says, command, frame=asks("broadcast", frames.EVERYBODY), rule=bridge)


def identities(ground: Ground) -> Iterator[Probe]:
    """Probes of forged senders: a workspace speaks as itself or not at all."""

    def spoofs(name: str, says: str, command: str, frame: bytes) -> Probe:
        return Probe(3, name, says, command, frame=frame, rule=SPOOFED)

    other_mac, strange = ground.alone, "02:00:5e:00:53:99"
    for name, ip, whose in (
        ("spoof-other", ground.other[1], "another workspace's"),
        ("spoof-gateway", ground.gateway, "the gateway's"),
        ("spoof-uplink", ground.uplink[0], "the host's"),
        ("spoof-public", "198.51.100.99", "a stranger's"),
        ("spoof-none", "0.0.0.0", "no"),
    ):
        frame = datagram(ground, name, NOWHERE, source=ip)
        yield spoofs(name, f"it cannot send from {whose} address", f"nping --udp -S {ip} {NOWHERE}", frame)
    for name, mac, whose in (
        ("spoof-mac", strange, "an invented"),
        ("spoof-other-mac", other_mac, "another port's"),
        ("spoof-gateway-mac", ground.gateway_mac, "the gateway's"),
    ):
        frame = datagram(ground, name, NOWHERE, mac=mac)
        yield spoofs(name, f"nor with {whose} MAC", f"nping --udp --source-mac {mac} {NOWHERE}", frame)
    everybody = (frames.EVERYBODY, ground.gateway)
    for name, says, sender in (
        ("arp-gateway", "it cannot claim to be the gateway", (ground.mac, ground.gateway)),
        ("arp-other", "nor another workspace", (ground.mac, ground.other[1])),
        ("arp-mac", "nor give its address to another MAC", (strange, ground.ip)),
    ):
        frame = frames.ethernet(frames.EVERYBODY, ground.mac, frames.ARP, frames.arp(2, sender, everybody))
        yield spoofs(name, says, f"arpspoof {sender[1]}", frame + mark(ground, name))
    for name, what, kind in (
        ("vlan", "VLAN tags", frames.VLAN),
        ("vlan-of-providers", "those of providers", 0x88A8),
        ("pppoe", "PPPoE", 0x8864),
        ("foreign-type", "unknown types", frames.EXPERIMENT),
    ):
        inner = frames.ipv4(ground.ip, NOWHERE, frames.UDP, frames.udp(40000, 9, mark(ground, name)))
        frame = frames.ethernet(ground.gateway_mac, ground.mac, kind, frames.tagged(5, frames.IPV4, inner))
        yield spoofs(name, f"frames with {what} go nowhere", f"a frame of type 0x{kind:04x}", frame)
    group, says = "01:80:c2:00:00:00", "it cannot take part in the bridge's own protocols"
    hello = b"\x42\x42\x03" + bytes(35) + mark(ground, "spanning-tree")
    yield spoofs("spanning-tree", says, f"a frame to {group}", frames.ethernet(group, ground.mac, 38, hello))
    says = "packets that belong to no connection and open none are dropped"
    frame = frames.segment(ground, "invalid", NOWHERE, frames.SYN | frames.FIN)
    yield Probe(3, "invalid", says, f"nmap -sX {NOWHERE}", frame=frame, rule=f"{FORWARD}invalid")


def ipv6(ground: Ground) -> Iterator[Probe]:
    """Probes of IPv6: there is none."""
    yield Probe(
        3,
        "ipv6-address",
        "it has no IPv6 address beyond itself",
        "ip -6 address show scope global",
        ("lines", b"/proc/net/if_inet6".hex(), rb"^\w+ \w+ \w+ 00 ".hex()),
        r"lines ?|ENOENT",
    )
    for name, target, says in (
        ("ipv6-internet", "2001:db8::1", "no IPv6 packet leaves it"),
        ("ipv6-everybody", "ff02::1", "none reaches the others"),
        ("ipv6-local", "fe80::1", "none reaches the gateway"),
    ):
        frame = frames.datagram6(ground, name, target, ground.mac)
        yield Probe(3, name, says, f"ping -6 -c1 {target}", frame=frame, rule=SPOOFED)


# Packets from elsewhere.


def second_barrier(ground: Ground) -> Iterator[Probe]:
    """Probes of the host's own rules, which refuse packets that a router without rules would send."""
    says = "the rules that are loaded are those that hutch wrote"
    yield Probe(4, "as-written", says, "hutch status", needs="rules")
    yield Probe(4, "watch", "should they change, traffic stops", "pgrep -f 'nft monitor'", needs="rules")
    (here, there), (outer, inner) = ground.uplink, ground.uplink_macs

    def sends(name: str, says: str, rule: str, source: str, target: str) -> Probe:
        content = frames.ipv4(source, target, frames.UDP, frames.udp(40000, ground.host_port, mark(ground, name)))
        frame = frames.ethernet(outer, inner, frames.IPV4, content)
        command = f"ip netns exec {ground.table} nping --send-eth --udp -S {source} {target}"
        rule = f"{HOST_DOOR}{rule}"
        return Probe(4, name, says, command, frame=frame, via="router", rule=rule, may_leave=True, needs="rules")

    target = next(iter(ground.host_addresses), here)
    yield sends("barrier-untranslated", "the host takes no untranslated packet", "untranslated", ground.ip, target)
    yield sends("barrier-host", "nor any for itself", "host", there, target)
    name, frame = "barrier-ipv6", frames.datagram6(ground, "barrier-ipv6", "ff02::1", inner)
    command, rule = f"ip netns exec {ground.table} nping -6 --send-eth ff02::1", f"{HOST_DOOR}no-ipv6"
    yield Probe(4, name, "nor IPv6", command, frame=frame, via="router", rule=rule, may_leave=True, needs="rules")
    for name, rule, says in (
        ("second-ipv6", "door/no-ipv6", "behind the bridge's rules stands another against IPv6"),
        ("second-source", "door/foreign-source", "and one against foreign addresses"),
        ("second-between", "forward/between-workspaces", "behind the routing, one against traffic between workspaces"),
    ):
        yield stands(ground, 4, name, rule, says)
    for name, rule, says in (
        ("packet-cap", "door/packets", "so many packets a second"),
        ("connection-cap", "tracked/connections", "so many connections at once"),
        ("connection-pause", "tracked/full", "and none more for a moment then"),
        ("question-cap", "door/questions", "so many questions a second"),
        ("untracked", "door/untracked", "questions take no place among the connections"),
        ("untracked-answers", "answer/untracked", "nor do answers"),
        ("open", "forward/open", "a connection that a list has let out goes on"),
        ("over", "forward/over", "and ends with the list"),
        ("proxy", "own/proxy-denied", "the egress proxy reaches nothing else"),
        ("proxy-unwatched", "own/proxy-unwatched", "nor a workspace without a list"),
        ("router-own", "own/own-denied", "nor does anything else in the router"),
    ):
        is_of_lists = rule.startswith(("forward/", "own/"))
        yield stands(ground, 5 if is_of_lists else 11, name, rule, says)


def stands(ground: Ground, promise: int, name: str, rule: str, says: str) -> Probe:
    """A probe of a rule that only a flood gets to, or a proxy in other hands: it looks whether the rule is loaded."""
    chain = rule.partition("/")[0]
    command = f"ip netns exec {ground.table} nft list chain inet {ground.table} {chain}"
    return Probe(promise, name, says, command, rule=f"router inet {rule}", stands=True, needs="rules")


def from_outside(ground: Ground) -> Iterator[Probe]:
    """Probes of connections to it: nobody opens one, ssh from the host and published ports aside."""
    outer, inner = ground.uplink_macs

    def from_host(name: str, says: str, rule: str, source: str, port: int) -> Probe:
        content = frames.ipv4(source, ground.ip, frames.UDP, frames.udp(40000, port, mark(ground, name)))
        frame = frames.ethernet(inner, outer, frames.IPV4, content)
        command = f"nping --udp -S {source} -p {port} {ground.ip}"
        return Probe(3, name, says, command, frame=frame, via="host", rule=f"router inet {rule}")

    yield from_host(
        "host-other-port", "even the host reaches no port but ssh", "forward/forward-denied", ground.uplink[0], 9
    )
    yield from_host("stranger", "the router lets nobody but the host in", "forward/forward-denied", NOWHERE, 22)
    inside = "door/spoofed-inside"
    yield from_host("spoofed-inside", "nobody outside passes for a workspace", inside, ground.other[1], 22)
    says, command = "nobody answers in place of the host's resolver", f"nft list chain inet {ground.table} answers"
    yield Probe(5, "other-resolver", says, command, rule="host inet answers/answers", stands=True, needs="rules")
    if ground.outside is None:
        return
    beyond = ground.outside

    def from_beyond(name: str, says: str, rule: str, target: str, port: int) -> Probe:
        segment = frames.tcp(beyond.ip, target, (40000, port), frames.SYN, mark(ground, name))
        content = frames.ipv4(beyond.ip, target, frames.TCP, segment)
        frame = frames.ethernet(beyond.gate_mac, beyond.mac, frames.IPV4, content)
        command = f"from another machine: nc -zw1 {target} {port}"
        return Probe(3, name, says, command, frame=frame, via="outside", rule=f"host inet {rule}")

    yield from_beyond("outside-ssh", "the network cannot open a connection", "to-router/forward-denied", ground.ip, 22)
    yield from_beyond("outside-gateway", "nor to the gateway", "to-router/forward-denied", ground.gateway, 53)
    says = "ports published on 127.0.0.1 are for the host alone"
    yield from_beyond("outside-loopback", says, "from-router/loopback-from-afar", "127.0.0.1", 80)
    says = "the workspaces' resolver is not for the network"
    yield from_beyond("outside-resolver", says, "from-router/resolver-from-afar", ground.uplink[0], UPSTREAM_PORT)
