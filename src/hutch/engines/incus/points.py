"""Points in time of one workspace on a server: a snapshot of its home, and one of its instance if its root is kept,
taken while it is frozen, with the same name.

An ephemeral root is made anew at each start, so there is no going back to it; and Incus makes no root anew that has
snapshots.

Both parts carry the key user.hutch.snapshot, which instance and home have only while a snapshot is being taken: the
tag, an id that the parts share, what it is for, and which parts it has. The home gets the key first and loses it last.
So the home tells of a snapshot that was cut short, and somebody's own snapshots, which have no such key, are never
taken for hutch's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from hutch.backends.incus import IMAGE, PERSIST, RESTORING, SNAPSHOT
from hutch.engines.incus.answers import NOT_FOUND, listing, mapping, shown, text, texts
from hutch.engines.incus.client import GRACE, instance_path, path_to
from hutch.engines.incus.failures import Refused
from hutch.engines.incus.homes import Volume, find_homes, find_own_home, home_path, note_in_home
from hutch.engines.incus.observing import Found
from hutch.engines.incus.turning import freeze, note, own, still_own, thaw
from hutch.errors import HutchError, UsageError
from hutch.frozen import dataclass
from hutch.spec.names import is_name
from hutch.spec.record import Record
from hutch.spec.snapshot import HOME, PARTS, ROOT, Snapshot

if TYPE_CHECKING:
    from hutch.engines.incus.client import Client

COPY_SECONDS = 3600.0
"""The longest that a server may take for a copy of a root or of a home."""
BOTH = "+".join(PARTS)
USERS, FORKS = "user", "fork"
"""What a snapshot is for: a user's is kept, that of a fork goes with its end."""


@dataclass(frozen=True)
class Mark:
    """The value of user.hutch.snapshot."""

    tag: str
    id: str
    purpose: str
    parts: str

    def __str__(self) -> str:
        return f"{self.tag} {self.id} {self.purpose} {self.parts}"


def mark_of(config: Mapping[str, str]) -> Mark | None:
    """The mark in a configuration; None where there is none that hutch has made."""
    words = config.get(SNAPSHOT, "").split()
    return Mark(*words) if len(words) == 4 and is_name(words[0]) else None


@dataclass(frozen=True)
class Part:
    """A half of a snapshot: that of the instance, or of the home."""

    mark: Mark | None
    taken: float
    size: int | None
    config: Mapping[str, str]


@dataclass(frozen=True)
class Points:
    """A workspace on the server, with the snapshots of its instance and of its home by their names."""

    instance: Found | None
    home: Volume | None
    roots: Mapping[str, Part]
    homes: Mapping[str, Part]

    @property
    def unfinished(self) -> Mark | None:
        """The mark of a snapshot that is being taken, or was cut short."""
        return mark_of(self.home.config) if self.home is not None else None


def look(client: Client, record: Record, *, is_leaving: bool = False) -> Points:
    """All that the server has of a workspace. Raises HutchError for what is another's, unless the workspace
    `is_leaving`: then there is nothing of it."""
    if is_leaving:
        instance, home = still_own(client, record), find_own_home(client, record)
    else:
        instance, home = own(client, record), find_homes(client, {record.name: record}).get(record.name)
    questions = [instance_path(record.name, "snapshots", recursion=1)]
    if home is not None:
        questions.append(home_path(home, "snapshots", recursion=1))
    found = [
        dict(_parts(answer, question))
        for question, answer in zip(questions, client.get_all(questions, seconds=10.0), strict=True)
    ]
    return Points(instance, home, found[0] if instance is not None else {}, found[1] if home is not None else {})


def _parts(answer: Any, question: str) -> Iterator[tuple[str, Part]]:
    if isinstance(answer, Refused) and answer.code == NOT_FOUND:
        return
    if isinstance(answer, HutchError):
        raise answer
    for each in listing(answer, question):
        config, size = texts(each.get("config")), each.get("size")
        known = size if type(size) is int and size > 0 else None
        yield (
            text(each, "name").rpartition("/")[2],
            Part(mark_of(config), _time(text(each, "created_at")), known, config),
        )


