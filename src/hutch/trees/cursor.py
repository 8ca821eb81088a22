"""Work in trees that others can write, guests above all: whatever is in them, and while it changes.

Nothing here goes by a path of the host. A cursor goes down by a name that is neither a link nor a mount (openat2), and
holds the last directories on its way open, to go up again; of one that is far above it knows the name, and which
directory it must be. It does not go by "..": whoever moves a directory would have it lead out, and where a part of a
file system is mounted, each step takes the kernel as long as the tree is deep. (Only `upwards` does, to tell where a
directory is now.) So the depth of a tree takes no descriptors and no stack; what is changed is an inode that has been
looked at, whatever its name is by now; no fifo or device is ever opened; and all of it ends at a deadline.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from hutch.failure import HutchError
from hutch.files import kept_open
from hutch.libc import call

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
PINNED = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
PINNED_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
PATIENCE = 600.0  # seconds; there may be millions of files
MOST_OPEN = 200  # directories that a cursor holds open
BATCH = 50_000  # names that are kept in mind at once, over all depths
LONGEST_STRIDE = 3800  # bytes; a path may have 4096, and a name 255
MOST_ABOVE = 2048  # directories above one that has been opened by a path
LONGEST = 200  # characters of a way that are shown

SYS_OPENAT2 = 437  # the same on every architecture
RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 0x01, 0x02, 0x04, 0x08

SUPERFLUOUS = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV)
"""The errors of opening an entry that is not there any more, is another thing than it was, or is a mount."""


class Moved(Exception):
    """A directory is no longer where it was when it was entered."""


def open_strictly(
    path: str | os.PathLike[str], *, below: int | None = None, flags: int = DIRECTORY, is_one_mount: bool = True
) -> int:
    """A descriptor of `path`, with no symbolic link on the way. With `below`, a directory, the path begins there, and
    stays on the same mount if `is_one_mount`. Otherwise the path is absolute, and may lead over mounts."""
    resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
    if below is not None:
        resolve |= RESOLVE_BENEATH | (RESOLVE_NO_XDEV if is_one_mount else 0)
    elif not os.path.isabs(path):
        raise ValueError(f"{path} is not absolute")
    how = struct.pack("QQQ", flags, 0, resolve)
    return call("syscall", SYS_OPENAT2, -1 if below is None else below, os.fsencode(path), how, len(how))


def upwards(directory: int) -> Generator[int, None, None]:
    """Descriptors of a directory and of all above it, each until the next is asked for: of where it is, whatever its
    path leads to by now. OSError (ELOOP) after as many as a path can have: somebody moves them meanwhile."""
    at = os.open(".", PINNED_DIRECTORY, dir_fd=directory)
    for _ in range(MOST_ABOVE):
        with kept_open(at):
            yield at
            above = _above(at)
        if above is None:
            return
        at = above
    os.close(at)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _above(at: int) -> int | None:
    """A descriptor of the directory above one; None at the top. One may be mounted on another of its own, and so be
    above itself: that is not yet the top."""
    with ExitStack() as stack:
        above = os.open("..", PINNED_DIRECTORY, dir_fd=at)
        stack.callback(os.close, above)
        if not os.path.sameopenfile(at, above) or mount_of(at) != mount_of(above):
            stack.pop_all()
            return above
    return None


def mount_of(descriptor: int) -> str:
    """The id of the mount on which a descriptor was opened."""
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as file:
        return next(line.split()[1] for line in file if line.startswith("mnt_id:"))


def has_openat2() -> bool:
    """Whether this kernel has openat2, which all of this needs; since Linux 5.6."""
    try:
        os.close(open_strictly("/"))
    except OSError:
        return False
    return True


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[int]:
    """A directory, by a path without symbolic links: where one is on the way, there is no directory."""
    try:
        descriptor = open_strictly(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), os.fspath(path)) from error
        raise
    with kept_open(descriptor):
        yield descriptor


def pinned(directory: int, name: str) -> AbstractContextManager[int]:
    """A pin of the entry with this name, to be looked at and then changed as the same thing. It opens nothing."""
    return kept_open(open_strictly(name, below=directory, flags=PINNED))


def way_to(descriptor: int) -> str:
    """A path to the very thing that a descriptor pins, for calls that take none: it leads there whatever is moved."""
    return f"/proc/self/fd/{descriptor}"


def is_empty(path: str | os.PathLike[str]) -> bool:
    """Whether nothing is in a directory, or there is none."""
    try:
        with opened(path) as descriptor, os.scandir(descriptor) as entries:
            return next(entries, None) is None
    except (FileNotFoundError, NotADirectoryError):
        return True


class _Level:
    """A directory on the way from the top, by its name in the one above. It may have been closed meanwhile."""

    def __init__(self, name: str, descriptor: int) -> None:
        self.name, self.descriptor = name, descriptor
        self.identity = _identity(descriptor)


class Cursor:
    """A directory of a tree. It begins at the top, of which the caller keeps its own descriptor."""

    def __init__(self, top: int) -> None:
        self._levels = [_Level("", os.open(".", DIRECTORY, dir_fd=top))]
        self._first_open = 1  # the top stays open, and so does all from here on

    @property
    def descriptor(self) -> int:
        return self._levels[-1].descriptor

    @property
    def names(self) -> list[str]:
        """The way from the top."""
        return [level.name for level in self._levels[1:]]

    def enter(self, name: str) -> None:
        """Go down. OSError says that it is no directory (any more), or that something is mounted there (EXDEV)."""
        self._levels.append(_Level(name, open_strictly(name, below=self.descriptor)))
        if len(self._levels) - self._first_open > MOST_OPEN:
            os.close(self._levels[self._first_open].descriptor)
            self._levels[self._first_open].descriptor = -1
            self._first_open += 1

    def leave(self) -> str:
        """Go up; returns the name of the level left. Raises Moved when there is no way back to where it came from."""
        left = self._levels.pop()
        os.close(left.descriptor)
        if self.descriptor < 0:
            self._first_open = len(self._levels)
            self._reopen()
        return left.name

    def _reopen(self) -> None:
        """Open the last levels once more, from the top: as many as may be open, so that this is rarely done."""
        first = max(1, len(self._levels) - MOST_OPEN)
        current = os.dup(self._levels[0].descriptor)
        try:
            for path in _strides([level.name for level in self._levels[1:first]]):
                following = open_strictly(path, below=current)
                os.close(current)
                current = following
            for level in self._levels[first:]:
                following = open_strictly(level.name, below=current)
                os.close(current)
                current = following
                if _identity(current) != level.identity:
                    raise Moved
                level.descriptor, current = current, os.dup(current)
                self._first_open = min(self._first_open, first)
        except OSError as error:
            raise Moved from error
        finally:
            os.close(current)

    def close(self) -> None:
        for level in self._levels:
            if level.descriptor >= 0:
                os.close(level.descriptor)
        self._levels = []


def _strides(names: list[str]) -> Iterator[str]:
    """The names as paths, none of which is longer than a path may be."""
    path, size = [], 0
    for name in names:
        path.append(name)
        size += len(os.fsencode(name)) + 1
        if size > LONGEST_STRIDE:
            yield "/".join(path)
            path, size = [], 0
    if path:
        yield "/".join(path)


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


class _Ahead:
    """The directories in one directory that are still to be entered, in the order of their names. No more than there
    is room for are kept in mind; where there `is_more`, another look finds those that follow."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.is_more = True
        self._last = ""

    def scan(self, cursor: Cursor, deadline: float, room: int) -> Iterator[str]:
        """Note the next directories. Yields all names in this one, the first time."""
        self.is_more, is_first = False, not self._last
        with os.scandir(cursor.descriptor) as entries:
            for entry in entries:
                check_time(deadline, cursor)
                if is_first:
                    yield entry.name
                if entry.name > self._last and entry.is_dir(follow_symlinks=False):
                    self.names.append(entry.name)
                    if len(self.names) >= 2 * room:
                        self._cut(room)
        self._cut(room)
        self._last = self.names[0] if self.names else ""

    def _cut(self, room: int) -> None:
        """Keep the first names, the very first at the end."""
        self.names.sort(reverse=True)
        if len(self.names) > room:
            del self.names[:-room]
            self.is_more = True


