"""What was wanted and what is booted: one small JSON record per workspace, one for the network, one lock.

A record is a schema version, a checksum and a body. A damaged record is refused with its path; it is
never read as "no such workspace". Records hold everything that the commands which do not read a
hutch.toml need, so those start fast.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, field, fields, replace
from pathlib import Path
from typing import Any

from hutch.errors import HutchError
from hutch.files import read_or_none, sync_directory, write_atomic
from hutch.frozen import dataclass
from hutch.spec.model import MACHINE_MEMORY, Idle, Mount, Network, Publish, Workspace
from hutch.spec.names import Places

SCHEMA = 1
HOST_LOCK = "/root"  # is there on every host, and nobody else can open it: a lock on /run could be held by anyone


@dataclass(frozen=True)
class Booted:
    """What a workspace runs with; the difference to what is wanted is what is pending. `memory` is what a machine was
    started with, in bytes; its balloon may have taken some of it since."""

    workspace: Workspace
    image: str
    memory: int | None = None


@dataclass(frozen=True)
class Record:
    """A workspace as hutch remembers it. `image` is the id of the wanted image in the cache.

    `file` declared it, and `origin` tells that file again when it has been moved (see apply/ownership). `removed` marks
    a workspace of which only home, key, address and uid range are kept.
    """

    name: str
    file: str
    wanted: Workspace
    image: str
    uid_base: int
    machine_id: str
    booted: Booted | None = None
    removed: bool = False
    origin: tuple[int, ...] = ()

    def with_booted(self) -> Record:
        memory = (self.wanted.memory or MACHINE_MEMORY) if self.wanted.type == "vm" else None
        return replace(self, booted=Booted(self.wanted, self.image, memory))


@dataclass(frozen=True)
class NetworkRecord:
    """The network as it was last set up, and what the host had before.

    `sysctls` maps each kernel setting that hutch changed to the value it had; `forwarders` are the interfaces
    for which the host might forward packets that were there then.
    """

    network: Network
    file: str
    sysctls: dict[str, str] = field(default_factory=dict)
    forwarders: tuple[str, ...] = ()


# Reading and writing one record.


def encode(body: dict[str, Any]) -> bytes:
    text = json.dumps(body, sort_keys=True, indent=1, ensure_ascii=True)
    return f'{{"schema": {SCHEMA}, "crc32": {zlib.crc32(text.encode())}, "body":\n{text}\n}}\n'.encode()


def decode(path: Path, data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
        schema, checksum, body = document["schema"], document["crc32"], document["body"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(path, "it is not a record of hutch") from error
    if schema != SCHEMA:
        raise HutchError(
            f"{path} has schema {schema}, this hutch knows {SCHEMA}",
            resolution="it was written by another version of hutch; use that version",
        )
    text = json.dumps(body, sort_keys=True, indent=1, ensure_ascii=True)
    if zlib.crc32(text.encode()) != checksum:
        raise _damaged(path, "its checksum does not match")
    return dict(body)


def _damaged(path: Path, why: str) -> HutchError:
    return HutchError(
        f"{path} is damaged: {why}",
        details="Nothing was changed. Home directories and keys are not in this file and are untouched.",
        resolution=f"restore it from a backup, or move it away and run `hutch up` again: mv {path} {path}.damaged",
    )


def workspace_from(body: dict[str, Any]) -> Workspace:
    """The inverse of `dataclasses.asdict` for a Workspace."""
    values = {name: body[name] for name in Workspace.__dataclass_fields__ if name in body}
    values["packages"] = tuple(values["packages"])
    if values["authorized_keys"] is not None:
        values["authorized_keys"] = tuple(values["authorized_keys"])
    values["mounts"] = tuple(Mount(**mount) for mount in values["mounts"])
    values["publish"] = tuple(Publish(**publish) for publish in values["publish"])
    values["env"] = tuple((name, value) for name, value in values["env"])
    if isinstance(values["egress"], list):
        values["egress"] = tuple(values["egress"])
    if values["idle"] is not None:
        values["idle"] = Idle(**values["idle"])
    return Workspace(**values)


def _record_from(path: Path, body: dict[str, Any]) -> Record:
    try:
        booted = body["booted"]
        return Record(
            **{
                **{f.name: body[f.name] for f in fields(Record)},
                "wanted": workspace_from(body["wanted"]),
                "booted": booted and Booted(workspace_from(booted["workspace"]), booted["image"], booted["memory"]),
                "origin": tuple(body["origin"]),
            }
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"a field is missing or wrong ({error})") from error


def read_record(places: Places, name: str) -> Record | None:
    """The record of a workspace, None when there is none."""
    path = places.record(name)
    data = read_or_none(path)
    if data is None:
        return None
    record = _record_from(path, decode(path, data))
    if record.name != name:  # a copied or renamed directory: its address and uids belong to somebody else
        raise _damaged(path, f"it is the record of {record.name}")
    return record


def read_records(places: Places) -> dict[str, Record]:
    """Every record, removed ones too, by name."""
    try:
        names = sorted(entry.name for entry in os.scandir(places.workspaces) if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return {}
    except PermissionError as error:
        raise needs_root() from error
    records = {}
    for name in names:
        record = read_record(places, name)
        if record is not None:
            records[name] = record
    return records


def needs_root() -> HutchError:
    return HutchError("this needs root: run it with sudo or doas")


def write_record(places: Places, record: Record) -> None:
    """Write a record if it differs from what is there."""
    _write_if_changed(places.record(record.name), encode(asdict(record)))


def read_network(places: Places) -> NetworkRecord | None:
    path = places.network_record
    data = read_or_none(path)
    if data is None:
        return None
    body = decode(path, data)
    try:
        return NetworkRecord(Network(**body["network"]), body["file"], dict(body["sysctls"]), tuple(body["forwarders"]))
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"a field is missing or wrong ({error})") from error


def write_network(places: Places, record: NetworkRecord) -> None:
    _write_if_changed(places.network_record, encode(asdict(record)))


def remove_network(places: Places) -> None:
    places.network_record.unlink(missing_ok=True)


def _write_if_changed(path: Path, content: bytes) -> None:
    if read_or_none(path) != content:
        make_directory(path.parent)
        write_atomic(path, content, mode=0o600)


def make_directory(path: Path, mode: int = 0o755) -> None:
    """Create a directory of root's, and its parents; an existing one is left as it is."""
    if path.is_dir():
        return
    make_directory(path.parent)
    try:
        path.mkdir(mode=mode)
    except FileExistsError:
        return
    path.chmod(mode)
    sync_directory(path.parent)


