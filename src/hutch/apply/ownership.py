"""Ownership: a workspace belongs to the file that declared it, until that lets go of it or another one adopts it.

A file that is renamed, or whose directory is moved, is the same file: its old path is gone, it declares what the old
one did, and the file system tells (name_to_handle_at(2): unlike a bare inode number, a handle is not used again).
Editors replace a file when they save it, so the directory counts too; unless the old path's is still there, and only
the file is gone from it: a disk may have been taken out.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Collection, Iterable, Mapping

from hutch.errors import HutchError
from hutch.libc import call
from hutch.spec.model import Config
from hutch.spec.record import Record

AT_FDCWD, MAX_HANDLE = -100, 128


def origin_of(file: str) -> tuple[int, ...]:
    """Handles that identify a file and its directory wherever they are; 0 where the file system gives none."""
    directory = os.path.dirname(file)
    return handle_of(file), 0 if os.path.ismount(directory) else handle_of(directory)


def handle_of(path: str) -> int:
    """The kernel's handle of a file as a number; 0 where there is none."""
    handle = ctypes.create_string_buffer(struct.pack("Ii", MAX_HANDLE, 0), 8 + MAX_HANDLE)
    mount = ctypes.c_int()
    try:
        call("name_to_handle_at", AT_FDCWD, os.fsencode(path), handle, ctypes.byref(mount), 0)
    except OSError:
        return 0
    size, _ = struct.unpack_from("Ii", handle)
    return int.from_bytes(handle.raw[8 : 8 + size], "big")


def former_paths(
    config: Config, records: Mapping[str, Record], own: tuple[int, ...], exists: Callable[[str], bool]
) -> set[str]:
    """The paths of this very file, whose origin is `own`, before it was renamed or moved, by the records."""
    found = set()
    for name, record in records.items():
        if name not in config.workspaces or record.file == config.file or exists(record.file) or not record.origin:
            continue
        old, new = os.path.dirname(record.file), os.path.dirname(config.file)
        same_file, same_directory = (a == b != 0 for a, b in zip(record.origin, own, strict=True))
        if same_file or (same_directory and (old == new or not exists(old))):
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
