"""hutch: a machine of its own for every project, on one Linux host.

`import hutch` is the same engine that the command line uses: `hutch.load(path)`, `hutch.plan(config)`,
`hutch.up(config)`, and `hutch.Workspace(name)`; `hutch.aio` has the same names for asyncio. docs/library.md tells more.
Names are looked up on first use, so importing costs nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hutch import aio as aio
    from hutch.api import Hutch as Hutch
    from hutch.api import load as load
    from hutch.api import plan as plan
    from hutch.api import up as up
    from hutch.api.result import Copied as Copied
    from hutch.api.result import Result as Result
    from hutch.api.result import RunFailed as RunFailed
    from hutch.api.result import RunTimeout as RunTimeout
    from hutch.api.workspace import Workspace as Workspace
    from hutch.errors import ConfigError as ConfigError
    from hutch.errors import HutchError as HutchError
    from hutch.errors import Problem as Problem
    from hutch.errors import UsageError as UsageError
    from hutch.plan.actions import Action as Action
    from hutch.plan.actions import Change as Change
    from hutch.plan.actions import Plan as Plan
    from hutch.plan.actions import Repair as Repair
    from hutch.spec.model import Config as Config
else:
    from hutch import plan  # the layer: loaded later, it would take the place of the function of that name

    del plan

# Where each public name is defined.
_HOMES = {
    **dict.fromkeys(("Hutch", "load", "plan", "up"), "hutch.api"),
    **dict.fromkeys(("Copied", "Result", "RunFailed", "RunTimeout"), "hutch.api.result"),
    "Workspace": "hutch.api.workspace",
    **dict.fromkeys(("ConfigError", "HutchError", "Problem", "UsageError"), "hutch.errors"),
    **dict.fromkeys(("Action", "Change", "Plan", "Repair"), "hutch.plan.actions"),
    "Config": "hutch.spec.model",
}

__all__ = [*_HOMES, "aio"]  # noqa: PLE0604 - strings, all of them


if not TYPE_CHECKING:  # who checks types is to know a wrong name when he sees one

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name == "aio":
            return import_module("hutch.aio")
        if name not in _HOMES:
            raise AttributeError(f"module 'hutch' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)
