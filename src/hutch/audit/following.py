"""The lines of all records that the caller may read, as they come: new ones, and those of workspaces that come later.

The kernel tells of changes in the directory of the records (inotify), so that nobody looks at it now and then. A file
that becomes an older one is read to its end, and then what has followed it.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import time
from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from hutch.audit.chain import LONGEST_LINE, Line, read_line
from hutch.audit.reading import files_of, recorded_names
from hutch.errors import HutchError
from hutch.inotify import (
    ATTRIB,
    CREATE,
    DELETE,
    DELETE_SELF,
    IGNORED,
    MODIFY,
    MOVE_SELF,
    MOVED_FROM,
    MOVED_TO,
    OVERFLOW,
    Inotify,
)
from hutch.spec.names import Layout, is_name

CHUNK = 1 << 16
CHANGES = MODIFY | ATTRIB | MOVED_FROM | MOVED_TO | CREATE | DELETE | DELETE_SELF | MOVE_SELF
PAUSE = 1.0
"""Seconds between two times that what others have told is folded in."""

Found = tuple[str, Line]


@contextmanager
def _bounds_told() -> Iterator[None]:
    """Say which bound of the kernel's was met, whose errors are those of disks and files."""
    try:
        yield
    except OSError as error:
        bounds = {errno.EMFILE: "max_user_instances", errno.ENOSPC: "max_user_watches"}
        if error.errno not in bounds:
            raise
        raise HutchError(
            "the kernel tells this account of no more changes",
            resolution=f"raise fs.inotify.{bounds[error.errno]} with sysctl",
        ) from error


class Watch(Inotify):
    """Waits for changes in the directories of records."""

    def __init__(self) -> None:
        with _bounds_told():
            super().__init__(CHANGES)

    def add_present(self, directory: Path) -> int | None:
        """Watch a directory too: the number by which it is told; None where it is not there, or closed."""
        try:
            with _bounds_told():
                return self.add(directory)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                return None
            raise


class _Tail:
    """The end of a record, of which `file` is open: lines that are new, in this file and in those that follow it."""

    def __init__(self, layout: Layout, name: str, *, at_end: bool) -> None:
        self._layout, self._name = layout, name
        self._file: int | None = None
        self._half = b""
        self._open(layout.audit(name), at_end=at_end)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
        self._file, self._half = None, b""

    def _open(self, path: Path, *, at_end: bool = False) -> None:
        """Open a file, if there is one that the caller may read."""
        self.close()
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            self._file = os.open(path, flags)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EACCES, errno.ELOOP):
                return
            raise
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            self.close()
        elif at_end:
            os.lseek(self._file, 0, os.SEEK_END)

    @property
    def is_gone(self) -> bool:
        return self._file is None

    def read(self) -> Iterator[Line]:
        yield from self._rest()
        if self._is_current():
            return
        yield from self._rest()  # its writer was done with it before it was renamed
        for path in self._followers():
            self._open(path)
            yield from self._rest()

    def _is_current(self) -> bool:
        return self._file is not None and self._is(self._layout.audit(self._name))

    def _is(self, path: Path) -> bool:
        assert self._file is not None
        try:
            return os.path.samestat(os.stat(path, follow_symlinks=False), os.fstat(self._file))
        except FileNotFoundError:
            return False

    def _followers(self) -> list[Path]:
        """The files that have followed the open one, oldest first; all, where it is gone, or there was none."""
        files = files_of(self._layout, self._name)
        place = next((index for index, path in enumerate(files) if self._file is not None and self._is(path)), None)
        if place is None:
            self.close()
            return files
        return files[place + 1 :]

    def _rest(self) -> Iterator[Line]:
        while self._file is not None and (data := os.read(self._file, CHUNK)):
            *lines, half = (self._half + data).split(b"\n")
            self._half = half[: LONGEST_LINE + 1]  # a line that is longer is none
            yield from (line for data in lines if (line := read_line(data + b"\n")))


