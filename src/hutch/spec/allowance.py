"""The allowance of one member: what a workspace asks for above the ceiling, and what it gets where it asks for nothing.

Pure but for `Look`, by which paths are looked at. What a file leaves open is clamped below the ceiling; what it says
above it is refused. Every key of the model is in one of the three sets below, or a test fails.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from hutch.frozen import dataclass
from hutch.spec.ceiling import POLICY_FILE, Ceiling, has_image, roots
from hutch.spec.clashes import Real, is_inside
from hutch.spec.member import Member
from hutch.spec.model import MACHINE_CPUS, MACHINE_MEMORY, Clamped, Network, WorkspaceSpec
from hutch.spec.policy import Domain, Policy, Reach, policy_of
from hutch.spec.validation import FieldProblem, Path, Table

FREE = frozenset(
    """
    hypervisor packages setup user shell authorized_keys share_with autostart restart_if_changed persist protect
    protect_default env use idle
    """.split()
)
"""The keys to which a member may give any value: what they change is inside the workspace, or is the member's own."""
JUDGED = frozenset("type image owner vcpus memory disk mounts egress publish nix_store gpu nesting vsock learn".split())
"""The keys whose values the ceiling bounds, or the member's rights do."""
REFUSED: Mapping[str, str] = {
    "engine": "workspaces of members run on this host",
    "home": "it lies in hutch's own directory",
    "auto_refresh": "images are shared: root has them made anew, for everybody who starts from them",
    "ip": "it is allocated, so that nobody has an address that was meant for another",
    "mac": "it is derived from the name, so that nobody takes another's",
    "cid": "it is derived from the name, so that nobody takes another's",
}
"""The keys that are not a member's to say, and why."""
SECTIONS: Mapping[str, str] = {
    "network": "judged",
    "defaults": "free",
    "workspaces": "free",
    "kits": "free",
    "engines": "refused",
}
"""The tables of the file. The values of the free ones are judged in the workspaces that they get into."""
SWITCHES = ("nesting", "gpu", "nix_store", "vsock")
RAISES = f"root raises it in {POLICY_FILE}"


@dataclass(frozen=True)
class Allowance:
    """What one member may have. `network` is the host's, None where nobody knows that. The file `is_own` where it is
    theirs; what another one declares for others is left out, since several people may share it."""

    member: Member
    ceiling: Ceiling
    network: Network | None = None
    is_own: bool = True


@dataclass(frozen=True)
class Look:
    """Looks at paths: `real` resolves symbolic links, `owner_of` gives the uid that has what is at a path, or the
    nearest directory above where nothing is; None where nobody can tell."""

    real: Real
    owner_of: Callable[[str], int | None]


Place = Callable[..., Path]
"""Gives the place in the file of a key of one workspace, and of what is inside its value."""


# What the file says.


def is_for_member(workspace: WorkspaceSpec, allowance: Allowance) -> bool:
    """Whether a workspace counts when the member loads its file."""
    return allowance.is_own or workspace.owner in (None, allowance.member.uid)


def check_sections(data: Table, network: Network, allowance: Allowance) -> Iterator[FieldProblem]:
    """The problems of the file's own tables. `network` is the file's. Servers that a shared file has are for others."""
    hosts = allowance.network
    for section, fate in SECTIONS.items():
        said = data.get(section)
        for key in said if isinstance(said, dict) else ():
            if fate == "refused" and allowance.is_own:
                yield FieldProblem((section, key), "is root's to say, not a member's", "leave it out")
            elif fate == "judged" and hosts is not None and is_another(key, network, hosts):
                value = getattr(hosts, key)
                yield FieldProblem(
                    (section, key), f"is not the host's, which is {value}", "leave it out: the host's holds"
                )


def is_another(key: str, network: Network, hosts: Network) -> bool:
    return key in Network.__dataclass_fields__ and getattr(network, key) != getattr(hosts, key)


def check_allowance(workspace: WorkspaceSpec, allowance: Allowance, look: Look, place: Place) -> Iterator[FieldProblem]:
    """The problems of one workspace that asks for more than its member may have. Its defaults are clamped already."""
    ceiling, members = allowance.ceiling, allowance.ceiling.members
    yield from check_refused(workspace, place)
    if workspace.type not in members.types:
        yield above(place("type"), ceiling, "types")
    if not has_image(ceiling, workspace.image, look.real):
        yield above(place("image"), ceiling, "images")
    if workspace.owner not in (None, allowance.member.uid):
        yield FieldProblem(
            place("owner"), f"is not {allowance.member.name}, who calls", "leave it out: who calls owns it"
        )
    yield from check_amounts(workspace, ceiling, place)
    yield from check_mounts(workspace, allowance, look, place)
    yield from check_ports(workspace, ceiling, place)
    yield from check_egress(workspace, ceiling, place)
    for switch in SWITCHES:
        if getattr(workspace, switch) and not getattr(members, switch):
            yield above(place(switch), ceiling, switch)


def above(place: Path, ceiling: Ceiling, key: str, hint: str = "") -> FieldProblem:
    """The problem of a value that `key` of the ceiling does not allow."""
    message = f"is above the ceiling of members: {ceiling.says(key)}"
    return FieldProblem(place, message, f"{hint or 'change it, or leave it out'}; {RAISES}")


