"""Checks of what this host must have, and be able to do, before a virtual machine starts. They change nothing.

Workspaces are given as (file, name, workspace); those that are no machines of this host have nothing to fear here, and
cost nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from hutch.backends import alternatives, backends_of, check_named, is_machine
from hutch.errors import HutchError, Problem
from hutch.host.doctor.tools import MACHINE_TOOLS, TOO_OLD, check_tools, old_virtiofsd
from hutch.host.hardware.capacity import check_host, observe_capacity
from hutch.host.hardware.vsock import DEVICE, has_vsock
from hutch.spec.model import WorkspaceSpec
from hutch.spec.refusing import refuse_files

if TYPE_CHECKING:
    from hutch.host.hardware.accelerator import Accelerator
    from hutch.plan.actions import Plan
    from hutch.runtime.control import Listener
    from hutch.spec.names import Layout
    from hutch.spec.record import Record

Starting = tuple[str, str, WorkspaceSpec]


def machines_of(starting: Iterable[Starting]) -> list[Starting]:
    return [item for item in starting if is_machine(item[2])]


def prepare_machines(layout: Layout, records: Iterable[Record], listen: Listener) -> Accelerator:
    """The accelerator of the machines among `records`, once nothing speaks against starting them. None of them runs.
    The caller holds the lock."""
    # Spares the start-up of `hutch up` for containers.
    from hutch.host.hardware.accelerator import describe_accelerator

    machines = [record for record in records if is_machine(record.wanted)]
    accelerator = check_accelerator(layout, [((r.file, r.name, r.wanted), r.image) for r in machines])
    if text := describe_accelerator(accelerator):
        listen(", ".join(record.name for record in machines), "warning", text)
    asking = [record.name for record in machines if record.wanted.vsock]
    if asking and not has_vsock():
        listen(", ".join(asking), "warning", f"no vsock: this host has no {DEVICE}, nor the module for it")
    return accelerator


def check_accelerator(layout: Layout, machines: Sequence[tuple[Starting, str]]) -> Accelerator:
    """Refuse machines, each given with its image, that name a hypervisor which this host has not; returns what all of
    them run under. The caller holds the lock."""
    # Spares the start-up of `hutch up` for containers.
    from hutch.apply.hardware import accelerator_of, hardware_of

    accelerator = accelerator_of(layout, machines[0][1])
    check_hypervisors((machine for machine, _ in machines), accelerator)
    refuse_files(
        (file, problem)
        for (file, name, workspace), image in machines
        for problem in check_named(name, workspace, hardware_of(layout, image, accelerator, with_vsock=workspace.vsock))
    )
    return accelerator


def check_machines(starting: Iterable[Starting]) -> None:
    """Refuse machines that this host is too small for, has not the programs for, or is of the wrong kind for. Needs no
    image, so it comes before one is built, and before anything is stopped."""
    machines = machines_of(starting)
    if not machines:
        return
    # Spares the start-up of `hutch up` for containers.
    from hutch.host.hardware.accelerator import ARCHITECTURES

    names, architecture = ", ".join(name for _, name, _ in machines), os.uname().machine
    if architecture not in ARCHITECTURES:
        only = " or ".join(ARCHITECTURES)
        raise HutchError(
            f"{names}: virtual machines run on {only} only so far, and this host is {architecture}",
            resolution='type = "container" runs here',
        )
    capacity = observe_capacity()
    refuse_files(
        (file, problem)
        for file, name, workspace in machines
        for problem in check_host({name: workspace}, capacity.memory, capacity.cpus)
    )
    check_tools(MACHINE_TOOLS, f"{names}: this host cannot run virtual machines yet")
    if old := old_virtiofsd():
        raise HutchError(f"{names}: {TOO_OLD.format(old)}", resolution='install a newer one, or type = "container"')
    # Spares the start-up of `hutch up` for containers.
    from hutch.images.machine import find_firmware

    find_firmware()


def check_hypervisors(starting: Iterable[Starting], accelerator: Accelerator) -> None:
    """Refuse a hypervisor that cannot do without KVM where there is none. Comes once the accelerator is known."""
    if accelerator.name == "kvm":
        return
    why = "needs KVM, under which no guest runs on this host; `hutch doctor` tells the reason"
    refuse_files(
        (file, Problem(why, f"workspaces.{name}.hypervisor", workspace.hypervisor, f"use {alternatives(workspace)}"))
        for file, name, workspace in machines_of(starting)
        if all(backend.TRAITS.needs_kvm for backend in backends_of(workspace))
    )


def check_new_machines(layout: Layout, plan: Plan) -> None:
    """Refuse the hypervisors of a plan's new machines before anything is touched."""
    wanted = {a.workspace: a.wanted for a in plan.actions if a.starts and a.wanted and is_machine(a.wanted.workspace)}
    machines = {name: (plan.file, name, item.workspace) for name, item in wanted.items()}
    if machines:
        check_accelerator(layout, [(machines[name], item.image) for name, item in wanted.items()])
