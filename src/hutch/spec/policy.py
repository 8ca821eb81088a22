"""Policies: what a workspace may reach, by the keys `egress` and `learn`. Pure: rules and resolver read them here."""

from __future__ import annotations

import ipaddress
import zlib
from typing import Literal, cast

from hutch.frozen import dataclass
from hutch.spec.model import WorkspaceSpec
from hutch.spec.ranges import EVERYWHERE, is_private

Kind = Literal["internet", "none", "all", "list"]


@dataclass(frozen=True)
class Domain:
    """A listed name, in lower case and ASCII, without dots at its ends; or all names below it. `port` None is any."""

    name: str
    is_wildcard: bool
    port: int | None

    def covers(self, name: str) -> bool:
        """Whether `name`, in lower case and without a dot at its end, is covered."""
        return name.endswith(f".{self.name}") if self.is_wildcard else name == self.name

    def contains(self, other: Domain) -> bool:
        """Whether all names that `other` stands for are covered, at any port."""
        is_same = (self.name, self.is_wildcard) == (other.name, other.is_wildcard)
        return is_same or (self.is_wildcard and self.covers(other.name))


@dataclass(frozen=True)
class Reach:
    """A listed network. `port` is None for any."""

    network: str
    port: int | None


@dataclass(frozen=True)
class Policy:
    """`egress` and `learn` of one workspace."""

    kind: Kind = "internet"
    domains: tuple[Domain, ...] = ()
    networks: tuple[Reach, ...] = ()
    learn: bool = False

    @property
    def is_watched(self) -> bool:
        """Whether its traffic is examined and recorded: where something is refused, or to be learned."""
        return self.learn or self.kind in ("none", "list")

    @property
    def epoch(self) -> int:
        """The number of this policy and no other, with which the connections that it lets out are marked; never 0."""
        words = (self.kind, self.learn, sorted(map(repr, self.domains)), sorted(map(repr, self.networks)))
        return zlib.crc32(repr(words).encode()) or 1

    def opens(self, address: str) -> bool:
        """Whether it names the private network that `address` is in."""
        return any(
            ipaddress.IPv4Address(address) in ipaddress.IPv4Network(reach.network) for reach in self.private_networks
        )

    @property
    def private_networks(self) -> tuple[Reach, ...]:
        """The private networks that it opens."""
        everything = (Reach(EVERYWHERE, None),) if self.kind == "all" else ()
        return (*everything, *(reach for reach in self.networks if is_private(reach.network)))

    @property
    def public_networks(self) -> tuple[Reach, ...]:
        """The listed networks that are not private: of a wider network, the private part stays closed."""
        return tuple(reach for reach in self.networks if not is_private(reach.network))


def policy_of(workspace: WorkspaceSpec) -> Policy:
    """The policy of a valid workspace."""
    if isinstance(workspace.egress, str):
        return Policy(cast(Kind, workspace.egress), learn=workspace.learn)
    domains, networks = [], []
    for entry in workspace.egress:
        where, _, digits = entry.partition(":")
        if "/" in where:
            networks.append(Reach(where, int(digits) if digits else None))
        else:
            domains.append(domain_of(entry))
    return Policy("list", tuple(domains), tuple(networks), workspace.learn)


def domain_of(entry: str) -> Domain:
    """The names that a valid entry of a list stands for."""
    where, _, digits = entry.partition(":")
    return Domain(where.removeprefix("*."), where.startswith("*."), int(digits) if digits else None)
