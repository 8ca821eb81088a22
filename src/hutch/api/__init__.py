"""The library that the command line uses: load, plan, up, and single workspaces.

Heavy parts are imported by the calls that need them, so that `hutch ls` stays fast. Nothing here prints;
what happens is told to a listener.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hutch.api.engine import Hutch, agreed, silent

if TYPE_CHECKING:
    from hutch.plan.actions import Plan
    from hutch.spec.model import Config
    from hutch.supervise.control import Listener

__all__ = ["Hutch", "agreed", "load", "plan", "up"]


def load(path: str | os.PathLike[str] | None = None) -> Config:
    """Read and validate a hutch.toml; without a path, the one that the command line would take."""
    return Hutch().load(Path(path) if path is not None else None)


def plan(config: Config, names: Sequence[str] = ()) -> Plan:
    """What `up` would do, and why."""
    return Hutch().plan(config, names)


def up(config: Config, names: Sequence[str] = (), *, listen: Listener = silent) -> Plan:
    """Plan and apply; returns when every workspace is ready for ssh."""
    return Hutch(listen=listen).up(config, names)
