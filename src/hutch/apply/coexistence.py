"""Coexistence with other software on this host, and what hutch may do for it: facts in, findings and repairs out."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

from hutch.apply.doctor import Finding, State
from hutch.frozen import dataclass
from hutch.host.doctor.repairs import DropIn
from hutch.host.network.firewall import UPSTREAM_PORT
from hutch.host.network.foreign_firewalls import Obstacle, check_foreign_firewalls, unknown_droppers, who_filters
from hutch.host.network.neighbours import Neighbours
from hutch.host.network.router import networks_of

FIX = "`sudo hutch doctor --fix`"
STUB = ("127.0.0.53", "127.0.0.54")
UNMANAGED = "[keyfile]\nunmanaged-devices+={devices}\n"
SUBNETS = ipaddress.IPv4Network("192.168.0.0/16")
"""The range in which another subnet is looked for when the usual one is somebody's."""


@dataclass(frozen=True)
class Repairs:
    """The repairs that `doctor --fix` is to make; `forwarding` says that it must be turned on."""

    obstacles: tuple[Obstacle, ...] = ()
    files: tuple[DropIn, ...] = ()
    shells: tuple[str, ...] = ()
    forwarding: bool = False


def check_neighbours(seen: Neighbours) -> list[Finding]:
    """All findings, in the order in which they are shown."""
    return [
        *check_orphans(seen),
        *check_firewalls(seen),
        *check_manager(seen),
        check_names(seen),
        *check_port(seen),
        check_upstream(seen),
        check_forwarding(seen),
        check_addresses(seen),
        check_aliases(seen),
        *([Finding("records", "warning", seen.workspaces.damage, "`sudo hutch up`")] if seen.workspaces.damage else []),
    ]


def wanted_repairs(seen: Neighbours) -> Repairs:
    """The safe repairs: they open no more than hutch's own rules let through, and can be taken back."""
    return Repairs(
        obstacles=obstacles_of(seen),
        files=(unmanaged(seen),) if is_managed(seen) else (),
        shells=seen.without_aliases,
        forwarding=is_cut_off(seen),
    )


def check_orphans(seen: Neighbours) -> Iterator[Finding]:
    """Findings on state directories that somebody deleted under their workspaces."""
    for state in seen.orphans:
        means = f"{state} holds no record, and its network and its workspaces are still on this host"
        what = "mount its disk again; or, if it was deleted, "
        own = f"{FIX} stops them and takes them away, once you say so"
        other = "the same command with its HUTCH_STATE_DIR and HUTCH_RUN_DIR"
        yield Finding("left behind", "conflict", means, what + (own if state == seen.state else f"{FIX}: {other}"))


def obstacles_of(seen: Neighbours) -> tuple[Obstacle, ...]:
    if seen.listing is None or not seen.host_end:
        return ()
    return check_foreign_firewalls(seen.listing, seen.uplink, seen.host_end)


def stopping(seen: Neighbours) -> State:
    """The state of a finding that stops workspaces: a conflict now where there are any."""
    return "conflict" if seen.workspaces.addresses or seen.is_linked else "warning"


def check_firewalls(seen: Neighbours) -> Iterator[Finding]:
    if seen.listing is None or not seen.host_end:
        why = "that takes root, and nft" if seen.listing is None else "there is no uplink that they could stop"
        yield Finding("other firewalls", "unknown", f"not looked at: {why}", "`sudo hutch doctor`")
        return
    obstacles = obstacles_of(seen)
    there = who_filters(seen.listing)
    for who in dict.fromkeys((*there, *(obstacle.who for obstacle in obstacles))):
        found = [obstacle for obstacle in obstacles if obstacle.who == who]
        if not found:
            yield Finding(who, "ok", "it is here, and stops nothing of workspaces")
            continue
        commands = " and ".join(f"`{step}`" for obstacle in found for step in obstacle.repair)
        again = "" if all(obstacle.lasts for obstacle in found) else "; after a reboot, the first start does so again"
        means = "; ".join(f"it {obstacle.why}" for obstacle in found)
        yield Finding(who, stopping(seen), means, f"{FIX}, which gives {commands}{again}")
    for chain in unknown_droppers(seen.listing, seen.uplink):
        yield Finding(
            f"nftables {chain}", "warning",
            "it drops by default; unless another of its rules accepts traffic and DNS of workspaces, it stops both",
            f'a rule `iifname "{seen.uplink}" accept` there, where its rules are kept',
        )  # fmt: skip
    if not there and not obstacles:
        yield Finding("other firewalls", "ok", "none that is known stops anything")


def is_managed(seen: Neighbours) -> bool:
    """Whether NetworkManager takes our interface for one of its own."""
    return seen.managed not in (None, "", "unmanaged")


def unmanaged(seen: Neighbours) -> DropIn:
    devices = "".join(f"interface-name:{name};" for name in seen.guarded)
    return DropIn(seen.drop_in, UNMANAGED.format(devices=devices), ("nmcli", "general", "reload", "conf"))


def check_manager(seen: Neighbours) -> Iterator[Finding]:
    if seen.managed is None:
        return
    if is_managed(seen):
        means = f"it manages {seen.uplink} ({seen.managed}): it may take its address from it"
        yield Finding("NetworkManager", "warning", means, f"{FIX}, which writes {seen.drop_in}")
    elif seen.managed:
        yield Finding("NetworkManager", "ok", f"it leaves {seen.uplink} alone")
    else:
        yield Finding("NetworkManager", "unknown", f"not seen yet whether it leaves {seen.uplink} alone", "`hutch up`")


