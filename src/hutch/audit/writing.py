"""The one way to add to a record, for root: under the record's own lock, in an order that a kill at any point leaves
whole.

Lines go first, then the head that knows them. So after a kill, lines may be there that no head knows, and half of one
at the end: the next writer takes that half away, and goes on from the last whole one. What else does not fit the head
is damage. It stays to be seen: the next line follows what the head knows, and says so.

Nothing fails because its record could not be written. What is missing is counted in the runtime directory, and told by
the next line that can be written.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hutch.audit.budget import Budgets
from hutch.audit.chain import GENESIS, LONGEST_LINE, Head, Line, Link, chained, follows, read_line
from hutch.audit.events import Entry, shown, why_wrong
from hutch.audit.reading import files_of, parse_head, raw_lines
from hutch.errors import HutchError
from hutch.files import held, kept_open, read_or_none, write_all
from hutch.frozen import dataclass
from hutch.host.identity.user_view import READ, Access, viewers_of
from hutch.spec.names import Layout
from hutch.spec.sharing import Viewers
from hutch.state import make_directory, read_record

LARGEST = 8 << 20
"""Bytes of one file of a record."""
MOST_FILES = 9
"""Files of a record: with the newest one empty, the others hold 64 MiB."""
HEAD_SIZE = 1024
"""Bytes of the note on where a record ends, blanks at its end included."""

Warn = Callable[[str, str], None]
"""A callback, called with (workspace, text)."""


def nobody(name: str, text: str) -> None:
    """A listener that does not care."""


def ensure_readers(layout: Layout, name: str, readers: Viewers) -> None:
    """Let these read a record, beside root, and nobody else."""
    for path in files_of(layout, name):
        with suppress(OSError, HutchError), _opened(path, os.O_RDONLY) as descriptor:
            Access(readers, READ).ensure(descriptor)


def lock_of(layout: Layout, name: str) -> Path:
    return layout.audit_head(name).with_suffix(".lock")


def missed_in(layout: Layout, name: str) -> Path:
    """The note on what could not be written: there may be room here where there is none for the record."""
    return layout.run / "recording" / f"{name}.missed"


def record(
    layout: Layout, name: str, entries: Collection[Entry], warn: Warn = nobody, *, is_counted: bool = True
) -> bool:
    """Add entries to a workspace's record, for root. Never fails for want of a disk: `warn` is told instead, and the
    next line says how many are missing, if they are to be counted. Returns whether all were written, or left out for
    their budget."""
    if not entries:
        return True
    try:
        with held(lock_of(layout, name)):
            Writer(layout, name).add(entries)
        return True
    except (OSError, HutchError) as error:
        why = error.brief if isinstance(error, HutchError) else error.strerror or str(error)
        if is_counted:
            _count_missed(layout, name, entries)
        warn(name, f"its record could not be written: {why}; it will tell how much is missing")
        return False


def forget_missed(layout: Layout, name: str) -> None:
    missed_in(layout, name).unlink(missing_ok=True)
    with suppress(OSError):  # others have theirs there
        missed_in(layout, name).parent.rmdir()


def _count_missed(layout: Layout, name: str, entries: Collection[Entry]) -> None:
    """Count what could not be written. Where not even that can be, the command's warning is all there is."""
    with suppress(OSError):
        make_directory(missed_in(layout, name).parent, 0o700)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with kept_open(os.open(missed_in(layout, name), flags, 0o600)) as descriptor:
            write_all(descriptor, "".join(f"{entry.event}\n" for entry in entries).encode())


@dataclass(frozen=True)
class _End:
    """Where a record ends: the link that the next line follows, what is to be said of the way there, and whether that
    line opens anew, with the hash that it follows."""

    link: Link
    said: tuple[Entry, ...] = ()
    is_opening: bool = False


