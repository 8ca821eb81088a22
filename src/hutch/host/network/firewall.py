"""The firewall rules for packets from and to workspaces. Pure; host/network/router loads and reads back.

In the router namespace: every frame is bound to its port's MAC and address; then come addresses that are closed to all,
then the workspace's policy. The address translation lives in that same table, so a router whose rules are gone is a
router without a way out. On the host, at its end of the uplink, a second barrier for the host itself: only translated
packets, never to an address of the host's own (DNS aside). Other networks are the first one's to refuse.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping

from hutch.frozen import dataclass
from hutch.host.network.ruleset import Chain, ElementSet, Rule, Table
from hutch.spec import names
from hutch.spec.model import Network, Publish
from hutch.spec.names import Layout
from hutch.spec.policy import Policy, Reach
from hutch.spec.ranges import NEVER, PRIVATE
from hutch.spec.record import Decision

# The limits of each workspace, so that none starves the others: of packets, of questions, and of connections that are
# open, here and in the host's own table.
PACKETS = "200000/second burst 100000 packets"
QUESTIONS = "500/second burst 2000 packets"
PINGS = "10/second burst 20 packets"
CONNECTIONS = 8192
HEARD = "256/second burst 512 packets"  # of what is refused; the egress proxy writes down no more
ANSWERING = "type ipv4_addr . inet_proto . inet_service"
NETWORKS = "type ipv4_addr . ipv4_addr; flags interval"
PORTS = "type ipv4_addr . ipv4_addr . inet_service; flags interval"
METER = "type ipv4_addr; flags dynamic; size 65536"
MOMENT = "type ipv4_addr; flags dynamic, timeout; timeout 1s; size 65536"
MET = "met_ssh"
"""The set of connections from this host to port 22 of workspaces, which packets fill, for the records of these."""
MET_TYPE = "type ipv4_addr . inet_service; flags dynamic, timeout"
MET_SECONDS, MET_SIZE = 3600, 65_536
"""How long each stays there, which is a few times as long as between two looks; and how many there is room for."""
BY_RESOLVER = "flags timeout; size 32768"
"""What fills these is not trusted with more: nft lists the elements of all five wherever rules are looked at."""
LENT_PORTS = "type ipv4_addr . ipv4_addr . inet_service : mark"

# Nobody listens at the port to which workspaces send questions: without rules, none are answered.
EGRESS_PORT = 5300  # of the egress proxy, see hutch.egress
RESOLVER_PORT = 41
"""Of the router's dnsmasq: below 1024, so that the egress proxy cannot be asked in its place (SO_REUSEADDR)."""
UPSTREAM_PORT = 40
"""Of the host's dnsmasq, which those two ask: others may have taken port 53 of every address. Nobody but root listens
at a port below 1024; any user could share a higher one with dnsmasq (SO_REUSEADDR), and would be asked in its place.
This one is assigned to no service, is below the ports that root's own programs take at random (bindresvport, from 512
on), and below 53 and 80, from which some hosts let every user listen for the sake of rootless containers."""

BRIDGE_FILTER = -200
"""The priority at which a bridge's forwarding is filtered. At 0, as for packets that are routed, the kernel skips the
rule for all that br_netfilter has looked at, which Docker loads for the whole host."""


@dataclass(frozen=True)
class Endpoint:
    """A workspace as the firewall sees it."""

    name: str
    port: str
    mac: str
    ip: str
    publish: tuple[Publish, ...] = ()
    policy: Policy = Policy()
    decisions: tuple[Decision, ...] = ()


def router_tables(
    layout: Layout, network: Network, endpoints: tuple[Endpoint, ...], host_addresses: tuple[str, ...]
) -> tuple[Table, ...]:
    """The tables of the router namespace. `host_addresses` are the host's own IPv4 addresses."""
    return (_binding(layout, endpoints), _routing(layout, network, endpoints, host_addresses))


