"""Filling in what a declaration leaves open: addresses are allocated once and kept, the rest is derived."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import PurePosixPath

from hutch.errors import HutchError
from hutch.spec import names
from hutch.spec.model import Network, Workspace
from hutch.spec.names import Places


def resolve(
    declared: Mapping[str, Workspace], kept: Mapping[str, Workspace], network: Network, places: Places, owner: int
) -> dict[str, Workspace]:
    """Every declared workspace with nothing left open.

    `kept` are all workspaces of this host as last resolved, removed ones included, so that an address is
    never given twice; `owner` is the uid for those that do not name one and have none yet.
    """
    subnet = ipaddress.IPv4Network(network.subnet)
    addresses = allocate(declared, kept, subnet)
    resolved = {}
    for name, workspace in declared.items():
        before = kept.get(name)
        resolved[name] = replace(
            workspace,
            ip=addresses[name],
            mac=workspace.mac or names.mac(name),
            cid=workspace.cid or names.cid(name),
            owner=workspace.owner if workspace.owner is not None else before.owner if before else owner,
            home=workspace.home or str(places.home(name)),
        )
    return resolved


def allocate(
    declared: Mapping[str, Workspace], kept: Mapping[str, Workspace], subnet: ipaddress.IPv4Network
) -> dict[str, str]:
    """Name -> address: the declared one, else the kept one, else the first that is free."""
    fixed = {name: workspace.ip for name, workspace in declared.items() if workspace.ip is not None}
    reserved = {names.gateway(str(subnet)), names.builder_address(str(subnet))}
    elsewhere = {w.ip: name for name, w in kept.items() if w.ip is not None and name not in declared}
    for name, ip in fixed.items():
        if ip in elsewhere:
            raise HutchError(
                f"{name}: the address {ip} belongs to workspace {elsewhere[ip]}",
                resolution=f"choose another ip, or `hutch rm --purge {elsewhere[ip]}`",
            )
    chosen = dict(fixed)
    for name in declared:
        before = kept[name].ip if name in kept else None
        if name in chosen or before is None or before in fixed.values():
            continue
        former = ipaddress.IPv4Address(before)
        is_host = former in subnet and former not in (subnet.network_address, subnet.broadcast_address)
        if is_host and before not in reserved:
            chosen[name] = before
    # An address that is being given up is still in use: its workspace may run on with it.
    taken = {*reserved, *chosen.values(), *(workspace.ip for workspace in kept.values())}
    free = (str(address) for address in subnet.hosts())
    for name in declared:
        if name not in chosen:
            address = next((candidate for candidate in free if candidate not in taken), None)
            if address is None:
                raise HutchError(
                    f"no address is left in {subnet} for {name}", resolution="choose a wider subnet in [network]"
                )
            chosen[name] = address
    return chosen


def collisions(workspaces: Mapping[str, Workspace], real: Callable[[str], str] = str) -> list[str]:
    """What two workspaces of this host have in common and must not, in words; an interface's name has room for 15
    bytes only. `real` resolves symbolic links: two paths may lead to one home."""
    found = []
    values: dict[str, Callable[[str, Workspace], object]] = {
        "ip": lambda name, workspace: workspace.ip,
        "mac": lambda name, workspace: workspace.mac,
        "cid": lambda name, workspace: workspace.cid,
        "interface": lambda name, workspace: names.port(name, workspace.type),
    }
    for key, value_of in values.items():
        seen: dict[object, str] = {}
        for name, workspace in workspaces.items():
            value = value_of(name, workspace)
            if value in seen:
                found.append(f"{seen[value]} and {name} have the same {key} {value}")
            seen.setdefault(value, name)
    return [*found, *shared_ports(workspaces), *shared_homes(workspaces, real)]


def shared_ports(workspaces: Mapping[str, Workspace]) -> Iterator[str]:
    """A port of the host leads to one workspace, on each of its addresses."""
    seen: dict[tuple[int, str], list[tuple[str, str]]] = {}
    for name, workspace in workspaces.items():
        for port in workspace.publish:
            others = seen.setdefault((port.host_port, port.protocol), [])
            for ip, other in others:
                if other != name and (not ip or not port.host_ip or ip == port.host_ip):
                    yield f"{other} and {name} both publish host port {port.host_port}/{port.protocol}"
                    break
            others.append((port.host_ip, name))


def shared_homes(workspaces: Mapping[str, Workspace], real: Callable[[str], str]) -> Iterator[str]:
    """A home is one workspace's: not another's too, nor inside another's."""
    homes = {name: real(workspace.home) for name, workspace in workspaces.items() if workspace.home is not None}
    owners: dict[str, str] = {}
    for name, home in homes.items():
        other = owners.setdefault(home, name)
        if other != name:
            yield f"{other} and {name} have the same home {home}"
    for name, home in homes.items():
        for parent in PurePosixPath(home).parents:
            if str(parent) in owners:
                yield f"the home of {name}, {home}, is inside that of {owners[str(parent)]}, {parent}"


def allocate_uids(taken: set[int]) -> int:
    """The base of the first free range of 65,536 uids."""
    for index in range(names.UID_RANGES):
        base = names.UID_FIRST + index * names.UID_COUNT
        if base not in taken:
            return base
    raise HutchError("no range of user ids is left", resolution="remove workspaces that are no longer needed")
