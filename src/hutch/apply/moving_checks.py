"""What is looked at on this host before a home moves: nothing is changed here."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from hutch.errors import HutchError
from hutch.spec.record import Record, served
from hutch.state import read_records

if TYPE_CHECKING:
    from hutch.spec.names import Layout


def check_unmounted(layout: Layout, record: Record) -> None:
    """Refuse a home of which other workspaces of this host mount something, which would go."""
    home = str(record.wanted.home)
    users = sorted(
        name
        for name, other in served(read_records(layout)).items()
        if name != record.name
        and any(
            mount.source == home or mount.source.startswith(f"{home}/")
            for mount in (*other.wanted.mounts, *other.effective.mounts)
        )
    )
    if users:
        raise HutchError(
            f"{', '.join(users)} mount {home}, or a part of it, which goes to a server",
            resolution=f"take these mounts out of {', '.join(users)}, and start them anew",
        )


def check_vacant(layout: Layout, name: str) -> None:
    home = layout.home(name)
    if home.is_dir() and any(home.iterdir()):
        raise HutchError(
            f"{home} holds something already, so no home can come there",
            resolution=f"inspect it, and move it away; it belongs to no workspace {name} that hutch knows",
        )


def check_room(layout: Layout, name: str, size: int) -> None:
    found = os.statvfs(
        next(path for path in (layout.workspace(name), *layout.workspace(name).parents) if path.is_dir())
    )
    free = found.f_bavail * found.f_frsize
    if size > free:
        raise HutchError(f"the home of {name} has {size} bytes, and {layout.workspaces} has {free} left")