def _time(text: str) -> float:
    """A time of the server's in Unix time; 0 for what is none. Its nanoseconds are more than Python reads."""
    try:
        return datetime.fromisoformat(f"{text[:19]}+00:00").timestamp() if text.endswith("Z") else _zoned(text)
    except ValueError:
        return 0.0


def _zoned(text: str) -> float:
    return datetime.fromisoformat(text[:19] + text[-6:]).timestamp()


def snapshots(points: Points) -> list[Snapshot]:
    """The snapshots that hutch has taken, oldest first."""
    tags = {
        name
        for parts in (points.roots, points.homes)
        for name, part in parts.items()
        if part.mark is not None and part.mark.tag == name
    }
    return sorted((_snapshot(points, tag) for tag in tags), key=lambda each: (each.taken, each.tag))


def _snapshot(points: Points, tag: str) -> Snapshot:
    root, home = _own_part(points.roots, tag), _own_part(points.homes, tag)
    there = [part for part in (root, home) if part is not None]
    config = root.config if root is not None else {}
    return Snapshot(
        tag,
        taken=min(part.taken for part in there),
        size=root.size if root is not None else None,
        parts=tuple(name for name, part in ((ROOT, root), (HOME, home)) if part is not None),
        problem=_problem(points, root, home),
        image=config.get(IMAGE, ""),
        persist=config.get(PERSIST, ""),
    )


def _own_part(parts: Mapping[str, Part], tag: str) -> Part | None:
    part = parts.get(tag)
    return part if part is not None and part.mark is not None and part.mark.tag == tag else None


def _problem(points: Points, root: Part | None, home: Part | None) -> str:
    """The reason why a snapshot is not whole, in words."""
    marks = {part.mark for part in (root, home) if part is not None}
    if points.unfinished in marks:
        return "cut short: the next snapshot removes it"
    if any(mark is not None and mark.purpose == FORKS for mark in marks):
        return "left by a fork that was cut short: the next snapshot removes it"
    if home is None:
        return "half: it has the root alone"
    if root is None:
        return "half: it has the home alone" if home.mark is not None and home.mark.parts == BOTH else ""
    return "" if len(marks) == 1 else "its root and its home are of two different moments"


def the_snapshot(points: Points, record: Record, tag: str) -> Snapshot:
    """A snapshot by its tag. Raises UsageError."""
    for each in snapshots(points):
        if each.tag == tag:
            return each
    raise UsageError(
        f"{record.name} has no snapshot {tag}", resolution=f"`hutch snapshots {record.name}` lists those that there are"
    )


def take(client: Client, record: Record, tag: str, purpose: str = USERS) -> float:
    """Take a snapshot, frozen meanwhile if it runs. What an earlier one left has been undone. Returns the seconds for
    which it was frozen."""
    points = look(client, record)
    instance, home = check_there(client, record, points)
    if tag in points.roots or tag in points.homes:
        raise HutchError(
            f"{record.name} has a snapshot {tag} already",
            resolution=f"choose another tag; `hutch snapshots {record.name} --delete {tag}` deletes it",
        )
    if instance.status not in ("Running", "Stopped", "Frozen"):
        raise HutchError(f"{record.name} is {shown(instance.status) or 'in no known state'} at {client.place.remote}")
    mark = Mark(tag, os.urandom(8).hex(), purpose, BOTH if keeps_root(instance) else HOME)
    try:
        home = note_in_home(client, home, {SNAPSHOT: str(mark)})
        note(client, record, {SNAPSHOT: str(mark)})
        seconds = _take_frozen(client, record, home, mark) if instance.status == "Running" else None
        if seconds is None:
            _take_parts(client, record, home, mark)
    except HutchError:
        with suppress(HutchError):  # the next command does it
            remove_unfinished(client, record)
        raise
    note(client, record, {SNAPSHOT: None})
    note_in_home(client, home, {SNAPSHOT: None})
    return seconds or 0.0