def _binding(layout: Layout, endpoints: tuple[Endpoint, ...]) -> Table:
    """Rules on the bridge: a frame carries its port's own MAC and address, or goes nowhere."""
    ip = "iifname . ether saddr . ip saddr"
    arp = "iifname . ether saddr . arp saddr ether . arp saddr ip"
    own = (
        Rule("arp", f"ether type arp {arp} @bound_arp accept"),
        Rule("ip", f"ether type ip {ip} @bound accept"),
        Rule("spoofed", "counter drop"),
    )
    return Table(
        "bridge",
        layout.table,
        (
            ElementSet("bound", f"typeof {ip}", tuple(f"{e.port} . {e.mac} . {e.ip}" for e in endpoints)),
            ElementSet(
                "bound_arp", f"typeof {arp}", tuple(f"{e.port} . {e.mac} . {e.mac} . {e.ip}" for e in endpoints)
            ),
        ),
        (
            Chain("prerouting", "filter", "prerouting", -300, "drop", own),
            Chain("forward", "filter", "forward", BRIDGE_FILTER, "drop", (Rule("between-workspaces", "counter drop"),)),
        ),
    )


def _routing(
    layout: Layout, network: Network, endpoints: tuple[Endpoint, ...], host_addresses: tuple[str, ...]
) -> Table:
    host_end, router_end = names.uplink_addresses(network.uplink)
    way_out = Rule("way-out", f'oifname "{layout.uplink_router}" ip saddr {network.subnet} snat ip to {router_end}')
    return Table(
        "inet",
        layout.table,
        (
            ElementSet("never", "type ipv4_addr; flags interval", NEVER),
            ElementSet("denied", "type ipv4_addr; flags interval", PRIVATE),
            # The host's end of the uplink is private, and a workspace may be allowed what is private.
            ElementSet("host", "type ipv4_addr", tuple(sorted({*host_addresses, host_end}))),
            ElementSet("published", ANSWERING, _published_ports(endpoints, is_local=False)),
            ElementSet("published_here", ANSWERING, _published_ports(endpoints, is_local=True)),
            *_policies(endpoints),
            *(
                ElementSet(name, METER, is_filled=True)
                for name in ("packets", "questions", "pings", "connections", "heard")
            ),
            ElementSet("full", MOMENT, is_filled=True),
            ElementSet(MET, f"{MET_TYPE}; timeout {MET_SECONDS}s; size {MET_SIZE}", is_filled=True),
        ),
        (
            Chain("door", "filter", "prerouting", -300, "accept", _at_the_door(layout, network)),
            Chain("tracked", "filter", "prerouting", -150, "accept", _when_tracked(network)),
            Chain("input", "filter", "input", 0, "drop", _to_the_router(layout, network)),
            Chain("forward", "filter", "forward", 0, "drop", _through_the_router(layout, network)),
            Chain("answer", "filter", "output", -300, "accept", _from_the_router_itself(network)),
            Chain("own", "filter", "output", 0, "drop", _sent_by_the_router(layout, network)),
            Chain("way-out", "nat", "postrouting", 100, "accept", (way_out,)),
        ),
    )


def _published_ports(endpoints: tuple[Endpoint, ...], *, is_local: bool) -> tuple[str, ...]:
    """The ports of workspaces that are published, on the host's loopback or where others reach them."""
    found = ((e.ip, p) for e in endpoints for p in e.publish if p.is_local is is_local)
    return tuple(sorted({f"{ip} . {p.protocol} . {p.guest_port}" for ip, p in found}))


