"""Losses that the removal of a workspace would bring: live sessions, and git work that exists nowhere else."""

from __future__ import annotations

import os
from contextlib import ExitStack, closing, suppress

from hutch.apply.sealed import look_into_home, look_into_layer
from hutch.apply.vanishing import look_into, touched_repositories, unsaved_in_root
from hutch.backends.share import private_layer
from hutch.engines import engine_of
from hutch.errors import HutchError
from hutch.host.services.cgroup import Cgroup
from hutch.run import CommandFailed, run
from hutch.runtime.observe import observe, observe_cid
from hutch.spec.model import Mount
from hutch.spec.names import Layout
from hutch.spec.record import Record, has_processes, is_local
from hutch.trees.cursor import is_empty, opened


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
    """Repositories with changes that are committed or pushed nowhere: in the home, and in what goes with it."""
    found: list[str] = []
    where = "its home holds"
    try:
        if record.wanted.home is not None and not is_empty(record.wanted.home):
            found += look_into_home(layout, record)
        for mount in record.wanted.mounts:
            where = f"its own layer on {mount.target} holds"
            if mount.is_private:
                found += _unsaved_in_layer(layout, record, mount)
    except (CommandFailed, OSError) as error:
        raise HutchError(
            f"{record.name}: cannot tell whether {where} unsaved git work",
            details=error.details if isinstance(error, CommandFailed) else str(error),
            resolution="--force removes the workspace without a look",
        ) from error
    return found


def _unsaved_in_layer(layout: Layout, record: Record, mount: Mount) -> list[str]:
    """The work in the repositories of which a workspace has something in its own layer on a directory of the host."""

    def look(chosen: list[str]) -> list[str]:
        if not os.path.isdir(mount.source):
            return [f"{mount.target}: {mount.source} is gone, without which nobody can read the layer on it"]
        return look_into_layer(layout, record, mount, chosen)

    with ExitStack() as stack:
        try:
            upper = stack.enter_context(opened(f"{private_layer(layout, record.name, mount)}/upper"))
        except FileNotFoundError:  # of a file, or of one that was never started
            return []
        return look_into(touched_repositories(upper, mount.source), look)
