"""hutch: a machine of its own for every project, on one Linux host.

`import hutch` is the same engine that the command line uses: `hutch.load(path)`, `hutch.plan(config)`,
`hutch.up(config)`, and `hutch.Workspace(name)`; `hutch.aio` has the same names for asyncio. docs/library.md tells more.
Names are looked up on first use, so importing costs nothing.
"""

from __future__ import annotations

import os as _os
import sys as _sys

# Packages that a distribution lacks, or has in older versions: hutch's own package for it brings them along. They come
# first in hutch's own programs, which are isolated, and elsewhere after what is the importing program's own. Installed
# in other ways, hutch has none.
_here = _os.path.dirname(__file__)
if _os.path.isdir(f"{_here}/vendor"):
    _parent = _os.path.dirname(_here)
    _is_guest = not _sys.flags.isolated and _parent in _sys.path
    _sys.path.insert(_sys.path.index(_parent) if _is_guest else 0, f"{_here}/vendor")

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hutch import aio
    from hutch.access.listening import Forward, ForwardEvent, Listener
    from hutch.api import Hutch, load, plan, up
    from hutch.api.result import Copied, Fetched, FetchedBranch, Result, RunFailed, RunTimeout
    from hutch.api.workspace import Workspace
    from hutch.clones.notes import Clone
    from hutch.errors import ConfigError, HutchError, Problem, Untrusted, UsageError
    from hutch.plan.actions import Action, Change, Plan, Repair
    from hutch.spec.model import Config
else:
    from hutch import plan  # the layer: loaded later, it would take the place of the function of that name

    del plan

__all__ = ["Hutch", "Workspace", "aio", "load", "plan", "up"]
__all__ += ["Copied", "Result", "RunFailed", "RunTimeout"]
__all__ += ["Clone", "Fetched", "FetchedBranch"]
__all__ += ["Forward", "ForwardEvent", "Listener"]
__all__ += ["ConfigError", "HutchError", "Problem", "Untrusted", "UsageError"]
__all__ += ["Action", "Change", "Config", "Plan", "Repair"]

# The module of each public name that is not defined in hutch.api.
_HOMES = {
    **dict.fromkeys(("Copied", "Fetched", "FetchedBranch", "Result", "RunFailed", "RunTimeout"), "hutch.api.result"),
    "Clone": "hutch.clones.notes",
    **dict.fromkeys(("Forward", "ForwardEvent", "Listener"), "hutch.access.listening"),
    "Workspace": "hutch.api.workspace",
    **dict.fromkeys(("ConfigError", "HutchError", "Problem", "Untrusted", "UsageError"), "hutch.errors"),
    **dict.fromkeys(("Action", "Change", "Plan", "Repair"), "hutch.plan.actions"),
    "Config": "hutch.spec.model",
}


if not TYPE_CHECKING:  # a type checker is to know a wrong name when it sees one

    def __getattr__(name: str) -> object:
        from importlib import import_module as _import  # spares the start-up of each small program of hutch's

        if name == "aio":
            return _import("hutch.aio")
        if name not in __all__:
            raise AttributeError(f"module 'hutch' has no attribute {name!r}")
        return getattr(_import(_HOMES.get(name, "hutch.api")), name)
