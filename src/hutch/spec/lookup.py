"""The choice of the hutch.toml, a glance at it that neither validates nor complains, and the starter of `hutch init`.
Imports are few: `ls` uses it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hutch.errors import UsageError
from hutch.spec.names import is_name

SYSTEM_FILE = Path("/etc/hutch/hutch.toml")
LOCAL_FILE = Path("hutch.toml")
STARTER = Path(__file__).with_name("starter.toml")
"""The file that `hutch init` writes: it works as it is, and shows the common keys."""
LARGEST_FILE = 1024 * 1024  # bytes
LONGEST_LINE = 16 * 1024  # characters: a key of many dots takes tomllib time that grows with its square


def look_for_file(explicit: Path | None) -> Path | None:
    """The hutch.toml to use: `explicit`, $HUTCH_FILE, ./hutch.toml or /etc/hutch/hutch.toml; None when none is there.

    One that is named and not there is a UsageError.
    """
    for said, source in ((explicit, "--file"), (os.environ.get("HUTCH_FILE") or None, "$HUTCH_FILE")):
        if said is not None:
            if not os.path.exists(said):
                raise UsageError(f"{said}: there is no such file", resolution=f"{source} must name a hutch.toml")
            return Path(said)
    return next((path for path in (LOCAL_FILE, SYSTEM_FILE) if os.path.lexists(path)), None)


def find_file(explicit: Path | None) -> Path:
    """The hutch.toml to use; UsageError when there is none."""
    found = look_for_file(explicit)
    if found is None:
        raise UsageError(
            f"there is no hutch.toml here, and no {SYSTEM_FILE}",
            resolution="write one with `hutch init`, or name one with --file or $HUTCH_FILE",
        )
    if found == LOCAL_FILE:
        check_not_a_strangers(found)
    return found


def check_not_a_strangers(path: Path) -> None:
    """Refuse a file that merely lies in the current directory, unless it is root's or the caller's: root acts on it."""
    # Spares the start-up of `hutch ls` where there is no file.
    from hutch.spec.owner import default_owner

    uid = os.stat(path).st_uid
    if uid not in (0, os.getuid(), default_owner(os.environ, os.getuid())):
        raise UsageError(
            f"{path.resolve()} belongs to uid {uid}, who is neither root nor you",
            resolution=f"read it, and if you trust it name it: --file {path}",
        )


def is_unwieldy(text: str) -> int:
    """The number of the first line that is longer than a person's; 0 when there is none."""
    return next((number for number, line in enumerate(text.split("\n"), 1) if len(line) > LONGEST_LINE), 0)


def glance(path: Path) -> dict[str, Any]:
    """The workspaces that a file declares, each with its type as written, unvalidated. A broken file has none: it must
    not hide running workspaces."""
    # Spares the start-up of `hutch ls` where there is no file.
    import tomllib

    try:
        if not path.is_file() or path.stat().st_size > LARGEST_FILE:  # a pipe would be waited for
            return {}
        text = path.read_text(encoding="utf-8-sig")
        if is_unwieldy(text):
            return {}
        tables = tomllib.loads(text)
        usual = tables.get("defaults", {}).get("type")
        declared = {name: table.get("type", usual) for name, table in tables.get("workspaces", {}).items()}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}
    return {name: type for name, type in declared.items() if is_name(name)}


def render_starter(name: str = "dev") -> str:
    """A commented hutch.toml with one workspace; the caller has checked its name."""
    return STARTER.read_text(encoding="utf-8").replace("@NAME@", name)