def _policies(endpoints: tuple[Endpoint, ...]) -> tuple[ElementSet, ...]:
    """The sets of policies. A workspace in no set is allowed nothing; those called `allowed` are the egress proxy's to
    fill: addresses for as long as an answer is valid, and for what people decided the marks that are in force
    (`allowed_terms`), and the mark by which an address is open (`allowed_lent`)."""
    watched = [e for e in endpoints if e.policy.is_watched]
    epochs = [(e.ip, e.policy.epoch) for e in watched]
    free = [e for e in endpoints if not e.policy.is_watched]
    learning = tuple(e.ip for e in watched if e.policy.learn)
    private = {e.ip: e.policy.private_networks for e in watched}
    public = {e.ip: e.policy.public_networks for e in watched}
    return (
        ElementSet("internet", "type ipv4_addr", tuple(e.ip for e in free if e.policy.kind == "internet")),
        ElementSet("everywhere", "type ipv4_addr", tuple(e.ip for e in free if e.policy.kind == "all")),
        ElementSet("watched", "type ipv4_addr", tuple(e.ip for e in watched)),
        ElementSet("learning", "type ipv4_addr", learning),
        ElementSet("epochs", "type ipv4_addr : mark", tuple(f"{ip} : {epoch}" for ip, epoch in epochs), kind="map"),
        ElementSet("open", "type ipv4_addr . mark", tuple(f"{ip} . {epoch}" for ip, epoch in epochs)),
        ElementSet("private", NETWORKS, _whole(private)),
        ElementSet("private_ports", PORTS, _by_port(private)),
        ElementSet("networks", NETWORKS, _whole(public)),
        ElementSet("network_ports", PORTS, _by_port(public)),
        ElementSet("allowed", f"type ipv4_addr . ipv4_addr . mark; {BY_RESOLVER}", is_filled=True),
        ElementSet("allowed_ports", f"type ipv4_addr . ipv4_addr . inet_service . mark; {BY_RESOLVER}", is_filled=True),
        ElementSet("allowed_terms", f"type ipv4_addr . mark; {BY_RESOLVER}", is_filled=True),
        ElementSet("allowed_lent", f"type ipv4_addr . ipv4_addr : mark; {BY_RESOLVER}", kind="map", is_filled=True),
        ElementSet("allowed_lent_ports", f"{LENT_PORTS}; {BY_RESOLVER}", kind="map", is_filled=True),
    )


def _whole(listed: Mapping[str, tuple[Reach, ...]]) -> tuple[str, ...]:
    """Elements "address . network" of what is listed without a port. The kernel takes none that lies within another."""
    return tuple(
        f"{ip} . {_written(network)}"
        for ip, reaches in listed.items()
        for network in ipaddress.collapse_addresses(_networks(reaches, None))
    )


def _by_port(listed: Mapping[str, tuple[Reach, ...]]) -> tuple[str, ...]:
    """Elements "address . network . port" of what is listed with a port."""
    return tuple(
        f"{ip} . {_written(network)} . {port}"
        for ip, reaches in listed.items()
        for port in sorted({reach.port for reach in reaches if reach.port is not None})
        for network in ipaddress.collapse_addresses(_networks(reaches, port))
    )


def _networks(reaches: tuple[Reach, ...], port: int | None) -> list[ipaddress.IPv4Network]:
    return [ipaddress.IPv4Network(reach.network) for reach in reaches if reach.port == port]


def _written(network: ipaddress.IPv4Network) -> str:
    """A network as nft writes it."""
    return str(network.network_address) if network.prefixlen == 32 else str(network)


def _at_the_door(layout: Layout, network: Network) -> tuple[Rule, ...]:
    """Rules before connections are tracked. Questions to the resolvers are not tracked at all: each would fill a place
    in the kernel's table for half a minute. For that reason they are led to the resolver's port statelessly; see
    _from_the_router_itself."""
    inside, outside = f'iifname "{network.bridge}"', f'iifname "{layout.uplink_router}"'
    asked = f"{inside} ip daddr {names.gateway(network.subnet)}"
    return (
        Rule("no-ipv6", f"{inside} meta nfproto ipv6 counter drop"),
        Rule("foreign-source", f"{inside} ip saddr != {network.subnet} counter drop"),
        Rule("spoofed-inside", f"{outside} ip saddr {network.subnet} counter drop"),
        Rule("packets", f"{inside} update @packets {{ ip saddr limit rate over {PACKETS} }} counter drop"),
        Rule("behind-the-door", f"{asked} th dport {{ {EGRESS_PORT}, {RESOLVER_PORT} }} counter drop"),
        Rule(
            "questions",
            f"{asked} th dport 53 update @questions {{ ip saddr limit rate over {QUESTIONS} }} counter drop",
        ),
        *(
            Rule(f"{who}-{kind}", f"{asked} {match} {kind} dport 53 {kind} dport set {port}")
            for who, match, port in LED
            for kind in ("udp", "tcp")
        ),
        Rule("untracked", f"{asked} meta l4proto {{ tcp, udp }} th dport {{ {EGRESS_PORT}, {RESOLVER_PORT} }} notrack"),
    )


LED = (("watched", "ip saddr @watched", EGRESS_PORT), ("unwatched", "ip saddr != @watched", RESOLVER_PORT))
"""(kind of workspace, match, port): the resolver to which each kind's questions are led."""


