"""Records of wanted and booted settings: one small JSON record per workspace, one for the network; and the journal.

A record is a schema version, a checksum and a body. Those that nothing else could tell have a copy beside them. A
damaged record is refused with its path, and rebuilt from its copy by the next command that changes something; it is
never read as "no such workspace". Records hold everything that the commands which do not read a hutch.toml need, so
those start fast.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from hutch.errors import HutchError, Unmet, lacks_root
from hutch.files import read_or_none, sync_directory, write_atomic
from hutch.spec.model import Idle, Mount, Network, Publish, WorkspaceSpec
from hutch.spec.names import Layout
from hutch.spec.record import Age, Booted, Decision, Moving, NetworkRecord, Place, Record

Body = dict[str, Any]

WORKSPACE, NETWORK, JOURNAL, ACCELERATOR, SHARES = "workspace", "network", "journal", "accelerator", "shares"
REPAIRS, AGES = "repairs", "ages"


def _without_origin(body: Body) -> Body:
    """Migrate a record of schema 1, which had neither its file's origin nor the memory that a machine started with."""
    booted = body["booted"]
    return {"origin": [], **body, "booted": booted and {"memory": None, **booted}}


def _without_once_writable(body: Body) -> Body:
    """Migrate a record of schema 3, which did not tell what a running workspace could write before a live change."""
    booted = body["booted"]
    return {**body, "booted": booted and {"once_writable": [], **booted}}


MIGRATIONS: dict[str, dict[int, Callable[[Body], Body]]] = {
    WORKSPACE: {
        1: _without_origin,
        2: lambda body: {"ejected": "", **body},
        3: _without_once_writable,
        4: lambda body: {"place": None, "moving": None, **body},
        5: lambda body: {"decisions": [], **body},
    },
    NETWORK: {},
    JOURNAL: {},
    ACCELERATOR: {},
    SHARES: {},
    REPAIRS: {},
    AGES: {},
}
"""For each kind of record, the functions from a body of one schema to one of the next: {1: from 1 to 2, 2: from 2 to
3}. All are pure. A record is migrated when it is read, and written as it then is when it next changes."""


def schema_of(kind: str) -> int:
    """The schema in which records of a kind are written."""
    return 1 + len(MIGRATIONS[kind])


# One record as bytes.

BEFORE, AFTER = b', "body":\n', b"\n}\n"
"""The bytes between the checksum and the body, and those that end a record."""


class Damaged(HutchError):
    """A file of hutch's own that does not say what was written into it."""

    def __init__(self, path: Path, why: str, resolution: str) -> None:
        self.path = path
        super().__init__(
            f"{path} is damaged: {why}",
            details="Nothing was changed. Home directories and keys are not in this file and are untouched.",
            resolution=resolution,
        )


def encode(kind: str, body: Body) -> bytes:
    schema, text = schema_of(kind), json.dumps(body, sort_keys=True, indent=1, ensure_ascii=True).encode()
    return b'{"schema": %d, "crc32": %d%b%b%b' % (schema, _checksum(schema, text), BEFORE, text, AFTER)


def decode(kind: str, path: Path, data: bytes) -> Body:
    """The body, in the schema of today. Raises Damaged, or HutchError for a schema of tomorrow.

    The checksum is that of the very bytes: to write a body anew, to compare, takes far longer than to read it.
    """
    head, _, rest = data.partition(BEFORE)
    text = rest.removesuffix(AFTER)
    try:
        about = json.loads(head + b"}")
        schema, checksum, body = about["schema"], about["crc32"], dict(json.loads(text))
        is_whole = type(schema) is int and schema > 0 and rest.endswith(AFTER)
        is_sound = is_whole and _checksum(schema, text) == checksum
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, "it is not a record of hutch") from error
    if not is_sound:
        raise _damaged(path, "its checksum does not match")
    if schema > schema_of(kind):
        raise HutchError(
            f"{path} has schema {schema}, this hutch knows {schema_of(kind)}",
            details="Nothing was changed.",
            resolution="it was written by a newer hutch; use that one",
        )
    try:
        for step in range(schema, schema_of(kind)):
            body = MIGRATIONS[kind][step](body)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"it cannot be brought from schema {schema} to {schema_of(kind)} ({error})") from error
    return body


def _checksum(schema: int, text: bytes) -> int:
    """The checksum of the body and, by the value that it begins with, of the schema."""
    return zlib.crc32(text, schema - 1)


# Copies.


def copy_of(path: Path) -> Path:
    """The path of the copy of a record."""
    return path.with_name(f"{path.name}.copy")


