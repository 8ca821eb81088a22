"""The router namespace: bridge, filters and address translation, joined to the host by a veth and a /30.

Changes by other tools to the host's firewall do not reach in here. Nothing gets carrier before the rules are loaded and
read back. Interfaces carry an alias that names their owner; one without it is somebody else's and is refused, never
taken over.
"""

from __future__ import annotations

import errno
import ipaddress
import json
import sys
from collections.abc import Collection, Iterable, Mapping
from contextlib import closing
from dataclasses import field, replace
from pathlib import Path
from typing import Any, Literal

from hutch.errors import HutchError
from hutch.frozen import dataclass
from hutch.host.network import ruleset
from hutch.host.network.firewall import Endpoint, host_tables, router_tables
from hutch.host.network.namespace import HOST_ADDRESSES, ROUTES, has_namespace, look
from hutch.host.network.watch import Rules, load, load_watched, observe_watched, texts_of
from hutch.run import Gathering, run
from hutch.spec import names
from hutch.spec.model import Network
from hutch.spec.names import Layout

FORWARDING = "net/ipv4/ip_forward"
FENCE = 83
"""The routing table of packets from workspaces, and the preference of the rule that leads there. It knows the way out
and nothing else: also without any filter, no packet of a workspace is routed to another."""
NAMESPACE = """
ip link set dev lo alias "$1" up
sysctl -q -e -w net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1 net.ipv4.ip_forward=1 \
  net.ipv4.conf.all.accept_source_route=0
ip netns attach "$2" $$
"""
ASKED_AGAIN = 300  # milliseconds between the three questions for a workspace's MAC; by default a second
Links = Mapping[str, dict[str, Any]]
Part = Literal["router", "router rules", "host rules", "uplink", "bridge", "way out", "fence", "way in"]


@dataclass(frozen=True)
class HostNetwork:
    """The network of the host's own namespace. `routes` are destinations of its IPv4 routing table."""

    links: Links
    routes: tuple[str, ...]

    def without_routes(self, routes: Collection[str]) -> HostNetwork:
        """This network without the routes to these destinations."""
        return replace(self, routes=tuple(route for route in self.routes if route not in routes))

    def addresses(self, *, without: str = "") -> tuple[str, ...]:
        """The host's IPv4 addresses, those of the interface `without` and of loopback aside."""
        return tuple(
            sorted(
                {
                    info["local"]
                    for name, link in self.links.items()
                    if name not in (without, "lo")
                    for info in link["addr_info"]
                    if info["family"] == "inet"
                }
            )
        )


@dataclass(frozen=True)
class RouterFacts:
    """The router as it is: interfaces by name (None without the namespace); where its default route leads; where that
    of what comes by the interface `fence` leads, and to what it does not; both rulesets' shapes; the texts of its own
    rules, as far as there is a watch over them; all of the host's."""

    links: Links | None = None
    gateway: str = ""
    way_out: str = ""
    fenced: str = ""
    fence: str = ""
    rules: ruleset.Shape = field(default_factory=dict)
    watched: bytes | None = None
    host_rules: ruleset.Shape = field(default_factory=dict)
    host_listing: str = '{"nftables": []}'


def tag(layout: Layout) -> str:
    """The alias of our interfaces."""
    return f"hutch {layout.state}"


# Observing.


def observe_host() -> HostNetwork:
    return _host_network(run(HOST_ADDRESSES).stdout)


def _host_network(links: str) -> HostNetwork:
    by_name = {link["ifname"]: link for link in json.loads(links)}
    return HostNetwork(by_name, parse_routes(Path(ROUTES).read_text(encoding="ascii", errors="replace")))


def parse_routes(text: str) -> tuple[str, ...]:
    """The destinations of an IPv4 routing table as the kernel prints it: addresses and masks as hexadecimal numbers in
    the host's byte order. The default route is not among them."""
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        numbers = (int(field, 16).to_bytes(4, sys.byteorder) for field in (fields[1], fields[7]))
        address, mask = map(ipaddress.IPv4Address, numbers)
        if int(mask):
            found.append(str(ipaddress.IPv4Network(f"{address}/{mask}")))
    return tuple(found)


