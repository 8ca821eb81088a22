"""The part of `hutch status` that takes a look at the host: damage, and the paths that workspaces cannot change."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing, suppress
from functools import cache
from typing import Any

from hutch.errors import HutchError
from hutch.host.network import namespace
from hutch.host.storage.protected import list_protected, protected_paths
from hutch.spec.names import Layout
from hutch.spec.record import Record
from hutch.state import read_network, read_records


def look(layout: Layout, records: Mapping[str, Record], entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries with damage among their warnings, as far as the caller may see it, and with `protected`: paths on the
    host that the workspace cannot change, though it is shown what is around them to be written."""
    damages = find_damages(layout)
    find = cache(list_protected)  # which lasts, and many workspaces may share one checkout
    return [
        {**entry, "warnings": [*entry["warnings"], *damages.get(entry["name"], ())]}
        | {"protected": protected_paths(records[entry["name"]].effective, find) if entry["name"] in records else []}
        for entry in entries
    ]


def find_damages(layout: Layout) -> dict[str, list[str]]:
    """The damage on the host, in words, by workspace: differences to the state that hutch left. Only root can look."""
    if os.geteuid() != 0:
        return {}
    record = read_network(layout)
    looking, applied = None, record.network if record else None
    with ExitStack() as begun:
        if applied is not None:
            with suppress(HutchError):  # the look that is taken later says why there is none
                looking = begun.enter_context(closing(namespace.look(layout)))
        # Spares the start-up of `hutch status` without root; with root, the look goes on meanwhile.
        from hutch.apply.inspecting import warnings_of

        return warnings_of(layout, applied, read_records(layout), looking)
