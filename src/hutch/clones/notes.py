"""The notes on clones, in the home of the person who made them: of which repository a workspace has one, and where.

A note is the person's own file. It names nothing that a workspace has a say in.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from hutch.clones.git import own_state
from hutch.errors import HutchError, UsageError, explained
from hutch.files import kept_open, read_or_none, write_atomic
from hutch.frozen import dataclass


@dataclass(frozen=True)
class Clone:
    """A clone of a repository in a workspace. `repository` is the checkout on the host, `directory` the clone's in the
    workspace's home, `branch` the branch that it began on, `start` the commit with which it began."""

    workspace: str
    repository: str
    directory: str
    branch: str
    start: str


def path_of(instance: str, workspace: str) -> Path:
    """The note on a workspace of a hutch, see `Layout.instance`."""
    return own_state() / "clones" / instance / f"{workspace}.json"


def read_note(instance: str, workspace: str) -> Clone | None:
    """The note; None where there is none. HutchError says which file is damaged."""
    path = path_of(instance, workspace)
    with explained(f"{path} cannot be read"):
        content = read_or_none(path)
    if content is None:
        return None
    try:
        found = json.loads(content)
        clone = Clone(workspace, *(found[key] for key in ("repository", "directory", "branch", "start")))
    except (ValueError, TypeError, KeyError):
        clone = None
    if clone is None or not all(isinstance(value, str) for value in asdict(clone).values()):
        raise HutchError(f"{path} is damaged", resolution="remove it, and make the clone anew in another workspace")
    return clone


def known_note(instance: str, workspace: str) -> Clone:
    """The note on a clone that is there. UsageError where none was made."""
    found = read_note(instance, workspace)
    if found is None:
        raise UsageError(
            f"{workspace} has no clone that you have made",
            resolution=f"`hutch run --clone --name {workspace}` makes one",
        )
    return found


def write_note(instance: str, clone: Clone) -> None:
    path = path_of(instance, clone.workspace)
    with explained(f"{path} cannot be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(asdict(clone), indent=2).encode() + b"\n", mode=0o600)


@contextmanager
def locked(instance: str, workspace: str) -> Iterator[None]:
    """Wait until nobody else makes a clone in the workspace, and hold off others."""
    path = path_of(instance, workspace).with_suffix(".lock")
    with explained(f"{path} cannot be written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with kept_open(descriptor):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
