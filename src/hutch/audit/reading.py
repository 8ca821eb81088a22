"""The files of a record: NAME.jsonl, and NAME.jsonl.1 and so on for what is older. Root writes them; its owner may read
them too. Whoever reads follows no link, and reads no more than there is when it begins.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from hutch.audit.chain import LONGEST_LINE, Damage, Head, Line, Link, is_hash, read_line, verified
from hutch.errors import HutchError
from hutch.files import kept_open, read_or_none
from hutch.spec.names import Layout, is_name

CHUNK = 1 << 16


def files_of(layout: Layout, name: str) -> list[Path]:
    """The files of a record that are there, oldest first."""
    current = layout.audit(name)
    numbers = []
    with suppress(FileNotFoundError):
        found = (re.fullmatch(rf"{re.escape(current.name)}\.([1-9]\d*)", each) for each in os.listdir(current.parent))
        numbers = sorted((int(match[1]) for match in found if match), reverse=True)
    older = [current.with_name(f"{current.name}.{number}") for number in numbers]
    return [*older, *([current] if os.path.lexists(current) else [])]


def recorded_names(layout: Layout) -> list[str]:
    """The workspaces that have a record; also those that are gone, of which their homes are kept."""
    with suppress(FileNotFoundError):
        found = (re.fullmatch(r"(.*)\.jsonl(\.[1-9]\d*)?", each) for each in os.listdir(layout.audits))
        return sorted({match[1] for match in found if match and is_name(match[1])})
    return []


def raw_lines(paths: Iterable[Path]) -> Iterator[tuple[str, bytes]]:
    """The lines of files, each with the name of its file and with its break. What is too long to be a line comes in
    pieces. HutchError for a file that the caller may not read, or that is none of hutch's."""
    for path in paths:
        with ExitStack() as stack:
            if found := _open(path, stack):
                yield from _lines_in([found])


Opened = tuple[Path, int, os.stat_result]
"""A file that is open, by a descriptor."""


def _open(path: Path, stack: ExitStack) -> Opened | None:
    """Open a file until the stack is closed; None where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _foreign(path) from error
        if error.errno == errno.EACCES:
            raise HutchError(f"only root can read {path}", resolution="run it with sudo or doas") from error
        raise
    stack.enter_context(kept_open(descriptor))
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise _foreign(path)
    return path, descriptor, found


def _open_all(layout: Layout, name: str, stack: ExitStack) -> list[Opened]:
    """Open the files of a record, oldest first. Its writer may be at it: where a file became an older one meanwhile,
    they are opened anew."""
    while True:
        with ExitStack() as trying:
            opened = [found for path in files_of(layout, name) if (found := _open(path, trying))]
            if [path for path, _, _ in opened] == files_of(layout, name) and all(map(_is_in_place, opened)):
                stack.push(trying.pop_all())
                return opened


def _is_in_place(opened: Opened) -> bool:
    try:
        return os.path.samestat(os.stat(opened[0], follow_symlinks=False), opened[2])
    except FileNotFoundError:
        return False


def _lines_in(opened: Iterable[Opened]) -> Iterator[tuple[str, bytes]]:
    for path, descriptor, found in opened:
        yield from ((path.name, line) for line in _lines_of(descriptor, found.st_size))


def _lines_of(descriptor: int, left: int) -> Iterator[bytes]:
    half = b""
    while left > 0 and (data := os.read(descriptor, min(left, CHUNK))):
        left -= len(data)
        *lines, half = (half + data).split(b"\n")
        yield from (line + b"\n" for line in lines)
        if len(half) > LONGEST_LINE:
            yield half
            half = b""
    if half:
        yield half


def _may_tell(path: Path, since: float) -> bool:
    """Whether a file may tell of what happened at `since` or later: lines are written after that."""
    try:
        return os.stat(path, follow_symlinks=False).st_mtime >= since
    except FileNotFoundError:
        return False


def read_record(layout: Layout, name: str, since: float = 0.0) -> Iterator[Line]:
    """The lines of a record, oldest first, of what happened at `since` (Unix time) or later. What is none is passed
    over: `damages` tells of it."""
    for _, data in raw_lines(path for path in files_of(layout, name) if _may_tell(path, since)):
        line = read_line(data)
        if line is not None and line.entry.time >= since:
            yield line


def damages(layout: Layout, name: str, *, newest: int | None = None) -> list[Damage]:
    """What is wrong with a record; with `newest`, with that many of its files. Against what root's state knows of it
    where the caller is root. A writer may be at it: where it ends is read first, and where it begins once the files are
    open, so that lines that came or went meanwhile are no damage."""
    head = read_head(layout, name)
    with ExitStack() as stack:
        opened = _open_all(layout, name, stack)
        chosen = opened if newest is None else opened[-newest:]
        now = read_head(layout, name)
        if head is not None and now is not None:
            head = replace(head, first=now.first)
        found = list(verified(_lines_in(chosen), head, name, is_whole=len(chosen) == len(opened)))
    if now is None and os.geteuid() == 0 and any(each.st_size for _, _, each in opened):
        found.append(Damage(1, "hutch's own note of its end is lost"))
    return found


def read_head(layout: Layout, name: str) -> Head | None:
    """What root's state knows of a record; None where there is nothing, or the caller may not look."""
    try:
        data = read_or_none(layout.audit_head(name))
    except PermissionError:
        return None
    return parse_head(data) if data is not None else None


def parse_head(data: bytes) -> Head | None:
    """A head from its file; None where that is damaged."""
    try:
        found = json.loads(data)
        seq, hash, first = found["seq"], found["hash"], found["first"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    is_sound = type(seq) is int and type(first) is int and is_hash(hash)
    return Head(Link(seq, hash), first) if is_sound else None


def _foreign(path: Path) -> HutchError:
    return HutchError(f"{path} is not a file of hutch's", resolution="inspect it, and move it away")
