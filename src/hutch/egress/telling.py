"""What the egress proxy tells the record of a workspace: that a name was asked for, and what was allowed and refused.

The record is kept for months, so equal events become one within a window, and a workspace has so many lines a day,
whatever it does: beyond that its events are counted, as one that is lost. The journal has all of them for a while.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from hutch.egress.record import EgressEvent, in_batches
from hutch.frozen import dataclass
from hutch.inboxes import append, leave_out
from hutch.spec.record import stamp

SHORTEST, LONGEST = 60.0, 3600.0
"""Seconds within which equal events become one line, written at their end; the first of them is written at once. Each
time that there are more of them, the next window is twice as long."""
PAUSE = 1.0
"""Seconds from an event to its line, at the least."""
MOST_DIFFERENT = 512
"""Different events of a workspace within a window."""
BURST, PER_SECOND = 256.0, 0.05
"""Lines that a workspace may cause at once, and how many it gets again: 4,320 a day."""
AGAIN = 10.0
"""Seconds until what could not be written is tried again."""
LAST = 1.0
"""Seconds in which last words are written, or counted: nobody tells them later."""
SOON = 0.01
TOO_MANY = "too many different ones"

Key = tuple[object, ...]


@dataclass(frozen=True)
class Tally:
    """Equal events since the last line about them: the last one, how many, and when the first was."""

    last: EgressEvent
    count: int
    first: float

    def with_one(self, event: EgressEvent) -> Tally:
        first = min(self.first, event.time) if self.count else event.time
        return Tally(event, self.count + event.count, first)

    @property
    def line(self) -> str:
        """The line of an inbox: an `egress` event of the record, see audit/events."""
        event = self.last
        body = {
            "time": stamp(event.time),
            "event": "egress",
            "name": event.name,
            "address": event.address,
            "port": event.port,
            "protocol": event.protocol,
            "verdict": verdict_of(event),
            "count": self.count,
            "first": stamp(self.first),
            "last": stamp(event.time),
            "why": event.why,
        }
        return json.dumps(body, separators=(",", ":")) + "\n"


def verdict_of(event: EgressEvent) -> str:
    """The verdict in the record: a question that was answered says that a name was asked for, and no more."""
    return "asked" if event.what == "dns" and event.verdict == "allowed" else event.verdict


def key_of(event: EgressEvent) -> Key:
    """What makes two events equal: a name is one at all of its addresses."""
    where = event.name if event.name is not None else event.address
    return (event.name is None, where, event.port, event.protocol, verdict_of(event), event.why)


class Folding:
    """The events of one workspace that are to be told. Computes; the times are Unix time."""

    def __init__(self, now: float) -> None:
        self._tallies: dict[Key, tuple[float, float, Tally]] = {}  # when it is due, and the window after that
        self._lost: dict[str, Tally] = {}
        self._lost_due = 0.0
        self._tokens, self._filled = BURST, now

    def note(self, event: EgressEvent) -> None:
        key = key_of(event)
        if event.verdict == "lost":
            self._lose(event)
        elif key in self._tallies:
            due, window, tally = self._tallies[key]
            self._tallies[key] = due, window, tally.with_one(event)
        elif len(self._tallies) < MOST_DIFFERENT:
            self._tallies[key] = event.time, SHORTEST, Tally(event, event.count, event.time)
        else:
            self._lose(replace(event, why=TOO_MANY))

    def _lose(self, event: EgressEvent, first: float | None = None) -> None:
        lost = EgressEvent(event.time, "connection", "lost", count=event.count, why=event.why)
        before = self._lost.get(event.why, Tally(lost, 0, event.time if first is None else first))
        self._lost[event.why] = before.with_one(lost)

    def due(self, now: float, *, is_end: bool = False) -> list[Tally]:
        """What is to be written by now; at the `is_end`, all that is left."""
        self._tokens = min(BURST, self._tokens + max(now - self._filled, 0.0) * PER_SECOND)
        self._filled = now
        told = []
        for key, (then, window, tally) in list(self._tallies.items()):
            if not is_end and now < then <= now + LONGEST:  # a clock that was set back is no reason to wait
                continue
            del self._tallies[key]
            if not tally.count:
                continue
            if self._tokens >= 1:
                self._tokens -= 1
                self._tallies[key] = now + window, min(2 * window, LONGEST), Tally(tally.last, 0, tally.first)
                told.append(tally)
            else:
                self._lose(replace(tally.last, count=tally.count, why=TOO_MANY), tally.first)
        if self._lost and (is_end or not now < self._lost_due <= now + SHORTEST):
            told += self._lost.values()
            self._lost, self._lost_due = {}, now + SHORTEST
        return told

    def put_back(self, tallies: Iterable[Tally], now: float) -> None:
        """Keep what could not be written, for the next time that something is due."""
        for tally in tallies:
            key = key_of(tally.last)
            if tally.last.verdict == "lost":
                self._lose(replace(tally.last, count=tally.count), tally.first)
                self._lost_due = now + AGAIN
            elif key in self._tallies or len(self._tallies) < MOST_DIFFERENT:
                _, window, later = self._tallies.get(key, (0.0, SHORTEST, replace(tally, count=0)))
                self._tallies[key] = now + AGAIN, window, Tally(later.last, tally.count + later.count, tally.first)
            else:
                self._lose(replace(tally.last, count=tally.count, why=TOO_MANY), tally.first)

    @property
    def next_due(self) -> float | None:
        """The time at which there is something to write, or to forget; None for never."""
        times = [due for due, _, _ in self._tallies.values()]
        return min([*times, self._lost_due] if self._lost else times, default=None)


class Inboxes(Protocol):
    """The inboxes of workspaces' records, which root makes and empties. OSError where lines are not there."""

    def tell(self, workspace: str, lines: str) -> None: ...

    def tell_last(self, workspace: str, lines: str, count: int, seconds: float) -> None: ...