def check_names(seen: Neighbours) -> Finding:
    """The finding on names: workspaces get the answers that this host's programs get, as the router asks like them."""
    name = "names" if seen.answers is None else "systemd-resolved"
    if not seen.servers:
        return Finding(name, "warning", "/etc/resolv.conf names no server: workspaces find no names", "add one")
    if seen.answers is None:
        return Finding(
            name, "ok", f"workspaces ask whom this host asks, {', '.join(seen.servers)}, also when it changes"
        )
    for workspace, address in seen.answers.items():
        wanted = seen.workspaces.addresses[workspace]
        if address != wanted:
            return Finding(
                name, "warning", f"it answers {address or 'nothing'} for workspace-{workspace}, not {wanted}",
                "ReadEtcHosts=yes in /etc/systemd/resolved.conf, which is its default; then `systemctl restart "
                "systemd-resolved`",
            )  # fmt: skip
    if not set(seen.servers).intersection(STUB):
        return Finding(
            name, "warning", "it runs, and /etc/resolv.conf leads past it: workspaces miss its DNS settings of VPNs",
            "`ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf`",
        )  # fmt: skip
    return Finding(name, "ok", "workspaces ask it, VPNs and split DNS included; it answers for their own names here")


def check_port(seen: Neighbours) -> Iterator[Finding]:
    """The finding on a host where every user may listen at the resolver's port, and so be asked in its place."""
    if seen.first_free_port <= UPSTREAM_PORT:
        setting = f"net.ipv4.ip_unprivileged_port_start={UPSTREAM_PORT + 1}"
        yield Finding(
            "resolver's port", "warning", f"every user of this host may listen at port {UPSTREAM_PORT} beside the "
            f"resolver, and hear workspaces' questions in its place (ports are free from {seen.first_free_port} on), "
            "or take it alone, and no workspace starts; no answer of theirs gets in",
            f"`sysctl -w {setting}`, or a higher number, and in /etc/sysctl.d",
        )  # fmt: skip


def check_upstream(seen: Neighbours) -> Finding:
    if not seen.upstream:
        return Finding("way out", "warning", "this host has no default route: workspaces reach no Internet either")
    return Finding("way out", "ok", f"by {seen.upstream[0]}; workspaces follow when that changes")


def is_cut_off(seen: Neighbours) -> bool:
    return seen.is_linked and not seen.is_foreign and not seen.forwards


def check_forwarding(seen: Neighbours) -> Finding:
    if is_cut_off(seen):
        means = "something turned it off (net.ipv4.ip_forward): workspaces reach nothing"
        return Finding("forwarding", "conflict", means, f"{FIX}, or `hutch up`")
    return Finding("forwarding", "ok", "it is on" if seen.forwards else "off, until the first workspace comes")


def check_addresses(seen: Neighbours) -> Finding:
    """The finding on addresses: others' networks, and ours."""
    network = seen.workspaces.network
    if seen.is_foreign:
        return Finding(
            "addresses", "conflict", f"there is an interface {seen.uplink} that is not this hutch's: no workspace can "
            "start", "rename or remove it",
        )  # fmt: skip
    clashes = list(find_clashes(seen))
    if clashes:
        means = "; ".join(f"{key} {own} overlaps {other}" for key, own, other in clashes)
        keys = dict.fromkeys(key for key, _, _ in clashes)
        news = [f'subnet = "{free_subnet(seen)}"' if key == "subnet" else "another uplink" for key in keys]
        return Finding("addresses", "conflict", means, f"{' and '.join(news)} in [network] of hutch.toml")
    if not network.uplink:
        return Finding("addresses", "conflict", "no /30 is free for the uplink", "uplink in [network] of hutch.toml")
    return Finding("addresses", "ok", f"nobody else has {network.subnet} or {network.uplink}")


def find_clashes(seen: Neighbours) -> Iterator[tuple[str, str, str]]:
    """(key, our network, theirs): by the addresses of interfaces, and by routes, of which two may be alike."""
    network = seen.workspaces.network
    others = others_of(seen)
    for key, prefix in (("subnet", network.subnet), ("uplink", network.uplink)):
        for other, there in others.items():
            if prefix and ipaddress.IPv4Network(prefix).overlaps(there):
                yield key, prefix, other


def others_of(seen: Neighbours) -> dict[str, ipaddress.IPv4Network]:
    """The networks that are not ours, by their names in messages."""
    found = {
        f"{info['local']}/{info['prefixlen']} of {name}": ipaddress.IPv4Interface(
            f"{info['local']}/{info['prefixlen']}"
        ).network
        for name, link in seen.host.links.items()
        if name not in ("lo", seen.uplink)
        for info in link["addr_info"]
        if info["family"] == "inet"
    }
    own = {seen.workspaces.network.subnet, seen.workspaces.network.uplink} if seen.is_linked else set()
    routes = networks_of(seen.host)
    return found | {
        f"the route to {route}": there
        for route, there in routes.items()
        if route not in own and there not in found.values()
    }


def free_subnet(seen: Neighbours) -> str:
    """A /24 that nobody here has."""
    taken = [*others_of(seen).values(), ipaddress.IPv4Network(seen.workspaces.network.uplink or "192.168.84.0/24")]
    free = (candidate for candidate in SUBNETS.subnets(new_prefix=24) if not any(map(candidate.overlaps, taken)))
    return str(next((candidate for candidate in free if candidate.network_address.packed[2] >= 83), "10.83.0.0/24"))


def check_aliases(seen: Neighbours) -> Finding:
    if seen.without_aliases:
        shells = ", ".join(seen.without_aliases)
        do = f"if you want them: {FIX}, or `hutch aliases --install`"
        return Finding("aliases", "ok", f"no short names for workspaces in {shells}", do)
    return Finding("aliases", "ok", "every shell has short names for workspaces")
