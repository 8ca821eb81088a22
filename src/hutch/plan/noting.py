"""What is written down of an action, before anything on the host is made for it."""

from __future__ import annotations

from dataclasses import replace

from hutch.plan.actions import Action, Wanted
from hutch.state import Record


def noted(before: Record, action: Action, wanted: Wanted, file: str, origin: tuple[int, ...]) -> Record:
    """The record of a workspace that `file` wants like that from now on. What it is booted from stays until it starts
    again, unless its root goes with it."""
    return replace(
        before,
        file=file,
        wanted=wanted.workspace,
        image=wanted.image,
        booted=None if action.action == "recreate" else before.booted,
        removed=False,
        origin=origin,
    )
