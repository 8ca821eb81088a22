"""What a supervisor says of itself, in one small JSON file that others read. Imports stay few."""

from __future__ import annotations

import os
import time

from hutch.host.process import start_time

TYPE_CHECKING = False  # typing's own constant costs the import of typing, a third of a supervisor's start-up
if TYPE_CHECKING:
    from typing import Any

    Status = dict[str, Any]
    """Keys: state, pid, started (clock ticks), since (Unix time), ready_seconds, leader, reason, warnings;
    revision, of the Launch that counts; complaints, by key, why not all that it asks for is so."""


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

    temporary = f"{path}.new"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(status, file)
    os.rename(temporary, path)


def read_status(path: str) -> Status | None:
    """The last words of a supervisor, None when there are none."""
    import json

    try:
        with open(path, encoding="utf-8") as file:
            status: Status = json.load(file)
            return status
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:  # torn by a crash of the host: as good as no word at all
        return None
