"""Carries out plans: `execute` is the one way in which anything is stopped or started. Starting is the path that people
wait for, so it imports what reconciles the host only when it gets there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, nullcontext
from typing import TYPE_CHECKING

from hutch.apply.launching import make_launch, public_keys
from hutch.backends import is_machine
from hutch.errors import HutchError, Unmet
from hutch.host.network.namespace import has_namespace, look
from hutch.host.services.units import systemctl, waiting_mounts
from hutch.host.storage.shares import check_shares as check_directories
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
    with journaled(layout, plan.command, changing, is_lasting=is_lasting) if changing else nullcontext():
        if stopping := [action.workspace for action in plan.actions if action.stops]:
            control.stop_all(layout, stopping)
        if plan.command != "up":  # `up` tells by its plan
            for name in stopping:
                listen(name, "stopped", "")
        between()
        if starting := [action.workspace for action in plan.actions if action.starts and plan.start]:
            start(layout, plan.network, plan.file, records, starting, listen)


def start(
    layout: Layout, network: Network, file: str, records: dict[str, Record], names: Iterable[str], listen: Listener
) -> None:
    """Reconcile the host, and start workspaces side by side. Raises StartsFailed when any did not come up.

    On a host that is set up already, reconciling takes as long as the workspaces' own mounts do; so both are done at
    once, and no workspace joins the network before it is reconciled.
    """

    starting = [records[name] for name in names]
    for record in starting:
        mount_shares(record, listen)
    accelerator = None
    if any(is_machine(record.wanted) for record in starting):
        # Spares the start-up of `hutch start` for containers.
        from hutch.apply.machines import prepare_machines

        accelerator = prepare_machines(layout, starting, listen)
    if not is_prepared(layout, network, starting):
        # Spares the start-up of `hutch start`: it is done while the guest's own processes begin.
        from hutch.apply.reconcile import reconcile_host

        reconcile_host(layout, network, file, records)

    def reconcile(connect: Callable[[], None]) -> None:
        with closing(look(layout)) as looking:  # the look goes on while the rest is imported
            # Spares the start-up of `hutch start`: it is done while the guest's own processes begin.
            from hutch.apply.reconcile import reconcile_host

            reconcile_host(layout, network, file, records, looking, connect)

    def make(name: str) -> Launch:
        if lacks_shell(layout, records[name]):
            shell = records[name].wanted.shell
            listen(name, "warning", f"its image has no {shell}, so nobody can log in; add what has it to `packages`")
        launch = make_launch(layout, records[name], network, accelerator)
        records[name] = records[name].with_booted()
        write_record(layout, records[name])
        return launch

    failures = control.start_all(layout, [record.name for record in starting], make, listen, reconcile)
    for record in starting:  # now that the host is reconciled
        if text := unlimited_home(layout, record):
            listen(record.name, "warning", text)
    if failures:
        raise StartsFailed(failures)


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


def lacks_shell(layout: Layout, record: Record) -> bool:
    """Whether the login user's shell is missing from the image. A root that is kept may have its own."""
    tree, shell = str(layout.image_root(record.image)), record.wanted.shell
    return record.wanted.persist != "all" and not any(os.path.lexists(f"{tree}{top}{shell}") for top in ("", "/usr"))


def check_shares(starting: Iterable[tuple[str, str, WorkspaceSpec]]) -> None:
    """Refuse to start workspaces, given as (file, name, workspace), whose directories are not as they must be."""
    refuse_files(
        (file, problem)
        for file, name, workspace in starting
        for problem in check_directories(f"workspaces.{name}", workspace)
    )


def mount_shares(record: Record, listen: Listener) -> None:
    """Have systemd mount the file systems of its directories, before any of these is made on a bare mount point. Where
    it cannot, the workspace will not start, and others may."""
    for path in (str(record.wanted.home), *(mount.source for mount in record.wanted.mounts)):
        if os.path.lexists(path):
            continue
        for unit in waiting_mounts(path):
            try:
                systemctl("start", unit, timeout=MOUNT_SECONDS)
            except HutchError as error:
                why = f"it lies on {unit}, which cannot be mounted: {error.details or error.brief}"
                listen(record.name, "warning", f"{path} is not there: {why}")
                break


def is_prepared(layout: Layout, network: Network, starting: Iterable[Record]) -> bool:
    """Whether everything is there that a workspace needs before it joins the network."""
    before = read_network(layout)
    return (
        before is not None
        and before.network == network
        and has_namespace(layout)
        and all(_has_home_and_keys(layout, record) for record in starting)
    )


def _has_home_and_keys(layout: Layout, record: Record) -> bool:
    keys = (layout.host_key(record.name), *public_keys(layout, record))
    return (
        record.booted is not None
        and os.path.isdir(str(record.wanted.home))
        and has_mount_points(record.wanted)
        and all(key.exists() for key in keys)
    )
