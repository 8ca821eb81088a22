"""The state of a workspace, read from its service's status file. Cheap: `hutch ls` reads nothing else."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

from hutch.backends.launch import Launch, decode_launch
from hutch.errors import HutchError
from hutch.files import read_or_none
from hutch.host.services.process import is_alive
from hutch.runtime.status import read_status
from hutch.spec.names import Layout
from hutch.spec.record import Observation, Record, State, has_processes, state_of

KILLED = "its main process was killed"


def are_shown() -> bool:
    """Whether this process sees the processes of other users: some hosts mount /proc with `hidepid`."""
    return os.path.exists("/proc/1")


def observe_state(layout: Layout, record: Record) -> State:
    """The state of a workspace, by its record and by observation."""
    return state_of(record, observe(layout, record.name))


def observe(layout: Layout, name: str) -> Observation:
    """An observation from the status file of a workspace's service, which counts only while the main process lives."""
    try:
        status = read_status(str(layout.status(name)))
    except PermissionError:
        raise HutchError(f"how {name} stands is not shown to you yet", resolution="`sudo hutch up` does that") from None
    if status is None:
        return Observation(cgroup=layout.cgroup(name))
    state, reason = status.state, status.reason
    alive = has_processes(state) and (is_alive(status.pid, status.started) or not are_shown())
    cgroup = status.cgroup or f"{layout.instance}/{name}"  # where an older hutch had its workspaces
    if has_processes(state) and not alive:
        state, reason = ("stopping", "") if status.cgroup and _is_being_cleaned_up(cgroup) else ("failed", KILLED)
    return Observation(
        state=state,
        pid=status.pid if alive else None,
        since=status.since,
        ready_seconds=status.ready_seconds,
        leader=status.leader if alive else None,
        reason=reason,
        cgroup=cgroup,
    )


def _is_being_cleaned_up(cgroup: str) -> bool:
    """Whether a service whose main process has ended still has processes, which will write how it ended."""
    from hutch.host.services.cgroup import Cgroup  # `hutch ls` has no other use for it

    try:
        with closing(Cgroup(os.path.dirname(cgroup))) as slice_of_it:
            return slice_of_it.is_populated()
    except OSError:  # a caller without the right to look does not know
        return False


def read_launch(path: Path) -> Launch | None:
    """The Launch that a file holds; None where there is none that can be believed."""
    return decode_launch(read_or_none(path) or b"null")


def observe_facts(layout: Layout, name: str) -> dict[str, str]:
    """The facts of a workspace's last start, for people. The caller knows whether it is still up. Its unit has them
    before the start begins; of what an older hutch started, only the launch has."""
    launch = read_launch(layout.unit_directory(name) / "launch.json") or read_launch(layout.launch(name))
    return launch.facts if launch is not None else {}


def observe_cid(layout: Layout, name: str) -> str:
    """The context id of a machine that has vsock just now; "" for others."""
    return (read_or_none(layout.cid(name)) or b"").decode("ascii", "replace").strip()