def _from_the_router_itself(network: Network) -> tuple[Rule, ...]:
    """Rules that give a resolver's answer the address and port that were asked."""
    to_inside = f'oifname "{network.bridge}"'
    return (
        *(
            Rule(f"{who}-{kind}", f"{to_inside} {kind} sport {port} {kind} sport set 53")
            for who, _, port in LED
            for kind in ("udp", "tcp")
        ),
        Rule("untracked", f"{to_inside} meta l4proto {{ tcp, udp }} th sport 53 notrack"),
    )


def _sent_by_the_router(layout: Layout, network: Network) -> tuple[Rule, ...]:
    """What the router's own programs and kernel send: answers to workspaces, which have the port that was asked by now,
    and questions for the host's resolver. The egress proxy reads what guests send, so whoever takes it over goes no
    further than that. A packet has no owner that could be asked for once its socket is closed, or where the kernel
    opened it for a program (MPTCP, SMC): so these hold for all, but root at the loopback interface, and for messages
    of the kernel's own."""
    own, inside = f"meta skuid {layout.egress_uid}", f'oifname "{network.bridge}"'
    uplink = f'oifname "{layout.uplink_router}" ip daddr {names.uplink_addresses(network.uplink)[0]}'
    return (
        Rule("proxy-unwatched", f"{own} {inside} ip daddr != @watched counter drop"),
        Rule("answers-udp", f"{inside} udp sport 53 accept"),
        Rule("answers-tcp", f"{inside} tcp sport 53 tcp flags & (syn | ack) != syn accept"),
        Rule("asks", f"{uplink} meta l4proto {{ tcp, udp }} th dport {UPSTREAM_PORT} accept"),
        Rule("proxy-denied", f"{own} counter drop"),
        Rule("resets", f"{inside} tcp flags & rst == rst accept"),
        Rule("messages", "meta l4proto icmp accept"),
        Rule("to-itself", 'oifname "lo" accept'),
        Rule("own-denied", "counter drop"),
    )


def _when_tracked(network: Network) -> tuple[Rule, ...]:
    """A connection that is dropped here takes no place in the kernel's table. To count them, the kernel looks at each,
    hundreds of times a second in a flood, in time that is nobody's: so who has too many opens none for a moment."""
    new = f'iifname "{network.bridge}" ct state new'
    counted = f"add @connections {{ ip saddr ct count over {CONNECTIONS} }}"
    return (
        Rule("full", f"{new} ip saddr @full counter drop"),
        Rule("connections", f"{new} {counted} add @full {{ ip saddr }} counter drop"),
    )


def _to_the_router(layout: Layout, network: Network) -> tuple[Rule, ...]:
    inside, outside = f'iifname "{network.bridge}"', f'iifname "{layout.uplink_router}"'
    gateway = names.gateway(network.subnet)
    host_end, _ = names.uplink_addresses(network.uplink)
    asked = f"{inside} ip daddr {gateway} meta l4proto {{ tcp, udp }}"
    ping = f"{inside} ip daddr {gateway} icmp type echo-request"
    return (
        Rule("loopback", 'iifname "lo" accept'),
        Rule("answers", f"{outside} ct state established,related accept"),
        Rule("host-ping", f"{outside} ip saddr {host_end} icmp type echo-request accept"),
        # Loaded rules are compared by their names, so the port is part of it: an older hutch had another.
        Rule(f"dns-{RESOLVER_PORT}", f"{asked} th dport {RESOLVER_PORT} ip saddr != @watched accept"),
        Rule("watched-dns", f"{asked} th dport {EGRESS_PORT} ip saddr @watched accept"),
        Rule("ping", f"{ping} update @pings {{ ip saddr limit rate {PINGS} }} accept"),
        Rule("input-denied", "counter drop"),
    )