def follow(
    layout: Layout,
    names: Collection[str] = (),
    *,
    until: Collection[int] = (),
    fold: Callable[[str], None] | None = None,
) -> Generator[Found | None]:
    """Lines that come from now on, with the names of their workspaces; only those of `names`, if there are any. The
    first value is None: nothing that comes later is missed. Ends when one of the descriptors `until` has an error, as a
    pipe that nobody reads any more. `fold` puts what others have told into a record.
    """
    with ExitStack() as stack:
        follower = Follower(layout, names, fold)
        stack.callback(follower.close)
        follower.begin()
        yield None
        poll = select.poll()
        poll.register(follower.watch, select.POLLIN)
        for descriptor in until:
            poll.register(descriptor, 0)  # errors and hang-ups are always told
        while True:
            ready = dict(poll.poll(follower.patience))
            if ready.keys() & set(until):
                return
            yield from follower.step()


class Follower:
    def __init__(self, layout: Layout, names: Collection[str], fold: Callable[[str], None] | None) -> None:
        self._layout, self._names, self._fold = layout, frozenset(names), fold
        self._tails: dict[str, _Tail] = {}
        self._records: int | None = None
        self._inboxes: dict[int, str] = {}
        self._waiting: int | None = None
        self._told: set[str] = set()  # workspaces of which others have told something
        self._folded = 0.0
        self.watch = Watch()

    def close(self) -> None:
        self.watch.close()
        for tail in self._tails.values():
            tail.close()

    def begin(self) -> None:
        """Take the records that are there as known."""
        self._look()
        for name in filter(self._is_wanted, recorded_names(self._layout)):
            self._tails[name] = _Tail(self._layout, name, at_end=True)

    def _is_wanted(self, name: str) -> bool:
        return not self._names or name in self._names

    def _look(self) -> None:
        """Watch the directory of the records, or the nearest one above it where there is none yet; and for root, who
        folds them in, those of the inboxes."""
        if self._waiting is not None:
            self.watch.remove(self._waiting)
        self._waiting, above = None, self._layout.audits
        self._records = self.watch.add_present(above)
        while self._records is None and self._waiting is None and above != above.parent:
            above = above.parent
            self._waiting = self.watch.add_present(above)
        if self._fold is None or self._records is None:
            return
        self.watch.add_present(self._layout.audits / "inbox")  # which tells of new ones
        with suppress(OSError):
            for name in filter(is_name, os.listdir(self._layout.audits / "inbox")):
                if self._is_wanted(name) and (number := self.watch.add_present(self._layout.inboxes(name))) is not None:
                    self._inboxes[number] = name

    @property
    def patience(self) -> float | None:
        """Milliseconds until there is something to do in any case; None for never."""
        return max(self._folded + PAUSE - time.monotonic(), 0) * 1000 if self._told else None

    def step(self) -> Iterator[Found]:
        """The lines that have come."""
        changed: set[str] = set()
        is_anew = False
        for number, mask, name in self.watch.read():
            if mask & OVERFLOW or number not in (self._records, *self._inboxes) or mask & IGNORED:
                is_anew = True
            elif number == self._records:
                changed.add(name.partition(".")[0])
            else:
                self._told.add(self._inboxes[number])
        if is_anew:
            self._look()
            changed |= {*recorded_names(self._layout), *self._tails}
            self._told |= set(self._inboxes.values())
        if self._told and self._fold is not None and time.monotonic() >= self._folded + PAUSE:
            told, self._told, self._folded = self._told, set(), time.monotonic()
            for name in sorted(told):
                self._fold(name)
        for name in sorted(filter(is_name, changed)):
            if self._is_wanted(name):
                yield from ((name, line) for line in self._read(name))

    def _read(self, name: str) -> Iterator[Line]:
        if name not in self._tails:
            self._tails[name] = _Tail(self._layout, name, at_end=False)
        tail = self._tails[name]
        yield from tail.read()
        if tail.is_gone or not files_of(self._layout, name):
            self._tails.pop(name).close()