def check_there(client: Client, record: Record, points: Points) -> tuple[Found, Volume]:
    """The instance and the home of a workspace that has both, and is in no half-restored state. Raises HutchError."""
    if points.instance is None or points.home is None:
        missing = "instance" if points.instance is None else "home"
        raise HutchError(
            f"{record.name} has no {missing} at {client.place.remote} yet",
            resolution=f"`hutch up {record.name}` makes it",
        )
    if RESTORING in points.home.config:
        raise HutchError(
            f"a restore of {record.name} was cut short, so it is between two states",
            resolution=f"`hutch up {record.name}` finishes it, or `hutch restore` another snapshot",
        )
    return points.instance, points.home


def keeps_root(instance: Found) -> bool:
    """Whether the root is one that is kept."""
    return instance.config.get(PERSIST) == "all"


def _take_frozen(client: Client, record: Record, home: Volume, mark: Mark) -> float:
    started = time.monotonic()
    try:
        freeze(client, record.name)
        _take_parts(client, record, home, mark)
    finally:
        thaw(client, record.name)
    return time.monotonic() - started


def _take_parts(client: Client, record: Record, home: Volume, mark: Mark) -> None:
    client.change("POST", home_path(home, "snapshots"), {"name": mark.tag}, seconds=COPY_SECONDS)
    if mark.parts == BOTH:
        body = {"name": mark.tag, "stateful": False}
        client.change("POST", instance_path(record.name, "snapshots"), body, seconds=COPY_SECONDS)


def delete(client: Client, record: Record, tag: str, points: Points) -> None:
    """Delete the parts of a snapshot that are hutch's own. May be called again."""
    if _own_part(points.roots, tag) is not None:
        _delete(client, instance_path(record.name, "snapshots", tag))
    if points.home is not None and _own_part(points.homes, tag) is not None:
        _delete(client, home_path(points.home, "snapshots", tag))


def _delete(client: Client, path: str) -> None:
    try:
        client.change("DELETE", path, seconds=COPY_SECONDS)
    except Refused as error:
        if error.code != NOT_FOUND:
            raise


def remove_unfinished(client: Client, record: Record) -> tuple[str, ...]:
    """Thaw a workspace, and remove the parts of a snapshot that was cut short, and of forks. Returns in words what was
    done."""
    points = look(client, record)
    mark, done = points.unfinished, []
    for tag in sorted(_of_forks(points) | ({mark.tag} if mark is not None else set())):
        parts = [part for part in (_own_part(points.roots, tag), _own_part(points.homes, tag)) if part is not None]
        if mark is not None and tag == mark.tag:
            await_operations(client, record)
            if (
                points.instance is not None
                and points.instance.status == "Frozen"
                and mark_of(points.instance.config) == mark
            ):
                thaw(client, record.name)
                done.append("it was frozen, and goes on")
            points = look(client, record)  # an operation may have made a part meanwhile
        delete(client, record, tag, points)
        if parts:
            done.append(f"the parts of the snapshot {tag} are deleted")
    if mark is not None and points.home is not None:
        if points.instance is not None and mark_of(points.instance.config) == mark:
            note(client, record, {SNAPSHOT: None})
        note_in_home(client, points.home, {SNAPSHOT: None})
    return tuple(done)


def _of_forks(points: Points) -> set[str]:
    parts = (*points.roots.values(), *points.homes.values())
    return {part.mark.tag for part in parts if part.mark is not None and part.mark.purpose == FORKS}


def await_operations(client: Client, record: Record) -> None:
    """Wait for what the server still does to a workspace for a command that was killed."""
    question = path_to("operations", recursion=1)
    answer = mapping(client.get(question, seconds=10.0), question)
    own_paths = (instance_path(record.name), "/volumes/custom/home-" + record.name)
    for each in listing(answer.get("running", []), question):
        resources = each.get("resources")
        named = str(resources) if isinstance(resources, dict) else ""
        id = text(each, "id")
        if is_uuid(id) and any(f"{path}{end}" in named for path in own_paths for end in ("'", "/", "?")):
            waiting = path_to("operations", id, "wait", timeout=int(COPY_SECONDS))
            try:
                client.get(waiting, seconds=COPY_SECONDS + GRACE)
            except Refused as error:
                if error.code != NOT_FOUND:  # it is over
                    raise


def is_uuid(id: str) -> bool:
    """Whether a server's id may be part of a path."""
    return len(id) == 36 and all(c in "0123456789abcdef-" for c in id)
