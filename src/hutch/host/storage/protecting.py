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
import sys
from pathlib import Path

from hutch.failure import HutchError
from hutch.files import kept_open
from hutch.host.storage.mount_calls import MOUNT_ATTR_RDONLY, cloned, put, set_attributes
from hutch.host.storage.placeholders import ensure_placeholders
from hutch.host.storage.protected import find_protected

TYPE_CHECKING = False  # it runs while a workspace starts
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 18, 1 << 19, 1 << 20
LOOKS = 3
"""The looks at a directory in which something vanishes, such as what another workspace has held. Then it is taken as it
was: what a guest can have come and go must not be in the way of the rest."""
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
        looks = 0
        while True:
            found = find_protected(self.source, self.more, is_default=self._is_default)
            looks += 1
            if ensure_placeholders(self._note, self._workspace, found, *self._owner) or looks == LOOKS:
                protected = (path for path, hold in found.items() if hold != "way")
                return [tuple(path.removeprefix(f"{self.source}/").split("/")) for path in protected]


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


def apart(descriptor: int, *, is_readonly: bool = False) -> int:
    """A mount of what a descriptor pins, which is mounted nowhere yet and has nothing to do with others."""
    tree = cloned(descriptor)
    set_attributes(tree, MOUNT_ATTR_RDONLY if is_readonly else 0, MS_PRIVATE)
    return tree


def protect(place: str, ways: Iterable[Way]) -> None:
    """Mount what these ways lead to from `place` read-only, and the directories on them over themselves; and let copies
    of `place` have what is mounted there later. What it is a copy of gets none of that: placeholders are made there."""
    with kept_open(os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as top:
        set_attributes(top, 0, MS_SLAVE, is_recursive=True)
    for way, is_readonly in steps_of(ways):
        with kept_open(opened_at(place, way)) as entry, kept_open(apart(entry, is_readonly=is_readonly)) as tree:
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
