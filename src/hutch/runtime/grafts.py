"""Directories that a container is shown once it has a PID 1, and that come and go while it runs: see Graft in
backends/launch. Part of the supervisor, in whose mount namespace they are bound first.

A mount that is taken away is gone wherever the guest has moved it in its main mount namespace. What root inside has
taken into another one, or holds open, stays with it until the workspace restarts.
"""

from __future__ import annotations

import os
import time

from hutch.host.storage.mountinfo import is_below, observe_mountinfo, parse_mountinfo
from hutch.runtime.steps import SideBySide, StartFailed

TYPE_CHECKING = False  # see runtime/status
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    Graft = dict[str, Any]

MOST_TEXT = 4 << 20  # characters of a guest's mountinfo, which it can make as long as it likes
PATIENCE = 10.0  # seconds; a guest's own file systems may never answer


class Grafts:
    """What a container has been shown."""

    def __init__(self) -> None:
        self.shown: list[Graft] = []

    def show(self, before: Sequence[dict[str, Any]], grafts: Sequence[Graft], leader: int) -> None:
        """Show, in their order, what has been bound already, after the steps that come `before`. Raises StartFailed."""
        deadline = Deadline()
        for step in before:
            deadline.do(step, str(leader))
        self._show(grafts, leader, deadline)

    def _show(self, grafts: Sequence[Graft], leader: int, deadline: Deadline) -> None:
        for graft in grafts:
            deadline.do(graft["attach"], str(leader))
            self.shown.append(graft)

    def renew(self, wanted: Sequence[Graft], leader: int) -> None:
        """From what is shown to what is wanted, as far as that goes. Raises StartFailed."""
        leave, come = changes(self.shown, wanted)
        deadline, trouble = Deadline(), []
        for action, grafts in ((self._take_away, [*reversed(leave)]), (self._bring, come)):
            for graft in grafts:
                try:
                    action(graft, leader, deadline)
                except (StartFailed, OSError) as error:  # the others have nothing to do with it
                    trouble.append(str(error))
        if trouble:
            raise StartFailed("\n".join(trouble))

    def _bring(self, graft: Graft, leader: int, deadline: Deadline) -> None:
        os.makedirs(graft["place"], exist_ok=True)
        deadline.do(graft["bind"])
        try:
            self._show([graft], leader, deadline)
        except StartFailed:
            _unmount(graft["place"])
            raise

    def _take_away(self, graft: Graft, leader: int, deadline: Deadline) -> None:
        kept = {other["target"] for other in self.shown if other is not graft}
        outside = observe_mountinfo()

        def points() -> list[str]:
            inside = observe_mountinfo(leader, most=MOST_TEXT)
            if len(inside) == MOST_TEXT:
                raise StartFailed(f"{graft['target']} cannot be taken away: the guest has too many mounts")
            return points_of(inside, outside, graft["place"], kept)

        if found := points():
            deadline.do(graft["detach"], str(leader), *reversed(found))
        if points():
            raise StartFailed(f"{graft['target']} is still mounted: the guest is in the way")
        self.shown.remove(graft)
        _unmount(graft["place"])


def changes(shown: Sequence[Graft], wanted: Sequence[Graft]) -> tuple[list[Graft], list[Graft]]:
    """(what has to leave, what has to come), each with parents first. What lies below a place that changes leaves and
    comes again, or it would be covered, or lost."""
    here, there = ({graft["place"] for graft in grafts} for grafts in (shown, wanted))
    touched = [graft["target"] for graft in (*shown, *wanted) if graft["place"] in here ^ there]

    def is_touched(graft: Graft) -> bool:
        return any(is_below(graft["target"], target) for target in touched)

    return list(filter(is_touched, shown)), list(filter(is_touched, wanted))


def points_of(inside: str, outside: str, place: str, kept: set[str]) -> list[str]:
    """Where a guest, by its mountinfo, has what is bound at `place`, by ours, or something in it. The topmost comes
    last. What lies at the targets of others, `kept`, is theirs, though it may be the same directory; and so is what is
    bound beside `place`, the home say."""
    beside = place.rpartition("/")[0]
    bound = {
        point: (device, root)
        for device, root, point, _, _ in parse_mountinfo(outside)
        if point.startswith(f"{beside}/")
    }
    own = bound.pop(place, None)
    if own is None:
        return []
    return [
        point
        for device, root, point, _, _ in parse_mountinfo(inside)
        if device == own[0]
        and is_below(root, own[1])
        and point not in kept
        and ((device, root) == own or (device, root) not in bound.values())
    ]


class Deadline:
    """For all that is done from now on, since the supervisor serves nobody else meanwhile."""

    def __init__(self) -> None:
        self.begun = time.monotonic()

    def do(self, step: dict[str, Any], *more: str) -> None:
        SideBySide([[{**step, "argv": [*step["argv"], *more]}]]).finish(self.begun, PATIENCE)


def _unmount(place: str) -> None:
    """Nobody can be in the way of that."""
    Deadline().do({"argv": ["umount", "--lazy", place], "why": f"unmount {place}", "may_fail": False})
