"""Writing small files so that a crash leaves the old content or the new, never half of it; and opening files that
others may have put there."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LABEL = "security.selinux"
TEMPORARY = ".hutch-new"
MOST_LINKS = 40  # as many as the kernel follows
TURN = 5.0  # seconds that a process of root's waits for another one's lock
READABLE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def write_atomic(path: Path, content: bytes, *, mode: int = 0o644, is_lasting: bool = True) -> None:
    """Replace `path` with `content`: temporary file beside it, fsync, rename, fsync of the directory.

    Owner, mode and SELinux label of an existing file are kept; a new one is root's with `mode`. Content that is not
    `is_lasting` need not survive a power cut, and is not waited for. An OSError says which file it is about.
    """
    try:
        _write_atomic(path, content, mode, is_lasting)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def temporary_of(path: Path) -> Path:
    """The path where the next content of a file is written."""
    return path.with_name(f".{path.name}{TEMPORARY}")


def _write_atomic(path: Path, content: bytes, mode: int, is_lasting: bool) -> None:
    temporary = temporary_of(path)
    temporary.unlink(missing_ok=True)  # a killed run's; writers of one file hold a lock
    try:
        before = path.stat()
    except FileNotFoundError:
        before = None
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with kept_open(os.open(temporary, flags, 0o600)) as descriptor:
            write_all(descriptor, content)
            if before is not None:
                os.fchown(descriptor, before.st_uid, before.st_gid)
                with suppress(OSError):  # no SELinux here, or none for this file system
                    # /etc/hosts with another label is no use to confined services.
                    os.setxattr(descriptor, LABEL, os.getxattr(path, LABEL))
            os.fchmod(descriptor, before.st_mode & 0o7777 if before is not None else mode)
            if is_lasting:
                os.fsync(descriptor)
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if is_lasting:
        sync_directory(path.parent)


@contextmanager
def kept_open(descriptor: int) -> Iterator[int]:
    """A descriptor that is closed in the end."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def held(lock: Path, seconds: float | None = None) -> Iterator[None]:
    """Hold a lock of root's, a file of its own. Children do not inherit it. Raises OSError after so many seconds,
    TURN without a number."""
    with kept_open(os.open(lock, os.O_RDONLY | os.O_CREAT | READABLE, 0o600)) as descriptor:
        lock_within(descriptor, TURN if seconds is None else seconds)
        yield


def lock_within(descriptor: int, seconds: float) -> None:
    """Lock an open file for oneself. Raises OSError after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise OSError(errno.ETIMEDOUT, f"somebody else has held its lock for {seconds:g} s") from None
            time.sleep(0.005)


def open_regular(path: str | os.PathLike[str], *, follow: bool, dir_fd: int | None = None) -> int:
    """A descriptor of a regular file, to be read. OSError for anything else, which is looked at and not opened: an open
    has effects where it is a device, and a fifo has who waits for it. Nor is a lease on the file waited for (fcntl(2)):
    that is a BlockingIOError."""
    flags = os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    with kept_open(os.open(path, flags, dir_fd=dir_fd)) as pin:
        try:
            return reopen_regular(pin)
        except OSError as error:
            error.filename = os.fspath(path)
            raise


def reopen_regular(pin: int) -> int:
    """The same for what a descriptor pins (O_PATH)."""
    mode = os.fstat(pin).st_mode
    if stat.S_ISLNK(mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    return os.open(f"/proc/self/fd/{pin}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of `content`: a disk that fills up takes a part of it, before it takes nothing."""
    while content:
        content = content[os.write(descriptor, content) :]


def sync_directory(path: Path) -> None:
    """Make renames in `path` survive a power cut."""
    with kept_open(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as descriptor:
        os.fsync(descriptor)


def entries(directory: Path) -> list[Path]:
    """The paths in a directory, in order; none where there is no directory."""
    try:
        return sorted(directory.iterdir())
    except FileNotFoundError:
        return []


def remove_flat(directory: Path) -> None:
    """Remove a directory of files, as far as it holds nothing else."""
    for path in entries(directory):
        with suppress(OSError):
            path.unlink()
    with suppress(OSError):
        directory.rmdir()


def real_path(path: str) -> str:
    """A path with its symbolic links resolved, as far as the caller may: /proc has some that only root can read."""
    try:
        return os.path.realpath(path)
    except OSError:
        return os.path.abspath(path)


def looked_up(path: Path) -> Iterator[tuple[Path, os.stat_result | None, bool]]:
    """The places at which the kernel looks on the way to an absolute path, itself and what links lead to included, each
    with its lstat and whether it is the last one. A place that is not there has None, and ends it. Raises OSError
    (ELOOP, with the place) after as many links as the kernel follows."""
    above, rest, links = path, list(path.parts), 0
    while rest:
        part = rest.pop(0)
        at = above.parent if part == ".." else above / part
        try:
            found = os.lstat(at)
        except (FileNotFoundError, NotADirectoryError):
            yield at, None, True
            return
        if links > MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(at))
        yield at, found, not rest
        if stat.S_ISLNK(found.st_mode):
            rest, links = [*(Path(os.readlink(at)).parts or "."), *rest], links + 1
        else:
            above = at


def open_to_others(path: Path) -> Path | None:
    """The first of the directories and links on the way to a path, the path itself included, that others than root and
    the caller can change, or make where it is not there yet; None where nobody else can. In a directory like /tmp they
    can change nothing that is there, and root's own group is nobody else. The path is absolute."""
    own, is_above_open = {0, os.getuid()}, False
    try:
        for at, found, is_last in looked_up(path):
            if found is None:
                return at.parent if is_above_open else None
            if found.st_uid not in own:
                return at
            if stat.S_ISLNK(found.st_mode):
                continue
            is_open = bool(found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and found.st_gid != 0))
            if is_open and (is_last or not found.st_mode & stat.S_ISVTX):
                return at
            is_above_open = is_open
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return Path(error.filename)
    return None


def read_or_none(path: Path) -> bytes | None:
    """The content of `path`, None when there is no such file."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
