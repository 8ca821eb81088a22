"""Starts and ends as a workspace's service tells them: the script that it runs writes a line for each, whoever asked
for it, systemd, a guest or nobody. `inbox` puts them into the record.

Only root writes in that file. Times stand there as the hundredths of a second since the host booted, since a shell
knows no other without a process of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

from hutch.audit.events import Entry, shown, why_wrong
from hutch.audit.telling import account, make_directories
from hutch.spec.names import Layout

REBOOTING = "rebooting"
"""The reason that the script gives for a guest that rebooted: see runtime/unit.sh."""
OLDER = ".older"
"""What the script adds to the name of its file when it begins a new one."""
LARGEST = 1 << 20
HUNDREDTHS = 100.0


def ensure_place(layout: Layout, name: str) -> None:
    """Let the service of a workspace tell. A disk that is full keeps nobody from starting."""
    with suppress(OSError):
        make_directories(layout, name)


def parse(data: bytes, written: float) -> Iterator[Entry]:
    """The entries that the service's lines tell; half a line is passed over. The last one was `written` at this Unix
    time, and the others so much earlier: so they are the same however often somebody reads them. When something
    happened before the host last booted is not known, so it counts as of that boot."""
    told = [found for line in data.splitlines() if (found := _told(line))]
    for boot, at, entry in told:
        last_boot, last_at, _ = told[-1]
        passed = last_at - at if boot == last_boot else last_at
        yield replace(entry, time=written - passed / HUNDREDTHS)


def _told(line: bytes) -> tuple[str, int, Entry] | None:
    """The boot of the host in which a line was written, when, and an entry without its time."""
    try:
        told = json.loads(line)
        event, values = _event_of(told)
        by, at = told["by"], told["at"]
        entry = Entry(0.0, event, None if by is None else account(by), values)
        return None if why_wrong(event, values) or type(at) is not int else (told["boot"], at, entry)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _event_of(told: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    if told["state"] == "running":
        return "started", {"start_kind": told.get("start_kind", "cold"), "seconds": told["ready_seconds"]}
    used = told["cpu_usec"]
    values = {
        "reason": shown(told["reason"]),
        "seconds": told["ran"] / HUNDREDTHS,
        "memory_peak": told["memory_peak"],
        "cpu_seconds": None if used is None else round(used / 1e6, 2),
        "tasks_peak": told["tasks_peak"],
    }
    return "restarted" if told["reason"] == REBOOTING else str(told["state"]), values
