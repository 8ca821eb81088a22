"""Forks: homes, and roots that are kept, of new workspaces, made out of another one's by the server.

What is copied has the key user.hutch.fork until the record of the new workspace is written, with the machine id of the
source. So a copy that was cut short is told apart from a home that somebody works in, and is removed; and nobody ever
starts with half of one: without a record it is nobody's.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from hutch.backends.incus import COPIED, FORK, ID, home_volume
from hutch.engines.incus.answers import listing
from hutch.engines.incus.client import instance_path, path_to
from hutch.engines.incus.homes import Volume, find_homes, note_in_home, on, remove_home, volumes
from hutch.engines.incus.observing import Found, look_up, read_instance
from hutch.engines.incus.points import (
    COPY_SECONDS,
    FORKS,
    Points,
    check_there,
    delete,
    keeps_root,
    look,
    take,
    the_snapshot,
)
from hutch.engines.incus.turning import note
from hutch.errors import HutchError
from hutch.spec.names import is_name
from hutch.spec.record import Record
from hutch.spec.snapshot import HOME, ROOT

if TYPE_CHECKING:
    from hutch.backends.incus import Instance
    from hutch.engines.incus.client import Client

HUTCHS = "user.hutch."
MACHINE_ID = "/etc/machine-id"


def fork(
    client: Client, record: Record, tag: str, copies: Mapping[str, tuple[Record, Instance]], known: Collection[str]
) -> float:
    """Make what the new workspaces keep, out of the snapshot `tag`, or with "" of the present state. `copies` have the
    records and the instances as they are to be; `known` are the machine ids of records. Returns the seconds for which
    the source was frozen."""
    points = look(client, record)
    instance, home = check_there(client, record, points)
    keeps = keeps_root(instance)
    if keeps != (record.wanted.persist == "all"):
        raise HutchError(
            f"{record.name} does not have the `persist` of hutch.toml yet",
            resolution=f"`hutch up {record.name}`",
        )
    refuse_taken(client, copies)
    seconds, temporary = 0.0, ""
    if tag:
        _check_whole(points, record, tag)
    elif instance.runs:
        tag = temporary = f"fork-{os.urandom(4).hex()}"
        seconds = take(client, record, tag, FORKS)
        points = look(client, record)
    try:
        for new, wanted in copies.values():
            _copy_home(client, record, home, points, tag, new)
            if keeps:
                _copy_root(client, record, instance, tag, new, wanted)
    except HutchError:
        with suppress(HutchError):  # the next command does it
            remove_copies(client, record, known)
        raise
    finally:
        if temporary:
            delete(client, record, temporary, points)
    return seconds


def _check_whole(points: Points, record: Record, tag: str) -> None:
    snapshot = the_snapshot(points, record, tag)
    if HOME not in snapshot.parts or (record.wanted.persist == "all" and snapshot.problem):
        raise HutchError(f"the snapshot {tag} of {record.name} is not whole: {snapshot.problem}")
    if record.wanted.persist == "all" and (ROOT not in snapshot.parts or snapshot.image != record.image):
        raise HutchError(f"the root in the snapshot {tag} of {record.name} lies on another image than it has by now")


def refuse_taken(client: Client, names: Collection[str]) -> None:
    """Refuse names that have something at the server already, whoever made it."""
    question = path_to("instances", recursion=1)
    there = {read_instance(each).name for each in listing(client.get(question), question)} & {*names}
    homes = {home_volume(name): name for name in names}
    there |= {homes[volume.name] for volume in volumes(client) if volume.name in homes}
    if there:
        raise HutchError(
            f"{client.place.remote} has something of the name {', '.join(sorted(there))} already",
            details=f"an instance, or a home volume, in the project {client.place.project}",
            resolution="choose another name; `incus list` and `incus storage volume list` show those in use",
        )


def _copy_home(client: Client, record: Record, home: Volume, points: Points, tag: str, new: Record) -> None:
    """Make a home out of another one. What the server notes of its files, such as who owns them, goes with them."""
    before = points.homes[tag].config if tag else home.config
    others = {key: value for key, value in before.items() if not key.startswith(HUTCHS) and key != "volatile.uuid"}
    others.pop("size", None)
    size = {} if new.wanted.disk is None else {"size": str(new.wanted.disk)}
    body = {
        "name": home_volume(new.name),
        "type": "custom",
        "content_type": "filesystem",
        "config": {**others, **size, ID: new.machine_id, FORK: record.machine_id},
        "description": f"home of hutch's workspace {new.name}",
        "source": {"type": "copy", "pool": home.pool, "name": _at(home.name, tag), "volume_only": True},
    }
    path = path_to("storage-pools", home.pool, "volumes", "custom", **on(home.member))
    client.change("POST", path, body, seconds=COPY_SECONDS)


def _copy_root(client: Client, record: Record, instance: Found, tag: str, new: Record, wanted: Instance) -> None:
    """Make a stopped instance with the root of another one, and a machine id of its own in it."""
    source = {"type": "copy", "source": _at(record.name, tag), "instance_only": True}
    devices = {name: dict(device) for name, device in wanted.devices.items()}
    body = {
        "name": new.name,
        "description": f"hutch's workspace {new.name}",
        "source": source,
        "config": {**wanted.config, FORK: record.machine_id},
        "devices": devices,
        "profiles": [],
        "ephemeral": False,
    }
    client.change("POST", path_to("instances", **on(instance.member)), body, seconds=COPY_SECONDS)
    client.unlink(new.name, [MACHINE_ID])  # the source's guest may have made it anything
    words = ("file", "push", "--quiet", "--uid=0", "--gid=0", "--mode=0444", "-")
    client.run(*words, client.of(new.name, MACHINE_ID), stdin=f"{new.machine_id}\n".encode())
    found = look_up(client, new.name)
    if found is None:
        raise HutchError(f"the instance {new.name} has been removed meanwhile")
    note(client, new, {COPIED: found.last_start})


def _at(name: str, tag: str) -> str:
    """Something at a point in time, as the server names it."""
    return f"{name}/{tag}" if tag else name


def confirm(client: Client, copies: Sequence[Record]) -> None:
    """Note that the records of copies are written."""
    homes = find_homes(client, {each.name: each for each in copies})
    for new in copies:
        if (home := homes.get(new.name)) is not None:
            note_in_home(client, home, {FORK: None})


def remove_copies(client: Client, record: Record, known: Collection[str]) -> tuple[str, ...]:
    """Remove copies of a workspace that were cut short; those whose machine ids are `known` are whole. Returns in words
    what was done."""
    done = []
    question = path_to("instances", recursion=1)

    def is_half_made(found: Found | None) -> bool:
        """Whether it is such a copy, and nobody works in it."""
        if found is None or found.config.get(FORK) != record.machine_id or found.config.get(ID) in known:
            return False
        return is_name(found.name) and not found.runs

    for found in map(read_instance, listing(client.get(question), question)):
        if is_half_made(found) and is_half_made(look_up(client, found.name)):
            client.change("DELETE", instance_path(found.name))
            done.append(f"the half-made root of {found.name} is deleted")
    for volume in list(volumes(client)):
        if volume.config.get(FORK) != record.machine_id or "/" in volume.name:
            continue
        if volume.config.get(ID) in known:
            note_in_home(client, volume, {FORK: None})
        else:
            remove_home(client, volume)
            done.append(f"the half-made home {volume.name} is deleted")
    return tuple(done)
