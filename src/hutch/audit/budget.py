"""How much each kind of source may add to a record, so that none pushes out what others did. Pure.

A source that has spent its budget is left out, and counted, until a part of it has come back; then the count is told in
one line. What root does, and the host by itself, has no budget. Other accounts have one for what they have hutch do,
apart from what they run inside: so nobody hides a decision behind many commands.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

from hutch.audit.events import Entry, Source
from hutch.frozen import dataclass

DAY = 86_400.0
LINE = 120
"""Bytes of a line beside its fields: number, hash and the like."""


@dataclass(frozen=True)
class Budget:
    """The bytes that a source has at once, and those that come back in a day."""

    most: float
    a_day: float


BUDGETS: dict[Source, Budget] = {
    "account": Budget(8 << 20, 64 << 10),
    "person": Budget(16 << 20, 160 << 10),
    "guest": Budget(4 << 20, 96 << 10),
}
"""In ninety days they add 57 MiB at most, of the 64 that a record holds at least."""
SHARE = 64
"""The part of a budget, as a divisor, that has to come back before a source is heard again: so that what is left out is
told in few lines."""


class Budgets:
    """What is left of the budgets of one record, and what was left out: by source, and by kind of event."""

    def __init__(self, left: dict[Source, float], then: float | None, out: dict[Source, dict[str, int]]) -> None:
        self._left, self._then, self._out = left, then, out

    @classmethod
    def parse(cls, head: bytes) -> Budgets:
        """The budgets by the note that the state keeps; full ones where there is none."""
        full = {source: budget.most for source, budget in BUDGETS.items()}
        try:
            found = json.loads(head)
            left, then, out = found["left"], found["then"], found["out"]
            if type(then) not in (int, float) or not math.isfinite(then):
                return cls(full, None, {})
            return cls(
                {s: min(float(left[s]), b.most) for s, b in BUDGETS.items()},
                then,
                {s: {str(kind): int(count) for kind, count in out[s].items()} for s in BUDGETS if out.get(s)},
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            return cls(full, None, {})

    @property
    def body(self) -> dict[str, Any]:
        return {"left": self._left, "then": self._then, "out": self._out}

    def admitted(self, entries: Iterable[Entry], now: float) -> Iterator[Entry]:
        """The entries that go into the record, and lines that tell what did not."""
        passed = max(now - self._then, 0.0) if self._then is not None else 0.0
        self._then = now
        for source, budget in BUDGETS.items():
            self._left[source] = min(self._left[source] + passed * budget.a_day / DAY, budget.most)
            if self._out.get(source) and self._left[source] >= budget.most / SHARE:
                yield _told(self._out.pop(source), now)
        for entry in entries:
            if entry.source == "host" or self._spend(entry.source, entry):
                yield entry

    def _spend(self, source: Source, entry: Entry) -> bool:
        """Whether an entry is within its source's budget, which it is taken from."""
        cost = LINE + len(json.dumps(entry.body))
        if not self._out.get(source) and cost <= self._left[source]:
            self._left[source] -= cost
            return True
        counts = self._out.setdefault(source, {})
        weight = entry.values.get("count", 1)
        counts[entry.event] = counts.get(entry.event, 0) + (weight if isinstance(weight, int) else 1)
        return False


def _told(counts: dict[str, int], now: float) -> Entry:
    values = {"why": "there were too many of them", "count": sum(counts.values()), "kinds": sorted(counts)}
    return Entry(now, "cut", None, values)