def observe_all(layout: Layout, network: Network, looking: Gathering | None = None) -> tuple[HostNetwork, RouterFacts]:
    """The host's network and the router, from a look that has been begun or from a new one."""
    if looking is None:
        with closing(look(layout)) as new:
            return observe_all(layout, network, new)
    links, host_rules, *router = looking.outputs()
    facts = RouterFacts(host_rules=ruleset.observed_shape(host_rules, layout.table), host_listing=host_rules)
    if router:
        answers, rules = router
        links_there, routes, ways = map(json.loads, answers.splitlines())
        out = {r.get("table", "main"): r.get("gateway", "") for r in routes if r["dst"] == "default"}
        closed = (r["dst"] for r in routes if r.get("type") == "blackhole" and r.get("table") == str(FENCE))
        facts = replace(
            facts,
            links={link["ifname"]: link for link in links_there},
            gateway=out.get("main", ""),
            way_out=out.get(str(FENCE), ""),
            fenced=next(closed, ""),
            fence=next((way.get("iif", "") for way in ways if way["priority"] == FENCE), ""),
            rules=ruleset.observed_shape(rules, layout.table),
            watched=observe_watched(layout, network),
        )
    return _host_network(links), facts


# Choosing and checking, purely.


def networks_of(host: HostNetwork) -> dict[str, ipaddress.IPv4Network]:
    """The networks that the host reaches, by their routes. Wider than /8 is the default route in pieces, as VPNs
    write it ("0.0.0.0/1"): everything would overlap it."""
    found = {route: ipaddress.IPv4Network(route, strict=False) for route in host.routes}
    return {route: network for route, network in found.items() if network.prefixlen >= 8}


def find_uplink(layout: Layout, host: HostNetwork) -> str:
    """The /30 of this hutch's uplink that is there already, "" when there is none."""
    link = host.links.get(layout.uplink_host)
    if link is None or not is_ours(layout, link):
        return ""
    addresses = [f"{info['local']}/{info['prefixlen']}" for info in link["addr_info"] if info["family"] == "inet"]
    return str(ipaddress.IPv4Interface(addresses[0]).network) if addresses else ""


def choose_uplink(network: Network, host: HostNetwork) -> str:
    """The first /30 that nothing on the host uses."""
    taken = [*networks_of(host).values(), ipaddress.IPv4Network(network.subnet)]
    for candidate in names.UPLINKS.subnets(new_prefix=30):
        if not any(candidate.overlaps(used) for used in taken):
            return str(candidate)
    raise HutchError(f"no free /30 is left in {names.UPLINKS}", resolution='set "uplink" in [network]')


def check_overlap(layout: Layout, network: Network, host: HostNetwork) -> None:
    """Refuse a network that would shadow one that the host already reaches."""
    own = {network.subnet, network.uplink} if layout.uplink_host in host.links else set()
    for key, prefix in (("subnet", network.subnet), ("uplink", network.uplink)):
        wanted = ipaddress.IPv4Network(prefix)
        for route, used in networks_of(host).items():
            if route not in own and wanted.overlaps(used):
                raise HutchError(
                    f"[network] {key} {prefix} overlaps {route}, which this host already uses",
                    resolution=f"choose another {key} in [network]",
                )


def wanted_rules(layout: Layout, network: Network, endpoints: tuple[Endpoint, ...], host: HostNetwork) -> Rules:
    inner = router_tables(layout, network, endpoints, host.addresses(without=layout.uplink_host))
    return Rules(inner, host_tables(layout, network, endpoints))


