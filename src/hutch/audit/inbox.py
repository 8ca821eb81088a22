"""What others than root's commands tell for a record: each account, the egress proxy and the workspace's service (see
`ends`) add lines to a file of their own in a directory of root's. Root folds them in when it writes to the record, and
whenever it is asked to; one process at a time does.

The file of an account is its own, and it may put anything there. So `by` is the owner of the file, each line has to be
an event of a kind that such an account may tell of, and no more is read than hutch itself would have written. The file
begins with the number of lines that were left out since it was full.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from hutch.audit import ends
from hutch.audit.chain import read_line
from hutch.audit.events import TOLD_BY_PEOPLE, Entry, unstamped, why_wrong
from hutch.audit.reading import files_of, raw_lines
from hutch.audit.telling import PATIENCE, account, inboxes_lock, make_inbox
from hutch.audit.writing import Warn, nobody, record
from hutch.errors import HutchError
from hutch.files import READABLE, held, kept_open, lock_within
from hutch.files import entries as paths_in
from hutch.inboxes import HEADING_SIZE, LARGEST, LONGEST, left_out
from hutch.spec.names import Layout
from hutch.trees.removing import remove_tree

FOLDING = ".folding"


def ensure_inboxes(layout: Layout, name: str, accounts: Collection[int]) -> None:
    """Have exactly these accounts, beside hutch's own, tell for a workspace's record. A full disk gives no inboxes."""
    with suppress(OSError), held(inboxes_lock(layout, name)):
        for path in paths_in(layout.inboxes(name)):
            is_left = path.name.isdigit() and int(path.name) not in {0, layout.egress_uid, *accounts}
            if is_left and not os.path.lexists(_waiting(path)):  # which goes first, and this the next time
                path.rename(_waiting(path))
        for uid in accounts:
            make_inbox(layout, name, uid)


def _waiting(path: Path) -> Path:
    """The name that an inbox has while what it holds is put into the record."""
    return path.with_name(path.name + FOLDING)


def fold(layout: Layout, name: str, warn: Warn = nobody) -> None:
    """Put what others have told into the record, for root. What a killed command has begun to fold in comes first, and
    nothing comes twice. Where it cannot be written, or the record is none of hutch's files, it waits."""
    try:
        with held(inboxes_lock(layout, name)):
            waiting = [path for path in paths_in(layout.inboxes(name)) if path.name.endswith(FOLDING)]
            if not waiting or _fold(layout, name, waiting, warn, is_again=True):
                _fold(layout, name, _taken(layout, name), warn, is_again=False)
    except (OSError, HutchError) as error:
        why = error.brief if isinstance(error, HutchError) else error.strerror or str(error)
        warn(name, f"others' entries for its record wait: {why}")


def _taken(layout: Layout, name: str) -> list[Path]:
    """What has come since, out of everybody's way."""
    taken, told = [], layout.audit_ends(name).name
    for path in paths_in(layout.inboxes(name)):
        if path.name in (told, told + ends.OLDER):
            path.rename(_waiting(path))
        elif path.name.isdigit() and path.lstat().st_size > HEADING_SIZE:
            path.rename(_waiting(path))
            make_inbox(layout, name, int(path.name))
        else:
            continue
        taken.append(_waiting(path))
    return taken


def fold_all(layout: Layout, warn: Warn = nobody) -> None:
    """Fold in what others have told of any workspace."""
    for directory in paths_in(layout.audits / "inbox"):
        if os.path.lexists(layout.record(directory.name)):
            fold(layout, directory.name, warn)


def _fold(layout: Layout, name: str, paths: Collection[Path], warn: Warn, *, is_again: bool) -> bool:
    found = [entry for path in paths for entry in _read(layout, path)]
    if is_again:
        lines = (read_line(data) for _, data in raw_lines(files_of(layout, name)[-2:]))
        known = {_identity(line.entry) for line in lines if line}
        found = [entry for entry in found if _identity(entry) not in known]
    if found and not record(layout, name, sorted(found, key=lambda entry: entry.time), warn, is_counted=False):
        return False
    for path in paths:
        remove_tree(path)  # which a file is, unless somebody with root's rights has put something else there
    return True


def _identity(entry: Entry) -> str:
    return json.dumps(entry.body, sort_keys=True)


def _read(layout: Layout, path: Path) -> list[Entry]:
    """The entries of an inbox that nobody finds by its name any more; what is none is counted."""
    try:
        with kept_open(os.open(path, os.O_RDONLY | READABLE)) as descriptor:
            found = os.fstat(descriptor)
            if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
                if not path.name[0].isdigit():
                    _await_writers(descriptor)
                    return list(ends.parse(os.pread(descriptor, ends.LARGEST, 0), os.fstat(descriptor).st_mtime))
                with suppress(OSError):  # it is the account's own affair if it holds the lock
                    lock_within(descriptor, PATIENCE / 5)
                return list(_entries(layout, found, os.pread(descriptor, LARGEST + 1, 0)))
    except FileNotFoundError:
        return []
    except OSError:  # a link, say
        pass
    return [_cut(layout, "its inbox was no file", 1, path.lstat())]


def _await_writers(descriptor: int) -> None:
    """Wait for who has opened a file to add a line before it was renamed, as far as that does not take long: a shell
    takes no lock. Only a file that nobody writes can have a lease."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except BlockingIOError:
            time.sleep(0.005)
        except OSError:  # a file system without leases
            return
        else:
            return


def _entries(layout: Layout, found: os.stat_result, data: bytes) -> Iterator[Entry]:
    uid = found.st_uid
    kinds = frozenset({"egress"}) if uid == layout.egress_uid else TOLD_BY_PEOPLE
    heading, *lines = data[:LARGEST].split(b"\n")
    wrong = int(len(data) > LARGEST)
    for line in lines:
        entry = parse(line, kinds, teller(layout, uid), may_name=uid == 0) if line else None
        if entry is not None:
            yield entry
        elif line:
            wrong += 1
    if wrong:
        yield _cut(layout, "they were no events", wrong, found)
    if count := left_out(heading + b"\n"):
        yield _cut(layout, "there was no room for them in its inbox", count, found)


def teller(layout: Layout, uid: int) -> str | None:
    """Who did what the inbox of an account tells; None for the egress proxy's, which tells what a guest did."""
    return None if uid == layout.egress_uid else account(uid)


def _cut(layout: Layout, why: str, count: int, found: os.stat_result) -> Entry:
    """The entry on a file that is not as it should be, of when that was written: the same whenever it is read."""
    return Entry(found.st_mtime, "cut", teller(layout, found.st_uid), {"why": why, "count": count, "kinds": []})


def parse(line: bytes, kinds: Collection[str], by: str | None, *, may_name: bool = False) -> Entry | None:
    """The entry that a line of an inbox tells; None for what it may not tell, or what is none. It was done `by` that
    account, unless the line `may_name` another one; and by now, whatever it says."""
    if len(line) > LONGEST:
        return None
    try:
        body = json.loads(line)
    except (ValueError, RecursionError):
        return None
    event = body.get("event") if isinstance(body, dict) else None
    if not isinstance(event, str) or event not in kinds:
        return None
    when = unstamped(body.pop("time", None))
    del body["event"]
    who: Any = body.pop("by", None) if may_name else by
    if when is None or why_wrong(event, body) or not (who is None or (isinstance(who, str) and who.isprintable())):
        return None
    return Entry(min(when, time.time()), event, who, body)
