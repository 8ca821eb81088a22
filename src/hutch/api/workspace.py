"""One workspace that exists: start it, run commands in it, stop it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hutch.api.engine import Hutch


class Workspace:
    """One existing workspace."""

    def __init__(self, hutch: Hutch, name: str) -> None:
        self.hutch = hutch
        self.name = name

    def start(self) -> None:
        self.hutch.start([self.name])

    def stop(self) -> None:
        self.hutch.stop([self.name])

    def status(self) -> dict[str, Any]:
        return self.hutch.status(self.name)

    def run(self, argv: Sequence[str], *, root: bool = False, capture: int | None = None) -> int:
        """Run a command with the caller's own streams; returns its exit code, 128 + n when signal n ended it.

        `capture` is a descriptor that takes its output instead.
        """
        from hutch.supervise.inside import run_inside

        return run_inside(self.hutch.places, self.hutch.record(self.name), argv, root=root, capture=capture)
