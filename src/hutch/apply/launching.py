"""Launches: made from a workspace's record, and from the host's keys and hardware for it."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from hutch.backends import is_machine
from hutch.host.identity.holders import read_public_keys
from hutch.host.identity.ssh import owner_of
from hutch.host.services.units import has_machined
from hutch.host.storage.bind import is_file
from hutch.spec.model import Network
from hutch.spec.names import PACKAGE, Layout
from hutch.spec.record import Record

if TYPE_CHECKING:
    from hutch.backends.launch import Launch, Surroundings
    from hutch.host.hardware.accelerator import Accelerator


def make_launch(
    layout: Layout,
    record: Record,
    network: Network,
    accelerator: Accelerator | None = None,
    *,
    ceiling: int | None = None,
) -> Launch:
    """The Launch of a workspace as recorded; a machine needs its accelerator, and one that runs already the memory that
    it was started with (`ceiling`)."""
    # Spares the start-up of `hutch start`: it is done while the runner loads itself.
    from hutch.backends import launch_of

    keys = read_public_keys(layout, record.name, record.wanted)
    surroundings = surroundings_of(layout, record, network, keys, accelerator)
    return launch_of(record.name, record.wanted, replace(surroundings, ceiling=ceiling))


def surroundings_of(
    layout: Layout,
    record: Record,
    network: Network,
    keys: tuple[str, ...],
    accelerator: Accelerator | None = None,
) -> Surroundings:
    """The facts that a backend needs beside the workspace itself; `keys` are hutch's own that open it."""
    # Spares the start-up of `hutch start`, as above.
    from hutch.backends.launch import Surroundings

    workspace = record.wanted
    gid, _ = owner_of(workspace.uid)
    hardware = None
    if accelerator is not None and is_machine(workspace):
        # Spares the start-up of `hutch start` for containers.
        from hutch.apply.hardware import hardware_of

        hardware = hardware_of(layout, record.image, accelerator, with_vsock=workspace.vsock)
    return Surroundings(
        layout=layout,
        network=network,
        image_root=str(layout.image_root(record.image)),
        uid_base=record.uid_base,
        owner_gid=gid,
        machine_id=record.machine_id,
        keys=keys,
        python=sys.executable,
        package=str(PACKAGE),
        hardware=hardware,
        has_machined=has_machined(),
        decisions=record.decisions,
        files=tuple(mount.source for mount in workspace.mounts if is_file(mount.source)),
        member=record.member,
    )
