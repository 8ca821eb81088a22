"""Snapshots of a workspace as values: their tags, and what is told of them."""

from __future__ import annotations

import time
from typing import Any

from hutch.errors import UsageError
from hutch.frozen import dataclass
from hutch.spec.names import is_name

ROOT, HOME = "root", "home"
PARTS = (ROOT, HOME)


@dataclass(frozen=True)
class Snapshot:
    """A point in time of a workspace. `taken` is in Unix time; `size` in bytes, None where nobody tells; `problem` says
    in words why it is not whole, "" where it is. `image` is the id of the image that its root lies on, and `persist` as
    it was then."""

    tag: str
    taken: float
    size: int | None = None
    parts: tuple[str, ...] = PARTS
    problem: str = ""
    image: str = ""
    persist: str = ""

    @property
    def is_complete(self) -> bool:
        return not self.problem

    def to_json(self) -> dict[str, Any]:
        """The snapshot as `hutch snapshots --json` shows it."""
        return {
            "tag": self.tag,
            "taken": self.taken,
            "size": self.size,
            "complete": self.is_complete,
            "parts": list(self.parts),
            "memory": False,
            "problem": self.problem,
        }


def check_tag(tag: str) -> None:
    """Refuse a tag that is no name. Raises UsageError."""
    if not is_name(tag):
        raise UsageError(
            f"{tag!r} cannot be the tag of a snapshot",
            resolution="lower-case letters, digits and hyphens, 32 at most, and no hyphen at the ends",
        )


def default_tag(now: float) -> str:
    """The tag of a snapshot without one: its time, in UTC."""
    return time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
