"""Changing what a guest has made, each thing by its inode: whose it is, and what it may do."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from hutch.errors import HutchError
from hutch.trees.cursor import PATIENCE, SUPERFLUOUS, call, opened, pinned, walk, way_to

AT_EMPTY_PATH = 0x1000


def give(top: int, makers: Collection[int], uid: int, gid: int, *, seconds: float = PATIENCE) -> int:
    """Give what belongs to any of `makers`, user or group, to `uid` and `gid`: `top` and everything below. An inode of
    a guest's own uids is that guest's, whatever name led there. Returns how many changed hands."""
    changed = int(_give(top, makers, uid, gid))
    for directory, name in walk(top, seconds=seconds):
        with present(), pinned(directory, name) as descriptor:
            changed += _give(descriptor, makers, uid, gid)
    return changed


def _give(descriptor: int, makers: Collection[int], uid: int, gid: int) -> bool:
    status = os.fstat(descriptor)
    new_uid, new_gid = uid if status.st_uid in makers else -1, gid if status.st_gid in makers else -1
    if (new_uid, new_gid) == (-1, -1):
        return False
    call("fchownat", descriptor, b"", new_uid, new_gid, AT_EMPTY_PATH)
    return True


def take_setuid(top: int, makers: Collection[int], *, seconds: float = PATIENCE) -> int:
    """Take setuid and setgid from the files of `makers`. Returns how many there were."""
    changed = 0
    for directory, name in walk(top, seconds=seconds):
        with present(), pinned(directory, name) as descriptor:
            status = os.fstat(descriptor)
            is_armed = stat.S_ISREG(status.st_mode) and status.st_mode & (stat.S_ISUID | stat.S_ISGID)
            if is_armed and status.st_uid in makers:
                os.chmod(way_to(descriptor), stat.S_IMODE(status.st_mode) & 0o1777)
                changed += 1
    return changed


def main(path: str, owner: str, first: str, count: str) -> None:
    """Take setuid and setgid from what a guest made in a directory: from files of its owner, and of its own uids."""
    try:
        with opened(path) as top:
            take_setuid(top, {int(owner), *range(int(first), int(first) + int(count))})
    except (OSError, HutchError) as error:
        sys.exit(f"{path} cannot be looked through for setuid files: {error}")


@contextmanager
def present() -> Iterator[None]:
    """What has gone meanwhile, or is a mount, needs nothing."""
    try:
        yield
    except OSError as error:
        if error.errno not in SUPERFLUOUS:
            raise
