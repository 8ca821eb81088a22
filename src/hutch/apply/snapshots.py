"""`hutch snapshot`, `restore` and `fork`: points in time of workspaces whose engine has that ability.

Each is noted in the journal, so that the next command undoes what is left of one that was killed. Who asks a person
does so without the lock.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from hutch.apply import reconcile
from hutch.apply.ownership import origin_of
from hutch.apply.recovery import recover
from hutch.apply.turning import turn
from hutch.engines import need_snapshots, observe_all
from hutch.errors import HutchError, UsageError
from hutch.host.services.lock import lock
from hutch.plan.actions import Plan, Wanted
from hutch.plan.decide import noted
from hutch.runtime.control import Listener
from hutch.spec.model import Config, WorkspaceSpec
from hutch.spec.names import Layout, is_name
from hutch.spec.record import Observation, Record, has_processes, state_of
from hutch.spec.snapshot import Snapshot, check_tag, default_tag
from hutch.state import journaled, read_records, write_record

Find = Callable[[str], Record]
"""A function that gives the record of an existing workspace."""
SAME = ("engine", "type", "user", "owner")
"""Keys that a fork has in common with its source, whose files it gets."""


def snapshot(layout: Layout, name: str, tag: str, find: Find, listen: Listener) -> str:
    """Take a snapshot; returns its tag, which is the time where none is given."""
    if tag:
        check_tag(tag)
    with lock(layout):
        recover(layout, listen)
        record = find(name)
        tag = tag or default_tag(time.time())
        points = need_snapshots(layout, record)
        with journaled(layout, "snapshot", (name,)):
            paused = points.take(record, tag)
    listen(name, "snapshot", f"{tag}{_pause(paused)}")
    return tag


def _pause(seconds: float) -> str:
    return f" (paused for {seconds:.1f} s)" if seconds else ""


def snapshots(layout: Layout, record: Record) -> Sequence[Snapshot]:
    """The snapshots of a workspace, oldest first."""
    return need_snapshots(layout, record).list(record)


def delete(layout: Layout, name: str, tag: str, find: Find, listen: Listener) -> None:
    """Delete a snapshot."""
    check_tag(tag)
    with lock(layout):
        recover(layout, listen)
        record = find(name)
        need_snapshots(layout, record).delete(record, tag)
    listen(name, "removed", f"the snapshot {tag}")


def restore(
    layout: Layout, name: str, tag: str, find: Find, listen: Listener, *, confirm: Callable[[str], None]
) -> None:
    """Make a workspace as it was, and start it again if it runs. `confirm` is asked before one that runs is stopped."""
    check_tag(tag)
    record = find(name)
    points = need_snapshots(layout, record)
    notes = points.check(record, tag)
    is_allowed = has_processes(_look(layout, record).state)
    if is_allowed:
        confirm(f"{name} runs: it is stopped, and its present home is replaced by the snapshot {tag}")
    with lock(layout):
        recover(layout, listen)
        record = find(name)
        runs = has_processes(_look(layout, record).state)
        if runs and not is_allowed:
            raise HutchError(f"{name} has just been started by somebody else", resolution="try again")
        with journaled(layout, "restore", (name,)):
            points.restore(record, tag)
    for note in notes:
        listen(name, "warning", note)
    listen(name, "restored", tag)
    if runs:
        turn(layout, "start", [name], find, listen)


def _look(layout: Layout, record: Record) -> Observation:
    seen = observe_all(layout, {record.name: record})[record.name]
    if state_of(record, seen) == "unreachable":
        raise HutchError(f"{record.name} cannot be reached: {seen.reason}")
    return seen


def fork(
    layout: Layout,
    config: Config,
    name: str,
    news: Sequence[str],
    find: Find,
    make: Callable[[Sequence[str]], Plan],
    listen: Listener,
    *,
    tag: str = "",
) -> None:
    """Make new workspaces, which `config` declares, with the home of another one, and with its root where that is kept.
    They do not run yet. `make` plans for these."""
    if tag:
        check_tag(tag)
    check_names(name, news)
    refuse_undeclared(config, find(name), news)
    with lock(layout):
        recover(layout, listen)
        record = find(name)
        points = need_snapshots(layout, record)
        records = read_records(layout)
        if there := [new for new in news if new in records]:
            kept = [new for new in there if records[new].removed]
            raise HutchError(
                f"there is a workspace {', '.join(there)} already"
                + (f"; of {', '.join(kept)}, the home is kept" if kept else ""),
                resolution=f"choose another name, or `hutch rm --purge {' '.join(there)}`",
            )
        plan = make(news)
        copies = [_new_record(plan, new) for new in news]
        refuse_different(record, copies)
        known = {each.machine_id for each in records.values()}
        with journaled(layout, "fork", (name,)):
            paused = points.fork(record, tag, copies, known)
            for new in copies:
                write_record(layout, new)
                records[new.name] = new
            points.confirm(record, copies)
            reconcile.reconcile_host(layout, plan.network, plan.file, records)
    for copy in copies:
        listen(copy.name, "forked", f"from {name}{f' at {tag}' if tag else ''}")
    if paused:
        listen(name, "snapshot", f"for its forks{_pause(paused)}")


def check_names(name: str, news: Sequence[str]) -> None:
    """Refuse names that cannot be those of forks. Raises UsageError."""
    for new in news:
        if not is_name(new):
            raise UsageError(f"{new!r} is not the name of a workspace")
        if new == name or news.count(new) > 1:
            raise UsageError(f"{new} is named twice")


def refuse_undeclared(config: Config, record: Record, news: Collection[str]) -> None:
    """Refuse forks that the file does not declare, with the lines that it needs. Raises UsageError."""
    missing = [new for new in news if new not in config.workspaces]
    if missing:
        raise UsageError(
            f"{config.file} does not declare {', '.join(missing)}",
            details="\n\n".join("\n".join(declaration(new, record.wanted)) for new in missing),
            resolution="add these lines to it, with further settings of the new ones, and fork again",
        )


def declaration(name: str, workspace: WorkspaceSpec) -> list[str]:
    """The lines of hutch.toml that a fork needs at least."""
    keys: Mapping[str, object] = {
        "type": workspace.type,
        "engine": workspace.engine,
        **{
            key: getattr(workspace, key)
            for key in ("image", "packages", "setup", "user", "persist")
            if getattr(workspace, key) != WorkspaceSpec.__dataclass_fields__[key].default
        },
    }
    return [f"[workspaces.{name}]", *(f"{key} = {_toml(value)}" for key, value in keys.items())]


def _toml(value: object) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def _new_record(plan: Plan, name: str) -> Record:
    action = next(action for action in plan.actions if action.workspace == name)
    wanted: Wanted | None = action.wanted
    assert wanted is not None
    before = Record(name, plan.file, wanted.workspace, wanted.image, 0, os.urandom(16).hex())
    return noted(before, action, wanted, plan.file, origin_of(plan.file))


def refuse_different(record: Record, copies: Sequence[Record]) -> None:
    """Refuse forks that could not do with their source's files."""
    different = []
    for new in copies:
        keys = [key for key in SAME if getattr(new.wanted, key) != getattr(record.wanted, key)]
        keys += ["image"] if new.image != record.image else []
        keys += ["persist"] if new.wanted.persist != record.wanted.persist else []
        is_there = new.place is not None and record.place is not None and new.place.identity == record.place.identity
        keys += [] if is_there else ["engine"]
        for key in dict.fromkeys(keys):
            theirs, ours = (getattr(each.wanted, key) for each in (new, record))
            different.append(f"{new.name}: {key} is {theirs!r}, and {ours!r} for {record.name}")
    if different:
        raise HutchError(
            f"a fork of {record.name} has the same {', '.join(sorted({line.split()[1] for line in different}))}",
            details="\n".join(different),
            resolution="change that in hutch.toml; an image is the same with the same packages and setup",
        )


def forks_of(name: str, count: int) -> list[str]:
    """The names of so many forks."""
    return [f"{name}-{number}" for number in range(1, count + 1)]
