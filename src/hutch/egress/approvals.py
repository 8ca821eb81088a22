"""What a workspace was refused and may want, for a person to decide about. Pure.

The names come from inside, and so does their number: whoever asks for thousands of names below one parent gets one
entry for them, and no workspace has more than MOST.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

from hutch.egress.record import DENIED, NOT_LISTED, EgressEvent
from hutch.egress.suggest import is_plain_name, is_registry, one_form
from hutch.frozen import dataclass
from hutch.spec.decisions import is_denied, permits, ruled
from hutch.spec.policy import Policy
from hutch.spec.ranges import is_never, is_private
from hutch.spec.record import Decision, iso

MOST = 100
"""The most entries of one workspace. Those that were asked for most often come first, so that a flood of names which
are asked for once does not push out what is wanted again and again."""
FAMILY = 8
"""The least number of names under one parent that become one entry."""


@dataclass(frozen=True)
class Refusal:
    """A name, or an address that no name leads to, that was refused `count` times, for the last time at `time`.

    `ports` are those of connections, as far as there were any. `names` is more than 1 where `host` is "*." and the
    parent of so many. `is_denied` says that a person has said no.
    """

    workspace: str
    host: str
    ports: tuple[int, ...]
    count: int
    time: float
    first: float
    names: int = 1
    is_denied: bool = False

    @property
    def is_name(self) -> bool:
        return not self.host.replace(".", "").isdigit()

    def to_json(self) -> dict[str, Any]:
        times = {"time": iso(self.time, "milliseconds"), "first": iso(self.first, "milliseconds")}
        return {**self.__dict__, "ports": list(self.ports), **times}


def refusals(
    workspace: str, records: Iterable[EgressEvent], policy: Policy, decisions: Sequence[Decision], now: float
) -> list[Refusal]:
    """What was refused and is not open by now, most often asked for first. What a person has said no to comes last."""
    newest_first = ruled(decisions)
    found: dict[str, Refusal] = {}
    for record in records:
        host = _wanted(record)
        if host is None:
            continue
        port = record.port or None
        listed = (item.port for item in policy.domains if item.covers(host))
        open_ports = {*listed, *(each.domain.port for each in permits(newest_first, host, now))}
        if open_ports if port is None else open_ports & {None, port}:
            continue
        this = Refusal(workspace, host, (port,) if port else (), record.count, record.time, record.time)
        found[host] = _joined(found[host], this) if host in found else this
    told = [replace(refusal, is_denied=is_denied(newest_first, refusal.host, None, now)) for refusal in found.values()]
    return sorted(_fold(told), key=lambda refusal: (refusal.is_denied, -refusal.count, -refusal.time, refusal.host))


def shown(found: Iterable[Refusal]) -> list[Refusal]:
    """Those that a person is to look at: what nobody has said no to, and of each workspace no more than MOST."""
    counts: Counter[str] = Counter()
    kept = []
    for refusal in found:
        counts[refusal.workspace] += 1
        if not refusal.is_denied and counts[refusal.workspace] <= MOST:
            kept.append(refusal)
    return kept


def _wanted(record: EgressEvent) -> str | None:
    """The name that was refused, or the address where no name leads to it; None for what no decision opens."""
    if record.verdict not in ("refused", "learned") or record.why not in (NOT_LISTED, DENIED):
        return None
    if record.name is not None:
        name = one_form(record.name)
        return name if is_plain_name(name) else None
    is_closed = record.address is None or is_private(record.address) or is_never(record.address)
    return None if is_closed else record.address


def _joined(one: Refusal, other: Refusal) -> Refusal:
    return replace(
        one,
        ports=tuple(sorted({*one.ports, *other.ports})),
        count=one.count + other.count,
        time=max(one.time, other.time),
        first=min(one.first, other.first),
    )


def _fold(found: Iterable[Refusal]) -> list[Refusal]:
    """The same, with many names under one parent as one entry."""
    families: dict[tuple[str, bool], list[Refusal]] = {}
    for refusal in found:
        parent = refusal.host.partition(".")[2]
        is_family = refusal.is_name and "." in parent and not is_registry(parent)
        families.setdefault((f"*.{parent}" if is_family else refusal.host, refusal.is_denied), []).append(refusal)
    folded: list[Refusal] = []
    for (host, _), members in families.items():
        folded += members if len(members) < FAMILY else [_family(host, members)]
    return folded


def _family(host: str, members: Sequence[Refusal]) -> Refusal:
    return replace(reduce(_joined, members), host=host, names=len(members))
