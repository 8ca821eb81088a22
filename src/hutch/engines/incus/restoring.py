"""Restores of a workspace on a server: its home, and its root if that is kept, as they were at one point in time.

The home has the key user.hutch.restoring from the first step to the last, so a restore that was cut short is finished
before the workspace starts again; unless somebody has started it since, whose work is not undone. The request that
restores the home also takes the key away, so the key tells whether a server still does it for a command that was
killed: it is no operation, and nothing else would.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from hutch.backends.incus import IMAGE, RESTORING, SNAPSHOT
from hutch.engines.incus import turning
from hutch.engines.incus.answers import found as found_at
from hutch.engines.incus.answers import text
from hutch.engines.incus.client import instance_path, path_to
from hutch.engines.incus.homes import Volume, find_homes, note_in_home
from hutch.engines.incus.observing import read_instance
from hutch.engines.incus.points import (
    COPY_SECONDS,
    Points,
    await_operations,
    keeps_root,
    look,
    remove_unfinished,
    the_snapshot,
)
from hutch.engines.incus.turning import Start, note, own, stop
from hutch.errors import HutchError
from hutch.frozen import dataclass
from hutch.spec.names import is_name
from hutch.spec.record import Record
from hutch.spec.snapshot import HOME, ROOT

if TYPE_CHECKING:
    from hutch.engines.incus.client import Client

QUIET_SECONDS = 60.0
"""The patience with a server that may still restore a home for a command that was killed."""
ROOTS, HOMES = "root", "home"
NO_INSTANCE = "-"


@dataclass(frozen=True)
class Step:
    """The value of user.hutch.restoring: the tag, how far it has come, the id of the attempt, and when the instance was
    last started before, in the server's words."""

    tag: str
    doing: str
    id: str
    last_start: str

    def __str__(self) -> str:
        return f"{self.tag} {self.doing} {self.id} {self.last_start}"


def step_of(config: Mapping[str, str]) -> Step | None:
    """The step in a home's configuration; None without one."""
    words = config.get(RESTORING, "").split()
    return Step(*words) if len(words) == 4 and is_name(words[0]) and words[1] in (ROOTS, HOMES) else None


def check(client: Client, record: Record, tag: str) -> tuple[str, ...]:
    """Refuse a snapshot that cannot be restored as a whole. Returns notes for the user."""
    points = look(client, record)
    snapshot = the_snapshot(points, record, tag)
    if points.home is None or points.instance is None:
        raise HutchError(f"{record.name} is not at {client.place.remote}", resolution="`hutch up` makes it")
    keeps = keeps_root(points.instance)
    if HOME not in snapshot.parts or (snapshot.problem and (ROOT in snapshot.parts or keeps)):
        raise HutchError(
            f"the snapshot {tag} of {record.name} is not whole: {snapshot.problem}",
            resolution=f"`hutch snapshots {record.name}` lists the others",
        )
    if keeps and ROOT in snapshot.parts and snapshot.image != points.instance.config.get(IMAGE):
        raise HutchError(
            f"the root in the snapshot {tag} lies on another image than {record.name} has by now",
            details=f"the snapshot: {snapshot.image}; now: {points.instance.config.get(IMAGE)}",
        )
    check_pools(client, points, tag)
    if keeps and ROOT not in snapshot.parts:
        return (f"{tag} has the home alone: the root stays as it is",)
    return ()


def check_pools(client: Client, points: Points, tag: str) -> None:
    """Refuse a storage pool that can go back to its newest snapshot alone."""
    assert points.instance is not None and points.home is not None
    for pool, parts in ((points.instance.pool, points.roots), (points.home.pool, points.homes)):
        if tag not in parts or not pool:
            continue
        newer = sorted(name for name, part in parts.items() if part.taken > parts[tag].taken)
        driver = text(found_at(client, path_to("storage-pools", pool)) or {}, "driver") if newer else ""
        if driver == "zfs":
            raise HutchError(
                f"the storage pool {pool} is zfs, which goes back to the newest snapshot alone",
                details=f"newer than {tag}: {', '.join(map(repr, newer))}",
                resolution=f"delete those, or `hutch fork` with `--snapshot {tag}`",
            )