def aside_of(path: Path) -> Path:
    """The path where a damaged record is kept, for whoever wants to look into it."""
    return path.with_name(f"{path.name}.damaged")


def kind_of(path: Path) -> str:
    """The kind of a record that has a copy."""
    return NETWORK if path.name == "network.json" else WORKSPACE


def _damaged(path: Path, why: str) -> Damaged:
    copy = copy_of(path)
    if read_copy(path) is not None:
        return Damaged(path, why, f"`hutch up` rebuilds it from its copy, {copy}")
    steps = [f"mv {each} {path}.{end}" for each, end in ((path, "damaged"), (copy, "damaged-copy")) if each.exists()]
    return Damaged(path, why, f"restore it from a backup, or move it away and run `hutch up` again: {'; '.join(steps)}")


def read_copy(path: Path) -> bytes | None:
    """The copy of a record, None unless it is sound."""
    copy = copy_of(path)
    data = read_or_none(copy)
    if data is None:
        return None
    try:
        _parse(path, decode(kind_of(path), copy, data))
    except (HutchError, ValueError):
        return None
    return data


def ensure_copy(path: Path) -> None:
    """Make the copy of a record, which is sound, as it is. It need not survive a power cut: the record does."""
    content = read_or_none(path)
    if content is not None and read_or_none(copy_of(path)) != content:
        write_atomic(copy_of(path), content, mode=0o600, is_lasting=False)


def restore(path: Path) -> bool:
    """Put the copy in the place of a damaged record, which is kept beside it; False when there is no sound copy. The
    caller holds the lock."""
    data = read_copy(path)
    if data is None:
        return False
    if path.exists():
        os.replace(path, aside_of(path))
    write_atomic(path, data, mode=0o600)
    return True


# Records.


def workspace_from(body: dict[str, Any]) -> WorkspaceSpec:
    """The inverse of `dataclasses.asdict` for a WorkspaceSpec."""
    values = {name: body[name] for name in WorkspaceSpec.__dataclass_fields__ if name in body}
    values["packages"] = tuple(values["packages"])
    if values["authorized_keys"] is not None:
        values["authorized_keys"] = tuple(values["authorized_keys"])
    values["mounts"] = tuple(Mount(**mount).normalized() for mount in values["mounts"])
    values["protect"] = tuple(values.get("protect", ()))
    values["share_with"] = tuple(values.get("share_with", ()))
    values["publish"] = tuple(Publish(**publish) for publish in values["publish"])
    values["env"] = tuple((name, value) for name, value in values["env"])
    values["use"] = tuple(values.get("use", ()))  # older records have none
    if isinstance(values["egress"], list):
        values["egress"] = tuple(values["egress"])
    if values["idle"] is not None:
        values["idle"] = Idle(**values["idle"])
    return WorkspaceSpec(**values)


def booted_from(body: Body) -> Booted:
    return Booted(workspace_from(body["workspace"]), body["image"], body["memory"], tuple(body["once_writable"]))


def moving_from(body: Body) -> Moving:
    return Moving(
        body["step"],
        workspace_from(body["wanted"]),
        body["image"],
        body["uid_base"],
        body["booted"] and booted_from(body["booted"]),
        body["place"] and Place(**body["place"]),
        body.get("since"),  # a move that an earlier hutch began did not note it
    )


UNNOTED = ("removed_at", "brought", "member")
"""The fields of a Record that an earlier hutch of the same schema did not note."""


def record_from(body: Body) -> Record:
    """The inverse of `dataclasses.asdict` for a Record."""
    return Record(
        **{
            **{f.name: body[f.name] for f in fields(Record) if f.name not in UNNOTED},
            "wanted": workspace_from(body["wanted"]),
            "booted": body["booted"] and booted_from(body["booted"]),
            "origin": tuple(body["origin"]),
            "place": body["place"] and Place(**body["place"]),
            "moving": body["moving"] and moving_from(body["moving"]),
            **{name: body[name] for name in UNNOTED if name in body},
            "decisions": tuple(Decision(**decision) for decision in body["decisions"]),
        }
    )


def network_from(body: Body) -> NetworkRecord:
    return NetworkRecord(Network(**body["network"]), body["file"], dict(body["sysctls"]), tuple(body["forwarders"]))