# The lock, and the journal beneath it.

_held_here: set[str] = set()


@contextmanager
def lock(places: Places, *, patience: float = 600.0) -> Iterator[None]:
    """Hold the one lock under which this hutch changes the host. Children do not inherit it.

    Waits at most `patience` seconds for another hutch.
    """
    make_directory(places.state)
    descriptor = os.open(places.lock, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with _held(descriptor, str(places.lock), patience):
        yield


@contextmanager
def host_lock(*, patience: float = 600.0) -> Iterator[None]:
    """Hold the one lock of all hutches of this host. Whoever holds another one takes this one last; whoever holds it
    already may take it again."""
    if HOST_LOCK in _held_here:
        yield
        return
    try:
        descriptor = os.open(HOST_LOCK, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError as error:
        raise needs_root() from error
    with _held(descriptor, HOST_LOCK, patience):
        _held_here.add(HOST_LOCK)
        try:
            yield
        finally:
            _held_here.discard(HOST_LOCK)


@contextmanager
def _held(descriptor: int, path: str, patience: float) -> Iterator[None]:
    """Lock the file, and close it in the end."""
    import time

    try:
        deadline = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise HutchError(
                        f"another hutch has been changing this host for more than {patience:g} s",
                        resolution=f"see who holds it: fuser {path}",
                    ) from None
                time.sleep(0.02)  # flock has no deadline of its own, and a signal handler would need a main thread
        yield
    finally:
        os.close(descriptor)


PURGE = "purge"
"""The journal's name for the one action that is finished rather than undone: what it deletes cannot be had back."""


@contextmanager
def journaled(places: Places, action: str, names: tuple[str, ...]) -> Iterator[None]:
    """Note what is about to be done, so that a run after a crash knows what was left half done.

    A purge that fails or is interrupted is not noted any more: somebody is there to decide whether to go on.
    """
    write_atomic(places.journal, encode({"action": action, "workspaces": list(names)}), mode=0o600)
    try:
        yield
    except BaseException:
        if action == PURGE:
            places.journal.unlink(missing_ok=True)
        raise
    places.journal.unlink(missing_ok=True)


def unfinished(places: Places) -> tuple[str, tuple[str, ...]] | None:
    """The action that was begun and never ended, with its workspaces; None when all is well."""
    data = read_or_none(places.journal)
    if data is None:
        return None
    try:
        body = decode(places.journal, data)
        return str(body["action"]), tuple(body["workspaces"])
    except (HutchError, KeyError):  # torn by a power cut, it says only that something was going on: look at everything
        return "unknown", tuple(read_records(places))
