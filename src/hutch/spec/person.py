"""The person who calls hutch, behind `sudo` or `doas` too, and the directories that are theirs: what a person has said
to hutch once lies there, and root reads it on their behalf.

Reads the user database and the environment, changes nothing.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path

from hutch.frozen import dataclass
from hutch.spec.names import STATE_HOME
from hutch.spec.owner import behind


@dataclass(frozen=True)
class Person:
    """A user of the host, root included. `config` and `state` are hutch's directories of theirs; None for one without a
    home."""

    uid: int
    gid: int
    name: str
    home: Path | None
    config: Path | None
    state: Path | None


def caller(environ: Mapping[str, str], uid: int) -> Person:
    """The person whose process has this uid and environment: for root, who is behind `sudo`, `doas` or `pkexec`.

    The home is that of the user database, since sudo may leave another one in the environment; its symbolic links are
    resolved, those below it are not.
    """
    own = (behind(environ) if uid == 0 else None) or uid
    try:
        entry = pwd.getpwuid(own)
        gid, name, home = entry.pw_gid, entry.pw_name, entry.pw_dir
    except (KeyError, OverflowError):
        gid, name, home = own, str(own), ""
    found = Path(os.path.realpath(home)) if home.startswith("/") and home != "/" else None
    return Person(
        uid=own,
        gid=gid,
        name=name,
        home=found,
        config=None if found is None else found / ".config" / "hutch",
        state=_state(environ.get(STATE_HOME, ""), found),
    )


def _state(said: str, home: Path | None) -> Path | None:
    """hutch's directory below the one that the environment names, or below the usual one."""
    if said.startswith("/"):
        return Path(said, "hutch")
    return None if home is None else home / ".local" / "state" / "hutch"
