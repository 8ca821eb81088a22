"""A program of its own: mount read-only what a guest must not change of a directory that it is shown.

    main(PLACE, SOURCE, UID, GID, NOTE, WORKSPACE, "default" or "none", PATH...)

It runs in the mount namespace of a workspace's service, where SOURCE is mounted at PLACE, before the guest sees that.
Each protected path becomes a mount of itself that cannot be written, and each directory on the way to it a mount of
itself: nobody can rename or remove a mount point, so nothing else can take the place of a parent. The guest cannot
unmount any of it: in a container the kernel locks these mounts to the one that they are on, and a machine sees no
mounts, but what virtiofsd does among them.

Where nothing is, an empty directory of the owner's holds the name: see placeholders. What is mounted at PLACE later on
comes to the guest too: see protection_watch.
"""

from __future__ import annotations

import os
import struct
import sys
from pathlib import Path

from hutch.failure import HutchError
from hutch.files import kept_open
from hutch.host.storage.placeholders import ensure_placeholders
from hutch.host.storage.protected import find_protected
from hutch.libc import call

TYPE_CHECKING = False  # it runs while a workspace starts
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_MOUNT_SETATTR = 428, 429, 442  # the same on every architecture
AT_EMPTY_PATH, AT_RECURSIVE, OPEN_TREE_CLONE = 0x1000, 0x8000, 1
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = 0x04, 0x40
MOUNT_ATTR_RDONLY = 0x1
MS_PRIVATE, MS_SHARED = 1 << 18, 1 << 20
ENTRY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC

Way = tuple[str, ...]
"""The names that lead from a shared directory to something in it."""


class Share:
    """A shared directory, by the arguments of this program."""

    def __init__(
        self, place: str, source: str, uid: str, gid: str, note: str, workspace: str, default: str, *more: str
    ) -> None:
        self.place, self.source, self.more = place, source, more
        self._owner, self._note, self._workspace = (int(uid), int(gid)), Path(note), workspace
        self._is_default = default == "default"

    def hold(self) -> list[Way]:
        """The ways to what is protected; where nothing is, placeholders are made. OSError and HutchError."""
        found = find_protected(self.source, self.more, is_default=self._is_default)
        if absent := {path: hold for path, hold in found.items() if hold}:
            ensure_placeholders(self._note, self._workspace, absent, *self._owner)
        return [tuple(path.removeprefix(f"{self.source}/").split("/")) for path in found]


def steps_of(ways: Iterable[Way]) -> Iterator[tuple[Way, bool]]:
    """(way, whether it is to be read-only) of each mount, the outer ones first. No way leads through another's end."""
    seen: set[Way] = set()
    for way in sorted(ways):
        for length in range(1, len(way) + 1):
            if way[:length] not in seen:
                seen.add(way[:length])
                yield way[:length], length == len(way)


def opened_at(place: str, way: Way) -> int:
    """A descriptor of what a way leads to, over mounts and through no link: of a link, the link itself."""
    current = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for index, name in enumerate(way):
        with kept_open(current):
            current = os.open(name, ENTRY if index == len(way) - 1 else ENTRY | os.O_DIRECTORY, dir_fd=current)
    return current


def cloned(descriptor: int, *, is_readonly: bool = False, is_whole: bool = False) -> int:
    """A mount of what a descriptor pins, which is mounted nowhere yet; the `whole` tree of mounts there, or one that
    has nothing to do with others."""
    flags = AT_EMPTY_PATH | OPEN_TREE_CLONE | os.O_CLOEXEC | (AT_RECURSIVE if is_whole else 0)
    tree = call("syscall", SYS_OPEN_TREE, descriptor, b"", flags)
    if not is_whole:
        set_attributes(tree, MOUNT_ATTR_RDONLY if is_readonly else 0, MS_PRIVATE)
    return tree


def set_attributes(mount: int, flags: int, propagation: int, *, is_recursive: bool = False) -> None:
    """See mount_setattr(2)."""
    attributes = struct.pack("QQQQ", flags, 0, propagation, 0)
    how = AT_EMPTY_PATH | (AT_RECURSIVE if is_recursive else 0)
    call("syscall", SYS_MOUNT_SETATTR, mount, b"", how, attributes, len(attributes))


def put(tree: int, descriptor: int) -> None:
    """Mount a tree on what a descriptor pins."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    call("syscall", SYS_MOVE_MOUNT, tree, b"", descriptor, b"", flags)


def protect(place: str, ways: Iterable[Way]) -> None:
    """Mount what these ways lead to from `place` read-only, and the directories on them over themselves; and let copies
    of `place` have what is mounted there later."""
    for way, is_readonly in steps_of(ways):
        with kept_open(opened_at(place, way)) as entry, kept_open(cloned(entry, is_readonly=is_readonly)) as tree:
            put(tree, entry)
    with kept_open(os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as top:
        set_attributes(top, 0, MS_SHARED, is_recursive=True)


def main(*arguments: str) -> None:
    share = Share(*arguments)
    try:
        protect(share.place, share.hold())
    except HutchError as error:
        sys.exit(f"{error.brief}: {error.resolution}" if error.resolution else error.brief)
    except OSError as error:
        sys.exit(f"protected paths in {share.source} cannot be mounted read-only: {error}")
