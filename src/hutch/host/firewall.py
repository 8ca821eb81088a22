"""The rules: what a workspace may send, and what may reach it. Pure; host/router loads and reads back.

In the router namespace: every frame is bound to its port's MAC and address; then a deny set, then the way
out. The address translation lives in that same table, so a router whose rules are gone is a router without
a way out. On the host, at its end of the uplink, a second barrier for the host itself: only translated
packets, never to an address of the host's own (DNS aside). Other networks are the first one's to refuse.
"""

from __future__ import annotations

from hutch.frozen import dataclass
from hutch.host.ruleset import Chain, ElementSet, Rule, Table
from hutch.spec import names
from hutch.spec.model import Network, Publish
from hutch.spec.names import Places

# Everything that is not a public unicast address: private, shared (CGNAT), loopback, link-local with the
# metadata services, IETF protocol assignments, benchmarking, multicast, reserved. Documentation ranges are
# left to routing: some networks use them as if they were public.
DENIED = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "224.0.0.0/4",
    "240.0.0.0/4",
)


@dataclass(frozen=True)
class Member:
    """A workspace as the firewall sees it."""

    name: str
    port: str
    mac: str
    ip: str
    publish: tuple[Publish, ...] = ()


def router_tables(
    places: Places, network: Network, members: tuple[Member, ...], host_addresses: tuple[str, ...]
) -> tuple[Table, ...]:
    """The tables of the router namespace. `host_addresses` are the host's own IPv4 addresses."""
    return (_binding(places, members), _routing(places, network, members, host_addresses))


def _binding(places: Places, members: tuple[Member, ...]) -> Table:
    """On the bridge: a frame carries its port's own MAC and address, or goes nowhere."""
    ip = "iifname . ether saddr . ip saddr"
    arp = "iifname . ether saddr . arp saddr ether . arp saddr ip"
    return Table(
        "bridge",
        places.table,
        (
            ElementSet("bound", f"typeof {ip}", tuple(f"{m.port} . {m.mac} . {m.ip}" for m in members)),
            ElementSet("bound_arp", f"typeof {arp}", tuple(f"{m.port} . {m.mac} . {m.mac} . {m.ip}" for m in members)),
        ),
        (
            Chain(
                "prerouting",
                "filter",
                "prerouting",
                -300,
                "drop",
                (
                    Rule("arp", f"ether type arp {arp} @bound_arp accept"),
                    Rule("ip", f"ether type ip {ip} @bound accept"),
                    Rule("spoofed", "counter drop"),
                ),
            ),
            Chain("forward", "filter", "forward", 0, "drop", (Rule("between-workspaces", "counter drop"),)),
        ),
    )


def _routing(places: Places, network: Network, members: tuple[Member, ...], host_addresses: tuple[str, ...]) -> Table:
    _, router_end = names.uplink_addresses(network.uplink)
    published = sorted({f"{m.ip} . {p.protocol} . {p.guest_port}" for m in members for p in m.publish})
    way_out = Rule("way-out", f'oifname "{places.uplink_router}" ip saddr {network.subnet} snat ip to {router_end}')
    return Table(
        "inet",
        places.table,
        (
            ElementSet("denied", "type ipv4_addr; flags interval", DENIED),
            ElementSet("host", "type ipv4_addr", host_addresses),
            ElementSet("published", "type ipv4_addr . inet_proto . inet_service", tuple(published)),
        ),
        (
            Chain("prerouting", "filter", "prerouting", -300, "accept", _at_the_door(places, network)),
            Chain("input", "filter", "input", 0, "drop", _to_the_router(places, network)),
            Chain("forward", "filter", "forward", 0, "drop", _through_the_router(places, network)),
            Chain("way-out", "nat", "postrouting", 100, "accept", (way_out,)),
        ),
    )


def _at_the_door(places: Places, network: Network) -> tuple[Rule, ...]:
    inside, outside = f'iifname "{network.bridge}"', f'iifname "{places.uplink_router}"'
    return (
        Rule("no-ipv6", f"{inside} meta nfproto ipv6 counter drop"),
        Rule("foreign-source", f"{inside} ip saddr != {network.subnet} counter drop"),
        Rule("spoofed-inside", f"{outside} ip saddr {network.subnet} counter drop"),
    )


