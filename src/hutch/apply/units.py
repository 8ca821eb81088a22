"""Units of all workspaces, so that systemd can start each by itself: at boot, or when somebody tells it to; and the
host's own, which come before them and hold them together.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

from hutch.apply.launching import make_launch
from hutch.apply.serving import endpoints_of, in_force, wanted_services
from hutch.backends import is_machine
from hutch.errors import HutchError
from hutch.files import write_atomic
from hutch.host.hardware.accelerator import recall_accelerator
from hutch.host.services import units
from hutch.host.services.cgroup import memory_for_workspaces
from hutch.host.services.unit_texts import (
    PERIODS,
    START_SECONDS,
    occasional_units,
    refresh_units,
    render_fold,
    render_fold_timer,
    render_guards,
    render_network,
    render_refresh,
    render_refresh_timer,
    render_service,
    render_slice,
    render_target,
)
from hutch.host.storage.mountinfo import is_below
from hutch.plan.planner import pending_of
from hutch.runtime.control import manager_of, provide
from hutch.runtime.observe import observe_state, read_launch
from hutch.spec.model import Network
from hutch.spec.names import Layout
from hutch.spec.record import Record, holds_identity, served
from hutch.state import make_directory, write_record


def hand_over(layout: Layout, network: Network, records: Mapping[str, Record], *, is_unit: bool) -> None:
    """Have systemd, where it is, know all that is wanted, now that the host is reconciled."""
    if units.has_systemd():
        reconcile_units(layout, network, records)
        reconcile_host_units(layout, network, records, is_unit=is_unit)


def reconcile_units(layout: Layout, network: Network, records: Mapping[str, Record]) -> None:
    """Write the units of workspaces that do not run, as the records want them. One whose root would have to be made
    anew for that, or whose image is not there, keeps the units that it has. One that an older hutch started, whose
    script calls programs that are no more, has its next start described as it was started."""
    launches = []
    here = {name: record for name, record in served(records).items() if not record.ejected}
    resting = units.resting_units(map(layout.unit, here))
    for name, record in here.items():
        runs = layout.unit(name) not in resting or holds_identity(observe_state(layout, record))
        if runs and record.booted is not None and read_launch(layout.launch(name)) is None:
            record = replace(record, wanted=record.booted.workspace, image=record.booted.image)
        elif runs or pending_of(record) == "recreate":
            continue
        if not layout.image_root(record.image).is_dir():
            continue
        accelerator = recall_accelerator(layout) if is_machine(record.wanted) else None
        if is_machine(record.wanted) and accelerator is None:
            continue  # its first start tries what machines run under here
        with suppress(HutchError):
            launches.append(make_launch(layout, record, network, accelerator))
            if not runs and record != record.to_be_booted():  # as what it will have been started, whoever does so
                write_record(layout, record.to_be_booted())
    provide(layout, manager_of(layout), launches)


def wanted_host_units(layout: Layout, network: Network, records: Mapping[str, Record]) -> dict[str, str]:
    """The host's own units: the target for all, the network, the shared services, the timers of the records and of
    images, and the guards at boot of what lies where anybody might look. Without systemd, none."""
    if not units.has_systemd():
        return {}
    serving = in_force(layout, records)
    endpoints = endpoints_of(serving, network)
    written = [path for record in serving.values() if not record.ejected for path in record.written]
    is_open = not all(is_below(path, str(layout.workspaces)) for path in written)
    timer, folding = layout.fold_units
    services = wanted_services(layout, network, is_watched=any(endpoint.policy.is_watched for endpoint in endpoints))
    return {
        layout.slice_of_all: render_slice(layout, memory_for_workspaces()),
        layout.target: render_target(layout),
        layout.network_unit: render_network(layout, sys.executable),
        timer: render_fold_timer(layout),
        folding: render_fold(layout, sys.executable),
        **({layout.guards_unit: render_guards(layout, sys.executable)} if is_open else {}),
        **{unit: text for period in refreshing(records) for unit, text in _refresh_texts(layout, period).items()},
        **{layout.service_unit(service.pid_file): render_service(service, layout) for service in services},
    }


def refreshing(records: Mapping[str, Record]) -> list[str]:
    """The periods in which images of workspaces are made anew."""
    return [period for period in PERIODS if due(records, period)]


def due(records: Mapping[str, Record], period: str) -> list[str]:
    """The workspaces whose images are made anew in that period. A container with a root that is kept has no use for a
    newer one; a machine has for its kernel."""
    asking = {name: record for name, record in served(records).items() if record.wanted.auto_refresh == period}
    return [n for n, r in asking.items() if not r.ejected and (is_machine(r.wanted) or not r.kept_root)]


def _refresh_texts(layout: Layout, period: str) -> dict[str, str]:
    timer, service = refresh_units(layout, period)
    return {timer: render_refresh_timer(layout, period), service: render_refresh(layout, sys.executable, period)}


def reconcile_host_units(layout: Layout, network: Network, records: Mapping[str, Record], *, is_unit: bool) -> None:
    """Have systemd know that the host is reconciled, now and when it boots. The network's own unit, if it calls this
    (`is_unit`), is known by its end; for everybody else, that unit finds that there is nothing left to do. The target
    is there to be stopped, with all that is part of it; the units that it wants are not started now."""
    own = wanted_host_units(layout, network, records)
    timers = [layout.fold_units[0], *(refresh_units(layout, period)[0] for period in refreshing(records))]
    units.ensure_units(own)
    units.remove_units(unit for unit in occasional_units(layout) if unit not in own)
    wanted = {layout.unit(name): record.wanted.autostart for name, record in served(records).items()}
    there = {unit: starts for unit, starts in wanted.items() if (units.directory() / unit).is_file()}
    enabled = (unit for unit in (layout.target, layout.guards_unit, *timers) if unit in own)
    units.enable_units({**dict.fromkeys(enabled, True), **there})
    make_directory(layout.run)
    if not layout.reconciled.exists():
        write_atomic(layout.reconciled, b"", is_lasting=False)
    if not is_unit:
        only = "--job-mode=ignore-dependencies"
        units.systemctl("start", only, layout.network_unit, layout.target, *timers, timeout=START_SECONDS)
