"""The user view, for people other than root: a copy of each workspace's record, which root writes and never reads back.

Such a copy can be read by the workspace's owner (an access control list) and by the members of the group `hutch` (the
file's group), and by nobody else. Whoever can read it passes into the workspace's runtime directory too, where its
service's status and its log can be read by name; all else in there is closed by its own mode. Members of the group have
a copy of root's key, which opens every workspace.

Everything here lies in directories that only root writes, so nobody can put a path of their own in root's way.
"""

from __future__ import annotations

import errno
import grp
import os
import struct
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from pathlib import Path

from hutch.errors import HutchError
from hutch.files import entries, kept_open, read_or_none, remove_flat, temporary_of, write_all
from hutch.frozen import dataclass
from hutch.spec.names import Layout
from hutch.spec.record import Record
from hutch.state import WORKSPACE, Body, decode, encode, make_directory, record_from

GROUP = "hutch"
"""The group whose members see and enter every workspace."""
READ, ENTER = 4, 1
# linux/posix_acl_xattr.h: a version, and entries of (tag, rights, id); the order is the kernel's.
LIST = "system.posix_acl_access"
VERSION, NOBODY = 2, 0xFFFFFFFF
ITS_OWNER, A_USER, ITS_GROUP, MASK, OTHERS = 0x01, 0x02, 0x04, 0x10, 0x20


@dataclass(frozen=True)
class Access:
    """The access of others to something of root's. `uid` is an owner, `gid` the group's number; None for nobody."""

    uid: int | None
    gid: int | None
    right: int

    @property
    def mode(self) -> int:
        """Root's rights, and the group's. Where there is a list, the kernel shows its mask in the group's place."""
        own = 6 if self.right == READ else 7
        return own << 6 | (self.right << 3 if self.gid is not None or self.uid is not None else 0)

    def render_list(self) -> bytes:
        """The access control list; b"" where owner and mode say it all."""
        if self.uid is None:
            return b""
        own, group = self.mode >> 6, 0 if self.gid is None else self.right
        entries = (
            (ITS_OWNER, own, NOBODY),
            (A_USER, self.right, self.uid),
            (ITS_GROUP, group, NOBODY),
            (MASK, self.right, NOBODY),
            (OTHERS, 0, NOBODY),
        )
        return struct.pack("<I", VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)

    def is_given(self, descriptor: int) -> bool:
        found = os.fstat(descriptor)
        is_listed = _list_of(descriptor) == self.render_list()
        return is_listed and (found.st_uid, found.st_gid, found.st_mode & 0o777) == (0, self.gid or 0, self.mode)

    def ensure(self, descriptor: int) -> None:
        if not self.is_given(descriptor):
            self.give(descriptor)

    def give(self, descriptor: int) -> None:
        """Give this access to a file. Nobody has more in between: the access that was given before goes first."""
        if _list_of(descriptor):
            os.removexattr(descriptor, LIST)
        os.fchmod(descriptor, 0o600 if self.right == READ else 0o700)
        os.fchown(descriptor, 0, self.gid or 0)
        if wanted := self.render_list():
            try:
                os.setxattr(descriptor, LIST, wanted)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                if self.gid is not None:  # a file system without lists: owners see nothing there, the group does
                    os.fchmod(descriptor, self.mode)
        else:
            os.fchmod(descriptor, self.mode)


def _list_of(descriptor: int) -> bytes:
    try:
        return os.getxattr(descriptor, LIST)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
        return b""


def group_id() -> int | None:
    """The number of the group; None on a host that has none."""
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None


# Root's side.


def ensure_user_views(layout: Layout, records: Mapping[str, Record], facts: Mapping[str, Mapping[str, str]]) -> None:
    """Show exactly these workspaces, as they are now. `facts` are those of machines' last starts. The files can be made
    anew at any time, so they need not survive a power cut."""
    gid = group_id()
    make_directory(layout.user_views)
    for record in records.values():
        uid = viewer_of(record)
        _ensure_entry(layout, record.name, Access(uid, gid, ENTER))
        content = encode(WORKSPACE, {**asdict(record), "facts": dict(facts.get(record.name, {}))})
        _ensure_file(layout.user_view(record.name), content, Access(uid, gid, READ))
    for path in entries(layout.user_views):
        if path not in {layout.user_view(name) for name in records}:
            path.unlink(missing_ok=True)
    _ensure_group_key(layout, gid)


def viewer_of(record: Record) -> int | None:
    """The owner, who may view a workspace: None for root, and while the workspace still runs for another owner."""
    owner = record.wanted.owner
    assert isinstance(owner, int)
    is_still_theirs = record.booted is None or record.booted.workspace.owner == owner
    return owner if owner != 0 and is_still_theirs else None


def _ensure_entry(layout: Layout, name: str, access: Access) -> None:
    """Give access to the runtime directory, if there is one."""
    with suppress(FileNotFoundError), _opened(layout.runtime(name), os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        access.ensure(descriptor)


def _ensure_file(path: Path, content: bytes, access: Access) -> None:
    """Write a file of root's with this content and this access."""
    if read_or_none(path) == content:
        with _opened(path, os.O_RDONLY) as descriptor:
            if access.is_given(descriptor):
                return
    new = temporary_of(path)
    new.unlink(missing_ok=True)
    with _opened(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
        write_all(descriptor, content)
        access.give(descriptor)
    os.rename(new, path)


def _opened(path: Path, flags: int) -> AbstractContextManager[int]:
    return kept_open(os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))


def _ensure_group_key(layout: Layout, gid: int | None) -> None:
    """Copy root's key: ssh refuses one of root's own that a group can read. Without the group there is no copy."""
    key = read_or_none(layout.key(0))
    if gid is None or key is None:
        remove_flat(layout.group_key.parent)
        return
    make_directory(layout.group_key.parent, 0o700)
    with _opened(layout.group_key.parent, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        Access(None, gid, ENTER).ensure(descriptor)
    _ensure_file(layout.group_key, key, Access(None, gid, READ))


# Everybody's side.


@dataclass(frozen=True)
class UserView:
    """The view that somebody has of a workspace. `facts` are those of its last start, if it is a machine."""

    record: Record
    facts: Mapping[str, str]


def visible_names(layout: Layout) -> list[str]:
    """The workspaces that this process may look at; none where it can look at none."""
    try:
        found = [entry.name.removesuffix(".json") for entry in os.scandir(layout.user_views)]
    except OSError:
        return []
    return sorted(name for name in found if os.access(layout.user_view(name), os.R_OK))


def read_user_view(layout: Layout, name: str) -> UserView | None:
    """The view that this process has of a workspace; None when there is none of that name. HutchError for another's."""
    path = layout.user_view(name)
    try:
        data = read_or_none(path)
    except PermissionError:
        raise HutchError(
            f"the workspace {name} is not yours",
            resolution=f"its owner, members of the group {GROUP} and root reach it; run it with sudo or doas",
        ) from None
    if data is None:
        return None
    body: Body = decode(WORKSPACE, path, data)
    return UserView(record_from(body), {str(key): str(value) for key, value in body.get("facts", {}).items()})


def visible_records(layout: Layout) -> dict[str, Record]:
    """The records of all workspaces that this process may look at, by name."""
    found = {name: read_user_view(layout, name) for name in visible_names(layout)}
    return {name: view.record for name, view in found.items() if view is not None}
