"""What was launched, as it stands in the runtime directory, for whoever stops it or tells of it."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from hutch.files import read_or_none, write_atomic

CHECKSUM = "crc32"


def write_launch(path: Path, launch: dict[str, Any], *, is_lasting: bool = False) -> None:
    """Whole or not at all. In the runtime directory it need not survive a power cut."""
    text = json.dumps(launch)
    content = f'{{"{CHECKSUM}": {zlib.crc32(text.encode())}, {text[1:]}'.encode()
    write_atomic(path, content, mode=0o600, is_lasting=is_lasting)


def read_launch(path: Path) -> dict[str, Any] | None:
    """None where there is none that can be believed: commands are run that stand in it."""
    try:
        launch = dict(json.loads(read_or_none(path) or b"null"))
        checksum = launch.pop(CHECKSUM)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return launch if zlib.crc32(json.dumps(launch).encode()) == checksum else None