def _through_the_router(layout: Layout, network: Network) -> tuple[Rule, ...]:
    inside, to_inside = f'iifname "{network.bridge}"', f'oifname "{network.bridge}"'
    outside, to_outside = f'iifname "{layout.uplink_router}"', f'oifname "{layout.uplink_router}"'
    host_end, _ = names.uplink_addresses(network.uplink)
    reply = "ct direction reply"
    going_on, from_host = f"{outside} {to_inside} {reply}", f"{outside} {to_inside} ip saddr {host_end}"
    asked = "ip daddr . meta l4proto . th dport"
    return (
        Rule("epoch", f"{inside} meta mark set ip saddr map @epochs"),
        *_closed("between-workspaces", f"{inside} {to_inside}"),
        # Answers to the host come before the deny set: the host's end of the uplink is private.
        Rule("answers-out", f"{inside} ct state established,related {reply} accept"),
        *_closed("never", f"{inside} ip daddr @never"),
        *_closed("host", f"{inside} ip daddr @host"),
        Rule("invalid", "ct state invalid counter drop"),
        *_by_policy(inside, to_outside),
        # Traffic that goes on without answers, and was let out by a policy that is over.
        Rule(
            "over",
            f"{going_on} meta l4proto != tcp ip daddr @watched ip daddr . ct mark != @open "
            "ip daddr . ct mark != @allowed_terms counter drop",
        ),
        Rule("answers-in", f"{outside} {to_inside} ct state established,related accept"),
        Rule("met-ssh", f"{from_host} tcp dport 22 ct state new update @{MET} {{ ip daddr . tcp sport }}"),
        Rule("host-ssh", f"{from_host} tcp dport 22 accept"),
        Rule("host-ping", f"{from_host} icmp type echo-request accept"),
        Rule("published", f"{outside} {to_inside} {asked} @published accept"),
        Rule("published-here", f"{from_host} {asked} @published_here accept"),
        Rule("forward-denied", "counter drop"),
    )


def _by_policy(inside: str, to_outside: str) -> tuple[Rule, ...]:
    """A connection of a watched workspace is marked with the epoch of the policy that let it out, and goes on for as
    long as that policy is in force; when it changes, each is judged anew. One that a person's decision let out has the
    mark of that, and ends with it. The egress proxy hears of what is let out and of what is refused."""
    out = f"{inside} {to_outside}"
    where = "ip saddr . ip daddr"

    def accept(name: str, match: str) -> Rule:
        return Rule(name, f"{out} {match} {_told(name)} ct mark set meta mark accept")

    def lent(name: str, marked: str, by: str) -> Rule:
        return accept(name, f"{marked} map @{by} ip saddr . meta mark @allowed_terms")

    at_port = "meta l4proto { tcp, udp } ip saddr . ip daddr . th dport"
    refused = f"{inside} meta mark != 0"
    return (
        Rule("open", f"{out} ct state established ip saddr . ct mark @open accept"),
        Rule("lent-open", f"{out} ct state established ip saddr . ct mark @allowed_terms accept"),
        Rule("everywhere", f"{out} ip saddr @everywhere accept"),
        accept("private", f"{where} @private"),
        accept("private-port", f"{at_port} @private_ports"),
        *_closed("denied", f"{inside} ip daddr @denied"),
        accept("network", f"{where} @networks"),
        accept("network-port", f"{at_port} @network_ports"),
        accept("listed-port", f"{at_port} . meta mark @allowed_ports"),
        accept("listed", f"{where} . meta mark @allowed"),
        accept("learned", "ip saddr @learning"),
        lent("lent-port", at_port.replace("ip saddr", "meta mark set ip saddr", 1), "allowed_lent_ports"),
        lent("lent", f"meta mark set {where}", "allowed_lent"),
        _hear("not-listed", refused),
        Rule("not-listed-tcp", f"{refused} meta l4proto tcp counter reject with tcp reset"),
        Rule("not-listed", f"{refused} counter reject with icmp admin-prohibited"),
        Rule("internet", f"{out} ip saddr @internet accept"),
    )


def _closed(name: str, match: str) -> tuple[Rule, Rule]:
    """Rules that drop what matches; if a watched workspace sent it, the egress proxy hears of it."""
    return _hear(name, f"{match} meta mark != 0"), Rule(name, f"{match} counter drop")


def _hear(name: str, match: str) -> Rule:
    """A rule that tells the egress proxy, at a limited rate for each workspace, so that none drowns the others."""
    return Rule(f"hear-{name}", f"{match} update @heard {{ ip saddr limit rate {HEARD} }} {_told(name)}")


