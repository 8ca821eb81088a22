"""What `ls` and `status` tell of a workspace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hutch.runtime.observe import Observation
    from hutch.state import Record


def describe(record: Record, now: Observation, facts: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A workspace as `hutch status --json` shows it (docs: interface, machine-readable state). `facts` are those of a
    machine that runs."""
    facts = facts or {}
    return {
        "name": record.name,
        "type": record.wanted.type,
        "engine": record.wanted.engine,
        "state": now.state,
        "ip": record.wanted.ip,
        "mac": record.wanted.mac,
        "cid": record.wanted.cid if record.wanted.type == "vm" else None,
        "image": record.wanted.image,
        "image_id": record.image,
        "home": record.wanted.home,
        "user": record.wanted.user,
        "hypervisor": facts.get("hypervisor"),
        "accelerator": facts.get("accelerator"),
        "pid": now.pid,
        "since": now.since,
        "ready_seconds": now.ready_seconds,
        "start_kind": "cold" if now.ready_seconds is not None else None,
        "autostart": record.wanted.autostart,
        "egress": list(egress) if isinstance(egress := record.wanted.egress, tuple) else egress,
        "learn": record.wanted.learn,
        "pending": pending_of(record) if now.state == "running" else "none",
        "reason": now.reason,
        "warnings": list(now.warnings),
        "file": record.file,
    }


def pending_of(record: Record) -> str:
    from hutch.plan.actions import Wanted
    from hutch.plan.planner import pending

    if record.booted is None or (record.booted.workspace == record.wanted and record.booted.image == record.image):
        return "none"
    booted = Wanted(record.booted.workspace, record.booted.image)
    return pending(booted, Wanted(record.wanted, record.image), record.booted.memory)
