"""The library that the command line uses: load, plan, up, and single workspaces.

Heavy parts are imported by the calls that need them, so that `hutch ls` stays fast. Nothing here prints;
what happens is told to a listener.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hutch.api.engine import Hutch, Progress, silent
from hutch.errors import troubles_told
from hutch.spec.names import Layout

if TYPE_CHECKING:
    from hutch.plan.actions import Plan
    from hutch.runtime.control import Listener
    from hutch.spec.model import Config

__all__ = ["Hutch", "load", "plan", "silent", "up"]


def load(path: str | os.PathLike[str] | None = None, *, accepted: str | None = None) -> Config:
    """Read and validate a hutch.toml; without a path, the one that the command line would take.

    Raises ConfigError with all that is wrong with it. Nothing on the host is touched. A file in a checkout counts for
    nothing, and Untrusted is raised, unless the caller has accepted its content by `hutch trust`, or gives the SHA-256
    of a content that is `accepted`, in hex.
    """
    return Hutch().load(Path(path) if path is not None else None, accepted=accepted)


def plan(
    config: Config, names: Sequence[str] = (), *, start: bool = True, prune: bool = False, adopt: bool = False
) -> Plan:
    """The plan that `up` would carry out: for each workspace an action with its reasons. Changes nothing.

    `names` are the workspaces to look at, all of the file without; see `up` for the rest.
    """
    return Hutch().plan(config, names, start=start, prune=prune, adopt=adopt)


@troubles_told()
def up(
    config: Config,
    names: Sequence[str] = (),
    *,
    start: bool = True,
    prune: bool = False,
    adopt: bool = False,
    force: bool = False,
    listen: Listener = silent,
    progress: Progress = silent,
) -> Plan:
    """Make the host as the file says, and return the plan that was carried out: every workspace is ready for ssh then.

    With `start=False`, no stopped workspace is started; with `prune`, workspaces that the file has declared once and
    does not any more are removed; with `adopt`, workspaces of another file become this one's. Nobody is asked: the
    `disturbed` of a plan are those that it stops while somebody is at work. With `force`, git work outside of homes may
    be lost with the roots of workspaces; without, HutchError tells of it, and nothing was changed. `listen` is told
    (workspace, event, text) as it happens; events are "ready", "changed" (without a restart), "moved", "stopped",
    "removed", "undeleted", "snapshot", "restored", "forked", "failed", "warning" and "waiting" (for another hutch); ""
    stands for all. `progress` is told (image, stage, fraction from 0 to 1) while an image is built, and (workspace,
    stage, fraction) while a home is copied to another host. When interrupted, workspaces that are not ready yet are
    stopped.
    """
    # Spares the start-up of `hutch ls`.
    from hutch.api.job import Call, change

    options = {"start": start, "prune": prune, "adopt": adopt, "force": force}
    call = Call(Layout.from_environment(), "up", {"config": config, "names": tuple(names), **options})
    plan: Plan = change(call, listen=listen, progress=progress)
    return plan