def walk(top: int, *, seconds: float = PATIENCE) -> Iterator[tuple[int, str]]:
    """(descriptor of a directory, name in it) of everything below `top`: a directory before what is in it. Mounts are
    left out, and so are entries that go away meanwhile; OSError tells of all others that cannot be looked into. Use
    each before taking the next."""
    for cursor, name in _walked(top, seconds):
        yield cursor.descriptor, name


def walk_with_ways(top: int, *, seconds: float = PATIENCE) -> Iterator[tuple[list[str], int, str]]:
    """The same, each with the names of the directories that lead there from `top`."""
    for cursor, name in _walked(top, seconds):
        yield cursor.names, cursor.descriptor, name


def _walked(top: int, seconds: float) -> Iterator[tuple[Cursor, str]]:
    """The cursor at each directory, with each name in it."""
    deadline = time.monotonic() + seconds
    cursor = Cursor(top)
    try:
        for name in _walk(cursor, deadline):
            yield cursor, name
    except Moved as error:
        raise HutchError(
            f"{shown(cursor.names)} was moved while it was looked through", resolution="try again when nobody does that"
        ) from error
    finally:
        cursor.close()


def _walk(cursor: Cursor, deadline: float) -> Iterator[str]:
    """Yields each name while the cursor is in its directory."""
    levels, kept = [_Ahead()], 0  # the names in mind, over all depths
    while levels:
        ahead = levels[-1]
        if ahead.names:
            kept -= 1
            if _enter(cursor, ahead.names.pop()):
                levels.append(_Ahead())
        elif ahead.is_more:
            yield from ahead.scan(cursor, deadline, max(1, (BATCH - kept) // 2))
            kept += len(ahead.names)
        else:
            levels.pop()
            if levels:
                cursor.leave()


def _enter(cursor: Cursor, name: str) -> bool:
    """Enter a directory; False for an entry that is gone, is another thing than it was, or a mount."""
    try:
        cursor.enter(name)
    except OSError as error:
        if error.errno in SUPERFLUOUS:
            return False
        raise
    return True


def check_time(deadline: float, cursor: Cursor) -> None:
    if time.monotonic() > deadline:
        raise HutchError(f"there is no end to it: time was up in {shown(cursor.names)}")


def shown(names: Sequence[str]) -> str:
    """A way from the top for people; whoever chose the names may not be one of them."""
    text = "/".join(names[:LONGEST]) or "."
    return repr(text if len(text) <= LONGEST and len(names) <= LONGEST else f"{text[:LONGEST]}…")


def holds_something(path: str) -> bool:
    """Whether there is a directory by this path that is not empty."""
    try:
        with opened(path) as top, os.scandir(top) as entries:
            return any(True for _ in entries)
    except (FileNotFoundError, NotADirectoryError):
        return False
