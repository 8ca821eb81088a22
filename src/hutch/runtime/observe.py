"""How a workspace stands, read from what its supervisor last said. Cheap: `hutch ls` reads nothing else."""

from __future__ import annotations

import os

from hutch.errors import HutchError
from hutch.frozen import dataclass
from hutch.host.services.process import is_alive
from hutch.runtime.status import read_status
from hutch.spec.names import Places


@dataclass(frozen=True)
class Observation:
    """How a workspace stands. `leader` is (pid, start time) of its PID 1 as the host sees it; `cgroup` is where it is,
    or was."""

    state: str = "stopped"
    pid: int | None = None
    since: float | None = None
    ready_seconds: float | None = None
    leader: tuple[int, int] | None = None
    reason: str = ""
    cgroup: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def is_up(self) -> bool:
        return self.state in ("starting", "running", "stopping")


def are_shown() -> bool:
    """Whether this process sees those of others: some hosts mount /proc with `hidepid`."""
    return os.path.exists("/proc/1")


def observe(places: Places, name: str) -> Observation:
    """What the workspace's supervisor last said, believed only while that very process lives."""
    try:
        status = read_status(str(places.status(name)))
    except PermissionError:
        raise HutchError(f"how {name} stands is not shown to you yet", resolution="`sudo hutch up` does that") from None
    if status is None:
        return Observation(cgroup=places.cgroup(name))
    state, reason, pid = status["state"], status["reason"], status["pid"]
    if state in ("starting", "running", "stopping") and not is_alive(pid, status["started"]) and are_shown():
        state, reason = "failed", "its supervisor was killed"
    alive = state in ("starting", "running", "stopping")
    return Observation(
        state=state,
        pid=pid if alive else None,
        since=status["since"],
        ready_seconds=status["ready_seconds"],
        leader=tuple(status["leader"]) if alive and status["leader"] else None,
        reason=reason,
        cgroup=status.get("cgroup") or places.cgroup(name),
        warnings=tuple(status["warnings"]),
    )
