"""Changes where others may write: makes directories there, and changes files of a guest's, each by its inode."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path

from hutch.failure import HutchError, explained
from hutch.files import kept_open, write_all
from hutch.libc import call
from hutch.trees.cursor import DIRECTORY, PATIENCE, SUPERFLUOUS, opened, pinned, walk, way_to

AT_EMPTY_PATH = 0x1000


def give(top: int, makers: Collection[int], uid: int, gid: int, *, seconds: float = PATIENCE) -> int:
    """Give all files that belong to any of `makers`, user or group, to `uid` and `gid`: `top` and everything below. An
    inode of a guest's own uids is that guest's, whatever name led there. Returns how many changed hands."""
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
    set_owner(descriptor, new_uid, new_gid)
    return True


def set_owner(descriptor: int, uid: int, gid: int) -> None:
    """Give what a descriptor pins, a link itself too, to somebody."""
    call("fchownat", descriptor, b"", uid, gid, AT_EMPTY_PATH)


def take_setuid(top: int, makers: Collection[int], *, seconds: float = PATIENCE) -> int:
    """Take setuid and setgid from the files of `makers`. Returns how many there were."""
    changed = 0
    for directory, name in walk(top, seconds=seconds):
        changed += take_setuid_of(directory, name, makers)
    return changed


def take_setuid_of(directory: int, name: str, makers: Collection[int]) -> bool:
    """Take setuid and setgid from one file, if it is the makers'. Returns whether it had them."""
    with present(), pinned(directory, name) as descriptor:
        status = os.fstat(descriptor)
        is_armed = stat.S_ISREG(status.st_mode) and status.st_mode & (stat.S_ISUID | stat.S_ISGID)
        if is_armed and status.st_uid in makers:
            os.chmod(way_to(descriptor), stat.S_IMODE(status.st_mode) & 0o1777)
            return True
    return False


def set_back(top: int, since: float, to: int, *, seconds: float = PATIENCE) -> None:
    """Set the times of all files that changed after `since` to `to`, both in seconds since 1970, in a tree in which
    nobody else changes anything."""
    for directory, name in chain(walk(top, seconds=seconds), ((top, "."),)):
        if os.stat(name, dir_fd=directory, follow_symlinks=False).st_mtime >= since:
            os.utime(name, (to, to), dir_fd=directory, follow_symlinks=False)


def main(path: str, owner: str, first: str, count: str) -> None:
    """Take setuid and setgid from a guest's files in a directory: those of its owner, and of its own uids."""
    try:
        with opened(path) as top:
            take_setuid(top, {int(owner), *range(int(first), int(first) + int(count))})
    except (OSError, HutchError) as error:
        sys.exit(f"{path} cannot be looked through for setuid files: {error}")


@contextmanager
def present() -> Iterator[None]:
    """Ignore a file that has gone meanwhile, or is a mount."""
    try:
        yield
    except OSError as error:
        if error.errno not in SUPERFLUOUS:
            raise


def make_owned(path: Path, uid: int, gid: int) -> None:
    """Make the directory and absent ones above it. Those are root's own, or the same owner's below a directory of
    the owner's. A guest may write in one of those that are there."""
    *parents, name = path.parts[1:]
    with explained(f"{path} cannot be made"), _descended("/", parents, uid, gid, is_heir=True) as current:
        os.close(_make_below(current, name, 0o700, uid, gid))
        os.fsync(current)


def make_inside(home: Path, parts: tuple[str, ...], uid: int, gid: int) -> bool:
    """Make directories below the home, as far as they are absent; returns whether the last one was. The guest may write
    there at this very moment, so only the directories made here change hands."""
    *parents, name = parts
    with _descended(home, parents, uid, gid) as parent:
        try:
            os.close(os.open(name, DIRECTORY, dir_fd=parent))
        except FileNotFoundError:
            os.close(_make_below(parent, name, 0o755, uid, gid))
            return True
        return False


def make_file_inside(
    home: Path, parts: tuple[str, ...], uid: int, gid: int, content: bytes = b"", mode: int = 0o644
) -> bool:
    """Make a file below the home, and directories on the way, as `make_inside` does. False where something is there
    already, whatever that is."""
    *parents, name = parts
    with _descended(home, parents, uid, gid) as parent:
        if _is_there(parent, name):
            return False
        with _unnamed(parent, uid, gid, content, mode) as file:
            try:
                os.link(way_to(file), name, dst_dir_fd=parent, follow_symlinks=True)
            except FileExistsError:  # it has come meanwhile
                return False
        return True


def put_file(parent: int, name: str, uid: int, gid: int, content: bytes, mode: int) -> None:
    """Put a new file in a directory, all of it at once, in the place of what has that name."""
    aside = f".{name[:200]}.{os.urandom(6).hex()}"
    with _unnamed(parent, uid, gid, content, mode) as file:
        os.link(way_to(file), aside, dst_dir_fd=parent, follow_symlinks=True)
    try:
        os.rename(aside, name, src_dir_fd=parent, dst_dir_fd=parent)
    except OSError:
        os.unlink(aside, dir_fd=parent)
        raise


@contextmanager
def _unnamed(parent: int, uid: int, gid: int, content: bytes, mode: int) -> Iterator[int]:
    """A new file that has nobody else's links: it has no name until all is in it."""
    with kept_open(os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=parent)) as descriptor:
        write_all(descriptor, content)
        os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, mode)
        yield descriptor


def _is_there(parent: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def _descended(
    top: str | Path, parts: Iterable[str], uid: int = -1, gid: int = -1, *, is_heir: bool = False
) -> Iterator[int]:
    """The directory to which `parts` lead from `top`; absent ones on the way are made, root's own unless given to
    somebody: to an heir only those below what is the heir's already. Each step goes by descriptor, and through no
    symbolic link."""
    with ExitStack() as stack:
        current = stack.enter_context(opened(top))
        for part in parts:
            try:
                following = os.open(part, DIRECTORY, dir_fd=current)
            except FileNotFoundError:
                given = not is_heir or os.fstat(current).st_uid == uid
                following = _make_below(current, part, 0o755, *((uid, gid) if given else (-1, -1)))
            current = stack.enter_context(kept_open(following))
        yield current


def _make_below(parent: int, name: str, mode: int, uid: int, gid: int) -> int:
    """Make a directory and give it away, with -1 to nobody; returns its descriptor. Whoever can write in `parent` may
    have put another there."""
    os.mkdir(name, mode, dir_fd=parent)
    descriptor = os.open(name, DIRECTORY, dir_fd=parent)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        os.fchmod(descriptor, mode)  # whatever the umask
        os.fchown(descriptor, uid, gid)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
