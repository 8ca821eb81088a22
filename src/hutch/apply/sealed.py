"""Looks of git into what a guest wrote. Git is never run on the host there: repositories carry configuration that git
obeys. It runs in a throw-away container made from the workspace's image: no network, the home or the root read-only."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from hutch.access import git_changes, git_work
from hutch.access.git_changes import Changes
from hutch.apply.launching import surroundings_of
from hutch.backends.inspections import HOST_PLACE, LAYER_PLACE, inspection, layer_inspection, root_inspection
from hutch.backends.launch import Surroundings
from hutch.files import kept_open
from hutch.host.services.lock import LOOKS, take_place
from hutch.host.services.process import start_time
from hutch.images.contain import run_contained
from hutch.run import CommandFailed
from hutch.spec import member
from hutch.spec.model import Mount, Network
from hutch.spec.names import Layout
from hutch.spec.record import Record
from hutch.texts import printable

TASKS, MEMORY, CPUS = 512, 1 << 30, 1  # of the look, whose home can make git want more of each; bytes
LOOKS_PATIENCE = 3 * git_work.PATIENCE  # each look may be two


def look_into_home(layout: Layout, record: Record) -> list[str]:
    """The work, in words, in the repositories of a home. Raises CommandFailed for a look that does not come to its
    end."""
    look = inspection(record.name, record.wanted, _surroundings(layout, record), git_work.find_command(record.wanted))
    return _look(layout, record.name, look)


def look_into_root(layout: Layout, record: Record, repositories: Sequence[str], mounts: str) -> list[str]:
    """The same of repositories in a container's root, by the ways to their `.git`. `mounts` is the mount namespace of
    one that runs, "" for a kept root."""
    booted = record.booted
    assert booted is not None
    record = replace(record, wanted=booted.workspace, image=booted.image)
    command = git_work.look_command(record.wanted, (f"./{path}" for path in repositories))
    surroundings = _surroundings(layout, record)
    look = root_inspection(record.name, record.wanted, surroundings, command, runs=bool(mounts))
    # The top of the root is the current directory of the look.
    return [line.removeprefix(".") for line in _look(layout, record.name, look, mounts)]


def look_into_layer(layout: Layout, record: Record, mount: Mount, repositories: Sequence[str]) -> list[str]:
    """The same of repositories in a private mount, of which something lies in the workspace's own layer."""
    ways = (f"./{path}" for path in repositories)
    command = git_work.look_into_layer_command(record.wanted, ways, LAYER_PLACE, HOST_PLACE)
    surroundings = _surroundings(layout, record)
    look = layer_inspection(record.name, record.wanted, surroundings, command, mount)
    return [f"{mount.target}{line.removeprefix('.')}" for line in _look(layout, record.name, look)]


def look_for_changes(layout: Layout, record: Record, since: float) -> Changes:
    """What has changed, since a moment in Unix time, in the repositories of a home and of the directories that a
    workspace of this host writes. A look that does not come to its end says so in the result. For each member, root
    takes one at a time."""
    with _place_for_a_look(layout):
        return _look_for_changes(layout, record, since)


@contextmanager
def _place_for_a_look(layout: Layout) -> Iterator[None]:
    if (who := member.acting) is None:
        yield
        return
    with kept_open(take_place(layout, who.uid, LOOKS, "a look at changed files", patience=LOOKS_PATIENCE)):
        yield


def _look_for_changes(layout: Layout, record: Record, since: float) -> Changes:
    surroundings = _surroundings(layout, record)
    shared = [mount for mount in record.wanted.mounts if mount.is_writable and mount.source not in surroundings.files]
    home = replace(
        _changes(layout, record, since, ()), new=(), more_new=0
    )  # whose repositories are all of the guest's making
    if not shared:
        return home
    return home.joined(_changes(layout, record, since, sorted(shared, key=lambda mount: mount.target)))


def _changes(layout: Layout, record: Record, since: float, shares: Sequence[Mount]) -> Changes:
    """What has changed in these shared directories; without any, in the home."""
    tops = [mount.target for mount in shares] or [f"/home/{record.wanted.user}"]
    listener = git_changes.Listener(tops)
    command = git_changes.changes_command(since, tops)
    look = inspection(record.name, record.wanted, _surroundings(layout, record), command, shares)
    try:
        _contain(layout, record.name, look, listener.take)
    except CommandFailed as error:
        why = (error.details or error.brief).splitlines()[-1]
        words = f"{', '.join(tops)}: the look did not come to its end: {why}"
        return listener.changes(printable(words, git_changes.LONGEST))
    return listener.changes()


def _surroundings(layout: Layout, record: Record) -> Surroundings:
    """The facts for an inspection. It needs no network, so it does not matter whether there is one."""
    return surroundings_of(layout, record, Network(), ())


def _look(layout: Layout, name: str, look: Sequence[str], mounts: str = "") -> list[str]:
    listener = git_work.Listener()
    _contain(layout, name, look, listener.take, mounts)
    return listener.found


def _contain(layout: Layout, name: str, look: Sequence[str], take: Callable[[str], None], mounts: str = "") -> None:
    group = layout.inspection_cgroup(name, os.getpid(), start_time(os.getpid()))
    contain = partial(run_contained, look, group=group, tasks=TASKS, memory=MEMORY, cpus=CPUS)
    contain(mounts=mounts, on_line=take, timeout=git_work.PATIENCE)
