"""Decisions of people about names that a workspace may reach beside its list: `hutch allow` and `hutch deny`. Pure; the
caller tells the time.

They stand in the record in the order in which they were made. Of those that cover a name, the newest counts.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

from hutch.frozen import dataclass
from hutch.spec.entries import Egress
from hutch.spec.field_types import Invalid, matches
from hutch.spec.model import WorkspaceSpec
from hutch.spec.policy import Domain, Policy, domain_of
from hutch.spec.record import Decision, iso

MOST = 128
"""The most decisions that are remembered of one workspace. Each question of a guest's is compared with all of them."""
REFUSING = ("list", "none")
"""The kinds of policies under which names are refused, and can be allowed."""
ADDRESSES = 'names are opened so; hutch.toml opens addresses: egress = [..., "203.0.113.7/32:443"]'


def parse_host(value: str, *, is_allowed: bool) -> str:
    """The one form of a name, which may have a port where it is allowed. Raises Invalid for all that is no name."""
    if matches(r"[0-9.]+(/[0-9]+)?(:[0-9]+)?", value):
        raise Invalid("is an address", ADDRESSES)
    entry = Egress().parse_destination(value)
    if ":" in entry and not is_allowed:
        raise Invalid("has a port", "a name is denied at all ports: leave the port out")
    return entry


@dataclass(frozen=True)
class Ruled:
    """A decision as packets and questions are compared with it. The `mark` is that of the connections which it lets
    out: when no decision has it any more, they are judged anew."""

    decision: Decision
    domain: Domain
    mark: int


def ruled(decisions: Sequence[Decision]) -> tuple[Ruled, ...]:
    """All decisions, newest first. What was denied since of a wider name is part of the mark."""
    found = []
    for place, decision in enumerate(decisions):
        domain = domain_of(decision.host)
        later = [domain_of(each.host) for each in decisions[place + 1 :] if not each.is_allowed]
        within = [repr(each) for each in later if domain.contains(each) or each.contains(domain)]
        mark = zlib.crc32(repr((decision.host, decision.since, decision.until, within)).encode()) or 1
        found.append(Ruled(decision, domain, mark))
    return tuple(reversed(found))


def permits(newest_first: Iterable[Ruled], name: str | None, now: float) -> tuple[Ruled, ...]:
    """The decisions that open a name now, newest first."""
    found: list[Ruled] = []
    if name is None:
        return ()
    for each in newest_first:
        if each.decision.is_over(now) or not each.domain.covers(name):
            continue
        if not each.decision.is_allowed:
            break
        found.append(each)
    return tuple(found)


def is_denied(newest_first: Iterable[Ruled], name: str, port: int | None, now: float) -> bool:
    """Whether the newest decision about a name, at that port or at all, is a no."""
    for each in newest_first:
        if each.domain.covers(name) and each.domain.port in (None, port) and not each.decision.is_over(now):
            return not each.decision.is_allowed
    return False


def with_decision(decisions: Sequence[Decision], new: Decision, now: float) -> tuple[Decision, ...]:
    """The decisions with one more, and without those that are over or that it takes the place of: one about the same,
    and for a no all that it closes."""
    domain = domain_of(new.host)

    def is_replaced(old: Decision) -> bool:
        return old.host == new.host or (not new.is_allowed and domain.contains(domain_of(old.host)))

    return (*(old for old in decisions if not old.is_over(now) and not is_replaced(old)), new)


def is_listed(policy: Policy, host: str) -> bool:
    """Whether a list opens all that an entry of names stands for."""
    domain = domain_of(host)
    return any(item.contains(domain) and item.port in (None, domain.port) for item in policy.domains)


def is_partly_listed(policy: Policy, host: str) -> bool:
    """Whether a list opens some of an entry, at some port: no decision closes that."""
    domain = domain_of(host)
    return any(item.contains(domain) or domain.contains(item) for item in policy.domains)


def unlisted(decisions: Iterable[Decision], policy: Policy) -> tuple[Decision, ...]:
    """The decisions without those that allow what the list opens as well."""
    return tuple(each for each in decisions if not (each.is_allowed and is_listed(policy, each.host)))


def standing(decisions: Iterable[Decision], policy: Policy, now: float) -> tuple[Decision, ...]:
    """The decisions that open something now which the list does not. With any other policy, nothing is to be opened."""
    if policy.kind not in REFUSING:
        return ()
    return tuple(each for each in unlisted(decisions, policy) if each.is_allowed and not each.is_over(now))


def words(decision: Decision) -> str:
    """What was allowed, and until when."""
    return decision.host if decision.until is None else f"{decision.host} until {iso(decision.until)}"


def why_not(name: str, workspace: WorkspaceSpec, policy: Policy) -> str:
    """The reason why nothing is allowed or denied by name in a workspace; "" where it is."""
    if workspace.engine != "local":
        return f"{name} is run by an Incus server, which has no egress lists: nothing is refused by name"
    if policy.kind not in REFUSING:
        return f'{name} has egress = "{policy.kind}": nothing is refused by name'
    return ""