def check_refused(workspace: WorkspaceSpec, place: Place) -> Iterator[FieldProblem]:
    """Keys that are not a member's to say. One that is new to the model, and in no set, is among them."""
    for key, field in WorkspaceSpec.__dataclass_fields__.items():
        if key not in FREE | JUDGED and getattr(workspace, key) != field.default:
            why = REFUSED.get(key, "no bound for members is defined yet")
            yield FieldProblem(place(key), f"is root's to say, not a member's: {why}", "leave it out")


def check_amounts(workspace: WorkspaceSpec, ceiling: Ceiling, place: Place) -> Iterator[FieldProblem]:
    for amount, has in amounts(workspace).items():
        most: int = getattr(ceiling.members, amount)
        if has is None or has > most:
            yield above(place(amount), ceiling, amount, f"at most {ceiling.shown(amount)}")


def amounts(workspace: WorkspaceSpec) -> dict[str, int | None]:
    """The most that a workspace has of each; None is no limit."""
    is_machine = workspace.type == "vm"
    return {
        "memory": workspace.memory or (MACHINE_MEMORY if is_machine else None),
        "vcpus": workspace.vcpus or (MACHINE_CPUS if is_machine else None),
        "disk": workspace.disk,
    }


def check_mounts(workspace: WorkspaceSpec, allowance: Allowance, look: Look, place: Place) -> Iterator[FieldProblem]:
    """Shares lie where the ceiling says, by whatever name, and are the caller's own."""
    member = allowance.member
    within = roots(allowance.ceiling, None if member.home is None else str(member.home))
    grounds = {*within, *map(look.real, within)}
    for index, mount in enumerate(workspace.mounts):
        at = place("mounts", index, "source")
        if not all(
            any(is_inside(alias, root) for root in grounds) for alias in (mount.source, look.real(mount.source))
        ):
            yield above(at, allowance.ceiling, "mounts", "a directory or a file below these")
        elif look.owner_of(look.real(mount.source)) != member.uid:
            message = f"is not {member.name}'s own, and a member shares nothing else"
            yield FieldProblem(at, message, f"a directory or a file that belongs to {member.name}")


def check_ports(workspace: WorkspaceSpec, ceiling: Ceiling, place: Place) -> Iterator[FieldProblem]:
    ranges = ceiling.members.publish
    for index, port in enumerate(workspace.publish):
        if not any(each.covers(port) for each in ranges):
            hint = f'such as "127.0.0.1:8080:{port.guest_port}"' if ranges else ""
            yield above(place("publish", index), ceiling, "publish", hint)


# Where packets may go.


def check_egress(workspace: WorkspaceSpec, ceiling: Ceiling, place: Place) -> Iterator[FieldProblem]:
    """It reaches nothing that the ceiling does not open."""
    most, own = ceiling_policy(ceiling), policy_of(workspace)
    if isinstance(workspace.egress, str):
        if not is_word_within(workspace.egress, most):
            yield above(place("egress"), ceiling, "egress")
    else:
        for index, entry in enumerate(workspace.egress):
            if not is_entry_within(entry, most):
                yield above(place("egress", index), ceiling, "egress")
    if own.learn and not is_word_within("internet", most):
        yield above(place("learn"), ceiling, "egress", "learning lets all of the Internet pass")


def ceiling_policy(ceiling: Ceiling) -> Policy:
    return policy_of(WorkspaceSpec(type="container", egress=ceiling.members.egress))


def is_word_within(word: str, most: Policy) -> bool:
    order = ("none", "list", "internet", "all")
    return order.index(word) <= order.index(most.kind)


def is_entry_within(entry: str, most: Policy) -> bool:
    """Whether an entry of a list opens no more than the most."""
    own = policy_of(WorkspaceSpec(type="container", egress=(entry,)))
    if most.kind == "all":
        return True
    if most.kind == "internet":
        return not own.private_networks
    domains = all(any(has_names(wide, domain) for wide in most.domains) for domain in own.domains)
    return domains and all(any(has_addresses(wide, reach) for wide in most.networks) for reach in own.networks)


def has_names(wide: Domain, domain: Domain) -> bool:
    return wide.contains(domain) and wide.port in (None, domain.port)


def has_addresses(wide: Reach, reach: Reach) -> bool:
    inner, outer = ipaddress.IPv4Network(reach.network), ipaddress.IPv4Network(wide.network)
    # A private network is opened by its own name only: a wider one that is listed leaves it closed.
    opens = not policy_of_reach(reach).private_networks or bool(policy_of_reach(wide).private_networks)
    return opens and inner.subnet_of(outer) and wide.port in (None, reach.port)


def policy_of_reach(reach: Reach) -> Policy:
    return Policy("list", networks=(reach,))


# What the file leaves open.


def clamped(workspace: WorkspaceSpec, says: Callable[[str], bool], ceiling: Ceiling) -> tuple[WorkspaceSpec, Clamped]:
    """The workspace with what it leaves open below the ceiling, and the keys that are lower than they are for others.
    `says` tells of a key whether the file has a word about it; what kits bring is not open."""
    members = ceiling.members
    found: dict[str, Any] = {}
    for amount, usual in amounts(workspace).items():
        most: int = getattr(members, amount)
        if not says(amount) and (usual is None or usual > most):
            found[amount] = most
    if not says("image") and not has_image(ceiling, workspace.image, str):
        named = next((image for image in members.images if not image.endswith("*")), None)
        found |= {} if named is None else {"image": named}
    most_open = ceiling_policy(ceiling)
    if not says("egress") and isinstance(workspace.egress, str) and not is_word_within(workspace.egress, most_open):
        found["egress"] = members.egress
    words = {key: ceiling.says("images" if key == "image" else key) for key in found}
    return replace(workspace, **found), words
