"""hutch: a machine of its own for every project, on one Linux host.

`import hutch` is the same engine that the command line uses: `hutch.load(path)`, `hutch.plan(config)`,
`hutch.up(config)`, and `hutch.Workspace`. Names are looked up on first use, so importing costs nothing.
"""

from __future__ import annotations

__all__ = ["Hutch", "HutchError", "Workspace", "load", "plan", "up"]

HOMES = {"HutchError": "hutch.errors", "Workspace": "hutch.api.workspace"}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'hutch' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(HOMES.get(name, "hutch.api")), name)
