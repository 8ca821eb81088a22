"""The status of a workspace's service: one small JSON file, which only runtime/unit.sh writes."""

from __future__ import annotations

import json
import os

from hutch.frozen import dataclass
from hutch.spec.record import State

STATES: tuple[State, ...] = ("starting", "running", "stopping", "stopped", "failed")


@dataclass(frozen=True)
class Status:
    """The status of one service. `pid` is the main process, which `started` at that clock tick since the host booted;
    `since` is a Unix time; `leader` is (pid, start time) of the guest's PID 1 as the host sees it; `cgroup` is the
    service's, "" where an older hutch wrote this."""

    state: State
    pid: int
    started: int | None
    since: float
    ready_seconds: float | None
    leader: tuple[int, int] | None
    reason: str
    cgroup: str


def read_status(path: str) -> Status | None:
    """The last status of a service, None when there is none. A damaged file counts as that of a failed service:
    something was there, and may be still."""
    try:
        with open(path, "rb") as file:
            since = os.fstat(file.fileno()).st_mtime
            found = json.load(file)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError):
        found, since = None, 0.0
    if not is_status(found):
        return Status("failed", 0, None, since, None, None, f"{path} is damaged", "")
    leader = tuple(found["leader"]) if found["leader"] else None
    more = (found["ready_seconds"], leader, found["reason"], found.get("cgroup", ""))
    return Status(found["state"], found["pid"], found["started"], since, *more)


def is_status(found: object) -> bool:
    """Whether a value from JSON is a valid status."""
    if not isinstance(found, dict):
        return False
    pid, leader = found.get("pid"), found.get("leader", "")
    return (
        found.get("state") in STATES
        and type(pid) is int
        and pid > 0
        and all(type(found.get(key, "")) in (int, float, type(None)) for key in ("started", "ready_seconds"))
        and (leader is None or (isinstance(leader, list) and [type(number) for number in leader] == [int, int]))
        and isinstance(found.get("reason"), str)
        and isinstance(found.get("cgroup", ""), str)
    )
