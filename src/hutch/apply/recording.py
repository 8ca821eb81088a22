"""What hutch's own commands put into the records of workspaces: plans with their author, starts and stops, removals,
decisions. None of it holds a command up, nor makes it fail."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from hutch.errors import HutchError
from hutch.frozen import dataclass
from hutch.runtime.control import Listener
from hutch.runtime.observe import KILLED, observe
from hutch.spec.names import Layout
from hutch.spec.record import Record, is_local

if TYPE_CHECKING:
    from hutch.plan.actions import Action, Plan

WORD = 256
"""Bytes of a value in the reasons of a plan."""
NO_ROOM = "the router has no room for more of them; nobody knows how many are missing"


def note(layout: Layout, name: str, event: str, listen: Listener, **values: Any) -> None:
    """Put something that this command has done into the record of a workspace."""
    # Spares the start-up of `hutch start` until its workspaces begin.
    from hutch.audit.events import Entry
    from hutch.audit.telling import author
    from hutch.audit.writing import record

    fold(layout, name, listen)
    record(layout, name, [Entry(time.time(), event, author(), values)], warner(listen))


def fold(layout: Layout, name: str, listen: Listener) -> None:
    """Put what others have told into the record of a workspace: its service, and people."""
    # Spares the start-up of `hutch start`, as above.
    from hutch.audit import inbox

    inbox.fold(layout, name, warner(listen))


def fold_connections(layout: Layout, listen: Listener = lambda *words: None) -> None:
    """Put what the router has seen of ssh into the records of the workspaces that it was for."""
    # Spares the start-up of `hutch start`, which does without.
    from hutch.audit.events import Entry
    from hutch.audit.writing import record
    from hutch.host.network.connections import Met, new_connections
    from hutch.state import read_records

    with suppress(OSError, HutchError), new_connections(layout) as met:  # the next look finds what this one cannot
        if met == Met():
            return
        names = {str(each.wanted.ip): name for name, each in read_records(layout).items() if is_local(each.wanted)}
        for ip, name in names.items():
            found = [each for each in met.connections if each.ip == ip]
            entries = [Entry(each.time, "connected", None, {"port": each.port}) for each in found]
            if met.is_full:
                entries.append(Entry(time.time(), "cut", None, {"why": NO_ROOM, "count": 0, "kinds": ["connected"]}))
            record(layout, name, entries, warner(listen))


def warner(listen: Listener) -> Callable[[str, str], None]:
    return lambda name, text: listen(name, "warning", text)


@dataclass(frozen=True)
class Turned:
    """The work of one plan, for the records of its workspaces; `noted` are those whose plan is there."""

    layout: Layout
    plan: Plan
    records: Mapping[str, Record]
    listen: Listener
    noted: set[str]

    def note_plan(self, names: Iterable[str] | None = None) -> None:
        """Note what is planned for these workspaces, or for all, if it has not been noted: as soon as there is time."""
        for action in self.plan.actions:
            name = action.workspace
            if action.action == "no change" or name in self.noted or (names is not None and name not in names):
                continue
            self.noted.add(name)
            self._note(action)

    def _note(self, action: Action) -> None:
        # Spares the start-up of `hutch start` until its workspaces begin.
        from hutch.audit.ends import ensure_place
        from hutch.audit.events import MOST_ITEMS, Entry, shown
        from hutch.audit.telling import author
        from hutch.audit.writing import record

        def word(value: Any) -> str | None:
            return None if value is None else shown(str(value), WORD)

        name, now, by = action.workspace, time.time(), author()
        reasons = [
            {"key": word(change.key), "old": word(change.old), "new": word(change.new)}
            for change in action.reasons[:MOST_ITEMS]
        ]
        about = {"command": self.plan.command, "file": shown(self.plan.file), "action": action.action}
        entries = [Entry(now, "plan", by, {**about, "reasons": reasons})]
        if action.action == "create" and action.wanted is not None:
            made = {"type": action.wanted.workspace.type, "image": shown(action.wanted.image)}
            entries.append(Entry(now, "created", by, {**made, "file": shown(self.plan.file)}))
        ensure_place(self.layout, name)
        fold(self.layout, name, self.listen)
        record(self.layout, name, entries, warner(self.listen))

    @contextmanager
    def told(self, failures: Mapping[str, str]) -> Iterator[None]:
        """Note all of it in the end, however that comes about. `failures` are those of starts, by then."""
        self._note_killed()
        try:
            yield
        finally:
            self.note_ends(failures)

    def _note_killed(self) -> None:
        """Note which of them have ended without a word of their services, which were killed too."""
        for name in (action.workspace for action in self.plan.actions if action.action != "no change"):
            if name in self.records and observe(self.layout, name).reason == KILLED:
                # Spares the start-up of `hutch start`, which finds none as a rule.
                from hutch.audit.events import Entry
                from hutch.audit.writing import record

                fold(self.layout, name, self.listen)
                record(self.layout, name, [Entry(time.time(), "failed", None, ended(KILLED))], warner(self.listen))

    def note_ends(self, failures: Mapping[str, str]) -> None:
        """Note what became of it: as the services of this host tell it, and of workspaces elsewhere by the plan."""
        self.note_plan()
        for action in self.plan.actions:
            name = action.workspace
            if action.action == "no change" or name not in self.records:
                continue
            if is_local(self.records[name].wanted):
                fold(self.layout, name, self.listen)
                continue
            if action.stops and action.action != "remove":
                note(self.layout, name, "stopped", self.listen, **ended())
            if action.starts and self.plan.start and name in failures:
                note(self.layout, name, "failed", self.listen, **ended(failures[name]))
            elif action.starts and self.plan.start:
                note(self.layout, name, "started", self.listen, start_kind="cold", seconds=None)


def ended(reason: str = "") -> dict[str, Any]:
    """The fields of an end of which nothing else is known."""
    # Spares the start-up of `hutch start`, as above.
    from hutch.audit.events import shown

    nothing = dict.fromkeys(("seconds", "memory_peak", "cpu_seconds", "tasks_peak"))
    return {"reason": shown(reason), **nothing}
