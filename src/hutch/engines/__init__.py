"""The engines: who runs a workspace. This host runs those without a place; the others are a server's, and an engine
reaches them there (protocols.py says how).

An engine is chosen here, by the name that a record or a plan has; other code asks whether this host runs a workspace
(`is_local`). A new one is a package beside this file, with a line in ENGINES, and in ABILITIES for what it can do
beside that. `Place` (spec/record.py) and the table in hutch.toml are Incus's so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, cast

from hutch.errors import HutchError
from hutch.runtime.observe import observe
from hutch.spec.record import Observation, Record, is_local

if TYPE_CHECKING:
    from hutch.engines.protocols import Engine, Mover, Snapshots
    from hutch.plan.actions import Wanted
    from hutch.spec.names import Layout


class Misplaced(HutchError):
    """A server has no such place as the file says, by the `key` of the engine's table."""

    def __init__(self, brief: str, *, key: str, details: str = "", resolution: str = "") -> None:
        super().__init__(brief, details=details, resolution=resolution)
        self.key = key


class CutShort(HutchError):
    """A connection has ended before all had come. Nothing else is wrong, so it may go well the next time."""


def nobody(text: str) -> None:
    """A listener that does not care."""


listener: Callable[[str], None] = nobody
"""A callback that gets what a user should know of the way to a server; the command line sets it."""

ENGINES = {"incus": ("hutch.engines.incus", "IncusEngine")}
"""engine -> (module, class); a module is imported only for its own workspaces."""
ABILITIES = {
    "snapshots": {"incus": ("hutch.engines.incus.snapshots", "IncusSnapshots")},
    "moves": {"incus": ("hutch.engines.incus.moving", "mover_of")},
}
"""Abilities that not every engine has: ability -> engine -> (module, class or function)."""


def mover_of(layout: Layout, record: Record) -> Mover:
    """A workspace's side of a move. Raises HutchError where its engine has none."""
    found = ABILITIES["moves"].get(record.wanted.engine)
    if found is None:
        raise HutchError(f"{record.name}: workspaces are not moved to or from where it is")
    module, function = found
    return cast("Mover", getattr(import_module(module), function)(layout, record))


def snapshots_of(layout: Layout, record: Record) -> Snapshots | None:
    """The snapshots of a workspace; None where its engine has none."""
    found = ABILITIES["snapshots"].get(record.wanted.engine)
    if found is None:
        return None
    module, kind = found
    return cast("Snapshots", getattr(import_module(module), kind)(layout))


def need_snapshots(layout: Layout, record: Record) -> Snapshots:
    """The same. Raises HutchError where its engine has none."""
    found = snapshots_of(layout, record)
    if found is None:
        raise HutchError(
            f"{record.name}: hutch takes no snapshots of the workspaces that this host runs yet",
            resolution="those of an Incus server have snapshots",
        )
    return found


def engine_of(layout: Layout, record: Record) -> Engine:
    """The engine of a workspace that this host does not run."""
    return _load(layout, record.wanted.engine)


def _load(layout: Layout, name: str) -> Engine:
    module, kind = ENGINES[name]
    return cast("Engine", getattr(import_module(module), kind)(layout))


def elsewhere(records: Mapping[str, Record]) -> dict[str, Record]:
    """The records of those that this host does not run."""
    return {name: record for name, record in records.items() if not is_local(record.wanted)}


def here(records: Mapping[str, Record]) -> dict[str, Record]:
    """The records of those that this host runs."""
    return {name: record for name, record in records.items() if is_local(record.wanted)}


def by_engine(layout: Layout, records: Mapping[str, Record]) -> Iterator[tuple[Engine, dict[str, Record]]]:
    """The engines that run any of these workspaces, each with its own; this host's are left out."""
    there = elsewhere(records)
    for name in dict.fromkeys(record.wanted.engine for record in there.values()):
        yield _load(layout, name), {n: record for n, record in there.items() if record.wanted.engine == name}


def wanted_by_engine(layout: Layout, wanted: Mapping[str, Wanted]) -> Iterator[tuple[Engine, dict[str, Wanted]]]:
    """The engines that are to run any of these workspaces, each with its own; this host's are left out."""
    there = {name: target for name, target in wanted.items() if not is_local(target.workspace)}
    for engine in dict.fromkeys(target.workspace.engine for target in there.values()):
        yield _load(layout, engine), {n: target for n, target in there.items() if target.workspace.engine == engine}


def observe_all(layout: Layout, records: Mapping[str, Record]) -> dict[str, Observation]:
    """The observations of workspaces, whoever runs them."""
    seen = {name: observe(layout, name) for name in here(records)}
    for engine, theirs in by_engine(layout, records):
        seen |= engine.observe(theirs)
    return {name: seen[name] for name in records}
