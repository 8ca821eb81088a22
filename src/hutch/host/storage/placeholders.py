"""Placeholders: empty directories and files that hold a name in a shared directory while a workspace runs, since a
mount needs something to lie on. A program of its own takes those of a workspace away:

    main(NOTE, WORKSPACE)

They lie in a person's checkout, so each is noted before it is made, with the workspaces that it is held for, and goes
with the last of them, if it is still empty. git sees no empty directories.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

from hutch.files import held, kept_open, read_or_none, reopen_regular, write_atomic
from hutch.trees.changing import make_file_inside, make_inside
from hutch.trees.cursor import SUPERFLUOUS, opened, pinned

TYPE_CHECKING = False  # programs that start with a workspace use it
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CONTENTS = {"file": b"", "itself": b".\n"}  # of files, by their kinds
LONGEST = 2  # bytes of these
PATIENCE = 30.0  # seconds; whoever holds the lock writes to a disk, and may be one of many workspaces that start
Note = dict[str, list[str]]
"""Path -> the workspaces that it is held for."""


def ensure_placeholders(file: Path, workspace: str, wanted: Mapping[str, str], uid: int, gid: int) -> bool:
    """Hold the paths for a workspace, each by a "directory" (a "way" to others is one) or a file of CONTENTS, the
    owner's, or by "" where something was there: what is held for others, or leads here and is, is held for this one
    too, and all else left alone. Returns whether nothing there has changed since the look. OSError where one cannot be
    made for another reason."""
    held = held_by(file)
    around = {str(parent) for path in wanted for parent in Path(path).parents}
    is_held = all(workspace in held[path] for path in (wanted.keys() | around) & held.keys())
    if is_held and not any(wanted.values()) and all(map(os.path.lexists, wanted)):
        return True  # most looks are such, and wait for nobody
    with _noted(file) as note:
        concerned = wanted.keys() | (around & note.keys())
        there = {path for path in concerned if os.path.lexists(path)}
        before = {path: list(names) for path, names in note.items()}
        for path in sorted(concerned):
            if path in note if path in there else wanted.get(path):
                note[path] = sorted({*note.get(path, ()), workspace})
        if note != before:
            _write(file, note)
        made = {path: path in there if not kind else _make(path, kind, uid, gid) for path, kind in wanted.items()}
        failed = [path for path in note.keys() - before.keys() if not made[path]]
        for path in failed:
            del note[path]  # what comes there later is not ours
        if failed:
            _write(file, note)
    return all(made.values())


def _make(path: str, kind: str, uid: int, gid: int) -> bool:
    """Make a placeholder; returns whether nobody was in the way: a guest can be, and must not be for all others."""
    directory, name = os.path.split(path)
    try:
        if kind in CONTENTS:
            return make_file_inside(Path(directory), (name,), uid, gid, CONTENTS[kind])
        return make_inside(Path(directory), (name,), uid, gid)
    except OSError as error:
        if error.errno not in (*SUPERFLUOUS, errno.EEXIST):
            raise
        return False


def held_by(file: Path) -> Note:
    """The note, as far as it can be read."""
    try:
        found = json.loads(read_or_none(file) or b"{}")
        return {str(path): [str(name) for name in names] for path, names in found.items()}
    except (ValueError, AttributeError, TypeError, OSError):
        return {}


def remove_placeholders(file: Path, workspace: str) -> None:
    """Take away what is held for no other workspace, and is still empty. May be called again."""
    if not file.exists():
        return
    with _noted(file) as note:
        for path, names in sorted(note.items(), reverse=True):  # what is in a directory goes before that
            others = [name for name in names if name != workspace]
            if others != names and not others:
                with suppress(OSError):
                    _remove(path)
            if others:
                note[path] = others
            else:
                del note[path]
        _write(file, note)


def _remove(path: str) -> None:
    directory, name = os.path.split(path)
    with opened(directory) as parent:
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            os.rmdir(name, dir_fd=parent)
        elif stat.S_ISREG(found.st_mode) and found.st_size <= LONGEST and _content(parent, name) in CONTENTS.values():
            os.unlink(name, dir_fd=parent)


def _content(parent: int, name: str) -> bytes:
    with pinned(parent, name) as pin, kept_open(reopen_regular(pin)) as file:
        return os.read(file, LONGEST + 1)


def _write(file: Path, note: Note) -> None:
    if note:
        write_atomic(file, json.dumps(note, indent=1).encode(), mode=0o600)
    else:
        file.unlink(missing_ok=True)


@contextmanager
def _noted(file: Path) -> Iterator[Note]:
    """The note, which nobody else reads or writes meanwhile. Its lock is a file that root alone opens: what others may
    open, they may lock for ever. OSError where somebody holds it for too long."""
    with held(file.with_suffix(".lock"), PATIENCE):
        yield held_by(file)


def main(file: str, workspace: str) -> None:
    try:
        remove_placeholders(Path(file), workspace)
    except OSError as error:
        sys.exit(f"placeholders cannot be removed: {error}")
