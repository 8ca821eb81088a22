"""What the records of workspaces tell: a report on one, and the events of all that the caller may see."""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Collection, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from hutch.api.summary import Peaks, Report, summarize
from hutch.apply.recording import fold_connections
from hutch.audit.inbox import fold, fold_all
from hutch.audit.reading import damages, read_head, read_record, recorded_names
from hutch.errors import HutchError, UsageError
from hutch.spec import member
from hutch.spec.record import has_processes, is_local
from hutch.state import read_records

if TYPE_CHECKING:
    from hutch.api.recorded import Recorded
    from hutch.audit.chain import Line
    from hutch.spec.record import Record

BY_ROOT = "root alone looks for changed files, in a sealed container: sudo hutch report {name}"
ELSEWHERE = "a server runs it, and changed files are not looked for there"
GONE = "it is removed, so nobody looks into its files"


def report_on(hutch: Recorded, name: str, since: float | None, *, verify: bool, files: bool) -> Report:
    """The report on a workspace, also on one of which the home is kept: see `Hutch.report`."""
    record, made = _found(hutch, name), time.time()
    if os.geteuid() == 0:
        fold(hutch.layout, name)
        fold_connections(hutch.layout)
    entries = (line.entry for line in read_record(hutch.layout, name, since or 0.0))
    report = summarize(name, entries, made=made, since=since)
    wrong = tuple(map(str, damages(hutch.layout, name, newest=None if verify else 1)))
    report = replace(report, damages=wrong, is_verified=verify, is_end_known=read_head(hutch.layout, name) is not None)
    if record is not None and is_local(record.wanted):
        report = replace(report, peaks=report.peaks.joined(_peaks_now(hutch, name)))
    return _with_changes(hutch, record, report) if files else report


def _found(hutch: Recorded, name: str) -> Record | None:
    """Its record, None for a removed one whose events are kept. UsageError where there is neither; for a member whom
    root works for, also where it is not known to be theirs."""
    if member.acting is not None:
        # Spares the start-up of `hutch report` for everybody else.
        from hutch.apply.membership import refuse_others

        refuse_others(hutch.layout, [name])
    try:
        return hutch.record(name)
    except UsageError:
        is_theirs = member.acting is None or name in read_records(hutch.layout)
        if not is_theirs or name not in recorded_names(hutch.layout):
            raise
        return None


def _peaks_now(hutch: Recorded, name: str) -> Peaks:
    """What a workspace that runs has used so far. Without root, a host that mounts no cgroup2 cannot be asked."""
    # Spares the start-up of `hutch events`.
    from hutch.host.services.cgroup import Cgroup

    now = hutch.observe(name)
    if has_processes(now.state):
        with suppress(OSError), closing(Cgroup(now.cgroup)) as cgroup:
            return Peaks(*cgroup.spent())
    return Peaks()


def _with_changes(hutch: Recorded, record: Record | None, report: Report) -> Report:
    begin = report.since if report.since is not None else report.first
    if record is None:
        return replace(report, unseen=GONE)
    if not is_local(record.wanted):
        return replace(report, unseen=ELSEWHERE)
    if os.geteuid() != 0:
        return replace(report, unseen=BY_ROOT.format(name=report.workspace))
    # Spares the start-up of `hutch report` without root.
    from hutch.apply.sealed import look_for_changes

    return replace(report, changes=look_for_changes(hutch.layout, record, report.made if begin is None else begin))


def events_of(
    hutch: Recorded, names: Collection[str], since: float | None, *, follow: bool, until: Collection[int]
) -> Generator[dict[str, Any]]:
    """The events of workspaces, oldest first: see `Hutch.events`."""
    for name in names:
        _found(hutch, name)
    is_root = os.geteuid() == 0
    if is_root:
        fold_all(hutch.layout)
        fold_connections(hutch.layout)
    if not follow:
        yield from (_told(name, line) for name, line in _so_far(hutch, names, since or 0.0))
        return
    # Spares the start-up of `hutch report`.
    from hutch.audit import following

    seen: dict[str, Line] = {}
    folding = partial(fold, hutch.layout) if is_root else None
    with closing(following.follow(hutch.layout, names, until=until, fold=folding)) as coming:
        next(coming)  # from here on, none is missed
        for name, line in _so_far(hutch, names, since) if since is not None else ():
            seen[name] = line
            yield _told(name, line)
        for found in coming:
            if found is not None and not _is_told(found[1], seen.get(found[0])):
                yield _told(*found)


def _so_far(hutch: Recorded, names: Collection[str], since: float) -> Iterator[tuple[str, Line]]:
    """The lines that are there, by their times. Those of workspaces that the caller may not see are left out, unless it
    has named them."""
    each = [_lines(hutch, name, since, is_named=name in names) for name in names or recorded_names(hutch.layout)]
    return heapq.merge(*each, key=lambda found: found[1].entry.time)


def _lines(hutch: Recorded, name: str, since: float, *, is_named: bool) -> Iterator[tuple[str, Line]]:
    try:
        for line in read_record(hutch.layout, name, since):
            yield name, line
    except HutchError:
        if is_named:
            raise


def _is_told(line: Line, last: Line | None) -> bool:
    """Whether a line is among those up to the `last` that was told. A record that has begun anew has later times."""
    return last is not None and line.seq <= last.seq and line.entry.time <= last.entry.time


def _told(name: str, line: Line) -> dict[str, Any]:
    return {"workspace": name, "seq": line.seq, **line.entry.body, "hash": line.hash}
