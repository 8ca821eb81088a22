"""Writing small files so that a crash leaves the old content or the new, never half of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LABEL = "security.selinux"
TEMPORARY = ".hutch-new"


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


def read_or_none(path: Path) -> bytes | None:
    """The content of `path`, None when there is no such file."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
