"""Losses that the removal of a workspace would bring: live sessions, and git work that exists nowhere else.

Git is never run on the host in a home that a guest wrote: repositories carry configuration that git obeys.
It runs in a throw-away container made from the workspace's image: no network, the home read-only.
"""

from __future__ import annotations

from pathlib import Path

from hutch.apply.launching import surroundings_of
from hutch.backends import is_machine
from hutch.backends.nspawn import inspection
from hutch.errors import HutchError
from hutch.host.hardware import vsock
from hutch.host.services.cgroup import Cgroup
from hutch.images.contain import run_contained
from hutch.run import CommandFailed, run
from hutch.runtime.observe import observe
from hutch.spec.model import Network
from hutch.spec.names import Layout
from hutch.spec.record import Record, has_processes
from hutch.trees.cursor import is_empty

PATIENCE = 60.0  # seconds that looking for repositories may take
FOUND = "hutch-unsaved "
LOOK = Path(__file__).with_name("unsaved.sh")
FIND = ("find", ".", "-xdev", "-name", ".git", "-prune", "-exec", "sh", "-c")


def obstacles(layout: Layout, record: Record) -> list[str]:
    """Reasons why the workspace should not be removed without a second thought; empty when it may go."""
    found = []
    if has_processes(observe(layout, record.name).state):
        found += live_sessions(layout, record)
    return found + unsaved_git_work(layout, record)


def live_sessions(layout: Layout, record: Record) -> list[str]:
    """Open ssh connections from this host, and commands that `hutch exec` runs."""
    ip = record.effective.ip
    listing = run(["ss", "--no-header", "--tcp", "--numeric", "state", "established", "dst", f"{ip}:22"])
    count = len(listing.stdout.splitlines()) + vsock_connections(record)
    found = [f"{count} open ssh connection{'s' if count > 1 else ''}"] if count else []
    cgroup = Cgroup(observe(layout, record.name).cgroup)
    if cgroup.is_populated("exec"):
        found.append("a command started by `hutch exec` is running")
    cgroup.close()
    return found


def vsock_connections(record: Record) -> int:
    """The number of ssh connections by vsock, which do not use the network."""
    booted = record.effective
    if not is_machine(booted) or booted.cid is None or not vsock.can_open(vsock.DEVICE):
        return 0
    listing = run(["ss", "--no-header", "--vsock", "--numeric"])
    return count_vsock(listing.stdout, booted.cid)


def count_vsock(listing: str, cid: int) -> int:
    """The established connections to the sshd of a machine, as ss lists them: kind, state, two queues, two ends."""
    rows = (line.split() for line in listing.splitlines())
    return sum(row[1:2] == ["ESTAB"] and row[5:6] == [f"{cid}:22"] for row in rows)


def unsaved_git_work(layout: Layout, record: Record) -> list[str]:
    """Repositories in the home with changes that are committed or pushed nowhere."""
    if record.wanted.home is None or is_empty(record.wanted.home):
        return []
    find = (*FIND, LOOK.read_text(encoding="utf-8"), "sh", "{}", ";")
    # The inspection needs no network, so it does not matter whether there is one.
    look = inspection(record.name, record.wanted, surroundings_of(layout, record, Network(), ()), find)
    found: list[str] = []

    def take(line: str) -> None:
        if line.startswith(FOUND):
            found.append("".join(c for c in line.removeprefix(FOUND) if c.isprintable())[:200])

    try:
        run_contained(look, group=layout.inspection_cgroup(record.name), on_line=take, timeout=PATIENCE)
    except CommandFailed as error:
        raise HutchError(
            f"{record.name}: cannot tell whether its home holds unsaved git work",
            details=error.details,
            resolution="--force removes it all the same",
        ) from error
    return found