def differences(
    layout: Layout, network: Network, rules: Rules, host: HostNetwork, facts: RouterFacts
) -> dict[Part, str]:
    """The parts that are not as wanted, each with what is wrong in words; empty when nothing is to be done."""
    host_end, router_end = names.uplink_addresses(network.uplink)
    there = facts.links or {}
    found: dict[Part, str] = {
        "router": "" if facts.links is not None else f"the network namespace {layout.namespace} is gone",
        "router rules": ruleset.describe(ruleset.differences(ruleset.shape_of(rules.router), facts.rules)),
        "host rules": ruleset.describe(ruleset.differences(ruleset.shape_of(rules.host), facts.host_rules)),
        "uplink": wrong_link(host.links, layout.uplink_host, f"{host_end}/30")
        or wrong_link(there, layout.uplink_router, f"{router_end}/30"),
        "bridge": wrong_link(there, network.bridge, bridge_address(network)),
        "way out": "" if facts.gateway == host_end else "the router has no default route to the host",
        "fence": "" if is_fenced(network, facts) else "workspaces are routed as the router is",
        "way in": "" if network.subnet in host.routes else f"the host has no route to {network.subnet}",
    }
    return {part: wrong for part, wrong in found.items() if wrong}


def is_fenced(network: Network, facts: RouterFacts) -> bool:
    """Whether packets from workspaces are routed to the way out and to nowhere else."""
    host_end, _ = names.uplink_addresses(network.uplink)
    return (facts.fence, facts.way_out, facts.fenced) == (network.bridge, host_end, network.subnet)


def loose_ports(network: Network, endpoints: Iterable[Endpoint], facts: RouterFacts) -> dict[str, str]:
    """The endpoints whose port is there and not in use, each with what is wrong in words. A bridge that is made anew,
    or only raised, has forgotten its ports."""
    found = {}
    bridge = wrong_link(facts.links or {}, network.bridge, bridge_address(network))
    for endpoint in endpoints:
        link = (facts.links or {}).get(endpoint.port)
        if link is None:
            continue
        if bridge or link.get("master") != network.bridge:
            found[endpoint.name] = f"{endpoint.port} is not on the bridge"
        elif "UP" not in link["flags"]:
            found[endpoint.name] = f"{endpoint.port} is down"
        elif not link.get("linkinfo", {}).get("info_slave_data", {}).get("isolated"):
            found[endpoint.name] = f"{endpoint.port} is not isolated from the others"
    return found


def bridge_address(network: Network) -> str:
    """The gateway, with the length of the subnet's prefix."""
    return f"{names.gateway(network.subnet)}/{network.subnet.partition('/')[2]}"


def wrong_link(links: Links, name: str, address: str) -> str:
    """The problem, in words, of an interface that is to be there, up, with the address; "" for none."""
    link = links.get(name)
    if link is None:
        return f"{name} is gone"
    if "UP" not in link["flags"]:
        return f"{name} is down"
    if not any(f"{info['local']}/{info['prefixlen']}" == address for info in link["addr_info"]):
        return f"{name} has lost its address {address}"
    return ""


# Making it so.


def ensure_router(
    layout: Layout,
    network: Network,
    endpoints: tuple[Endpoint, ...],
    host: HostNetwork,
    facts: RouterFacts,
    survivor: int | None = None,
) -> None:
    """Bring the router from what was observed to what is wanted, writing only what differs. `survivor` is a process of
    ours that runs in it, if any does: a namespace that has only lost its name gets that again."""
    rules = wanted_rules(layout, network, endpoints, host)
    wrong = differences(layout, network, rules, host, facts)
    if facts.links is not None and facts.watched != texts_of(rules.router):
        wrong.setdefault("router rules", "nobody has watched over them")
    if not wrong:
        return
    check_overlap(layout, network, host)
    if layout.uplink_host in host.links:
        _check_ours(layout, host.links, layout.uplink_host, f"the host has an interface {layout.uplink_host}")
    if "router" in wrong:
        _make_namespace(layout, survivor)
        host, facts = observe_all(layout, network)
        wrong = differences(layout, network, rules, host, facts)
    _check_ours(layout, facts.links or {}, "lo", f"there is a network namespace {layout.namespace}")
    if "router rules" in wrong or "bridge" in wrong:  # the watch may have set it down, and does so for good reasons
        load_watched(layout, network, rules.router, facts.rules)
    if "host rules" in wrong:
        load(["nft"], rules.host, layout.table, facts.host_rules)
    _ensure_links(layout, network, wrong, host, facts)


