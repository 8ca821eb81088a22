"""Checks between keys and between workspaces, on whatever part of the file is valid by itself.

Pure but for `real`, which resolves symbolic links: two paths may lead to one directory.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from hutch.frozen import dataclass
from hutch.spec import names
from hutch.spec.clashes import Real, is_inside, same_homes, same_identifiers, same_ports
from hutch.spec.model import Network, WorkspaceSpec
from hutch.spec.names import Layout
from hutch.spec.validation import FieldProblem, Path

KERNEL_DIRECTORIES = ("/proc", "/sys", "/dev")
SUBNETS: Mapping[str, Path] = {"local": ("network", "subnet"), "incus": ("engines", "incus", "subnet")}
"""The place in the file of each engine's subnet."""
LAST = {"local": "kept for image builds", "incus": "kept for the server's DHCP"}
"""The use of the last address of each engine's subnet."""
SYSTEM_DIRECTORIES = ("/etc", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/boot", "/run")


Entries = Mapping[str | int, Path]


@dataclass(frozen=True)
class Draft:
    """The valid part of one workspace, and the places of its keys in the file.

    `own` are the keys of its own table, `inherited` those that [defaults] gave it. `entries` maps those of its lists,
    by index, to their places in the file; variables, by name, and whole keys, by kit, where they are a kit's. The
    places of a kit begin with ("kits", NAME), wherever it is from. `whole` is false where so much is wrong (the name or
    the type) that a backend cannot judge it.
    """

    name: str
    workspace: WorkspaceSpec
    own: frozenset[str]
    inherited: frozenset[str]
    entries: Mapping[str, Entries]
    whole: bool = True

    def path(self, key: str, *inside: str | int) -> Path:
        """The path of the value of `key` in the file, or in a kit's; in the workspace's own table when nobody gave
        it."""
        places = self.entries.get(key, {})
        if inside and inside[0] in places:
            return (*places[inside[0]], *inside[1:])
        if places and not self.says(key):
            return (*next(iter(places.values()))[:3], *inside)
        return (*table_of(self.name, key, self.inherited), key, *inside)

    def says(self, key: str) -> bool:
        return key in self.own or key in self.inherited


def table_of(name: str, key: str, inherited: Collection[str]) -> Path:
    """The table that a key of a workspace stands in."""
    return ("defaults",) if key in inherited else ("workspaces", name)


Drafts = Mapping[str, Draft]
Workspaces = Mapping[str, WorkspaceSpec]


def check_network(network: Network) -> Iterator[FieldProblem]:
    """The two networks must not overlap."""
    subnet = ipaddress.IPv4Network(network.subnet)
    if network.uplink:
        if subnet.overlaps(ipaddress.IPv4Network(network.uplink)):
            yield FieldProblem(("network", "uplink"), f"overlaps the subnet {subnet}", "a /30 outside of it")
    elif names.UPLINKS.subnet_of(subnet):
        hint = 'a smaller subnet, or an uplink outside of it, such as "10.84.0.0/30"'
        yield FieldProblem(("network", "subnet"), f"leaves no room for an uplink in {names.UPLINKS}", hint)


def check_subnets(network: Network, subnets: Mapping[str, str], *, is_said: bool) -> Iterator[FieldProblem]:
    """A server's network must not overlap this host's: an address leads to one place. Where the file has no table of
    the server, `is_said` is false, and this host's network is the one to change."""
    if not {"local", "incus"} <= subnets.keys():
        return
    there = ipaddress.IPv4Network(subnets["incus"])
    for key, value in (("subnet", network.subnet), ("uplink", network.uplink or str(names.UPLINKS))):
        if there.overlaps(ipaddress.IPv4Network(value)):
            if is_said:
                message = f"{there} overlaps {value}, which [network] has for its {key}"
                yield FieldProblem(SUBNETS["incus"], message, "another private network")
            else:
                message = f"{value} overlaps {there}, the default subnet of [engines.incus]"
                yield FieldProblem(("network", key), message, "another one, or another subnet in [engines.incus]")


def check_workspaces(
    drafts: Sequence[Draft], subnets: Mapping[str, str], *, layout: Layout, files: Sequence[str], real: Real
) -> Iterator[FieldProblem]:
    """Findings about more than one key. `subnets` has the subnet of each engine, but for those that are wrong; `files`
    are those that declare the workspaces."""
    for engine, subnet in subnets.items():
        last = LAST[engine]
        yield from check_addresses([draft for draft in drafts if draft.workspace.engine == engine], subnet, last)
    by_name = {draft.name: draft for draft in drafts}
    workspaces = {draft.name: draft.workspace for draft in drafts}
    yield from check_identifiers(by_name, workspaces)
    yield from check_ports(by_name, workspaces)
    for draft in drafts:
        yield from check_targets(draft)
        yield from check_sources(draft, layout=layout, files=files, real=real)
    yield from check_homes(by_name, workspaces, real)


def check_addresses(drafts: Sequence[Draft], network: str, last_is: str) -> Iterator[FieldProblem]:
    """Static addresses lie in the subnet and are not hutch's own; `last_is` says what the last one is."""
    subnet = ipaddress.IPv4Network(network)
    taken = {
        str(subnet.network_address): "the network itself",
        str(subnet.broadcast_address): "the broadcast address",
        names.gateway(network): "the gateway",
        names.builder_address(network): last_is,
    }
    first, last = subnet.network_address + 2, subnet.broadcast_address - 2
    for draft in drafts:
        ip = draft.workspace.ip
        if ip is None:
            continue
        if ipaddress.IPv4Address(ip) not in subnet:
            yield FieldProblem(draft.path("ip"), f"is outside the subnet {subnet}", f"{first} to {last}")
        elif ip in taken:
            yield FieldProblem(draft.path("ip"), f"is {taken[ip]}", f"{first} to {last}")


def check_identifiers(by_name: Drafts, workspaces: Workspaces) -> Iterator[FieldProblem]:
    """No two workspaces have one address, MAC or context id, be it given or derived."""
    for draft in by_name.values():
        if draft.workspace.mac == names.BUILDER_MAC:
            yield FieldProblem(draft.path("mac"), "is kept for image builds", "another one, or leave it out")
    for key in ("ip", "mac", "cid"):
        for clash in same_identifiers(workspaces, key):
            draft, other = by_name[clash.name], by_name[clash.other]
            # The one to change is the one that was given; of two given ones the later.
            wrong, right = (draft, other) if draft.says(key) or not other.says(key) else (other, draft)
            derived = "" if right.says(key) else ", which derives it from its name"
            hint = "another one, or leave it out" if wrong.says(key) else f"set {key} in one of them"
            message = f"{clash.value} is also the {key} of workspace {right.name}{derived}"
            yield FieldProblem(wrong.path(key), message, hint)


def check_ports(by_name: Drafts, workspaces: Workspaces) -> Iterator[FieldProblem]:
    """A port of the host leads to one place."""
    for clash in same_ports(workspaces):
        where = "twice" if clash.name == clash.other else f"by workspace {clash.other} too"
        message = f"host port {clash.value} is published {where}"
        path = by_name[clash.name].path("publish", clash.index)
        yield FieldProblem(path, message, "another host port, or another host_ip")


def check_targets(draft: Draft) -> Iterator[FieldProblem]:
    """Mounts have places of their own, and leave the home where it is."""
    home = f"/home/{draft.workspace.user}"
    seen: set[str] = set()
    for index, mount in enumerate(draft.workspace.mounts):
        path = draft.path("mounts", index, "target")
        if is_inside(home, mount.target):
            yield FieldProblem(
                path, f"would hide the home {home}", 'a directory in it, or another place, such as "/src"'
            )
        if mount.target in seen:
            yield FieldProblem(path, "is the target of another mount too", "a target for each")
        seen.add(mount.target)


def check_sources(draft: Draft, *, layout: Layout, files: Sequence[str], real: Real) -> Iterator[FieldProblem]:
    """No share shows the whole host, hutch's own directories, or lets a guest rewrite the files that declare it."""
    workspace = draft.workspace
    own = {
        f"hutch's own {what} {path}": {str(path), real(str(path))}
        for what, path in (("state", layout.state), ("runtime directory", layout.run))
    }
    shares: list[tuple[Path, str, bool]] = [
        (draft.path("mounts", index, "source"), mount.source, mount.is_writable)
        for index, mount in enumerate(workspace.mounts)
    ]
    if workspace.home is not None:
        shares.append((draft.path("home"), workspace.home, True))
    scheme, _, tree = workspace.image.partition(":")
    if scheme in ("rootfs", "nix"):
        shares.append((draft.path("image"), tree, False))
    for path, directory, writable in shares:
        aliases = {directory, real(directory)}
        message, hint = "", "another directory"
        if "/" in aliases:
            message = "is the whole host"
        elif any_inside(aliases, KERNEL_DIRECTORIES):
            message = "is a file system of the host's kernel"
        elif around := [what for what, paths in own.items() if any_inside(aliases, paths)]:
            message = f"is in {around[0]}"
        elif within := [what for what, paths in own.items() if any_inside(paths, aliases)]:
            message = f"holds {within[0]}"
        elif path[-1] == "home" and any_inside(aliases, SYSTEM_DIRECTORIES):
            message = "is in the host's own system"
        elif writable and (held := [file for file in files if any_inside((file,), aliases)]):
            message = f"would let the workspace rewrite {held[0]}"
            hint = 'a directory that does not hold this file, or mode = "readonly"'
        if message:
            yield FieldProblem(path, message, hint)


def check_homes(by_name: Drafts, workspaces: Workspaces, real: Real) -> Iterator[FieldProblem]:
    """Each workspace has a home of its own: not the same directory, nor one inside another."""
    for clash in same_homes(workspaces, real):
        others, home = clash.homes
        how = "is also" if home == others else "overlaps"
        path = by_name[clash.name].path("home")
        yield FieldProblem(path, f"{how} the home of workspace {clash.other}", "a directory for each")


def any_inside(paths: Iterable[str], trees: Iterable[str]) -> bool:
    """Whether any of `paths` is in any of `trees`."""
    return any(is_inside(path, tree) for tree in trees for path in paths)
