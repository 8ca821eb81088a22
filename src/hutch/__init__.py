"""hutch: a machine of its own for every project, on one Linux host.

`import hutch` is the same engine that the command line uses: `hutch.load(path)`, `hutch.plan(config)`,
`hutch.up(config)`, and `hutch.Workspace`. Names are looked up on first use, so importing costs nothing.
"""

from __future__ import annotations

__all__ = ["Hutch", "HutchError", "Workspace", "load", "plan", "up"]


def __getattr__(name: str) -> object:
    if name == "HutchError":
        from hutch.errors import HutchError

        return HutchError
    if name in __all__:
        from hutch import api

        return getattr(api, name)
    raise AttributeError(f"module 'hutch' has no attribute {name!r}")