def _to_the_router(places: Places, network: Network) -> tuple[Rule, ...]:
    inside, outside = f'iifname "{network.bridge}"', f'iifname "{places.uplink_router}"'
    gateway = names.gateway(network.subnet)
    host_end, _ = names.uplink_addresses(network.uplink)
    return (
        Rule("loopback", 'iifname "lo" accept'),
        Rule("answers", f"{outside} ct state established,related accept"),
        Rule("host-ping", f"{outside} ip saddr {host_end} icmp type echo-request accept"),
        Rule("dns", f"{inside} ip daddr {gateway} meta l4proto {{ tcp, udp }} th dport 53 accept"),
        Rule("ping", f"{inside} ip daddr {gateway} icmp type echo-request limit rate 10/second accept"),
        Rule("input-denied", "counter drop"),
    )


def _through_the_router(places: Places, network: Network) -> tuple[Rule, ...]:
    inside, to_inside = f'iifname "{network.bridge}"', f'oifname "{network.bridge}"'
    outside, to_outside = f'iifname "{places.uplink_router}"', f'oifname "{places.uplink_router}"'
    host_end, _ = names.uplink_addresses(network.uplink)
    return (
        Rule("between-workspaces", f"{inside} {to_inside} counter drop"),
        # Answers to the host come before the deny set: the host's end of the uplink is private.
        Rule("answers-out", f"{inside} ct state established,related ct direction reply accept"),
        Rule("denied", f"{inside} ip daddr @denied counter drop"),
        Rule("host", f"{inside} ip daddr @host counter drop"),
        Rule("invalid", "ct state invalid counter drop"),
        Rule("internet", f"{inside} {to_outside} accept"),
        Rule("answers-in", f"{outside} {to_inside} ct state established,related accept"),
        Rule("host-ssh", f"{outside} {to_inside} ip saddr {host_end} tcp dport 22 accept"),
        Rule("host-ping", f"{outside} {to_inside} ip saddr {host_end} icmp type echo-request accept"),
        Rule("published", f"{outside} {to_inside} ip daddr . meta l4proto . th dport @published accept"),
        Rule("forward-denied", "counter drop"),
    )


def host_tables(places: Places, network: Network, members: tuple[Member, ...]) -> tuple[Table, ...]:
    """The one table in the host's own namespace."""
    to_uplink = f'oifname "{places.uplink_host}"'
    _, router_end = names.uplink_addresses(network.uplink)
    published = tuple(rule for member in members for rule in _published(member))
    to_router = (
        Rule("answers", f"{to_uplink} ct state established,related accept"),
        Rule("published", f"{to_uplink} ct status dnat accept"),
        Rule("forward-denied", f"{to_uplink} counter drop"),
    )
    way_out = (
        Rule("way-out", f'ip saddr {router_end} oifname != "{places.uplink_host}" masquerade'),
        Rule("from-loopback", f"{to_uplink} ip saddr 127.0.0.0/8 masquerade"),
    )
    chains = (
        # After connection tracking, before the host's own address translation.
        Chain("from-router", "filter", "prerouting", -150, "accept", _from_the_router(places, network)),
        Chain("to-router", "filter", "forward", 0, "accept", to_router),
        Chain("publish", "nat", "prerouting", -100, "accept", published),
        Chain("publish-local", "nat", "output", -100, "accept", published),
        Chain("way-out", "nat", "postrouting", 100, "accept", way_out),
    )
    return (Table("inet", places.table, (), chains),)


def _from_the_router(places: Places, network: Network) -> tuple[Rule, ...]:
    uplink = f'iifname "{places.uplink_host}"'
    host_end, router_end = names.uplink_addresses(network.uplink)
    return (
        # Ports published on 127.0.0.1 and our resolver are for this host alone: what claims to be for them and comes
        # from a network is dropped before it can be translated or delivered.
        Rule("loopback-from-afar", 'iifname != "lo" ip daddr 127.0.0.0/8 counter drop'),
        Rule("resolver-from-afar", f'iifname != {{ "lo", "{places.uplink_host}" }} ip daddr {host_end} counter drop'),
        Rule("no-ipv6", f"{uplink} meta nfproto ipv6 counter drop"),
        Rule("answers", f"{uplink} ct state established,related accept"),
        Rule("untranslated", f"{uplink} ip saddr != {router_end} counter drop"),
        Rule("dns", f"{uplink} ip daddr {host_end} meta l4proto {{ tcp, udp }} th dport 53 accept"),
        Rule("host", f"{uplink} fib daddr type != unicast counter drop"),
    )


def _published(member: Member) -> list[Rule]:
    rules = []
    for item in member.publish:
        address = f"ip daddr {item.host_ip}" if item.host_ip else "fib daddr type local"
        rules.append(
            Rule(
                f"publish {member.name} {item}",
                f"meta nfproto ipv4 {address} {item.protocol} dport {item.host_port} "
                f"dnat ip to {member.ip}:{item.guest_port}",
            )
        )
    return rules