def _make_namespace(layout: Layout, survivor: int | None) -> None:
    """Make the namespace. It gets its name last: one with our name is whole and has our tag, wherever a crash comes."""
    try:
        layout.namespace_path.unlink(missing_ok=True)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return  # a command of a hutch that was killed has come to its end just now: it is there
    if survivor is None:
        run(render_namespace(layout))
    else:
        run(["ip", "netns", "attach", layout.namespace, str(survivor)])


def render_namespace(layout: Layout) -> list[str]:
    """The command that makes the router namespace."""
    return ["unshare", "--net", "--", "sh", "-euc", NAMESPACE, "sh", tag(layout), layout.namespace]


def is_ours(layout: Layout, link: Mapping[str, Any]) -> bool:
    """Whether an interface is this hutch's: by its tag, or, untagged, by the MAC that it was made with."""
    alias = link.get("ifalias")
    return alias == tag(layout) or (alias is None and link.get("address") == layout.uplink_mac)


def _check_ours(layout: Layout, links: Links, interface: str, what: str) -> None:
    """Refuse an interface that is not this hutch's, before anything is changed."""
    if not is_ours(layout, links.get(interface, {})):
        raise HutchError(
            f"{what} that is not this hutch's",
            resolution=f"rename or remove it; ours carry the alias {tag(layout)!r}",
        )


def _ensure_links(
    layout: Layout, network: Network, wrong: Collection[Part], host: HostNetwork, facts: RouterFacts
) -> None:
    """Make interfaces, addresses and routes, after the rules. Each `ip -batch` is one process."""
    in_router = ["ip", "-n", layout.namespace, "-batch", "-"]
    if "uplink" in wrong:
        if layout.uplink_host in host.links:
            run(["ip", "link", "delete", layout.uplink_host])
        run(["ip", "-batch", "-"], stdin=render_uplink(layout, network))
        run(in_router, stdin=render_router_end(layout, network))
    elif "way out" in wrong:
        run(in_router, stdin=render_way_out(network))
    if "fence" in wrong or "uplink" in wrong or "way out" in wrong:
        run(in_router, stdin=render_fence(network, is_there=bool(facts.fence)))
    if "bridge" in wrong:
        run(in_router, stdin=render_bridge(network, is_there=network.bridge in (facts.links or {})))
    if "way in" in wrong or "uplink" in wrong:  # it went with the interface
        run(render_route(layout, network))


def render_uplink(layout: Layout, network: Network) -> str:
    """The host's end of the uplink, for `ip -batch`. Each end knows the other's MAC for good: a container can fill the
    kernel's table of neighbours, which is one for the whole host."""
    host_end, router_end = names.uplink_addresses(network.uplink)
    outer, inner_mac = layout.uplink_host, layout.uplink_router_mac
    inner = f"{layout.uplink_router} address {inner_mac} netns {layout.namespace}"
    return (
        f"link add {outer} address {layout.uplink_mac} type veth peer name {inner}\n"
        f'link set {outer} alias "{tag(layout)}"\n'
        f"addr add {host_end}/30 dev {outer}\n"
        f"link set {outer} up\n"
        f"neigh replace {router_end} lladdr {inner_mac} dev {outer} nud permanent\n"
    )


def render_router_end(layout: Layout, network: Network) -> str:
    """The router's end of the uplink, for `ip -batch` in its namespace."""
    host_end, router_end = names.uplink_addresses(network.uplink)
    inner = layout.uplink_router
    known = f"neigh replace {host_end} lladdr {layout.uplink_mac} dev {inner} nud permanent"
    return f"addr add {router_end}/30 dev {inner}\nlink set {inner} up\n{known}\n{render_way_out(network)}"


def render_way_out(network: Network) -> str:
    """The router's default route, for `ip -batch` in its namespace."""
    host_end, _ = names.uplink_addresses(network.uplink)
    return f"route replace default via {host_end}\n"


