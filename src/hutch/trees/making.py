"""Making directories where others may write."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from hutch.errors import HutchError
from hutch.trees.cursor import DIRECTORY


def make_owned(path: Path, uid: int, gid: int) -> None:
    """Make the directory, and root's own ones above it. A guest may write in one of those that are there, so each step
    goes by descriptor, and through no symbolic link."""
    *parents, name = path.parts[1:]
    current = os.open("/", DIRECTORY)
    try:
        for part in parents:
            try:
                following = os.open(part, DIRECTORY, dir_fd=current)
            except FileNotFoundError:
                following = _make_below(current, part, 0o755)
            os.close(current)
            current = following
        made = _make_below(current, name, 0o700)
        try:
            os.fchown(made, uid, gid)
        finally:
            os.close(made)
        os.fsync(current)
    except OSError as error:
        raise HutchError(f"{path} cannot be made: {error.strerror}") from error
    finally:
        os.close(current)


def make_inside(home: Path, parts: tuple[str, ...], uid: int, gid: int) -> None:
    """Make directories below the home, as far as they are absent. The guest may write there at this very moment, so
    each step goes by descriptor and through no symbolic link, and only what was made here changes hands."""
    current = os.open("/", DIRECTORY)
    try:
        for part in home.parts[1:]:
            following = os.open(part, DIRECTORY, dir_fd=current)
            os.close(current)
            current = following
        for part in parts:
            try:
                following = os.open(part, DIRECTORY, dir_fd=current)
            except FileNotFoundError:
                following = _make_below(current, part, 0o755)
                try:
                    os.fchown(following, uid, gid)
                except BaseException:
                    os.close(following)
                    raise
            os.close(current)
            current = following
    finally:
        os.close(current)


def _make_below(parent: int, name: str, mode: int) -> int:
    """Make a directory of root's; returns its descriptor. Whoever can write in `parent` may have put another there."""
    os.mkdir(name, mode, dir_fd=parent)
    descriptor = os.open(name, DIRECTORY, dir_fd=parent)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        os.fchmod(descriptor, mode)  # whatever the umask
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