def _told(name: str) -> str:
    """A statement that tells the egress proxy of a packet, under that name; without a proxy, nobody hears it."""
    return f'log prefix "{names.HEARD}{name}" group {names.HEARD_GROUP} snaplen 64'


def host_tables(layout: Layout, network: Network, endpoints: tuple[Endpoint, ...]) -> tuple[Table, ...]:
    """The one table in the host's own namespace."""
    to_uplink = f'oifname "{layout.uplink_host}"'
    host_end, router_end = names.uplink_addresses(network.uplink)
    published = tuple(rule for endpoint in endpoints for rule in _published(endpoint))
    # Packets from a network for 127.0.0.1 are dropped before they get to a translation.
    afar = (
        # The router's questions for names, which a port of the same number must not lead back to it.
        Rule("own-questions", f'iifname "{layout.uplink_host}" accept'),
        *(rule for endpoint in endpoints for rule in _published(endpoint, afar=True)),
    )
    to_router = (
        Rule("answers", f"{to_uplink} ct state established,related accept"),
        Rule("published", f"{to_uplink} ct status dnat accept"),
        Rule("forward-denied", f"{to_uplink} counter drop"),
    )
    # Where any account may listen at the resolver's port, the kernel gives datagrams, though no connections, to whoever
    # came last. dnsmasq opened its socket as root; what comes from another one's goes nowhere.
    answers = f"{to_uplink} ip saddr {host_end} udp sport {UPSTREAM_PORT} meta skuid != 0 counter drop"
    way_out = (
        Rule("way-out", f'ip saddr {router_end} oifname != "{layout.uplink_host}" masquerade'),
        Rule("from-the-host", f"{to_uplink} ct status dnat fib saddr type local masquerade"),
    )
    chains = (
        # After connection tracking, before the host's own address translation.
        Chain("from-router", "filter", "prerouting", -150, "accept", _from_the_router(layout, network)),
        Chain("to-router", "filter", "forward", 0, "accept", to_router),
        Chain("publish", "nat", "prerouting", -100, "accept", afar),
        Chain("publish-local", "nat", "output", -100, "accept", published),
        Chain("answers", "filter", "output", 0, "accept", (Rule("answers", answers),)),
        Chain("way-out", "nat", "postrouting", 100, "accept", way_out),
    )
    return (Table("inet", layout.table, (), chains),)


def _from_the_router(layout: Layout, network: Network) -> tuple[Rule, ...]:
    uplink = f'iifname "{layout.uplink_host}"'
    host_end, router_end = names.uplink_addresses(network.uplink)
    return (
        # Ports published on 127.0.0.1 and our resolver are for this host alone: what claims to be for them and comes
        # from a network is dropped before it can be translated or delivered.
        Rule("loopback-from-afar", 'iifname != "lo" ip daddr 127.0.0.0/8 counter drop'),
        Rule("resolver-from-afar", f'iifname != {{ "lo", "{layout.uplink_host}" }} ip daddr {host_end} counter drop'),
        Rule("no-ipv6", f"{uplink} meta nfproto ipv6 counter drop"),
        Rule("answers", f"{uplink} ct state established,related accept"),
        Rule("untranslated", f"{uplink} ip saddr != {router_end} counter drop"),
        # By its port for the same reason.
        Rule(
            f"dns-{UPSTREAM_PORT}",
            f"{uplink} ip daddr {host_end} meta l4proto {{ tcp, udp }} th dport {UPSTREAM_PORT} accept",
        ),
        Rule("host", f"{uplink} fib daddr type != unicast counter drop"),
    )


def _published(endpoint: Endpoint, *, afar: bool = False) -> Iterator[Rule]:
    for item in endpoint.publish:
        if not (afar and item.is_local):
            # An address that is not the host's, or no longer, is somebody else's: what is sent there is not ours.
            address = f"ip daddr {item.host_ip} fib daddr type local" if item.host_ip else "fib daddr type local"
            match = f"meta nfproto ipv4 {address} {item.protocol} dport {item.host_port}"
            # Loaded rules are compared by their names: those of an older hutch, "publish …", are other ones.
            yield Rule(f"published {endpoint.name} {item}", f"{match} dnat ip to {endpoint.ip}:{item.guest_port}")
