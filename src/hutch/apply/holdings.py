"""What hutch knows as its own in its directories, by the names that it gives. A directory that was named by mistake may
have a few of the same: so nothing else there is taken for hutch's, and one without any sign of it is left alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from hutch.errors import HutchError, UsageError
from hutch.files import TEMPORARY, entries
from hutch.images.recipe import is_id
from hutch.images.record import KERNELS, SCRATCH
from hutch.spec import member
from hutch.spec.names import Layout, is_name
from hutch.spec.record import Record, iso
from hutch.spec.sharing import RETIRED
from hutch.state import read_records
from hutch.trees.cursor import opened, walk

SIGNS = (
    *("network.json*", "workspaces/*/workspace.json*", "images/*/image.json", f"images/{KERNELS}/*/kernel.json"),
    *("journal.json", "repairs.json", "ages.json", "accelerator.json", "keys/*/id_ed25519"),
    *(f"images/{SCRATCH}*/*", "images/*-????????????*.lock"),  # all that a first build leaves that was broken off
)
"""Files of the state directory that tell that it is hutch's, whole or damaged."""
STATE_FILES = (
    *("lock", "network.json*", "journal.json", "repairs.json", "known_hosts", "ssh-proxy", "ages.json"),
    *("accelerator.json", "placeholders.json", "placeholders.lock"),
)
COUNT_SECONDS = 2.0  # for the size of one kept home
WORKSPACE = frozenset(("workspace.json", "workspace.json.copy", "home", "root", "ssh", "unit"))
"""Names in the directory of each workspace, of which it has one at least."""
RUN_SIGNS = (
    *("reconciled", "recording/*.missed", "shares.json", "builder-port", "services/*.pid", "services/rules"),
    "services/egress/views.json",
    *(
        f"workspaces/*/{name}"
        for name in ("launch.json", "status.json", "by", "runner.lock", "machine.log", "unreconciled")
    ),
)
"""Files of the runtime directory that tell that it is hutch's."""


def has_state(layout: Layout) -> bool:
    """Whether the state directory is hutch's: it has left a sign there, or there is nothing else."""
    there = {entry.name for entry in entries(layout.state) if not entry.is_dir() or entries(entry)}
    return there <= {layout.lock.name} or any(any(layout.state.glob(sign)) for sign in SIGNS)


def check_runtime(layout: Layout) -> None:
    """Refuse a runtime directory that somebody else uses: what runs of hutch is looked for there, and removed. Only
    files are a use of it: directories are what hutch's own programs leave behind."""
    is_used = any(path.is_symlink() or not path.is_dir() for path in layout.run.rglob("*"))
    if is_used and not any(any(layout.run.glob(sign)) for sign in RUN_SIGNS):
        raise UsageError(
            f"{layout.run} is not hutch's runtime directory: it holds other files, and none of hutch's",
            details="Nothing was changed.",
            resolution="give the HUTCH_RUN_DIR that the workspaces were started with",
        )


def own_in_state(layout: Layout) -> Iterator[Path]:
    """All that hutch has in the state directory; each directory before the one that it lies in."""
    yield from (entry for entry in entries(layout.images) if _is_of_image(entry.name))
    yield from (entry for entry in entries(layout.workspaces) if is_name(entry.name) and _has_any(entry, WORKSPACE))
    yield from (entry for entry in entries(layout.egress) if is_name(entry.name))
    yield from key_directories(layout)
    yield from (entry for entry in entries(layout.addresses) if entry.name.isdigit())
    yield from (entry for entry in entries(layout.user_views) if is_name(entry.name.removesuffix(".json")))
    for name in STATE_FILES:
        yield from layout.state.glob(name)
    yield from layout.state.glob(f".*{TEMPORARY}")


def key_directories(layout: Layout) -> Iterator[Path]:
    """The directories of the keys that hutch has made for users and groups of the host, those that it has retired and
    that it once made for the group `hutch` among them."""
    old = {RETIRED, layout.old_group_key.parent.name}
    return (e for e in entries(layout.keys) if e.name.removeprefix("@").isdigit() or e.name in old)


def kept_homes(layout: Layout) -> list[dict[str, Any]]:
    """What is kept of removed workspaces; see `Hutch.kept`."""
    records, who = read_records(layout).values(), member.acting
    kept = (record for record in records if record.removed and not record.ejected)
    return [
        {
            "name": record.name,
            "type": record.wanted.type,
            "ip": str(record.wanted.ip),
            "home": record.home_words,
            "file": record.file,
            "removed": None if record.removed_at is None else iso(record.removed_at),
            "size": _size_of_home(record),
        }
        for record in kept
        if who is None or record.is_of(who.uid)
    ]


def _size_of_home(record: Record) -> int | None:
    """The bytes that a home takes on this host's disk; None where counting takes too long, or it is elsewhere."""
    if record.wanted.home is None:
        return None
    seen: set[int] = set()
    size = 0
    with suppress(HutchError, OSError), opened(str(record.wanted.home)) as top:
        for directory, name in walk(top, seconds=COUNT_SECONDS):
            with suppress(FileNotFoundError):
                found = os.stat(name, dir_fd=directory, follow_symlinks=False)
                size += 0 if found.st_ino in seen else found.st_blocks * 512
                if found.st_nlink > 1:
                    seen.add(found.st_ino)
        return size
    return None


def _is_of_image(name: str) -> bool:
    return name == KERNELS or name.startswith(SCRATCH) or name.endswith(".lock") or is_id(name)


def _has_any(directory: Path, names: frozenset[str]) -> bool:
    found = {entry.name for entry in entries(directory)} if directory.is_dir() else set()
    return bool(found & names)
