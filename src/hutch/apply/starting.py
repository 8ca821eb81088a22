"""Carries out plans: `execute` is the one way in which anything is stopped or started. Starting is the path that people
wait for, so it imports what reconciles the host only when it gets there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING

from hutch.apply.launching import make_launch
from hutch.apply.recording import Turned
from hutch.backends import is_machine
from hutch.engines import by_engine, elsewhere, here
from hutch.errors import HutchError, Unmet
from hutch.host.identity.holders import public_key_files
from hutch.host.network.namespace import has_namespace, look
from hutch.host.services.units import systemctl, waiting_mounts
from hutch.host.storage.share_checks import check_shares as check_directories
from hutch.host.storage.shares import has_mount_points
from hutch.plan.actions import Plan
from hutch.runtime import control
from hutch.runtime.control import Listener
from hutch.spec.model import Network, WorkspaceSpec
from hutch.spec.names import Layout
from hutch.spec.record import Record
from hutch.spec.refusing import refuse_files
from hutch.state import journaled, read_network, write_record

if TYPE_CHECKING:
    from hutch.backends.launch import Launch


MOUNT_SECONDS = 120.0  # systemd waits 90 for a device


class StartsFailed(Unmet):
    """Some workspaces did not come up; `failures` says why for each."""

    def __init__(self, failures: Mapping[str, str]) -> None:
        self.failures = dict(failures)
        super().__init__(
            f"{', '.join(failures)} did not start",
            details="\n".join(f"{name}: {why}" for name, why in failures.items()),
            resolution=f"see `hutch logs {next(iter(failures))}`; the next `hutch up` tries again",
        )


def execute(
    layout: Layout, plan: Plan, records: dict[str, Record], listen: Listener, between: Callable[[], None] = lambda: None
) -> None:
    """Stop what the plan stops, do what is to be done `between`, start what it starts. The caller holds the lock, and
    has undone what an earlier run left half done.

    The plan is noted first, so that the next run undoes it if this one is killed; but for a stop, which is nowhere half
    done. An `up` has records to write, and is noted for good.
    """
    changing = tuple(action.workspace for action in plan.actions if action.action not in ("no change", "stop"))
    is_lasting = plan.command == "up"
    turned, failures = Turned(layout, plan, records, listen, set()), dict[str, str]()
    with (
        turned.told(failures),
        journaled(layout, plan.command, changing, is_lasting=is_lasting) if changing else nullcontext(),
    ):
        if stopping := [action.workspace for action in plan.actions if action.stops]:
            turned.note_plan(stopping)
            stop(layout, {name: records[name] for name in stopping})
        if plan.command != "up":  # `up` tells by its plan
            for name in stopping:
                listen(name, "stopped", "")
        between()
        starting = {a.workspace: records[a.workspace] for a in plan.actions if a.starts and plan.start}
        failures |= start_elsewhere(layout, records, elsewhere(starting), listen)
        if own := here(starting):
            try:
                start(layout, plan.network, plan.file, records, own, listen, meanwhile=turned.note_plan)
            except StartsFailed as error:
                failures |= error.failures
        if failures:
            raise StartsFailed(failures)


def stop(layout: Layout, records: Mapping[str, Record]) -> None:
    """Stop workspaces, whoever runs them."""
    if own := here(records):
        control.stop_all(layout, own)
    for engine, theirs in by_engine(layout, records):
        engine.stop(theirs)


def start_elsewhere(
    layout: Layout, records: dict[str, Record], starting: Mapping[str, Record], listen: Listener
) -> dict[str, str]:
    """Start workspaces that this host does not run, once it knows their names and keys. Returns name -> why, for those
    that did not come up."""
    if not starting:
        return {}
    # Spares the start-up of `hutch start` for workspaces of this host.
    from hutch.apply.reconcile import reconcile_trust, reconcile_user_views

    reconcile_trust(layout, records)
    failures: dict[str, str] = {}
    for engine, theirs in by_engine(layout, starting):
        for name, record in theirs.items():
            records[name] = record.with_booted()
            write_record(layout, records[name])
        reconcile_user_views(layout, records)
        failures |= engine.start({name: records[name] for name in theirs}, listen)
    return failures


def start(
    layout: Layout,
    network: Network,
    file: str,
    records: dict[str, Record],
    names: Iterable[str],
    listen: Listener,
    *,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """Reconcile the host, and start workspaces side by side. Raises StartsFailed when any did not come up. `meanwhile`
    is called while they begin.

    On a host that is set up already, reconciling takes as long as the workspaces' own mounts do; so both are done at
    once, and no workspace joins the network before it is reconciled.
    """

    starting = [records[name] for name in names]
    refuse_lost_homes(starting)
    for record in starting:
        mount_shares(record, listen)
    accelerator = None
    if any(is_machine(record.wanted) for record in starting):
        # Spares the start-up of `hutch start` for containers.
        from hutch.apply.machines import prepare_machines

        accelerator = prepare_machines(layout, starting, listen)
    if not has_network(layout, network):
        # Spares the start-up of `hutch start`: it is done while the guest's own processes begin.
        from hutch.apply.reconcile import reconcile_host

        reconcile_host(layout, network, file, records)
    elif not all(_has_home_and_keys(layout, record) for record in starting):
        # Spares the start-up of `hutch start`, as above.
        from hutch.apply.reconcile import reconcile_homes, reconcile_keys

        reconcile_homes(layout, records)
        reconcile_keys(layout, records)

    def reconcile(connect: Callable[[], None]) -> None:
        with closing(look(layout)) as looking:  # the look goes on while the rest is imported
            # Spares the start-up of `hutch start`: it is done while the guest's own processes begin.
            from hutch.apply.reconcile import reconcile_host

            reconcile_host(layout, network, file, records, looking, connect)

    def make(name: str) -> Launch:
        if lacks_shell(layout, records[name]):
            shell = records[name].wanted.shell
            hint = f"add the package of {shell} to `packages`"
            listen(name, "warning", f"its image has no {shell}, so nobody can log in; {hint}")
        launch = make_launch(layout, records[name], network, accelerator)
        records[name] = records[name].with_booted()
        write_record(layout, records[name])
        return launch

    failures = control.start_all(layout, [record.name for record in starting], make, listen, reconcile, meanwhile)
    for record in starting:  # now that the host is reconciled
        if text := unlimited_home(layout, record):
            listen(record.name, "warning", text)
        for text in kept_files(layout, record):
            listen(record.name, "warning", text)
    if failures:
        raise StartsFailed(failures)


def refuse_lost_homes(starting: Iterable[Record]) -> None:
    """Refuse workspaces whose homes have come to this host, and are not there any more: no empty one counts instead."""
    lost = [r for r in starting if r.has_brought_home and not os.path.lexists(str(r.wanted.home))]
    if lost:
        what = "is gone, and the old one is kept where it was; `hutch rm --force` goes back to that"
        raise StartsFailed({record.name: f"its home {record.wanted.home} {what}" for record in lost})


def unlimited_home(layout: Layout, record: Record) -> str:
    """The reason why `disk` does not limit all of the home here, in words; "" where it does, or is not to."""
    home, size = record.wanted.home, record.wanted.disk
    if size is None or home is None:
        return ""
    # Spares the start-up of `hutch start` where no `disk` is set.
    from hutch.host.storage.quota import why_partly, why_unlimited

    if why := why_unlimited(home):
        return f"`disk` does not limit its home here: {why}"
    why = why_partly(home, record.uid_base, size, layout.quota(record.name))
    return f"`disk` does not limit all of its home: {why}" if why else ""


def kept_files(layout: Layout, record: Record) -> list[str]:
    """Sentences: the private files of which the workspace keeps its own, though the host has changed its."""
    if not any(mount.is_private for mount in record.wanted.mounts):
        return []
    # Spares the start-up of `hutch start` where nothing is private.
    from hutch.host.storage import private_files

    return private_files.kept_files(layout, record.name, record.wanted)


def lacks_shell(layout: Layout, record: Record) -> bool:
    """Whether the login user's shell is missing from the image. A root that is kept may have its own."""
    tree, shell = str(layout.image_root(record.image)), record.wanted.shell
    return record.wanted.persist != "all" and not any(os.path.lexists(f"{tree}{top}{shell}") for top in ("", "/usr"))