def _parse(path: Path, body: Body) -> Record | NetworkRecord:
    """The value of a record that has a copy. Raises ValueError for a body that is none of that kind."""
    try:
        if kind_of(path) == NETWORK:
            return network_from(body)
        record = record_from(body)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"a field is missing or wrong ({error})") from error
    if record.name != path.parent.name:  # a copied or renamed directory: its address and uids belong to somebody else
        raise ValueError(f"it is the record of {record.name}")
    return record


def _read(path: Path) -> Record | NetworkRecord | None:
    data = read_or_none(path)
    if data is None:
        if copy_of(path).exists():
            raise _damaged(path, "it is gone")
        return None
    body = decode(kind_of(path), path, data)
    try:
        return _parse(path, body)
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def read_record(layout: Layout, name: str) -> Record | None:
    """The record of a workspace, None when there is none."""
    found = _read(layout.record(name))
    assert not isinstance(found, NetworkRecord)
    return found


def read_records(layout: Layout) -> dict[str, Record]:
    """Every record, removed ones too, by name."""
    try:
        names = sorted(entry.name for entry in os.scandir(layout.workspaces) if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return {}
    except PermissionError as error:
        raise lacks_root() from error
    records = {}
    for name in names:
        record = read_record(layout, name)
        if record is not None:
            records[name] = record
    return records


def write_record(layout: Layout, record: Record) -> None:
    """Write a record if it differs from what is there."""
    _write(layout.record(record.name), asdict(record))


def read_network(layout: Layout) -> NetworkRecord | None:
    found = _read(layout.network_record)
    assert not isinstance(found, Record)
    return found


def write_network(layout: Layout, record: NetworkRecord) -> None:
    _write(layout.network_record, asdict(record))


def remove_network(layout: Layout) -> None:
    path = layout.network_record
    for each in (copy_of(path), path, aside_of(path)):  # the copy first: alone, it would count as the record
        each.unlink(missing_ok=True)


def _write(path: Path, body: Body) -> None:
    """Write a record that has a copy, unless it is there already."""
    content = encode(kind_of(path), body)
    if read_or_none(path) != content:
        make_directory(path.parent)
        write_atomic(path, content, mode=0o600)
    ensure_copy(path)


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


# The ages of images.


def ages_from(body: Body) -> dict[str, Age]:
    """Ages by the ids of images, from the body of a record."""
    return {
        str(id): Age(**{**age, "security": tuple(age["security"]), "kernel": tuple(age["kernel"])})
        for id, age in body.items()
    }


def read_ages(layout: Layout) -> dict[str, Age]:
    """The ages of the images in the cache, by id. A file that cannot be read counts as no answer."""
    data = read_or_none(layout.ages)
    try:
        return ages_from(decode(AGES, layout.ages, data)) if data is not None else {}
    except (HutchError, KeyError, TypeError):
        return {}


def write_ages(layout: Layout, ages: Mapping[str, Age]) -> bool:
    """Write the ages if they differ from the file; returns whether they did. A power cut may lose them."""
    content = encode(AGES, {id: asdict(age) for id, age in ages.items()})
    if read_or_none(layout.ages) == content:
        return False
    write_atomic(layout.ages, content, mode=0o600, is_lasting=False)
    return True


# The journal.

PURGE = "purge"
"""The journal's name for the one action that is finished rather than undone: what it deletes cannot be had back."""
EJECT = "eject"
"""The journal's name for an ejection, which is undone or finished, as the record says."""


@contextmanager
def journaled(layout: Layout, action: str, names: tuple[str, ...], *, is_lasting: bool = True) -> Iterator[None]:
    """Note an action that is about to begin, so that a run after a crash knows what was left half done. A note that is
    not lasting is for actions that leave nothing when the power fails.

    An action that is Unmet has come to its end all the same. A purge that fails or is interrupted is not noted any
    more: somebody is there to decide whether to go on.
    """
    content = encode(JOURNAL, {"action": action, "workspaces": list(names)})
    write_atomic(layout.journal, content, mode=0o600, is_lasting=is_lasting)
    try:
        yield
    except BaseException as error:
        if action == PURGE or isinstance(error, Unmet):
            layout.journal.unlink(missing_ok=True)
        raise
    layout.journal.unlink(missing_ok=True)


def unfinished(layout: Layout) -> tuple[str, tuple[str, ...]] | None:
    """The action that was begun and never ended, with its workspaces; None when all is well."""
    data = read_or_none(layout.journal)
    if data is None:
        return None
    try:
        body = decode(JOURNAL, layout.journal, data)
        return str(body["action"]), tuple(body["workspaces"])
    except (HutchError, KeyError, TypeError):  # it says only that something was going on: look at everything
        return "unknown", tuple(read_records(layout))