def restore(client: Client, record: Record, tag: str, id: str) -> None:
    """Stop a workspace, and make it as it was; `check` has let it pass. `id` is new for each attempt."""
    stop(client, record)
    instance, home = own(client, record), find_homes(client, {record.name: record}).get(record.name)
    if instance is None or home is None:
        raise HutchError(f"{record.name} has been removed meanwhile")
    if (earlier := step_of(home.config)) is not None:
        await_operations(client, record)
        if earlier.doing == HOMES:
            _await_home(client, record)
    note(client, record, {RESTORING: tag})
    step = Step(tag, ROOTS, id, instance.last_start or NO_INSTANCE)
    home = note_in_home(client, home, {RESTORING: str(step)})
    _carry_out(client, record, home, step)


def start(client: Client, one: Start) -> None:
    """Start a workspace, once nothing of it is half done. See turning.start."""
    home = one.home
    if home is not None and SNAPSHOT in home.config:
        remove_unfinished(client, one.record)
        home = replace(home, config={key: value for key, value in home.config.items() if key != SNAPSHOT})
    if home is not None and RESTORING in home.config:
        home = finish(client, one.record, home)
    turning.start(client, replace(one, home=home))


def finish(client: Client, record: Record, home: Volume) -> Volume:
    """Finish a restore that was cut short, if there is one; the home as it is then."""
    step = step_of(home.config)
    if step is None:
        return home
    await_operations(client, record)
    instance = own(client, record)
    if instance is not None and (instance.last_start or NO_INSTANCE) != step.last_start:
        return note_in_home(client, home, {RESTORING: None})  # somebody has started it since, and worked with it
    if instance is not None and instance.runs:
        raise HutchError(f"{record.name} is being started by somebody else", resolution="try again")
    if step.doing == HOMES and _await_home(client, record):
        note(client, record, {RESTORING: None})
    else:
        now = find_homes(client, {record.name: record}).get(record.name)
        if now is None:
            raise HutchError(f"the home of {record.name} has been removed meanwhile")
        _carry_out(client, record, now, step)
    return find_homes(client, {record.name: record})[record.name]


def _await_home(client: Client, record: Record) -> bool:
    """Whether the server has finished what a killed command had asked of it, after some patience."""
    deadline = time.monotonic() + QUIET_SECONDS
    while time.monotonic() < deadline:
        home = find_homes(client, {record.name: record}).get(record.name)
        if home is None or RESTORING not in home.config:
            return home is not None
        time.sleep(1.0)
    return False


def _carry_out(client: Client, record: Record, home: Volume, step: Step) -> None:
    """All steps from the root on; each may be done again."""
    points = look(client, record)
    snapshot = the_snapshot(points, record, step.tag)
    if ROOT in snapshot.parts and points.instance is not None and keeps_root(points.instance):
        _restore_root(client, record, step.tag)
        # Its configuration is that of the snapshot now; the next start makes it what it is to be.
        note(client, record, {SNAPSHOT: None, RESTORING: step.tag})
    home = note_in_home(client, home, {RESTORING: str(Step(step.tag, HOMES, step.id, step.last_start))})
    note_in_home(client, home, {RESTORING: None}, restore=step.tag, seconds=COPY_SECONDS)
    if points.instance is not None:
        note(client, record, {RESTORING: None})


def _restore_root(client: Client, record: Record, tag: str) -> None:
    """Make the instance, with its root, what it was in a snapshot."""

    def make(answer: object) -> dict[str, str]:
        turning.check_own(client, record, read_instance(answer))
        return {"restore": tag}

    client.update(instance_path(record.name), make, seconds=COPY_SECONDS)
