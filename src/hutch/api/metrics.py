"""The state of workspaces as a page of metrics, for a collector that reads files: OpenMetrics text, of gauges alone,
which node_exporter's older parser takes too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, get_args

from hutch.apply.recording import fold_connections
from hutch.audit.events import Entry, why_wrong
from hutch.audit.inbox import fold_all
from hutch.audit.reading import read_record
from hutch.errors import HutchError
from hutch.frozen import dataclass
from hutch.spec.record import State, has_processes

if TYPE_CHECKING:
    from hutch.api.recorded import Recorded

DAY = 86_400.0  # seconds


@dataclass(frozen=True)
class Used:
    """What a workspace uses now, and what its record tells of the last day; None where nobody could tell."""

    memory: int | None = None
    starts: int | None = None
    refusals: int | None = None


FAMILIES = {
    "info": "its type, its engine, its image, and the member of a cluster that runs it",
    "state": "1 for the state that it is in",
    "since_seconds": "Unix time since which it is in this state",
    "ready_seconds": "time from its last start until it was ready",
    "memory_bytes": "memory in use, with the cache of its files",
    "updates": "security updates that wait for its image, when that was asked last",
    "warnings": "warnings of `hutch status`",
    "day_starts": "starts of the last 24 hours, reboots among them, by its record",
    "day_refusals": "names and connections that were refused in the last 24 hours, by its record",
}
"""The name of each family behind "hutch_workspace_", and its help."""


def metrics_of(hutch: Recorded, entries: Iterable[dict[str, Any]]) -> str:
    """The page about these entries of `hutch status --json`. For root, what others have told is recorded first."""
    if os.geteuid() == 0:
        fold_all(hutch.layout)
        fold_connections(hutch.layout)
    chosen = {entry["name"]: entry for entry in entries}
    return render_metrics([(entry, _used(hutch, entry)) for entry in chosen.values()])


def _used(hutch: Recorded, entry: Mapping[str, Any]) -> Used:
    if entry["state"] == "absent":
        return Used()
    try:
        lines = read_record(hutch.layout, entry["name"], time.time() - DAY)
        starts, refusals = count(line.entry for line in lines)
    except (HutchError, OSError):  # it has none yet, or it is not the caller's to read
        return Used(_memory(hutch, entry))
    return Used(_memory(hutch, entry), starts, refusals)


def _memory(hutch: Recorded, entry: Mapping[str, Any]) -> int | None:
    """Bytes; None for one that does not run here, or is gone by now."""
    if entry["engine"] != "local" or not has_processes(entry["state"]):
        return None
    # Spares the start-up of `hutch status`.
    from hutch.host.services.cgroup import Cgroup

    with suppress(HutchError, OSError), closing(Cgroup(hutch.observe(entry["name"]).cgroup)) as cgroup:
        return cgroup.memory_in_use()
    return None


def count(entries: Iterable[Entry]) -> tuple[int, int]:
    """The starts, and the refused names and connections, that events of a record tell of."""
    starts = refusals = 0
    for entry in entries:
        if why_wrong(entry.event, entry.values):  # somebody else's, or a later hutch's
            continue
        starts += entry.event == "started"
        if entry.event == "egress" and entry.values["verdict"] == "refused":
            refusals += entry.values["count"]
    return starts, refusals


def render_metrics(found: Iterable[tuple[Mapping[str, Any], Used]]) -> str:
    """The page about entries of `hutch status --json`, each with what is used. What nobody knows has no sample."""
    samples: dict[str, list[str]] = {family: [] for family in FAMILIES}
    for entry, used in found:
        for family, labels, value in _samples(entry, used):
            words = ",".join(
                f'{key}="{_escaped(text)}"' for key, text in {"workspace": entry["name"], **labels}.items()
            )
            samples[family].append(f"hutch_workspace_{family}{{{words}}} {value}")
    lines = []
    for family, text in FAMILIES.items():
        name = f"hutch_workspace_{family}"
        lines += [f"# HELP {name} {text}", f"# TYPE {name} gauge", *samples[family]]
    return "\n".join([*lines, "# EOF", ""])


def _samples(entry: Mapping[str, Any], used: Used) -> Iterator[tuple[str, Mapping[str, str], float]]:
    about = ("type", "engine", "image", "member")
    yield "info", {key: entry[key] or "" for key in about}, 1
    for state in get_args(State):
        yield "state", {"state": state}, int(entry["state"] == state)
    values = {
        "since_seconds": entry["since"],
        "ready_seconds": entry["ready_seconds"],
        "memory_bytes": used.memory,
        "updates": entry["updates"],
        "warnings": len(entry["warnings"]),
        "day_starts": used.starts,
        "day_refusals": used.refusals,
    }
    for family, value in values.items():
        if value is not None:
            yield family, {}, value


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
