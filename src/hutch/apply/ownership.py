"""Whose is a workspace? It belongs to the file that declared it, until that lets go of it or another one adopts it.

A file that is renamed, or whose directory is moved, is the same file: its old path is gone, and an inode tells. Editors
replace a file when they save it, so the directory's inode counts too, for a file that declares what the old one did.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping

from hutch.errors import HutchError
from hutch.spec.model import Config
from hutch.state import Record


def origin_of(file: str) -> tuple[int, ...]:
    """The inode numbers of a file and of its directory; nothing when it has just gone."""
    try:
        return os.stat(file).st_ino, os.stat(os.path.dirname(file)).st_ino
    except OSError:
        return ()


def former_paths(
    config: Config, records: Mapping[str, Record], own: tuple[int, ...], exists: Callable[[str], bool]
) -> set[str]:
    """Where this very file, whose origin is `own`, was before it was renamed or moved, by what the records remember."""
    found = set()
    for name, record in records.items():
        if not own or not record.origin or record.file == config.file or exists(record.file):
            continue
        is_likely = record.origin[1] == own[1] and name in config.workspaces
        if record.origin[0] == own[0] or is_likely:
            found.add(record.file)
    return found


def check_ownership(
    config: Config,
    records: Mapping[str, Record],
    former: Collection[str],
    exists: Callable[[str], bool],
    *,
    adopt: bool,
) -> None:
    """Refuse workspaces that are another file's, unless they are to be adopted."""
    if adopt:
        return
    taken = {
        name: record.file
        for name, record in records.items()
        if name in config.workspaces and not record.removed and record.file != config.file and record.file not in former
    }
    if taken:
        lines = (f"{name} belongs to {file}{'' if exists(file) else ', which is gone'}" for name, file in taken.items())
        raise HutchError(
            "another file declares a workspace of the same name",
            details="\n".join(lines),
            resolution="rename it in one of the two files, or take it over, home and all: `hutch up --adopt`",
        )


def orphans(config: Config, records: Mapping[str, Record], former: Collection[str]) -> Iterable[str]:
    """The workspaces that this file brought up, by whatever path, and declares no more."""
    files = {config.file, *former}
    return [n for n, r in records.items() if r.file in files and n not in config.workspaces and not r.removed]
