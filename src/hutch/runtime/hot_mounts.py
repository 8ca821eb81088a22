"""Directories that a container is shown once it has a PID 1, and that come and go while it runs: see HotMount in
backends/launch. They are bound in the mount namespace of its service first, and this runs there.

A mount that is taken away is gone wherever the guest has moved it in its main mount namespace. What root inside has
taken into another one, or holds open, stays with it until the workspace restarts.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from hutch.backends.launch import HotMount, Step
from hutch.host.storage.mountinfo import is_below, observe_mountinfo, parse_mountinfo
from hutch.runtime.steps import StepFailed, do

MOST_TEXT = 4 << 20  # characters of a guest's mountinfo, which it can make as long as it likes
PATIENCE = 10.0  # seconds; a guest's own file systems may never answer


class HotMounts:
    """The hot mounts of a container, whose PID 1 is `leader`."""

    def __init__(self, shown: Sequence[HotMount], leader: int) -> None:
        self.shown = list(shown)
        self.leader = str(leader)
        self.deadline = time.monotonic() + PATIENCE

    def renew(self, wanted: Sequence[HotMount]) -> str:
        """Replace the shown mounts by the wanted ones, as far as possible. Returns the problems, "" for none."""
        leave, come = changes(self.shown, wanted)
        trouble = []
        for action, hot_mounts in ((self._take_away, [*reversed(leave)]), (self._bring, come)):
            for mount in hot_mounts:
                try:
                    action(mount)
                except (StepFailed, OSError) as error:  # the others have nothing to do with it
                    trouble.append(str(error))
        return "\n".join(trouble)

    def _do(self, step: Step, *more: str) -> None:
        do(step.why, (*step.argv, *more), self.deadline - time.monotonic())

    def _bring(self, mount: HotMount) -> None:
        if not mount.is_file:
            os.makedirs(mount.place, exist_ok=True)
        try:
            for step in mount.steps:
                self._do(step)
            self._do(mount.attach, self.leader)
        except StepFailed:
            for place in mounts_at(mount.place):
                _unmount(place)
            raise
        self.shown.append(mount)

    def _take_away(self, mount: HotMount) -> None:
        kept = {other.target for other in self.shown if other is not mount}
        outside = observe_mountinfo()

        def points() -> list[str]:
            inside = observe_mountinfo(self.leader, most=MOST_TEXT)
            if len(inside) == MOST_TEXT:
                raise StepFailed(f"{mount.target} cannot be taken away: the guest has too many mounts")
            return points_of(inside, outside, mount.place, kept)

        if found := points():
            self._do(mount.detach, self.leader, *reversed(found))
        if points():
            raise StepFailed(f"{mount.target} is still mounted: the guest is in the way")
        self.shown.remove(mount)
        _unmount(mount.place)


def changes(shown: Sequence[HotMount], wanted: Sequence[HotMount]) -> tuple[list[HotMount], list[HotMount]]:
    """(mounts to take away, mounts to attach), each with parents first. A mount below a place that changes leaves and
    comes again, or it would be covered, or lost."""
    here, there = ({mount.place for mount in hot_mounts} for hot_mounts in (shown, wanted))
    touched = [mount.target for mount in (*shown, *wanted) if mount.place in here ^ there]

    def is_touched(mount: HotMount) -> bool:
        return any(is_below(mount.target, target) for target in touched)

    return list(filter(is_touched, shown)), list(filter(is_touched, wanted))


def points_of(inside: str, outside: str, place: str, kept: set[str]) -> list[str]:
    """The mount points, in the guest's mountinfo, of what ours says is bound at `place`, or of something in it. The
    topmost comes last. Mounts at the targets of others, `kept`, are theirs, though it may be the same directory; and so
    are mounts of what is bound beside `place`, the home say."""
    beside = place.rpartition("/")[0]
    bound = {
        point: (device, root)
        for device, root, point, _, _ in parse_mountinfo(outside)
        if point.startswith(f"{beside}/") and not point.startswith(f"{place}/")  # its own parts are what it is
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


def mounts_at(place: str) -> list[str]:
    """The mount points of what the steps of a hot mount have left: at its place, and of layers beside it."""
    points = (point for _, _, point, _, _ in parse_mountinfo(observe_mountinfo()))
    return [point for point in dict.fromkeys(points) if point == place or point.startswith(f"{place}.")]


def _unmount(place: str) -> None:
    """Unmount lazily, so that no process that uses the mount is in the way."""
    do(f"unmount {place}", ("umount", "--lazy", place), PATIENCE)
