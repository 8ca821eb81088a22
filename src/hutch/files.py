"""Writing small files so that a crash leaves the old content or the new, never half of it."""

from __future__ import annotations

import os
from pathlib import Path

LABEL = "security.selinux"


def write_atomic(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` with `content`: temporary file beside it, fsync, rename, fsync of the directory.

    Owner, mode and SELinux label of an existing file are kept; a new one is root's with `mode`.
    """
    temporary = path.with_name(f".{path.name}.hutch-new")
    temporary.unlink(missing_ok=True)  # a killed run's; writers of one file hold a lock
    try:
        before = path.stat()
    except FileNotFoundError:
        before = None
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            if before is not None:
                os.fchown(file.fileno(), before.st_uid, before.st_gid)
                keep_label(path, file.fileno())
            os.fchmod(file.fileno(), before.st_mode & 0o7777 if before is not None else mode)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def keep_label(path: Path, descriptor: int) -> None:
    """Give a new file the label of the one it replaces: /etc/hosts with another one is no use to confined services."""
    try:
        os.setxattr(descriptor, LABEL, os.getxattr(path, LABEL))
    except OSError:
        pass  # no SELinux here, or none for this file system


def sync_directory(path: Path) -> None:
    """Make renames in `path` survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_or_none(path: Path) -> bytes | None:
    """The content of `path`, None when there is no such file."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