def render_fence(network: Network, *, is_there: bool = False) -> str:
    """The routing of packets from workspaces, for `ip -batch` in the router namespace."""
    host_end, _ = names.uplink_addresses(network.uplink)
    remove = f"rule del pref {FENCE}\n" if is_there else ""
    return (
        f"route replace default via {host_end} table {FENCE}\n"
        f"route replace blackhole {network.subnet} table {FENCE}\n"
        f"{remove}rule add pref {FENCE} iif {network.bridge} lookup {FENCE}\n"
    )


def render_bridge(network: Network, *, is_there: bool = False) -> str:
    """The bridge, for `ip -batch` in the router namespace. Its MAC is its own: one that follows its ports' would change
    as they come and go, and with it the gateway that guests know; and the kernel would drop what is pinned. A caller of
    a stopped workspace hears so after three questions for it."""
    bridge, mac = network.bridge, names.mac(f"bridge {network.bridge}")
    add = "" if is_there else f"link add {bridge} address {mac} type bridge mcast_snooping 0\n"
    address = f"addr flush dev {bridge}\naddr add {bridge_address(network)} dev {bridge}\n"
    return f"{add}{address}link set {bridge} up\nntable change name arp_cache dev {bridge} retrans {ASKED_AGAIN}\n"


def render_route(layout: Layout, network: Network) -> list[str]:
    """The command that gives the host its way to the workspaces."""
    _, router_end = names.uplink_addresses(network.uplink)
    return ["ip", "route", "replace", network.subnet, "via", router_end, "dev", layout.uplink_host]


def remove_router(layout: Layout) -> None:
    """Remove the router; interfaces and namespaces that are not ours are left alone. The host's barrier goes last, when
    there is nothing any more that it holds back."""
    links = observe_host().links
    if layout.uplink_host in links:
        _check_ours(layout, links, layout.uplink_host, f"the host has an interface {layout.uplink_host}")
        run(["ip", "link", "delete", layout.uplink_host])
    if has_namespace(layout):
        (lo,) = json.loads(run(["ip", "-n", layout.namespace, "-j", "link", "show", "dev", "lo"]).stdout)
        _check_ours(layout, {"lo": lo}, "lo", f"there is a network namespace {layout.namespace}")
        run(["ip", "netns", "delete", layout.namespace])
    run(["nft", "-f", "-"], stdin=ruleset.render_removal([("inet", layout.table)]))


# Kernel settings of the host.


def wanted_sysctls(layout: Layout, endpoints: Iterable[Endpoint]) -> dict[str, str]:
    """Settings that the host must have, by their path below /proc/sys.

    `route_localnet`, on our own interface only, lets a published port answer on 127.0.0.1 too.
    """
    settings = {FORWARDING: "1"}
    if any(endpoint.publish for endpoint in endpoints):
        settings[f"net/ipv4/conf/{layout.uplink_host}/route_localnet"] = "1"
    return settings


def observe_sysctls(settings: Mapping[str, str]) -> dict[str, str]:
    """The present values of the settings that differ. An interface that is gone has none."""
    paths = {name: Path("/proc/sys") / name for name in settings}
    found = {name: path.read_text(encoding="ascii").strip() for name, path in paths.items() if path.exists()}
    return {name: value for name, value in found.items() if value != settings[name]}


def write_sysctls(settings: Mapping[str, str]) -> None:
    """Write settings; those of an interface that is gone are gone with it."""
    for name, value in settings.items():
        path = Path("/proc/sys") / name
        if path.exists():
            path.write_text(value, encoding="ascii")


def observe_forwarders() -> dict[str, str]:
    """Interfaces of the host for which it might forward packets, with their aliases."""
    links = json.loads(run(["ip", "-j", "-d", "link"]).stdout)
    kinds = ("bridge", "veth", "tun", "wireguard")
    return {
        link["ifname"]: link.get("ifalias", "") for link in links if link.get("linkinfo", {}).get("info_kind") in kinds
    }


def tagged_state(alias: str) -> Path | None:
    """The state directory of the hutch whose interface carries this alias; None for everybody else's."""
    word, _, path = alias.partition(" ")
    return Path(path) if word == "hutch" and path.startswith("/") else None
