"""The host's side of what a guest can write: homes and writable mounts are nosuid,nodev here.

A setuid file that a guest makes must not be honoured by anyone on the host, so each such directory is
bind-mounted over itself with these options for as long as the workspace is declared.
"""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from hutch.errors import HutchError, Problem
from hutch.files import read_or_none, write_atomic
from hutch.run import CommandFailed, run
from hutch.spec.model import Workspace
from hutch.spec.names import Places
from hutch.state import make_directory

OPTIONS = {"nosuid", "nodev"}
BIND = str(Path(__file__).with_name("bind.py"))


def writable_paths(workspace: Workspace) -> tuple[str, ...]:
    """Host directories that the workspace can write."""
    assert workspace.home is not None
    return (workspace.home, *(mount.source for mount in workspace.mounts if not mount.readonly))


def check_shares(prefix: str, workspace: Workspace) -> Iterator[Problem]:
    """What is wrong with the directories of a workspace that is about to start. `prefix` is its key in the file."""
    assert workspace.home is not None
    key, home = f"{prefix}.home", workspace.home
    wrong = check_directory(home, may_be_absent=True)
    if wrong:
        yield Problem(wrong, key, home, "a directory of the owner's; hutch makes it when it is absent")
    elif os.path.lexists(home) and os.lstat(home).st_uid != workspace.owner:
        hint = f"if that is meant: chown -R {workspace.owner} {home} (while the workspace is stopped)"
        yield Problem(f"belongs to uid {os.lstat(home).st_uid}, not to the owner {workspace.owner}", key, home, hint)
    for index, mount in enumerate(workspace.mounts):
        wrong = check_directory(mount.source, may_be_absent=mount.create)
        if wrong:
            hint = "a directory of the host" if mount.create else "a directory of the host, or create = true"
            yield Problem(wrong, f"{prefix}.mounts[{index}].source", mount.source, hint)


def check_directory(path: str, *, may_be_absent: bool) -> str:
    """Why a directory cannot be shared, in words; "" when it can. The same way as bind.py takes: no symbolic links."""
    for part in [*reversed(Path(path).parents), Path(path)]:
        what = "" if part == Path(path) else f"leads through {part}, which "
        try:
            mode = os.lstat(part).st_mode
        except FileNotFoundError:
            return "" if may_be_absent else f"{what}does not exist"
        except OSError as error:
            return f"{what}cannot be looked at: {error.strerror}"
        if stat.S_ISLNK(mode):
            return f"{what}is a symbolic link; what it leads to is {os.path.realpath(path)}"
        if not stat.S_ISDIR(mode):
            return f"{what}is not a directory"
    return ""


def find_mounts(mountinfo: str) -> dict[str, set[str]]:
    """Mount point -> options of the topmost mount there, from the text of /proc/self/mountinfo."""
    mounts = {}
    for line in mountinfo.split("\n"):
        words = line.split(" ")
        if len(words) > 5:
            # The kernel writes blanks and backslashes as "\040"; all else in a path is as it is.
            path = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), words[4])
            mounts[path] = set(words[5].split(","))
    return mounts


def observe_mounts() -> dict[str, set[str]]:
    return find_mounts(Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape"))


def ensure_shares(places: Places, paths: Iterable[str]) -> None:
    """Put the options on every path that does not have them; take our mounts from paths that are no longer shared.

    Which mounts are ours stands in a file of the runtime directory: like them, it is gone after a reboot.
    """
    wanted, mounts = list(dict.fromkeys(paths)), observe_mounts()  # two workspaces may share one directory
    ours: list[str] = json.loads(read_or_none(places.shares) or b"[]")
    kept = [path for path in ours if path in mounts]
    for path in [path for path in kept if path not in wanted]:
        run(["umount", "--lazy", "--no-canonicalize", path])
        kept.remove(path)
    for path in wanted:
        if not mounts.get(path, set()) >= OPTIONS and os.path.isdir(path):  # what is not there needs no guard
            kept.append(path)
            _note(places, kept)  # before the mount, so that a crash in between leaves none that nobody knows
            _mount(path)
    if kept != ours:
        _note(places, kept)


def _note(places: Places, kept: list[str]) -> None:
    if kept:
        make_directory(places.run)
        write_atomic(places.shares, json.dumps(kept).encode(), mode=0o600)
    else:
        places.shares.unlink(missing_ok=True)


def _mount(path: str) -> None:
    try:
        run([sys.executable, "-I", "-S", BIND, path, "=", "nosuid,nodev"])
    except CommandFailed as error:
        raise HutchError(
            f"{path} cannot be shared",
            details=error.details,
            resolution="name the directory itself, by a path without symbolic links",
        ) from error


def ensure_home(path: Path, uid: int, gid: int) -> None:
    """A home of the owner's. An existing one must be the owner's already: root does not chown what guests write."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        make_directory(path.parent)
        path.mkdir(mode=0o700)
        os.chown(path, uid, gid)
        return
    if found.st_uid != uid:
        raise HutchError(
            f"{path} belongs to uid {found.st_uid}, not to the workspace's owner {uid}",
            resolution=f"if that is meant: chown -R {uid}:{gid} {path} (while the workspace is stopped)",
        )
