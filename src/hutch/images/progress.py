"""The progress of a build, read from the output of mmdebstrap and apt. Pure.

mmdebstrap shows percentages on a terminal only; with --verbose it passes on what apt says, which names every
package that is fetched, unpacked and set up, and before that how many there will be.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from hutch.frozen import dataclass


@dataclass(frozen=True)
class Stage:
    """A stage of a build, and the fraction of the whole that is done, from 0 to 1; the fraction never falls."""

    name: str
    fraction: float


WAITING = "waiting for another build"
"""The stage of who waits."""

Progress = Callable[[Stage], None]


BuildProgress = Callable[[str, str, float], None]
"""A callback that gets (image, stage, fraction from 0 to 1) while an image is built, or brought to a server."""


def reporter(progress: BuildProgress, id: str) -> Progress:
    """A callback for the stages of one image."""
    return lambda stage: progress(id, stage.name, stage.fraction)


def no_progress(stage: Stage) -> None:
    """Draw nothing: for callers without a bar."""


@dataclass(frozen=True)
class Phase:
    """A line that starts a phase, the phase's name and end; and how many lines a package makes in it."""

    opening: str
    name: str
    end: float
    steps: int = 0


MARK = "hutch: stage "
"""The prefix of a stage's name in the output of our own script."""

PHASES = (
    Phase("I: running apt-get update", "reading package lists", 0.06),
    Phase("I: downloading packages", "downloading the base", 0.15, steps=1),
    Phase("I: extracting archives", "extracting the base", 0.2),
    Phase("I: installing essential packages", "installing the base", 0.4, steps=2),
    Phase("I: installing remaining packages", "installing packages", 0.85, steps=3),
    Phase("I: cleaning package lists", "cleaning up", 0.87),
    Phase(MARK + "unpack", "unpacking the tree", 0.4),
    Phase(MARK + "packages", "installing packages", 0.85, steps=3),
    Phase(MARK + "setup", "running setup", 0.93),
    Phase(MARK + "adapt", "adapting", 0.95),
)
PUBLISHING = "publishing"

COUNT = re.compile(r"\d+ upgraded, (\d+) newly installed")
PACKAGE = re.compile(r"Get:\d+ |Unpacking |Setting up ")


class Meter:
    """Turns lines of output into stages for a callback."""

    def __init__(self, report: Progress) -> None:
        self._report = report
        self._now = Stage("", 0.0)
        self._phase = Phase("", "", 0.0)
        self._start = 0.0
        self._packages = 0
        self._seen = 0

    @property
    def stage(self) -> str:
        """The stage that was under way when the last line came."""
        return self._now.name

    def advance(self, name: str, fraction: float) -> None:
        """Report a stage, unless it is the one reported last."""
        stage = Stage(name, max(round(min(fraction, 1.0), 3), self._now.fraction))
        if stage != self._now:
            self._now = stage
            self._report(stage)

    def feed(self, line: str) -> None:
        """Take one line of output."""
        for phase in PHASES:
            if line.startswith(phase.opening):
                self.advance(phase.name, self._phase.end)
                self._phase, self._start, self._seen = phase, self._now.fraction, 0
                return
        if count := COUNT.match(line):
            self._packages = int(count[1])
        elif self._phase.steps and self._packages and PACKAGE.match(line):
            self._seen += 1
            share = min(self._seen / (self._packages * self._phase.steps), 1.0)
            self.advance(self._phase.name, self._start + share * (self._phase.end - self._start))
