"""The views of the egress proxy: the workspaces whose questions it answers, and their policies. Pure."""

from __future__ import annotations

import bisect
import ipaddress
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Literal

from hutch.egress.record import DENIED, NOT_LISTED, Verdict
from hutch.frozen import dataclass
from hutch.spec.decisions import Ruled, is_denied, permits, ruled
from hutch.spec.policy import Domain, Policy, Reach
from hutch.spec.record import Decision

A, AAAA, SVCB, HTTPS, ANY = 1, 28, 64, 65, 255  # types of records
WITHOUT_ANSWER = (AAAA, SVCB, HTTPS)
"""Types of records that lead to addresses which nobody counts, or that nobody can reach: a name has none of these."""
REFUSED_TYPES = (*range(249, 256), 0)
"""Types of questions that no workspace needs: transfers of zones, ANY and the like."""
NOT_PUBLIC = (".arpa", ".local", ".localhost", ".internal", ".invalid")
"""Names that the host's own network may know, and names of addresses, by which others' could be found: RFC 6761."""
LABEL = re.compile(rb"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?")


@dataclass(frozen=True)
class Listed:
    """The destinations that a list opens, found quickly however long the list is: names, and names of which all below
    are meant, each with its ports (None for all); private networks as the first and last number of each, in order."""

    names: Mapping[str, frozenset[int | None]]
    parents: Mapping[str, frozenset[int | None]]
    private: tuple[tuple[int, int], ...]

    def ports(self, name: str | None) -> tuple[int, ...] | None:
        """The ports at which a name is open: None for all, () where it is not listed."""
        if name is None:
            return ()
        found = set(self.names.get(name, ()))
        above = name
        while "." in above:
            above = above.partition(".")[2]
            found |= self.parents.get(above, frozenset())
        return None if None in found else tuple(sorted(port for port in found if port is not None))

    def opens(self, address: str) -> bool:
        """Whether the list names the private network that `address` is in."""
        number = int(ipaddress.IPv4Address(address))
        place = bisect.bisect_right(self.private, (number, 1 << 32)) - 1
        return place >= 0 and number <= self.private[place][1]


def listed_by(policy: Policy) -> Listed:
    names: dict[str, set[int | None]] = {}
    parents: dict[str, set[int | None]] = {}
    for domain in policy.domains:
        (parents if domain.is_wildcard else names).setdefault(domain.name, set()).add(domain.port)
    private = ipaddress.collapse_addresses(ipaddress.IPv4Network(reach.network) for reach in policy.private_networks)
    return Listed(
        {name: frozenset(ports) for name, ports in names.items()},
        {name: frozenset(ports) for name, ports in parents.items()},
        tuple((int(network[0]), int(network[-1])) for network in private),
    )


@dataclass(frozen=True)
class View:
    """One watched workspace. `epoch` is its policy's, `listed` the policy's list, and `ruled` what people have decided
    beside it, newest first: none is worked out anew for each question."""

    workspace: str
    address: str
    epoch: int
    policy: Policy
    listed: Listed
    ruled: tuple[Ruled, ...] = ()

    def terms(self, now: float) -> dict[int, float | None]:
        """The marks of what people allow now, each with its end in Unix time; None for no end."""
        allowed = (each for each in self.ruled if each.decision.is_allowed and not each.decision.is_over(now))
        return {each.mark: each.decision.until for each in allowed}


@dataclass(frozen=True)
class Told:
    """The content of the views file: the addresses to listen at and to ask, as (address, port); the firewall table
    whose sets are filled; views by the address of their workspace."""

    listen: tuple[str, int]
    upstream: tuple[str, int]
    table: str
    views: Mapping[str, View]


@dataclass(frozen=True)
class Ruling:
    """The ruling on a question. `ports` are those that an address in the answer may be reached at: None for all, ()
    where the list does not open it. `permits` are the decisions that open the name beside the list."""

    answer: Literal["forward", "empty", "refuse"]
    verdict: Verdict
    ports: tuple[int, ...] | None = ()
    why: str = ""
    permits: tuple[Ruled, ...] = ()


def read_views(text: str) -> Told:
    """The views in a text that host/network/egress_proxy has written."""
    document = json.loads(text)
    views = {}
    for item in document["views"]:
        domains = tuple(Domain(*entry) for entry in item["domains"])
        networks = tuple(Reach(*entry) for entry in item["networks"])
        policy = Policy(item["kind"], domains, networks, item["learn"])
        decided = ruled([Decision(*decision) for decision in item["decisions"]])
        where = item["workspace"], item["address"]
        views[item["address"]] = View(*where, policy.epoch, policy, listed_by(policy), decided)
    return Told(tuple(document["listen"]), tuple(document["upstream"]), document["table"], views)


def digest(text: str) -> str:
    """The digest that tells texts of views apart."""
    return f"{zlib.crc32(text.encode()):08x}"


def plain_name(labels: Sequence[bytes]) -> str | None:
    """The one form of a name, from its labels without the root's; None for one that no list can hold. Labels are
    compared as they came: a dot or a NUL within one is not the end of it."""
    if not labels or not all(LABEL.fullmatch(label) for label in labels):
        return None
    return b".".join(labels).decode("ascii").lower()


def rule_on(view: View, name: str | None, kind: int, now: float) -> Ruling:
    """The ruling on a question for `name`, as plain_name gives it, of the type `kind`; `now` in Unix time."""
    ports, allowed = view.listed.ports(name), permits(view.ruled, name, now)
    is_open = ports != () or bool(allowed)
    if not is_open and not view.policy.learn:
        is_no = name is not None and is_denied(view.ruled, name, None, now)
        return Ruling("refuse", "refused", why=DENIED if is_no else NOT_LISTED)
    if kind in REFUSED_TYPES:
        return Ruling("refuse", "refused", why="not a question for a name")
    if name is None or "." not in name or (not is_open and name.endswith(NOT_PUBLIC)):
        return Ruling("refuse", "refused", why="not a public name")
    is_free = is_open or view.policy.kind in ("internet", "all")
    verdict: Verdict = "allowed" if is_free else "learned"
    return Ruling("empty" if kind in WITHOUT_ANSWER else "forward", verdict, ports, permits=allowed)
