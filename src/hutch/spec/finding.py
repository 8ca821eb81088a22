"""A finding: one thing wrong at one key path of the file, before it is known on which line that is."""

from __future__ import annotations

import json
import re

from hutch.frozen import dataclass

Path = tuple[str | int, ...]
"""Where a value is: keys, and indexes of arrays from 0."""


@dataclass(frozen=True)
class Finding:
    path: Path
    message: str
    hint: str = ""


def dotted(path: Path) -> str:
    """A path as it is shown to people: `workspaces.web.mounts[0].source`, odd keys in quotes."""
    shown = ""
    for part in path:
        if isinstance(part, int):
            shown += f"[{part}]"
        else:
            bare = re.fullmatch(r"[A-Za-z0-9_-]+", part)
            shown += ("." if shown else "") + (part if bare else shorten(json.dumps(part)))
    return shown


def undotted(key: str) -> Path:
    """The path that `dotted` shows as `key`, for keys that need no quotes."""
    return tuple(int(index) if index else name for name, index in re.findall(r"([^.\[\]]+)(?!\])|\[([0-9]+)\]", key))


def shorten(text: str, length: int = 60) -> str:
    """`text` on one line, cut to `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"
