"""Deleting a tree that others can write."""

from __future__ import annotations

import errno
import os
import stat
import time
from contextlib import suppress

from hutch.errors import HutchError
from hutch.files import kept_open
from hutch.trees.cursor import BATCH, PATIENCE, Cursor, Moved, check_time, open_strictly, shown

TOLD = 5  # things that went wrong that are told of one by one
RESTARTS = 100  # when somebody moves directories under our feet


def remove_tree(path: str | os.PathLike[str], *, seconds: float = PATIENCE) -> None:
    """Delete a directory with all that is in it, or a file, from a directory of root's own. May be called again; what
    is not there is no error."""
    parent, name = os.path.split(path)
    try:
        directory = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    with kept_open(directory):
        remove_below(directory, name, str(path), seconds=seconds)


def remove_below(directory: int, name: str, shown_as: str = "", *, seconds: float = PATIENCE) -> None:
    """Delete a tree, or a file, in an open directory. HutchError says what cannot be deleted; all else is gone then."""
    what = shown_as or repr(name)
    try:
        if not stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=directory)
            return
        with suppress(FileNotFoundError, NotADirectoryError):
            with kept_open(open_strictly(name, below=directory)) as top:
                empty_directory(top, what, seconds=seconds)
            os.rmdir(name, dir_fd=directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise HutchError(f"{what} cannot be deleted: {_why(error)}") from error


def empty_directory(top: int, what: str, *, seconds: float = PATIENCE) -> None:
    """Delete all that is in an open directory. HutchError says what cannot be deleted; all else is gone then."""
    removal = _Removal(time.monotonic() + seconds)
    removal.empty(top)
    if removal.left:
        rest = removal.count - len(removal.left)
        told = [*removal.left, *([f"and {rest} more"] if rest else [])]
        raise HutchError(f"not all of {what} can be deleted", details="\n".join(told))


class _Directory:
    """The state of one directory on the way down: its directories that are still to be emptied, the entries that cannot
    go, and whether another look may find more."""

    def __init__(self) -> None:
        self.pending: list[str] = []
        self.stuck: set[str] = set()
        self.has_moved_on = True


class _Removal:
    """Empties a directory. `left` are sentences about entries that cannot be deleted."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.left: list[str] = []
        self.count = 0
        self._kept = 0  # names in mind

    def empty(self, top: int) -> None:
        for _ in range(RESTARTS):
            self.left, self.count, self._kept = [], 0, 0
            cursor = Cursor(top)
            try:
                self._empty(cursor)
                return
            except Moved:
                continue  # from the top again: deleted entries are progress
            finally:
                cursor.close()
        raise HutchError("its directories are being moved while it is deleted")

    def _empty(self, cursor: Cursor) -> None:
        levels = [_Directory()]
        while True:
            check_time(self.deadline, cursor)
            level = levels[-1]
            if level.pending:
                self._kept -= 1
                name = level.pending.pop()
                try:
                    cursor.enter(name)
                    levels.append(_Directory())
                except FileNotFoundError:
                    pass
                except OSError as error:
                    self._leave(cursor, level, name, error)
            elif level.has_moved_on:
                self._scan(cursor, level)
            elif len(levels) == 1:
                return
            else:
                levels.pop()
                name = cursor.leave()
                self._try(cursor, levels[-1], name, is_directory=True)

    def _scan(self, cursor: Cursor, level: _Directory) -> None:
        """Delete files and empty directories; note the other directories, as many as can be kept."""
        level.has_moved_on = False
        room = max(1, BATCH - self._kept)
        with os.scandir(cursor.descriptor) as entries:
            for number, entry in enumerate(entries):
                if number % 1000 == 0:
                    check_time(self.deadline, cursor)
                if entry.name in level.stuck:
                    continue
                if not entry.is_dir(follow_symlinks=False):
                    self._try(cursor, level, entry.name, is_directory=False)
                elif len(level.pending) < room:
                    level.pending.append(entry.name)
        self._kept += len(level.pending)

    def _try(self, cursor: Cursor, level: _Directory, name: str, *, is_directory: bool) -> None:
        try:
            (os.rmdir if is_directory else os.unlink)(name, dir_fd=cursor.descriptor)
            level.has_moved_on = True
        except FileNotFoundError:
            level.has_moved_on = True
        except OSError as error:
            self._leave(cursor, level, name, error)

    def _leave(self, cursor: Cursor, level: _Directory, name: str, error: OSError) -> None:
        level.stuck.add(name)
        if error.errno == errno.ENOTEMPTY and self.count:
            return  # its content has been told of
        self.count += 1
        if len(self.left) < TOLD:
            self.left.append(f"{shown([*cursor.names, name])}: {_why(error)}")


def _why(error: OSError) -> str:
    if error.errno in (errno.EXDEV, errno.EBUSY):
        return "something is mounted there"
    if error.errno == errno.EPERM:
        return "it is marked immutable (`lsattr` shows it, `chattr -i` takes it away)"
    return error.strerror or str(error)
