"""What is a member's: the directories and files that they share, and the workspaces that they change. What root allows
them at most is judged elsewhere, see allowing.

Files and directories of the host are looked at with the member's rights; see spec/rights. What a launch mounts is
looked at once more when it is mounted, by the descriptor that is mounted (host/storage/bind).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from hutch.errors import HutchError, Problem, UsageError, explained
from hutch.files import kept_open, open_to_others
from hutch.plan.actions import Plan
from hutch.spec import member
from hutch.spec.member import Member
from hutch.spec.model import Config, Mount
from hutch.spec.names import Layout
from hutch.spec.record import Record
from hutch.spec.refusing import refuse_files
from hutch.spec.rights import as_caller
from hutch.state import read_records
from hutch.trees.cursor import PINNED, open_strictly


def check_files(config: Config, who: Member) -> None:
    """Refuse directories, files and trees that are not a member's to use. The caller has taken on their rights."""
    problems = []
    for name, workspace in config.workspaces.items():
        scheme, _, tree = workspace.image.partition(":")
        if scheme in ("rootfs", "nix") and (wrong := check_tree(tree)):
            hint = "a tree that root has made for everybody"
            problems.append(Problem(wrong, f"workspaces.{name}.image", workspace.image, hint))
        for index, mount in enumerate(workspace.mounts):
            if wrong := check_source(mount, who):
                hint = f"a directory or file of {who.name}'s, by its own path"
                problems.append(Problem(wrong, f"workspaces.{name}.mounts[{index}].source", mount.source, hint))
    uses = {name: workspace.use for name, workspace in config.workspaces.items()}
    refuse_files([(config.file, problem) for problem in problems], uses)


def check_source(mount: Mount, who: Member) -> str:
    """Why a member cannot share a directory or file, in words; "" where they can. It is the member's own, and its path
    leads over no symbolic link."""
    try:
        with kept_open(open_strictly(mount.source, flags=PINNED)) as descriptor:
            found = os.fstat(descriptor)
    except FileNotFoundError:
        return "" if mount.create else "does not exist"
    except OSError as error:
        return f"cannot be opened by {who.name}, or leads over a link: {error.strerror}"
    if found.st_uid != who.uid:
        return f"belongs to uid {found.st_uid}, and members share their own files"
    if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
        return "has other names too (hard links), so it is not known who reaches it"
    return ""


def make_sources(plan: Plan) -> None:
    """Make the directories of a member's mounts that are to be made, with their rights: where they may make none, there
    is none. HutchError says so."""
    if member.acting is None:
        return
    for action in plan.actions:
        for mount in action.wanted.workspace.mounts if action.wanted is not None else ():
            if mount.create:
                with explained(f"{mount.source} cannot be made"), as_caller():
                    os.makedirs(mount.source, mode=0o755, exist_ok=True)


def check_tree(path: str) -> str:
    """Why a member cannot have an image made of a tree, in words; "" where they can: root reads it later on, so it is
    where nobody but root changes anything, links on the way included, and open to the member."""
    try:
        if (loose := open_to_others(Path(path))) is not None:
            return f"can be changed at {loose} by others than root"
        with kept_open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)):
            return ""
    except OSError as error:
        return f"cannot be opened: {error.strerror}"


# Whose workspaces they are.


def check_own(records: Mapping[str, Record], names: Iterable[str]) -> None:
    """Refuse workspaces of somebody else, where this process works for a member; ones that are not there are told of
    elsewhere. Whose they are is not said: their names alone stand in /etc/hosts."""
    if member.acting is None:
        return
    others = [name for name in names if name in records and not records[name].is_of(member.acting.uid)]
    if others:
        raise not_theirs(others)


def refuse_others(layout: Layout, names: Iterable[str]) -> None:
    """The same by the records as they are now: before anything is looked at, and once more under the lock, since
    somebody else may have a workspace of that name by then."""
    if member.acting is not None:
        check_own(read_records(layout), names)


def own_of(records: Mapping[str, Record], names: Iterable[str]) -> list[str]:
    """Those of the names that are the member's own; all of them, where this process works for none."""
    who = member.acting
    return [name for name in names if who is None or records[name].is_of(who.uid)]


def not_theirs(names: Collection[str]) -> HutchError:
    what = "is somebody else's workspace" if len(names) == 1 else "are workspaces of others"
    return UsageError(
        f"{', '.join(names)} {what}",
        resolution="take another name; or root does it: members of the group change their own workspaces",
    )


def check_taking(config: Config, records: Mapping[str, Record], former: Collection[str], names: Iterable[str]) -> None:
    """Refuse a member who takes over a workspace of theirs that root's file declares."""
    if member.acting is None:
        return
    files = {config.file, *former}
    for name in names:
        record = records.get(name)
        if record is not None and record.member is None and record.file not in files and not record.removed:
            raise UsageError(
                f"{name} is declared by root, in {record.file}", resolution="root takes it out there, or changes it"
            )


def declared_by(record: Record) -> Record:
    """The record of a workspace as this process declares it: for a member, or for root."""
    return replace(record, member=None if member.acting is None else member.acting.uid)