def check_shares(starting: Iterable[tuple[str, str, WorkspaceSpec]]) -> None:
    """Refuse to start workspaces, given as (file, name, workspace), whose directories are not as they must be."""
    workspaces = list(starting)
    problems = [
        (file, problem)
        for file, name, workspace in workspaces
        for problem in check_directories(f"workspaces.{name}", workspace)
    ]
    refuse_files(problems, {name: workspace.use for _, name, workspace in workspaces})


def mount_shares(record: Record, listen: Listener) -> None:
    """Have systemd mount the file systems of its directories, before any of these is made on a bare mount point. Where
    it cannot, the workspace will not start, and others may. What a member shares is there already: a path of theirs
    mounts nothing."""
    sources = () if record.member is not None else (mount.source for mount in record.wanted.mounts)
    for path in (str(record.wanted.home), *sources):
        if os.path.lexists(path):
            continue
        for unit in waiting_mounts(path):
            try:
                systemctl("start", unit, timeout=MOUNT_SECONDS)
            except HutchError as error:
                why = f"it lies on {unit}, which cannot be mounted: {error.details or error.brief}"
                listen(record.name, "warning", f"{path} is not there: {why}")
                break


def has_network(layout: Layout, network: Network) -> bool:
    """Whether there is the network that workspaces are to join."""
    before = read_network(layout)
    return before is not None and before.network == network and has_namespace(layout)


def _has_home_and_keys(layout: Layout, record: Record) -> bool:
    keys = (layout.host_key(record.name), *public_key_files(layout, record.wanted))
    return (
        record.booted is not None
        and os.path.isdir(str(record.wanted.home))
        and has_mount_points(record.wanted)
        and all(key.exists() for key in keys)
    )
