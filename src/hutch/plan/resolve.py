"""Resolution: fills in the keys that a declaration leaves open. Addresses are allocated once and kept, the rest is
derived."""

from __future__ import annotations

import ipaddress
import itertools
from collections.abc import Collection, Mapping
from dataclasses import replace

from hutch.errors import HutchError
from hutch.spec import names
from hutch.spec.clashes import IDENTIFIERS, Real, is_inside, same_homes, same_identifiers, same_ports
from hutch.spec.model import Network, WorkspaceSpec
from hutch.spec.names import Layout
from hutch.spec.record import Place, is_local


def resolve(
    declared: Mapping[str, WorkspaceSpec],
    kept: Mapping[str, WorkspaceSpec],
    network: Network,
    layout: Layout,
    owner: int,
    in_use: Collection[str] = (),
    place: Place | None = None,
) -> dict[str, WorkspaceSpec]:
    """Every declared workspace with nothing left open, but for the home of those that another host runs: it is no
    directory.

    `kept` are all workspaces that this host knows as last resolved, removed ones included, so that an address is
    never given twice; `in_use` are the addresses that workspaces run with, maybe others than they are to have. `owner`
    is the uid for those that do not name one and have none yet; `place` is where those of another host are.
    """
    subnets = {"local": network.subnet, **({"incus": place.subnet} if place is not None else {})}
    addresses = allocate(declared, kept, subnets, in_use)
    resolved = {}
    for name, workspace in declared.items():
        before = kept.get(name)
        resolved[name] = replace(
            workspace,
            packages=tuple(sorted(set(workspace.packages))),  # an image does not depend on their order
            ip=addresses[name],
            mac=workspace.mac or names.mac(name),
            cid=workspace.cid or names.cid(name),
            owner=workspace.owner if workspace.owner is not None else before.owner if before else owner,
            home=workspace.home or (str(layout.home(name)) if is_local(workspace) else None),
        )
    return resolved


def allocate(
    declared: Mapping[str, WorkspaceSpec],
    kept: Mapping[str, WorkspaceSpec],
    subnets: Mapping[str, str],
    in_use: Collection[str] = (),
) -> dict[str, str]:
    """Name -> address: the declared one, else the kept one, else the first that is free in the subnet of its engine."""
    fixed = {name: workspace.ip for name, workspace in declared.items() if workspace.ip is not None}
    networks = {engine: ipaddress.IPv4Network(subnet) for engine, subnet in subnets.items()}
    reserved = {reserve(subnet) for subnet in subnets.values() for reserve in (names.gateway, names.builder_address)}
    elsewhere = {w.ip: name for name, w in kept.items() if w.ip is not None and name not in declared}
    for name, ip in fixed.items():
        if ip in elsewhere:
            raise HutchError(
                f"{name}: the address {ip} belongs to workspace {elsewhere[ip]}",
                resolution=f"choose another ip, or `hutch rm --purge {elsewhere[ip]}`",
            )
    chosen, given = dict(fixed), set(fixed.values())
    for name, workspace in declared.items():
        before = kept[name].ip if name in kept else None
        if name in chosen or before is None or before in given:
            continue
        former, subnet = ipaddress.IPv4Address(before), networks[workspace.engine]
        is_host = former in subnet and former not in (subnet.network_address, subnet.broadcast_address)
        if is_host and before not in reserved:
            chosen[name] = before
    # An address that is being given up is still in use: its workspace may run on with it.
    taken = {*reserved, *chosen.values(), *(workspace.ip for workspace in kept.values()), *in_use}
    free = {engine: map(str, network.hosts()) for engine, network in networks.items()}
    for name, workspace in declared.items():
        if name not in chosen:
            address = next((candidate for candidate in free[workspace.engine] if candidate not in taken), None)
            if address is None:
                table = "network" if is_local(workspace) else f"engines.{workspace.engine}"
                raise HutchError(
                    f"no address is left in {networks[workspace.engine]} for {name}",
                    resolution=f"choose a wider subnet in [{table}]",
                )
            chosen[name] = address
    return chosen


def collisions(workspaces: Mapping[str, WorkspaceSpec], real: Real = str) -> list[str]:
    """The values that two workspaces share and must not, in words."""
    found = [
        f"{clash.other} and {clash.name} have the same {key} {clash.value}"
        for key in IDENTIFIERS
        for clash in same_identifiers(workspaces, key)
    ]
    found += [
        f"{clash.other} and {clash.name} both publish host port {clash.value}"
        for clash in same_ports(workspaces)
        if clash.other != clash.name
    ]
    for clash in same_homes(workspaces, real):
        (other, theirs), (name, home) = zip((clash.other, clash.name), clash.homes, strict=True)
        if home == theirs:
            found.append(f"{other} and {name} have the same home {home}")
        elif is_inside(home, theirs):
            found.append(f"the home of {name}, {home}, is inside that of {other}, {theirs}")
        else:
            found.append(f"the home of {other}, {theirs}, is inside that of {name}, {home}")
    return found


def still_used(
    wanted: Mapping[str, WorkspaceSpec],
    running: Mapping[str, WorkspaceSpec],
    stopping: Collection[str],
    real: Real = str,
) -> list[str]:
    """The values that a workspace is to have while another one runs on with them, in words. `running` are those that
    are up, with what they were started with; `stopping` of them give it back before anything starts."""
    staying = {name: workspace for name, workspace in running.items() if name not in stopping}
    later = {name: workspace for name, workspace in wanted.items() if name not in staying}
    return [f"{text}, with which one still runs" for text in collisions({**staying, **later}, real)]


def allocate_uids(taken: Collection[int], count: int, first: int = 0) -> list[int]:
    """The bases of the first `count` free ranges of 65,536 uids; the search begins at the range with the index `first`
    and goes round."""
    bases = (
        names.UID_FIRST + (first + index) % names.UID_RANGES * names.UID_COUNT for index in range(names.UID_RANGES)
    )
    found = list(itertools.islice((base for base in bases if base not in taken), count))
    if len(found) < count:
        raise HutchError(
            f"no range of user ids is left for {count - len(found)} of {count} new workspaces",
            details=f"A host has {names.UID_RANGES} of them, and one that was removed keeps its own.",
            resolution="`hutch rm --purge` unneeded workspaces",
        )
    return found
