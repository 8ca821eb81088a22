"""Origins: the kits that the reasons of a plan come from, and the ceiling of members. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hutch.plan.actions import Action, Change
from hutch.spec.model import Brought, Clamped


def with_kits(action: Action, before: Brought, brought: Brought) -> Action:
    """The action, each of its reasons with the kits that it comes from: those that bring something now, and those that
    did `before`. A new workspace has one reason for all, so notes tell there what its kits bring."""
    if not brought and not before:
        return action
    notes = tuple(brought_words(brought)) if action.action == "create" else ()
    reasons = tuple(replace(change, kits=kits_behind(change, before, brought)) for change in action.reasons)
    return replace(action, reasons=reasons, notes=(*notes, *action.notes))


def kits_behind(change: Change, *sides: Brought) -> tuple[str, ...]:
    """The kits with an entry, or a script, that only one of the two values has."""
    found = (
        kit
        for brought in sides
        for kit, entries in brought.get(change.key, {}).items()
        if any(_has(change.key, change.old, entry) != _has(change.key, change.new, entry) for entry in entries)
    )
    return tuple(dict.fromkeys(found))


def _has(key: str, value: Any, entry: Any) -> bool:
    """Whether a value holds an entry. Scripts are one text; any other text is a word."""
    return entry in value if isinstance(value, list) or (value and key == "setup") else False


def brought_words(brought: Brought) -> Iterator[str]:
    """A sentence for each kit of a workspace, with the keys that it has a part in."""
    kits = dict.fromkeys(kit for theirs in brought.values() for kit in theirs)
    for kit in kits:
        yield f"the kit {kit} brings {', '.join(key for key, theirs in brought.items() if kit in theirs)}"


def with_ceiling(action: Action, clamped: Clamped) -> Action:
    """The action, each of its reasons with the ceiling that its new value is, where the file leaves a key open. A new
    workspace has one reason for all, so notes tell it there."""
    if not clamped:
        return action
    reasons = tuple(replace(change, ceiling=clamped.get(change.key, "")) for change in action.reasons)
    notes = tuple(f"{key} is the ceiling's: {words}" for key, words in clamped.items())
    return replace(action, reasons=reasons, notes=(*(notes if action.action == "create" else ()), *action.notes))
