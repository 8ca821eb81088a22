"""What a supervisor says of itself, in one small JSON file that others read. Imports stay few."""

from __future__ import annotations

import os
import time

from hutch.host.services.process import start_time

TYPE_CHECKING = False  # typing's own constant costs the import of typing, a third of a supervisor's start-up
if TYPE_CHECKING:
    from typing import Any

    Status = dict[str, Any]
    """Keys: state, pid, started (clock ticks), since (Unix time), ready_seconds, leader, reason, warnings;
    revision, of the Launch that counts; complaints, by key, why not all that it asks for is so; cgroup, where that is
    not an embedded supervisor's."""


STATES = ("starting", "running", "stopping", "stopped", "failed")


def first_words(pid: int) -> Status:
    """What is said of a supervisor that has just been started."""
    return {
        "state": "starting",
        "pid": pid,
        "started": start_time(pid),
        "since": time.time(),
        "ready_seconds": None,
        "leader": None,
        "reason": "",
        "warnings": [],
        "revision": 0,
        "complaints": {},
    }


def write_status(path: str, status: Status) -> None:
    """Replace the file at once; it lives in the runtime directory, so it need not survive a power cut."""
    import json  # see the supervisor: it has time for this later

    content = json.dumps(status).encode()
    temporary = f"{path}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        while content:
            content = content[os.write(descriptor, content) :]
    finally:
        os.close(descriptor)
    os.rename(temporary, path)


def read_status(path: str) -> Status | None:
    """The last words of a supervisor, None when there are none. What makes no sense counts as those of one that has
    failed: something was there, and may be still."""
    import json

    try:
        with open(path, "rb") as file:
            found = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError):
        found = None
    return found if is_status(found) else {**first_words(0), "state": "failed", "reason": f"{path} is damaged"}


def is_status(found: object) -> bool:
    """Whether that is what a supervisor says."""
    if not isinstance(found, dict):
        return False
    pid, leader, warnings = found.get("pid"), found.get("leader", ""), found.get("warnings")
    return (
        found.get("state") in STATES
        and type(pid) is int
        and pid > 0
        and all(type(found.get(key, "")) in (int, float, type(None)) for key in ("started", "since", "ready_seconds"))
        and (leader is None or (isinstance(leader, list) and [type(number) for number in leader] == [int, int]))
        and isinstance(found.get("reason"), str)
        and type(found.get("revision", 0)) is int  # an older hutch's has none
        and isinstance(found.get("complaints", {}), dict)
        and isinstance(found.get("cgroup", ""), str)
        and isinstance(warnings, list)
        and all(isinstance(text, str) for text in warnings)
    )
