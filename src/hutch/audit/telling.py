"""Telling for a record what somebody other than root does: a line in one's own inbox. It stands on the way of every
`hutch exec`, so it needs little. See `inbox` for what root makes of it.
"""

from __future__ import annotations

import json
import os
import pwd
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from hutch.audit.events import Entry, shown
from hutch.errors import HutchError
from hutch.files import READABLE, held, kept_open, write_all
from hutch.frozen import dataclass
from hutch.inboxes import HEADING, append, leave_out
from hutch.spec.names import Layout
from hutch.spec.owner import behind
from hutch.state import make_directory

PATIENCE = 0.5  # seconds that another writer of the same file is waited for


def tell(layout: Layout, name: str, entry: Entry) -> bool:
    """Add an entry to one's own inbox of a workspace's record. Returns whether it is there: who has no inbox goes
    on without, and one that is full counts it. `by` is told by root alone, which may stand for somebody."""
    uid = os.geteuid()
    path = inbox_of(layout, name, uid)
    body = entry.body if uid == 0 else {key: value for key, value in entry.body.items() if key != "by"}
    line = json.dumps(body, separators=(",", ":")).encode() + b"\n"
    for _ in range(3):  # root may be taking the file away just now
        try:
            if uid == 0 and not os.path.lexists(path):
                with held(inboxes_lock(layout, name)):
                    make_inbox(layout, name, uid)
            append(path, line, PATIENCE)
            return True
        except FileNotFoundError:
            time.sleep(0.005)
        except (OSError, HutchError):
            with suppress(OSError):
                leave_out(path, 1)
            return False
    return False


@dataclass(frozen=True)
class Session:
    """Something that somebody does inside, from its beginning to its end: `kind` is that of its first event."""

    layout: Layout
    name: str
    kind: str
    by: str | None
    id: str
    began: float

    def end(self, **values: Any) -> None:
        """Tell that it has ended."""
        now = time.time()
        seconds = round(max(now - self.began, 0.0), 3)
        values = {"session": self.id, "seconds": seconds, **values}
        tell(self.layout, self.name, Entry(now, f"{self.kind}-ended", self.by, values))


def begin(layout: Layout, name: str, kind: str, **values: Any) -> Session:
    """Tell that a session of a kind begins."""
    session = Session(layout, name, kind, author() if os.geteuid() == 0 else None, os.urandom(8).hex(), time.time())
    tell(layout, name, Entry(session.began, kind, session.by, {"session": session.id, **values}))
    return session


def author() -> str:
    """The account whose command this is: who is behind sudo, doas or pkexec, if anybody."""
    uid = os.geteuid()
    return account(uid or behind(os.environ) or uid)


def account(uid: int) -> str:
    """The name of an account; its number where it has none."""
    try:
        return shown(pwd.getpwuid(uid).pw_name)
    except (KeyError, OverflowError):
        return str(uid)


# Its place.


def inbox_of(layout: Layout, name: str, uid: int) -> Path:
    return layout.inboxes(name) / str(uid)


def inboxes_lock(layout: Layout, name: str) -> Path:
    """The lock under which root makes the inboxes of a workspace's record, and takes them away."""
    return layout.workspace(name) / "inboxes.lock"


def make_directories(layout: Layout, name: str) -> None:
    """Make the directory of the inboxes of a workspace's record. All may pass, and nobody but root may look."""
    make_directory(layout.audits)
    for directory in (layout.inboxes(name).parent, layout.inboxes(name)):
        make_directory(directory, 0o711)


def make_inbox(layout: Layout, name: str, uid: int) -> None:
    """Give an account an inbox for a workspace's record, if it has none. The caller holds the lock of these."""
    make_directories(layout, name)
    path = inbox_of(layout, name, uid)
    if os.path.lexists(path):
        return
    new = path.with_name(f".{uid}.new")
    new.unlink(missing_ok=True)
    with kept_open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | READABLE, 0o600)) as descriptor:
        write_all(descriptor, (HEADING % 0).encode())
        os.fchown(descriptor, uid, -1)
    os.rename(new, path)
