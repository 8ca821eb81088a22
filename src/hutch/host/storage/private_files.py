"""Private files: copies of the host's files in a workspace's home, which the workspace may change for itself.

They are files, not mounts, so programs inside can rename others onto them. A copy is renewed while it is as it was
given; once the workspace has changed it, it is the workspace's.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from hutch.errors import HutchError
from hutch.files import kept_open, read_or_none, reopen_regular, write_atomic
from hutch.host.storage.bind import is_file
from hutch.host.storage.shares import mount_points
from hutch.spec.model import Mount, WorkspaceSpec
from hutch.spec.names import Layout
from hutch.trees.changing import make_file_inside, put_file
from hutch.trees.cursor import PINNED, open_strictly, opened

LARGEST = 64 << 20  # bytes

Note = dict[str, dict[str, str]]
"""Target -> the digest of what was `given`, and of what the host had when both had `changed`."""


def private_files(workspace: WorkspaceSpec) -> Iterator[tuple[Mount, Path]]:
    """(mount, its place in the home on the host) of each private file that there is."""
    points = mount_points(workspace)
    for mount in workspace.mounts:
        if mount.is_private and mount.target in points and is_file(mount.source):
            yield mount, points[mount.target]


def ensure_private_files(layout: Layout, name: str, workspace: WorkspaceSpec, gid: int) -> None:
    """Give the workspace what the host has, unless it has its own. The guest may be writing at this very moment."""
    assert workspace.home is not None
    before = read_note(layout, name)
    # Of a file that the host does not have just now, it is still known what was given.
    note = {
        mount.target: before[mount.target] for mount in workspace.mounts if mount.is_private and mount.target in before
    }
    try:
        for mount, point in private_files(workspace):
            given = before.get(mount.target)
            note[mount.target] = _give_one(name, Path(workspace.home), mount, point, given, workspace.uid, gid)
    finally:
        if note != before:
            _write_note(layout, name, note)


def _give_one(
    name: str, home: Path, mount: Mount, point: Path, told: Mapping[str, str] | None, uid: int, gid: int
) -> dict[str, str]:
    """Bring one file up to date; returns its note."""
    try:
        content, mode = _read_owned(mount.source, uid)
        return _give(home, point.relative_to(home).parts, content, mode, told, uid, gid)
    except OSError as error:
        raise HutchError(
            f"{name}: {mount.target} cannot be a copy of {mount.source}: {error.strerror}",
            resolution="each part of its path must be a directory of the owner's, or be absent",
        ) from error


def _write_note(layout: Layout, name: str, note: Note) -> None:
    if note:
        write_atomic(layout.private_files(name), json.dumps(note, indent=1).encode(), mode=0o600)
    else:
        layout.private_files(name).unlink(missing_ok=True)


def kept_files(layout: Layout, name: str, workspace: WorkspaceSpec) -> list[str]:
    """Sentences: the private files that both have changed, of which the workspace keeps its own."""
    note = read_note(layout, name)
    return [
        f"{mount.target} was changed inside and on the host: it keeps its own; remove it inside to get the host's"
        for mount, _ in private_files(workspace)
        if "changed" in note.get(mount.target, {})
    ]


def read_note(layout: Layout, name: str) -> Note:
    """The note, as far as it can be read; without it, what is in the home is the workspace's own."""
    with suppress(ValueError, AttributeError, TypeError, OSError):
        found = json.loads(read_or_none(layout.private_files(name)) or b"{}")
        return {str(target): {str(key): str(digest) for key, digest in told.items()} for target, told in found.items()}
    return {}


def _give(
    home: Path, parts: tuple[str, ...], content: bytes, mode: int, told: Mapping[str, str] | None, uid: int, gid: int
) -> dict[str, str]:
    """Bring one file up to date; returns its note."""
    digest, told = _digest(content), told or {}
    if make_file_inside(home, parts, uid, gid, content, mode):
        return {"given": digest}
    with opened(home.joinpath(*parts[:-1])) as parent:
        own = _own_digest(parent, parts[-1])
        if own == digest:
            return {"given": digest}
        if own and own == told.get("given"):
            put_file(parent, parts[-1], uid, gid, content, mode)
            return {"given": digest}
    given = told.get("given", "")
    return {"given": given} if digest == given else {"given": given, "changed": digest}


def _own_digest(parent: int, name: str) -> str:
    """The digest of the workspace's file; "" for what is no file, or too large to have been given."""
    try:
        with kept_open(open_strictly(name, below=parent, flags=PINNED)) as pin:
            return _digest(_read(pin))
    except OSError:
        return ""


def _read_owned(path: str, uid: int) -> tuple[bytes, int]:
    """The content and the mode of a file that belongs to somebody: root would read anybody's."""
    with kept_open(open_strictly(path, flags=PINNED)) as pin:
        found = os.fstat(pin)
        if found.st_uid != uid:
            raise PermissionError(errno.EPERM, f"it belongs to uid {found.st_uid}, not to the owner")
        return _read(pin), stat.S_IMODE(found.st_mode) & 0o777


def _read(pin: int) -> bytes:
    with open(reopen_regular(pin), "rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise OSError(errno.EFBIG, "it is larger than 64 MiB")
    return content


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
