"""Losses that the removal of a workspace would bring: live sessions, and git work that exists nowhere else."""

from __future__ import annotations

from contextlib import closing, suppress

from hutch.apply.sealed import look_into_home
from hutch.apply.vanishing import unsaved_in_root
from hutch.engines import engine_of
from hutch.errors import HutchError
from hutch.host.services.cgroup import Cgroup
from hutch.run import CommandFailed, run
from hutch.runtime.observe import observe, observe_cid
from hutch.spec.names import Layout
from hutch.spec.record import Record, has_processes, is_local
from hutch.trees.cursor import is_empty


def obstacles(layout: Layout, record: Record) -> list[str]:
    """Reasons why the workspace should not be removed without a second thought; empty when it may go."""
    if not is_local(record.wanted):
        found = engine_of(layout, record).obstacles(record)
    else:
        found = live_sessions(layout, record) if has_processes(observe(layout, record.name).state) else []
        found += unsaved_git_work(layout, record)
    # It comes last: a machine is asked by a connection of our own.
    return found if record.removed else found + unsaved_in_root(layout, record, deletes=True)


def sessions_of(layout: Layout, record: Record) -> list[str]:
    """The sessions in a running workspace, in words."""
    return live_sessions(layout, record) if is_local(record.wanted) else engine_of(layout, record).sessions(record)


def live_sessions(layout: Layout, record: Record) -> list[str]:
    """Open ssh connections from this host, and commands that `hutch exec` runs."""
    ip = record.effective.ip
    listing = run(["ss", "--no-header", "--tcp", "--numeric", "state", "established", "dst", f"{ip}:22"])
    count = len(listing.stdout.splitlines()) + vsock_connections(layout, record)
    found = [f"{count} open ssh connection{'s' if count > 1 else ''}"] if count else []
    with suppress(PermissionError), closing(Cgroup(observe(layout, record.name).cgroup)) as cgroup:
        # Without root, a host that mounts no cgroup2 cannot be asked.
        if cgroup.is_populated("exec"):
            found.append("a command started by `hutch exec` is running")
    return found


def vsock_connections(layout: Layout, record: Record) -> int:
    """The number of ssh connections by vsock, which do not use the network."""
    if not (cid := observe_cid(layout, record.name)):
        return 0
    return count_vsock(run(["ss", "--no-header", "--vsock", "--numeric"]).stdout, cid)


def count_vsock(listing: str, cid: str) -> int:
    """The established connections to the sshd of a machine, as ss lists them: kind, state, two queues, two ends."""
    rows = (line.split() for line in listing.splitlines())
    return sum(row[1:2] == ["ESTAB"] and row[5:6] == [f"{cid}:22"] for row in rows)


def unsaved_git_work(layout: Layout, record: Record) -> list[str]:
    """Repositories in the home with changes that are committed or pushed nowhere."""
    if record.wanted.home is None or is_empty(record.wanted.home):
        return []
    try:
        return look_into_home(layout, record)
    except CommandFailed as error:
        raise HutchError(
            f"{record.name}: cannot tell whether its home holds unsaved git work",
            details=error.details,
            resolution="--force removes the workspace without a look",
        ) from error
