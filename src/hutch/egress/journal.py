"""The files with the records of workspaces: DIRECTORY/NAME/records.jsonl, and records.jsonl.1 for what is older.

One process writes them (the keeper, as the proxy asks it), one line for each record, at the end; any number read them.
What the lines say comes of what guests send, so those who read believe nothing of it, follow no link, and read no more
than may be written. Both files of a workspace stay within LARGEST, whatever it does: equal records within a second are
one, of different ones no more than MOST_AT_ONCE a second are kept, and records that are left out are counted. No
workspace can take another one's place.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from hutch.egress.record import LONGEST_LINE, EgressEvent, in_batches, lost, parse_line
from hutch.errors import HutchError
from hutch.files import kept_open

LARGEST = 1 << 20
WINDOW = 1.0
"""Seconds within which equal records become one, written at their end; the first of them is written at once."""
PAUSE = 0.05
"""Seconds between two writes."""
MOST_AT_ONCE = 256
INTERVAL = 0.2
"""Seconds between two looks of a waiting reader."""
CHUNK = 1 << 16

TOO_MANY = f"more than {MOST_AT_ONCE} different ones in a second"
UNWRITTEN = "could not be written"

Write = Callable[[str, str], None]
"""Adds lines to the file of a workspace. OSError where they are not there."""
Batches = Generator[list[EgressEvent], None, None]


def ignore(workspace: str, records: list[EgressEvent]) -> None:
    """Do nothing."""


class Journal:
    """The records that are to be written. Its owner calls `flush` at once, then every PAUSE while it `is_waiting`, and
    once in the end. `told` hears what is written of a workspace."""

    def __init__(self, write: Write, told: Callable[[str, list[EgressEvent]], None] = ignore) -> None:
        self._write, self._told = write, told
        # By workspace and subject: when it is due, and how often it has happened since it was written last.
        self._pending: dict[str, dict[tuple[object, ...], tuple[float, EgressEvent]]] = {}

    def note(self, workspace: str, record: EgressEvent) -> None:
        pending = self._pending.setdefault(workspace, {})
        if heard := pending.get(record.subject):
            due, before = heard
            pending[record.subject] = due, replace(record, count=before.count + record.count)
        elif len(pending) < MOST_AT_ONCE or record.verdict == "lost":
            pending[record.subject] = record.time, record
        else:
            self.note(workspace, lost(record.time, record.count, TOO_MANY))

    def is_waiting(self) -> bool:
        """Whether there is anything to write, or to forget."""
        return bool(self._pending)

    def flush(self, now: float | None = None) -> None:
        """Write the records that are due by now; without a time, all.

        A disk that is full, or gone, keeps nobody from working: what could not be written is counted, and told when
        it can be.
        """
        for workspace, pending in list(self._pending.items()):
            # A clock that was set back is no reason to wait.
            due = [subject for subject, (then, _) in pending.items() if now is None or not now < then <= now + WINDOW]
            records = [record for subject in due if (record := pending.pop(subject)[1]).count]
            if now is not None:
                pending.update({r.subject: (now + WINDOW, replace(r, count=0)) for r in records})
            if not pending:
                del self._pending[workspace]
            self._told(workspace, records)
            for batch in in_batches(records):
                try:
                    self._write(workspace, "".join(r.line for r in batch))
                except OSError:
                    latest, count = max(r.time for r in batch), sum(r.count for r in batch)
                    self.note(workspace, lost(latest, count, UNWRITTEN))

    def forget(self, workspace: str) -> None:
        """Write nothing more of a workspace that is gone."""
        self._pending.pop(workspace, None)


def current_file(directory: Path, workspace: str) -> Path:
    return directory / workspace / "records.jsonl"


def older_file(directory: Path, workspace: str) -> Path:
    return directory / workspace / "records.jsonl.1"


def record_files(directory: Path, workspace: str) -> tuple[Path, Path]:
    return current_file(directory, workspace), older_file(directory, workspace)


def append(directory: Path, workspace: str, data: bytes) -> None:
    """Write at the end, all of it or nothing; a file that would become too large becomes the older one."""
    path = current_file(directory, workspace)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with kept_open(os.open(path, flags, 0o640)) as descriptor:
        size = os.fstat(descriptor).st_size
        is_full = size > 0 and size + len(data) > LARGEST
        if not is_full:
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                data = b"\n" + data  # a crash has left half a line, which is not to take this one with it
            if os.write(descriptor, data) < len(data):
                os.ftruncate(descriptor, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    if is_full:
        path.rename(older_file(directory, workspace))
        append(directory, workspace, data)


def read(directory: Path, workspace: str) -> list[EgressEvent]:
    """All records of a workspace, oldest first. Lines that are no records are passed over."""
    with closing(follow(directory, workspace)) as batches:
        return next(batches)


def follow(directory: Path, workspace: str, wait: Callable[[], None] = lambda: time.sleep(INTERVAL)) -> Batches:
    """All records so far, in one batch; then new ones, as they come. Ends with the reader.

    It looks at the file's size now and then rather than being told: the file, or its directory, may be there only
    later, or anew.
    """
    tail, older = _Tail(current_file(directory, workspace)), _Tail(older_file(directory, workspace))
    try:
        tail.open()
        older.open()
        # Between the two, the newer may have become the older one.
        before = older.rest() if older.identity != tail.identity else []
        yield [*before, *tail.read()]
        while True:
            wait()
            if found := tail.read():
                yield found
    finally:
        tail.close()
        older.close()


class _Tail:
    """The end of a file that grows, and that another one takes the place of."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self._half_line = b""

    @property
    def identity(self) -> tuple[int, int] | None:
        return None if self._descriptor is None else _identity(os.fstat(self._descriptor))

    def open(self) -> None:
        """Open the file, if there is one; of one that is larger than it can be, only its end."""
        self.close()
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno == errno.ELOOP:  # a symbolic link
                raise _foreign(self._path) from error
            if error.errno == errno.EACCES:  # on a file system without lists, or written before there were any
                raise HutchError(f"only root can read {self._path}", resolution="run it with sudo or doas") from error
            raise
        found = os.fstat(self._descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise _foreign(self._path)
        os.lseek(self._descriptor, max(found.st_size - LARGEST, 0), os.SEEK_SET)

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor, self._half_line = None, b""

    def read(self) -> list[EgressEvent]:
        """The records added since the last time, and then those in the file that took this one's place."""
        found = self.rest()
        if self._is_replaced():
            found += self.rest()  # its writer was done with it before it was replaced
            self.open()
            found += self.rest()
        return found

    def _is_replaced(self) -> bool:
        try:
            return _identity(os.stat(self._path, follow_symlinks=False)) != self.identity
        except FileNotFoundError:
            return False

    def rest(self) -> list[EgressEvent]:
        """The records added to this very file since the last time, up to now: its writer may never end."""
        if self._descriptor is None:
            return []
        left = os.fstat(self._descriptor).st_size - os.lseek(self._descriptor, 0, os.SEEK_CUR)
        if left < 0:  # half a line was taken back
            os.lseek(self._descriptor, left, os.SEEK_CUR)
            self._half_line = b""
        if left > LARGEST:  # more than its writer can have written
            os.lseek(self._descriptor, left - LARGEST, os.SEEK_CUR)
            left, self._half_line = LARGEST, b""
        found = []
        while left > 0 and (data := os.read(self._descriptor, min(left, CHUNK))):
            left -= len(data)
            *lines, half = (self._half_line + data).split(b"\n")
            found += [record for line in lines if (record := parse_line(line))]
            self._half_line = half[: LONGEST_LINE + 1]  # a line that is longer than a record will be none
        return found


def _foreign(path: Path) -> HutchError:
    return HutchError(f"{path} is not a file of hutch's", resolution="remove it")


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
