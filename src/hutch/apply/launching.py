"""Launches: made from a workspace's record, and from the host's keys and hardware for it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from hutch.backends import is_machine
from hutch.errors import HutchError
from hutch.files import read_or_none
from hutch.host.identity.ssh import key_holders, owner_of
from hutch.host.services.units import has_machined
from hutch.spec.model import Network
from hutch.spec.names import PACKAGE, Layout
from hutch.spec.record import Record

if TYPE_CHECKING:
    from hutch.backends.launch import Launch, Surroundings
    from hutch.host.hardware.accelerator import Accelerator


def public_keys(layout: Layout, record: Record) -> list[Path]:
    """The files of hutch's own keys that open the workspace."""
    holders = key_holders(record.wanted.authorized_keys, record.wanted.uid)
    return [layout.key(uid).with_name("id_ed25519.pub") for uid in holders]


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

    keys = []
    for path in public_keys(layout, record):
        text = read_or_none(path)
        if text is None:  # without the key, somebody could not log in
            raise HutchError(f"{path} is not there", resolution=f"`hutch up {record.name}` makes it")
        keys.append(text.decode("ascii", "replace").strip())
    surroundings = surroundings_of(layout, record, network, tuple(keys), accelerator)
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

        hardware = hardware_of(layout, record.image, accelerator)
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
    )
