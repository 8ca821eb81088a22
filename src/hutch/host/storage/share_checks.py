"""What speaks against the directories and files that a workspace is to be shown, before it starts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from hutch.errors import Problem
from hutch.host.storage.bind import is_file
from hutch.host.storage.protected import checkouts_around, find_protected
from hutch.host.storage.shares import check_directory, mount_points, waits_for_mount
from hutch.spec.model import Mount, WorkspaceSpec
from hutch.spec.names import NIX_STORE


def check_shares(prefix: str, workspace: WorkspaceSpec) -> Iterator[Problem]:
    """Problems: the directories of a workspace that is about to start. `prefix` is its key in the file."""
    assert workspace.home is not None
    key, home = f"{prefix}.home", workspace.home
    wrong = check_directory(home, may_be_absent=True)
    if wrong:
        yield Problem(wrong, key, home, "a directory of the owner's; hutch makes it when it is absent")
    elif os.path.lexists(home) and os.lstat(home).st_uid != workspace.owner:
        hint = f"if that is meant: chown -R {workspace.owner} {home} (while the workspace is stopped)"
        yield Problem(f"belongs to uid {os.lstat(home).st_uid}, not to the owner {workspace.owner}", key, home, hint)
    if workspace.nix_store and (wrong := check_directory(NIX_STORE, may_be_absent=False)):
        hint = f"install Nix on this host, whose store must be a directory {NIX_STORE}; or leave nix_store out"
        yield Problem(f"{NIX_STORE} {wrong}", f"{prefix}.nix_store", "true", hint)
    points = mount_points(workspace)
    for index, mount in enumerate(workspace.mounts):
        yield from check_mount(f"{prefix}.mounts[{index}]", mount, workspace, points.get(mount.target))


def check_mount(key: str, mount: Mount, workspace: WorkspaceSpec, point: Path | None) -> Iterator[Problem]:
    """Problems of one mount, whose table is called `key`; `point` is where it lies in the home on the host."""
    may_be_absent = mount.create or waits_for_mount(mount.source)
    if wrong := check_directory(mount.source, may_be_absent=may_be_absent, may_be_file=True):
        is_absent = not mount.create and not os.path.lexists(mount.source)
        hint = "a directory or file of the host" + (", or create = true for a directory" if is_absent else "")
        yield Problem(wrong, f"{key}.source", mount.source, hint)
        return
    single = is_file(mount.source)
    if single and mount.is_private:
        yield from check_private_file(key, mount, workspace, point)
    if mount.is_writable and (kept := protected_around(mount.source, workspace)):
        hint = 'mode = "readonly", or "private"; or protect_default = false'
        yield Problem(f"is protected, as {kept} is", f"{key}.source", mount.source, hint)
    if point is not None and (wrong := check_directory(str(point), may_be_absent=True, may_be_file=single)):
        hint = "remove the obstacle; hutch makes the directories when they are absent"
        yield Problem(f"{point} {wrong}", f"{key}.target", mount.target, hint)
    elif single and point is not None and point.is_dir():
        yield Problem(f"{point} is a directory", f"{key}.target", mount.target, "the name of the file inside")


def check_private_file(key: str, mount: Mount, workspace: WorkspaceSpec, point: Path | None) -> Iterator[Problem]:
    """Problems of a private file, of which the home gets a copy: root reads it, so it is the owner's own."""
    if point is None:
        hint = f"a place in /home/{workspace.user}, where the workspace's copy is kept"
        yield Problem("is outside the home, and a file is private", f"{key}.target", mount.target, hint)
    if (uid := os.lstat(mount.source).st_uid) != workspace.owner:
        hint = 'mode = "readonly" shows it as far as the owner may read it'
        yield Problem(f"belongs to uid {uid}, not to the owner {workspace.owner}", f"{key}.source", mount.source, hint)


def protected_around(source: str, workspace: WorkspaceSpec) -> str:
    """The path that is protected and that a source is or lies in, as seen from the checkout around it; "" for none."""
    if not workspace.protect_default:
        return ""
    for top in checkouts_around(source):
        found = find_protected(top)
        for path in (source, *map(str, Path(source).parents)):
            if path in found and not found[path]:
                return path
    return ""
