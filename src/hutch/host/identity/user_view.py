"""The user view, for people other than root: a copy of each workspace's record, which root writes and never reads back.

Such a copy can be read by the workspace's owner and by the users and groups of the host that it is shared with, and by
nobody else: an access control list names them. Whoever can read it passes into the workspace's runtime directory too,
where its service's status and its log can be read by name; all else in there is closed by its own mode. They can also
read the records of its questions and connections, which the egress proxy writes.

Everything here lies in directories that only root writes, so nobody can put a path of their own in root's way.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, replace
from pathlib import Path

from hutch.errors import HutchError
from hutch.files import entries, kept_open, read_or_none, temporary_of, write_all
from hutch.frozen import dataclass
from hutch.spec.model import Network
from hutch.spec.names import Layout
from hutch.spec.record import Age, ImageFacts, Record, UserView
from hutch.spec.sharing import Viewers, viewers
from hutch.state import WORKSPACE, Body, ages_from, decode, encode, make_directory, record_from

READ, ENTER = 4, 1
# linux/posix_acl_xattr.h: a version, and entries of (tag, rights, id); the order is the kernel's.
LIST, LIST_FOR_FILES = "system.posix_acl_access", "system.posix_acl_default"
VERSION, NOBODY = 2, 0xFFFFFFFF
ITS_OWNER, A_USER, ITS_GROUP, A_GROUP, MASK, OTHERS = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20


@dataclass(frozen=True)
class Access:
    """The access of `viewers` to something of root's, or of another `keeper`'s. With `for_files`, they may read all
    files that are made in a directory."""

    viewers: Viewers
    right: int
    keeper: int = 0
    for_files: bool = False

    @property
    def mode(self) -> int:
        """The keeper's rights, and the mask of the list, which the kernel shows in the group's place."""
        own = 6 if self.right == READ else 7
        others = self.right << 3 if self.viewers else 0
        return (stat.S_ISGID if self.for_files else 0) | own << 6 | others

    @property
    def lists(self) -> dict[str, bytes]:
        """The access control lists by their names; b"" for none."""
        inherited = replace(self, right=READ).render_list() if self.for_files else b""
        return {LIST: self.render_list(), LIST_FOR_FILES: inherited}

    def render_list(self) -> bytes:
        """The access control list; b"" where there is nobody else."""
        if not self.viewers:
            return b""
        entries = (
            (ITS_OWNER, self.mode >> 6 & 7, NOBODY),
            *((A_USER, self.right, uid) for uid in self.viewers.uids),
            (ITS_GROUP, 0, NOBODY),
            *((A_GROUP, self.right, gid) for gid in self.viewers.gids),
            (MASK, self.right, NOBODY),
            (OTHERS, 0, NOBODY),
        )
        return struct.pack("<I", VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)

    def is_given(self, descriptor: int) -> bool:
        found = os.fstat(descriptor)
        is_listed = all(_list_of(descriptor, name) == wanted for name, wanted in self.lists.items())
        return is_listed and (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (self.keeper, 0, self.mode)

    def ensure(self, descriptor: int) -> None:
        if not self.is_given(descriptor):
            self.give(descriptor)

    def give(self, descriptor: int) -> None:
        """Give this access to a file. Nobody has more in between: the access that was given before goes first."""
        for name in self.lists:
            if _list_of(descriptor, name):
                os.removexattr(descriptor, name)
        os.fchmod(descriptor, 0o600 if self.right == READ else 0o700)
        os.fchown(descriptor, self.keeper, 0)
        try:
            for name, wanted in self.lists.items():
                if wanted:
                    os.setxattr(descriptor, name, wanted)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return  # a file system without lists: nobody but root sees anything there
        os.fchmod(descriptor, self.mode)  # with a list, its mask is as it was


def _list_of(descriptor: int, name: str) -> bytes:
    try:
        return os.getxattr(descriptor, name)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
        return b""


# Root's side.


def ensure_user_views(
    layout: Layout,
    records: Mapping[str, Record],
    facts: Mapping[str, Mapping[str, str]],
    ages: Mapping[str, Age],
    network: Network | None,
    images: Mapping[str, ImageFacts],
) -> None:
    """Show exactly these workspaces, as they are now. `facts` are those of machines' last starts, `ages` and `images`
    those of images, `network` is the one that was set up last. The files can be made anew at any time, so they need not
    survive a power cut."""
    make_directory(layout.user_views)
    for record in records.values():
        seen_by = viewers_of(record)
        _ensure_access(layout.runtime(record.name), Access(seen_by, ENTER))
        _ensure_records(layout, record.name, seen_by)
        more = {
            "facts": dict(facts.get(record.name, {})),
            "ages": {id: asdict(age) for id, age in ages.items() if id in record.images},
            "images": {id: asdict(image) for id, image in images.items() if id in record.images},
            "network": network and asdict(network),
        }
        content = encode(WORKSPACE, {**asdict(record), **more})
        _ensure_file(layout.user_view(record.name), content, Access(seen_by, READ))
    shown = {layout.user_view(name) for name in records}
    for path in entries(layout.user_views):
        if path not in shown:
            path.unlink(missing_ok=True)


def viewers_of(record: Record) -> Viewers:
    """Who may view a workspace: the owner, unless that is root, and those that it is shared with; nobody while it still
    runs for another owner, whose work that is."""
    wanted = record.wanted
    if record.booted is not None and record.booted.workspace.owner != wanted.owner:
        return Viewers()
    return viewers((*((str(wanted.uid),) if wanted.uid != 0 else ()), *wanted.share_with))


def _ensure_access(directory: Path, access: Access) -> None:
    """Give access to a directory, if there is one."""
    with suppress(FileNotFoundError), _opened(directory, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        access.ensure(descriptor)


def _ensure_records(layout: Layout, name: str, seen_by: Viewers) -> None:
    """Let others read what the egress proxy records of a workspace, and has recorded. The directory is its own, so that
    each file in it is asked whether it is one."""
    # Spares the start-up of `hutch ls`.
    from hutch.egress.journal import record_files

    directory, keeper = layout.egress_records(name), layout.egress_uid
    _ensure_access(directory, Access(seen_by, READ | ENTER, keeper=keeper, for_files=True))
    for path in record_files(layout.egress, name):
        with suppress(OSError), _opened(path, os.O_RDONLY | os.O_NONBLOCK) as descriptor:
            found = os.fstat(descriptor)
            if stat.S_ISREG(found.st_mode) and (found.st_uid, found.st_nlink) == (keeper, 1):
                Access(seen_by, READ, keeper=keeper).ensure(descriptor)


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


# Everybody's side.


def visible_names(layout: Layout) -> list[str]:
    """The workspaces that this process may look at; none where it can look at none."""
    return sorted(name for name in _names(layout) if os.access(layout.user_view(name), os.R_OK))


def hidden_names(layout: Layout) -> set[str]:
    """The workspaces that it may not look at. Their names are no secret: they stand in /etc/hosts."""
    return _names(layout).difference(visible_names(layout))


def _names(layout: Layout) -> set[str]:
    try:
        return {name.removesuffix(".json") for name in os.listdir(layout.user_views)}
    except OSError:
        return set()


def read_user_view(layout: Layout, name: str) -> UserView | None:
    """The view that this process has of a workspace; None when there is none of that name. HutchError for another's."""
    path = layout.user_view(name)
    try:
        data = read_or_none(path)
    except PermissionError:
        raise HutchError(
            f"the workspace {name} is not yours",
            resolution="its owner, those that share_with names, and root reach it; run it with sudo or doas",
        ) from None
    if data is None:
        return None
    body: Body = decode(WORKSPACE, path, data)
    facts = {str(key): str(value) for key, value in body.get("facts", {}).items()}
    network = Network(**body["network"]) if body.get("network") else None
    images = {str(id): _facts_from(image) for id, image in body.get("images", {}).items()}
    return UserView(record_from(body), ages_from(body.get("ages", {})), facts, network, images)


def _facts_from(body: Body) -> ImageFacts:
    packages, sources = (
        tuple(map(str, body["packages"])),
        tuple((str(name), str(date)) for name, date in body["sources"]),
    )
    return ImageFacts(body["image"], packages, body["created"], body["size"], body["digest"], sources)


def visible_views(layout: Layout) -> dict[str, UserView]:
    """The views of all workspaces that this process may look at, by name."""
    found = {name: read_user_view(layout, name) for name in visible_names(layout)}
    return {name: view for name, view in found.items() if view is not None}
