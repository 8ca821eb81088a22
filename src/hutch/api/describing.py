"""Workspaces as `hutch status --json` shows them: by their records, and by what was observed. Starts in a blink."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hutch.spec.model import has_effect
from hutch.spec.record import freshness_of, state_of

if TYPE_CHECKING:
    from hutch.spec.record import Age, Observation, Record


def allowed_words(record: Record) -> list[str]:
    """What people have opened beside the list, and until when."""
    if not record.decisions:
        return []
    # Spares the start-up of `hutch ls`.
    from hutch.spec.decisions import standing, words
    from hutch.spec.policy import policy_of

    return [words(decision) for decision in standing(record.decisions, policy_of(record.wanted), time.time())]


def shared_words(record: Record) -> list[str]:
    """Who sees and enters it beside its owner, by name."""
    if not record.wanted.share_with:
        return []
    # Spares the start-up of `hutch ls`.
    from hutch.spec.sharing import holder_words

    return [holder_words(holder) for holder in record.wanted.share_with]


def describe(
    record: Record,
    now: Observation,
    facts: Mapping[str, str] | None = None,
    ages: Mapping[str, Age] | None = None,
) -> dict[str, Any]:
    """A workspace as `hutch status --json` shows it (docs: interface, machine-readable state). `facts` are those of a
    machine that runs, `ages` those of images."""
    facts, state, pending = facts or {}, state_of(record, now), "none"
    if state == "running" and record.booted != record.with_booted().booted:
        # Spares the start-up of `hutch ls`, for which nothing is pending as a rule.
        from hutch.plan.planner import pending_of

        pending = pending_of(record)
    fresh = freshness_of(record, now, ages or {})
    return {
        "name": record.name,
        "type": record.wanted.type,
        "engine": record.wanted.engine,
        "state": state,
        "ip": record.wanted.ip,
        "mac": record.wanted.mac,
        "cid": int(facts.get("cid", record.wanted.cid or 0)) or None if has_effect("cid", record.wanted.type) else None,
        "image": record.wanted.image,
        "image_id": record.image,
        "image_created": fresh.created,
        "updates": fresh.updates,
        "updates_asked": fresh.asked,
        "home": record.wanted.home,
        "user": record.wanted.user,
        "share_with": shared_words(record),
        "member": now.member,
        "hypervisor": facts.get("hypervisor"),
        "accelerator": facts.get("accelerator"),
        "pid": now.pid,
        "since": now.since,
        "ready_seconds": now.ready_seconds,
        "start_kind": "cold" if now.ready_seconds is not None else None,
        "autostart": record.wanted.autostart,
        "egress": list(egress) if isinstance(egress := record.wanted.egress, tuple) else egress,
        "learn": record.wanted.learn,
        "allowed": allowed_words(record),
        "publish": [str(item) for item in record.wanted.publish],
        "mounts": [mount.summary() for mount in record.wanted.mounts],
        "pending": pending,
        "reason": now.reason,
        "warnings": [
            *(f"{what}; {way}" for what, way in fresh.warnings),
            *([f"its move was cut short; `hutch up {record.name}` goes on, or back"] if record.moving else []),
        ],
        "file": record.file,
    }
