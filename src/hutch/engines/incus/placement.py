"""Pure: the members of a cluster that new workspaces are put on. Workspaces that are there stay where they are."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Sequence

from hutch.frozen import dataclass


@dataclass(frozen=True)
class Candidate:
    """A member of a cluster. `scheduler` is Incus's setting scheduler.instance: "all", "group" (only who names a group
    of it), or "manual" (only who names it). `instances` are all that it has, `free` are bytes of its memory."""

    name: str
    is_online: bool
    architecture: str
    scheduler: str = "all"
    groups: tuple[str, ...] = ()
    instances: int = 0
    free: int = 0


def eligible(candidates: Iterable[Candidate], target: str, architecture: str) -> list[Candidate]:
    """The members that may get new workspaces. `target` is "auto", a member's name, or "@" and a group's."""
    able = [each for each in candidates if each.is_online and each.architecture in ("", architecture)]
    if target == "auto":
        return [each for each in able if each.scheduler == "all"]
    if target.startswith("@"):
        return [each for each in able if target[1:] in each.groups and each.scheduler != "manual"]
    return [each for each in able if each.name == target]


def place_all(names: Sequence[str], candidates: Collection[Candidate]) -> dict[str, str]:
    """Name -> member for new workspaces: each goes where the fewest instances are, then where most memory is free."""
    loads = [(each.instances, -each.free, each.name) for each in candidates]
    heapq.heapify(loads)
    placed = {}
    for name in names:
        count, free, member = loads[0]
        placed[name] = member
        heapq.heapreplace(loads, (count + 1, free, member))
    return placed
