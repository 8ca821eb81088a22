"""Connections from this host to port 22 of workspaces, as the router has met them, by whatever program.

The router's rules put each into a set, where it stays for an hour. Nobody waits for them: who keeps records looks now
and then, and notes what it has seen.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field

from hutch.files import held, read_or_none, write_atomic
from hutch.frozen import dataclass
from hutch.host.network.firewall import MET, MET_SECONDS, MET_SIZE
from hutch.host.network.namespace import has_namespace, inside
from hutch.run import run
from hutch.spec.names import Layout

SAME = 3.0  # seconds by which the time of one connection may differ between two looks: the kernel tells whole ones
FULL = MET_SIZE * 99 // 100  # those that have just run out take a place a little longer, and are not listed


@dataclass(frozen=True)
class Connection:
    """A connection that was opened at `time` (Unix time) to port 22 of `ip`, from `port` of this host."""

    ip: str
    port: int
    time: float

    @property
    def key(self) -> str:
        return f"{self.ip}:{self.port}"


@dataclass(frozen=True)
class Met:
    """What a look has found that none before it had: connections, oldest first, and that there is no room for more."""

    connections: tuple[Connection, ...] = ()
    is_full: bool = False


@dataclass(frozen=True)
class _Noted:
    """What the last look has seen: the times of connections by their keys, and whether there was room for more."""

    times: Mapping[str, float] = field(default_factory=dict)
    is_full: bool = False


@contextmanager
def new_connections(layout: Layout) -> Iterator[Met]:
    """What no look before this one has seen, for root. Nobody else looks meanwhile, and it counts as seen when the
    caller is done with it: who is killed before has them seen again. OSError if another look takes too long."""
    if not has_namespace(layout):
        yield Met()
        return
    with held(layout.services / "met.lock"):
        asked = time.time()  # how long the answer takes to come has no part in its times
        found = parse(run(inside(layout, ["nft", "-j", "list", "set", "inet", layout.table, MET])).stdout, asked)
        before, now = _noted(layout), _Noted({each.key: each.time for each in found}, len(found) >= FULL)
        fresh = tuple(each for each in found if abs(before.times.get(each.key, 0.0) - each.time) > SAME)
        yield Met(fresh, now.is_full and not before.is_full)
        if fresh or now.is_full != before.is_full:
            write_atomic(layout.services / "met.json", json.dumps(vars(now)).encode(), mode=0o600, is_lasting=False)


def parse(listing: str, now: float) -> list[Connection]:
    """The connections in what nft lists as JSON, oldest first."""
    bodies = (entry["set"] for entry in json.loads(listing or '{"nftables": []}')["nftables"] if "set" in entry)
    elements = (element["elem"] for body in bodies for element in body.get("elem", ()) if "elem" in element)
    found = (
        Connection(str(element["val"]["concat"][0]), int(element["val"]["concat"][1]), now - left)
        for element in elements
        if 0 <= (left := MET_SECONDS - element.get("expires", 0)) <= MET_SECONDS
    )
    return sorted(found, key=lambda each: each.time)


def _noted(layout: Layout) -> _Noted:
    try:
        return _Noted(**json.loads(read_or_none(layout.services / "met.json") or b"{}"))
    except (ValueError, TypeError):  # another hutch's
        return _Noted()