class Writer:
    """Who has the turn of a record. What is added is on the disk when `add` returns."""

    def __init__(self, layout: Layout, name: str) -> None:
        self._layout, self._name = layout, name
        self._path = layout.audit(name)
        content = read_or_none(layout.audit_head(name))
        self._had_head = content is not None
        self._head = parse_head(content) if content is not None else None
        self._budgets = Budgets.parse(content or b"")

    def add(self, entries: Iterable[Entry]) -> None:
        """Write entries. Raises OSError or HutchError, and then none of them is there."""
        make_directory(self._path.parent)
        self._cut_torn_line()
        end = self._find_end()
        missed = read_or_none(missed_in(self._layout, self._name))
        now = time.time()
        wanted = [*end.said, *([_missed(missed, now)] if missed else []), *self._checked(entries)]
        data, link = bytearray(), end.link
        for entry in self._budgets.admitted(wanted, now):
            is_opening = end.is_opening and not data
            line, link = chained(link, entry, workspace=self._name if is_opening else None)
            data += line
        self._write(bytes(data))
        self._note_head(Head(link, self._head.first if self._head else 1))
        if missed:
            forget_missed(self._layout, self._name)
        if data and os.stat(self._path).st_size > LARGEST:
            with suppress(OSError):  # the lines are there; the next writer tries again
                self._rotate(link)

    @staticmethod
    def _checked(entries: Iterable[Entry]) -> Iterator[Entry]:
        for entry in entries:
            if why := why_wrong(entry.event, entry.values):
                raise HutchError(f"{entry.event} is no event for a record: {why}")
            yield entry

    # Where it ends.

    def _find_end(self) -> _End:
        found = self._last_line()
        is_new = not _has_content(self._path)
        head, now = self._head, time.time()
        if head is None:
            lost = (_cut("the state's note of its end was lost", 0, now),) if found or self._had_head else ()
            return _End(found.link if found else GENESIS, lost, is_opening=is_new)
        if found is not None and found.link == head.last:
            return _End(head.last, is_opening=is_new)
        if found is None or found.seq < head.seq:
            count = head.seq - (found.seq if found else head.first - 1)
            return _End(head.last, (_cut("lines at its end were taken away", count, now),), is_opening=True)
        if (ahead := self._ahead(head.last)) is not None:
            return _End(ahead, is_opening=is_new)
        at = Link(found.seq, head.last.hash)
        return _End(at, (_cut("its last lines are not those that were written", 0, now),), is_opening=True)

    def _last_line(self) -> Line | None:
        """The last line of a record; what is none does not count."""
        for path in reversed(files_of(self._layout, self._name)):
            for data in reversed(_tail(path).split(b"\n")):
                if data and (line := read_line(data + b"\n")):
                    return line
        return None

    def _ahead(self, at: Link) -> Link | None:
        """The last of the lines that follow `at`, which a killed writer has left; None where not all lines do."""
        is_behind = False
        for _, data in raw_lines(files_of(self._layout, self._name)[-2:]):
            line = read_line(data)
            if is_behind:
                if line is None or not follows(at, line):
                    return None
                at = line.link
            elif line is not None and line.seq == at.seq:
                if line.link != at:
                    return None
                is_behind = True
        return at if is_behind else None

    def _cut_torn_line(self) -> None:
        """Take away half a line at the end, which a killed writer has left: nobody was told that it is there."""
        with suppress(FileNotFoundError), _opened(self._path, os.O_RDWR) as descriptor:
            size = os.fstat(descriptor).st_size
            tail = os.pread(descriptor, LONGEST_LINE, max(size - LONGEST_LINE, 0))
            if tail and not tail.endswith(b"\n"):
                os.ftruncate(descriptor, size - (len(tail) - (tail.rfind(b"\n") + 1)))

    # What is written.

    def _write(self, data: bytes) -> None:
        """Write at the end, all of it or nothing, and have it reach the disk."""
        if not data:
            return
        is_new = not os.path.lexists(self._path)
        with _opened(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT) as descriptor:
            if is_new:
                self._access().give(descriptor)
            size = os.fstat(descriptor).st_size
            try:
                write_all(descriptor, data)
                os.fdatasync(descriptor)
            except OSError:
                os.ftruncate(descriptor, size)
                raise

    def _access(self) -> Access:
        """Who reads it beside root: its owner, and with whom it is shared."""
        found = None
        with suppress(HutchError):
            found = read_record(self._layout, self._name)
        return Access(viewers_of(found) if found else Viewers(), READ)

    def _note_head(self, head: Head) -> None:
        """Note where it ends, in place: one write within a page is whole or not there, whoever is killed, and needs no
        room on a full disk. Where it is not written, the next writer finds the lines."""
        self._head = head
        body = {"seq": head.seq, "hash": head.last.hash, "first": head.first, **self._budgets.body}
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with suppress(OSError), kept_open(os.open(self._layout.audit_head(self._name), flags, 0o600)) as descriptor:
            os.pwrite(descriptor, json.dumps(body).encode().ljust(HEAD_SIZE), 0)

    def _rotate(self, link: Link) -> None:
        """Begin a new file. The oldest goes where there are too many, and the head says first where it begins then."""
        files = files_of(self._layout, self._name)
        if gone := files[: max(len(files) - MOST_FILES + 1, 0)]:
            self._note_head(Head(link, _first_of(files[len(gone)])))
            for path in gone:
                path.unlink(missing_ok=True)
        path = self._path
        moves: list[tuple[Path, Path]] = []
        while os.path.lexists(path):
            older = self._path.with_name(f"{self._path.name}.{len(moves) + 1}")
            moves.append((path, older))
            path = older
        for path, older in reversed(moves):
            path.rename(older)


def _first_of(path: Path) -> int:
    """The number of a file's first line; 1 where that is none."""
    for _, data in raw_lines([path]):
        line = read_line(data)
        return line.seq if line else 1
    return 1


def _tail(path: Path) -> bytes:
    with _opened(path, os.O_RDONLY) as descriptor:
        size = os.fstat(descriptor).st_size
        return os.pread(descriptor, 2 * LONGEST_LINE, max(size - 2 * LONGEST_LINE, 0))


def _has_content(path: Path) -> bool:
    try:
        return os.stat(path, follow_symlinks=False).st_size > 0
    except FileNotFoundError:
        return False


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    """A file of a record, if it is root's own."""
    with kept_open(os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)) as descriptor:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or (found.st_uid, found.st_nlink) != (os.geteuid(), 1):
            raise HutchError(f"{path} is not a file of hutch's", resolution="inspect it, and move it away")
        yield descriptor


def _cut(why: str, count: int, now: float, kinds: Iterable[str] = ()) -> Entry:
    return Entry(now, "cut", None, {"why": shown(why), "count": count, "kinds": list(kinds)})


def _missed(content: bytes, now: float) -> Entry:
    """The entry that tells what could not be written."""
    events = content.decode("ascii", "replace").split()
    return _cut("they could not be written", len(events), now, sorted(set(events))[:32])