class Teller:
    """Tells the records of workspaces, each by its inbox. Its owner calls `tell` at `next_due`, and `close` in the
    end."""

    def __init__(self, inboxes: Inboxes) -> None:
        self._inboxes = inboxes
        self._foldings: dict[str, Folding] = {}

    def note(self, workspace: str, events: Iterable[EgressEvent]) -> None:
        for event in events:
            folding = self._foldings.get(workspace)
            if folding is None:
                folding = self._foldings[workspace] = Folding(event.time)
            folding.note(event)

    def tell(self, now: float) -> None:
        """Write what is due by now."""
        for workspace, folding in self._foldings.items():
            for batch in in_batches(folding.due(now)):
                try:
                    self._inboxes.tell(workspace, _lines(batch))
                except OSError:
                    folding.put_back(batch, now)

    @property
    def next_due(self) -> float | None:
        return min((due for each in self._foldings.values() if (due := each.next_due) is not None), default=None)

    def forget(self, workspace: str, now: float) -> None:
        """Tell what is left of a workspace that nobody watches any more."""
        if folding := self._foldings.pop(workspace, None):
            self._end(workspace, folding.due(now, is_end=True), time.monotonic() + LAST)

    def close(self, now: float) -> None:
        until = time.monotonic() + LAST
        for workspace, folding in self._foldings.items():
            self._end(workspace, folding.due(now, is_end=True), until)
        self._foldings.clear()

    def _end(self, workspace: str, told: Sequence[Tally], until: float) -> None:
        for batch in in_batches(told):
            left = max(until - time.monotonic(), 0.0)
            with suppress(OSError):  # nobody is left to tell it to
                self._inboxes.tell_last(workspace, _lines(batch), sum(tally.count for tally in batch), left)


def _lines(told: Iterable[Tally]) -> str:
    return "".join(tally.line for tally in told)


def tell_last(inbox: Path, lines: bytes, count: int, seconds: float) -> None:
    """Add the last words about a workspace, which may take so many seconds; where there is no room, count the events
    that they are about."""
    until = time.monotonic() + seconds
    while inbox.parent.is_dir():
        left = max(until - time.monotonic(), 0.0)
        try:
            append(inbox, lines, left)
            return
        except FileNotFoundError:  # root has just taken it
            if not left:
                return
            time.sleep(SOON)
        except OSError:
            leave_out(inbox, count)
            return
