"""The files in which others than root's commands tell for the record of a workspace: their form, and the one way to add
to one. Accounts do (audit/telling), and the egress proxy (egress/telling); root makes them, and folds them into the
record (audit/inbox).

Such a file begins with a heading, which counts lines that it had no room for; each line is an event, as JSON. Root
takes it away by another name, and makes a new one.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hutch.files import READABLE, kept_open, lock_within, write_all

LARGEST = 256 << 10
"""Bytes of an inbox, above which lines are only counted."""
LONGEST = 1 << 15
"""Bytes of a line there."""
HEADING = '{"left_out": %10d}\n'
HEADING_SIZE = len(HEADING % 0)
MOST_LEFT_OUT = 9_999_999_999


def append(path: Path, lines: bytes, patience: float = 0.0) -> None:
    """Add lines to an inbox, all or none. OSError where they are not: FileNotFoundError where it is absent, or root has
    just taken it away; EFBIG where it is full; ETIMEDOUT where somebody else has held its lock for so many seconds."""
    with _opened(path, patience) as descriptor:
        size = os.fstat(descriptor).st_size
        if size + len(lines) > LARGEST:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
        os.lseek(descriptor, size, os.SEEK_SET)
        try:
            write_all(descriptor, lines)
        except OSError:
            os.ftruncate(descriptor, size)
            raise


def leave_out(path: Path, count: int, patience: float = 0.0) -> None:
    """Count events that could not be added. OSError as above."""
    with _opened(path, patience) as descriptor:
        count += left_out(os.pread(descriptor, HEADING_SIZE, 0))
        os.pwrite(descriptor, (HEADING % min(count, MOST_LEFT_OUT)).encode(), 0)


def left_out(heading: bytes) -> int:
    """The number of events that a heading counts."""
    found = re.fullmatch(rb'\{"left_out": *(\d{1,10})\}\n', heading)
    return int(found[1]) if found else 0


@contextmanager
def _opened(path: Path, patience: float) -> Iterator[int]:
    with kept_open(os.open(path, os.O_RDWR | READABLE)) as descriptor:
        lock_within(descriptor, patience)
        if not os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        yield descriptor
