"""A report on a workspace: what its record tells of a span of time, joined and counted. Pure.

A record holds as much as its bounds allow, and a guest decides about a part of it: what is kept here has bounds too,
and what is left out is counted. The newest of each kind are kept, and of names those that were asked for most often.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import field, replace
from typing import Any

from hutch.access.git_changes import Changes
from hutch.audit.events import FIELDS, Entry, unstamped, why_wrong
from hutch.frozen import dataclass
from hutch.spec.record import stamp

LIFE = frozenset({"created", "started", "stopped", "failed", "restarted", "removed", "undeleted"})
BEGINNINGS = frozenset({"exec", "ssh", "forward"})
DECISIONS = frozenset({"allowed", "denied"})
MOST = 1000
"""What is kept of each section."""
MOST_NAMES = 20_000
"""Different names that are counted apart."""
VERDICTS = ("refused", "lost", "learned", "allowed", "asked")
"""In the order in which a page has them."""


@dataclass(frozen=True)
class Session:
    """A command, an ssh session or forwarded ports. `seconds` is None where no end was recorded: of ssh, hutch sees
    none."""

    kind: str
    time: float
    by: str | None
    argv: tuple[str, ...] = ()
    root: bool = False
    ports: tuple[int, ...] = ()
    reverse: tuple[int, ...] = ()
    auto: bool = False
    code: int | None = None
    seconds: float | None = None

    @property
    def has_end(self) -> bool:
        """Whether its end is an event too."""
        return f"{self.kind}-ended" in FIELDS

    def to_json(self) -> dict[str, Any]:
        lists = {"argv": list(self.argv), "ports": list(self.ports), "reverse": list(self.reverse)}
        return {**self.__dict__, **lists, "time": stamp(self.time)}


@dataclass(frozen=True)
class Destination:
    """A name, or an address that no name leads to, with one verdict on it; `why` is the last reason. `where` is None
    for what was lost: nobody knows what it was."""

    verdict: str
    where: str | None
    ports: tuple[str, ...]
    count: int
    first: float
    last: float
    why: str

    def joined(self, other: Destination) -> Destination:
        ports = tuple(dict.fromkeys((*self.ports, *other.ports)))[:32]
        latest = max(self, other, key=lambda each: each.last)
        first = min(self.first, other.first)
        return replace(latest, ports=ports, count=self.count + other.count, first=first)

    def to_json(self) -> dict[str, Any]:
        return {**self.__dict__, "ports": list(self.ports), "first": stamp(self.first), "last": stamp(self.last)}


@dataclass(frozen=True)
class Connections:
    """The connections from this host to port 22 of a workspace, by whatever program."""

    count: int
    first: float
    last: float

    def to_json(self) -> dict[str, Any]:
        return {"count": self.count, "first": stamp(self.first), "last": stamp(self.last)}


@dataclass(frozen=True)
class Peaks:
    """The most that a workspace used at once: bytes of memory, processes and threads; and the seconds of processor time
    of all its runs that ended in the span, or still go on. None where nobody could tell."""

    memory: int | None = None
    cpu_seconds: float | None = None
    tasks: int | None = None

    def joined(self, other: Peaks) -> Peaks:
        return Peaks(
            _most(self.memory, other.memory),
            _sum(self.cpu_seconds, other.cpu_seconds),
            _most(self.tasks, other.tasks),
        )


def _most(one: int | None, other: int | None) -> int | None:
    return max((each for each in (one, other) if each is not None), default=None)


def _sum(one: float | None, other: float | None) -> float | None:
    known = [each for each in (one, other) if each is not None]
    return sum(known) if known else None


@dataclass(frozen=True)
class Report:
    """What the record of a workspace tells of the time from `since` (None: from its beginning) to `made`; times are
    Unix time. `left_out` counts what has no room in a section, and as "unknown" lines that are no event. `changes` are
    None where nobody looked, for the reason `unseen`; `damages` None where nobody looked for any. `is_verified` says
    that they were looked for in all of the record, not in its newest file alone; `is_end_known`, that what root's state
    knows of its end was compared."""

    workspace: str
    made: float
    since: float | None
    lines: int = 0
    first: float | None = None
    last: float | None = None
    life: tuple[Entry, ...] = ()
    plans: tuple[Entry, ...] = ()
    sessions: tuple[Session, ...] = ()
    connections: Connections | None = None
    destinations: tuple[Destination, ...] = ()
    decisions: tuple[Entry, ...] = ()
    cuts: tuple[Entry, ...] = ()
    peaks: Peaks = Peaks()
    left_out: Mapping[str, int] = field(default_factory=dict)
    changes: Changes | None = None
    unseen: str = ""
    damages: tuple[str, ...] | None = None
    is_verified: bool = False
    is_end_known: bool = False

    def to_json(self) -> dict[str, Any]:
        times = {key: None if (value := getattr(self, key)) is None else stamp(value) for key in TIMES}
        entries = {key: [each.body for each in getattr(self, key)] for key in KEPT}
        joined = {key: [each.to_json() for each in getattr(self, key)] for key in ("sessions", "destinations")}
        return {
            "workspace": self.workspace,
            **times,
            "lines": self.lines,
            **entries,
            **joined,
            "connections": self.connections and self.connections.to_json(),
            "peaks": dict(self.peaks.__dict__),
            "left_out": dict(self.left_out),
            "changes": self.changes and self.changes.to_json(),
            "unseen": self.unseen,
            "damages": None if self.damages is None else list(self.damages),
            "is_verified": self.is_verified,
            "is_end_known": self.is_end_known,
        }


TIMES = ("made", "since", "first", "last")
KEPT = ("life", "plans", "decisions", "cuts")
"""The sections of a report that are events of the record, as they are."""


def summarize(workspace: str, entries: Iterable[Entry], *, made: float, since: float | None) -> Report:
    """The report on a workspace by the entries of its record, oldest first."""
    summary = _Summary()
    for entry in entries:
        summary.add(entry)
    return summary.report(workspace, made, since)


class _Summary:
    def __init__(self) -> None:
        self._lines, self._last = 0, 0.0
        self._first: float | None = None
        self._kept: dict[str, deque[Entry]] = {key: deque(maxlen=MOST) for key in KEPT}
        self._counts: Counter[str] = Counter()
        self._open: dict[str, Session] = {}
        self._sessions: deque[Session] = deque(maxlen=MOST)
        self._destinations: dict[tuple[str, str | None], Destination] = {}
        self._connections: Connections | None = None
        self._peaks = Peaks()

    def add(self, entry: Entry) -> None:
        self._lines += 1
        self._first = entry.time if self._first is None else self._first
        self._last = max(self._last, entry.time)
        kind = entry.event
        if why_wrong(kind, entry.values):  # somebody else's, or a later hutch's
            self._counts["unknown"] += 1
        elif kind in LIFE:
            self._keep("life", entry)
            self._peaks = self._peaks.joined(_peaks_of(entry.values))
        elif kind == "plan":
            self._keep("plans", entry)
        elif kind in DECISIONS:
            self._keep("decisions", entry)
        elif kind == "cut":
            self._keep("cuts", entry)
        elif kind == "egress":
            self._add_destination(_destination_of(entry))
        elif kind == "connected":
            before = self._connections or Connections(0, entry.time, entry.time)
            self._connections = replace(before, count=before.count + 1, last=max(before.last, entry.time))
        elif kind in BEGINNINGS:
            self._begin(entry)
        elif kind.removesuffix("-ended") in BEGINNINGS:
            self._end(entry)

    def _keep(self, section: str, entry: Entry) -> None:
        self._kept[section].append(entry)
        self._counts[section] += 1

    def _begin(self, entry: Entry) -> None:
        session, key = _session_of(entry), entry.values["session"]
        if not session.has_end:
            self._finish(session)
            return
        if key in self._open:  # nobody has seen the end of that one
            self._finish(self._open.pop(key))
        elif len(self._open) >= MOST:
            self._finish(self._open.pop(next(iter(self._open))))
        self._open[key] = session

    def _end(self, entry: Entry) -> None:
        values = entry.values
        session = self._open.pop(values["session"], None)
        if session is None:  # it began before the span
            session = _session_of(replace(entry, time=entry.time - values["seconds"]))
        self._finish(replace(session, code=values.get("code"), seconds=values["seconds"]))

    def _finish(self, session: Session) -> None:
        self._sessions.append(session)
        self._counts["sessions"] += 1

    def _add_destination(self, found: Destination) -> None:
        key = (found.verdict, found.where)
        if key in self._destinations:
            self._destinations[key] = self._destinations[key].joined(found)
        elif len(self._destinations) < MOST_NAMES:
            self._destinations[key] = found
        else:
            self._counts["destinations"] += 1

    def report(self, workspace: str, made: float, since: float | None) -> Report:
        sessions = sorted([*self._sessions, *self._open.values()], key=lambda each: each.time)
        self._counts["sessions"] += len(self._open)
        destinations = sorted(self._destinations.values(), key=_order)
        self._counts["destinations"] += len(destinations)
        kept = {key: len(entries) for key, entries in self._kept.items()}
        kept |= {"sessions": len(sessions[-MOST:]), "destinations": len(destinations[:MOST])}
        left_out = {key: more for key, count in self._counts.items() if (more := count - kept.get(key, 0)) > 0}
        return Report(
            workspace,
            made,
            since,
            self._lines,
            self._first,
            self._last if self._lines else None,
            life=tuple(self._kept["life"]),
            plans=tuple(self._kept["plans"]),
            decisions=tuple(self._kept["decisions"]),
            cuts=tuple(self._kept["cuts"]),
            sessions=tuple(sessions[-MOST:]),
            connections=self._connections,
            destinations=tuple(destinations[:MOST]),
            peaks=self._peaks,
            left_out=left_out,
        )


def _order(found: Destination) -> tuple[object, ...]:
    rank = VERDICTS.index(found.verdict) if found.verdict in VERDICTS else len(VERDICTS)
    return (rank, -found.count, found.where or "")


def _session_of(entry: Entry) -> Session:
    values = entry.values
    return Session(
        entry.event.removesuffix("-ended"),
        entry.time,
        entry.by,
        tuple(values.get("argv", ())),
        bool(values.get("root", False)),
        tuple(values.get("ports", ())),
        tuple(values.get("reverse", ())),
        bool(values.get("auto", False)),
    )


def _destination_of(entry: Entry) -> Destination:
    values = entry.values
    port, protocol = values.get("port"), values.get("protocol")
    kind = "dns" if protocol is None else protocol if port is None else f"{port}/{protocol}"
    is_lost = values["verdict"] == "lost"
    return Destination(
        values["verdict"],
        None if is_lost else values.get("name") or values.get("address"),
        () if is_lost else (kind,),
        values["count"],
        unstamped(values["first"]) or entry.time,
        unstamped(values["last"]) or entry.time,
        values["why"],
    )


def _peaks_of(values: Mapping[str, Any]) -> Peaks:
    return Peaks(values.get("memory_peak"), values.get("cpu_seconds"), values.get("tasks_peak"))
