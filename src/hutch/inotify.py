"""Changes in directories, as the kernel tells of them: see inotify(7)."""

from __future__ import annotations

import os
import struct
from contextlib import suppress

from hutch.libc import call

TYPE_CHECKING = False  # programs that start with a workspace use it
if TYPE_CHECKING:
    from collections.abc import Iterator

MODIFY, ATTRIB, MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x2, 0x4, 0x40, 0x80, 0x100, 0x200
DELETE_SELF, MOVE_SELF, OVERFLOW, IGNORED, ONLYDIR = 0x400, 0x800, 0x4000, 0x8000, 0x1000000
FLAGS = 0x80000 | 0x800  # IN_CLOEXEC, IN_NONBLOCK
EVENT = struct.Struct("iIII")
CHUNK = 1 << 16


class Inotify:
    """Waits for changes of some kinds in directories. OSError: EMFILE, or from `add` ENOSPC, where the user may have no
    more of them."""

    def __init__(self, changes: int) -> None:
        self._changes = changes
        self._descriptor = call("inotify_init1", FLAGS)

    def fileno(self) -> int:
        return self._descriptor

    def close(self) -> None:
        os.close(self._descriptor)

    def add(self, directory: str | os.PathLike[str]) -> int:
        """Watch a directory too, or still: the number by which it is told."""
        return call("inotify_add_watch", self._descriptor, os.fsencode(directory), self._changes)

    def remove(self, number: int) -> None:
        """Watch a directory no more."""
        with suppress(OSError):  # it is gone
            call("inotify_rm_watch", self._descriptor, number)

    def read(self) -> Iterator[tuple[int, int, str]]:
        """(number, mask, name) of each change so far."""
        with suppress(BlockingIOError):
            data = os.read(self._descriptor, CHUNK)
            while data:
                number, mask, _, length = EVENT.unpack_from(data)
                name = data[EVENT.size : EVENT.size + length].rstrip(b"\0")
                yield number, mask, os.fsdecode(name)
                data = data[EVENT.size + length :]
