"""Files in checkouts: what one asks for, and whether the caller has accepted that. Reads the file and the answers, and
writes an answer; asks nobody."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import MISSING
from functools import partial
from pathlib import Path
from typing import Any

from hutch.errors import HutchError, Problem, Untrusted
from hutch.files import real_path
from hutch.frozen import dataclass
from hutch.host.identity.answers import Answer, Asks, digest, directory_of, read_answer
from hutch.host.storage.protected import find_protected
from hutch.plan.planner import plain
from hutch.spec.checkouts import Checkout, find_checkout, is_within
from hutch.spec.clashes import is_inside
from hutch.spec.loading import Check, config_of
from hutch.spec.lookup import believed_owners, find_file, resolved
from hutch.spec.model import Config, WorkspaceSpec
from hutch.spec.names import Layout
from hutch.spec.person import Person
from hutch.spec.reading import MOVED, read_content, text_of
from hutch.spec.refusing import refuse_files

PARTS_HINT = "share the whole checkout, in which that is protected, or have it read-only"


@dataclass(frozen=True)
class Offer:
    """A file in a checkout, with the content that was read: what is accepted is this, whatever is there by then.

    `before` is what the person has accepted of the same file until now, None for nothing.
    """

    file: str
    checkout: str
    content: bytes
    asks: Asks
    before: Answer | None

    @property
    def sha256(self) -> str:
        return digest(self.content)

    @property
    def is_accepted(self) -> bool:
        return self.before is not None and self.before.sha256 == self.sha256


def check_accepted(person: Person, file: str, checkout: Checkout, content: bytes, accepted: str | None = None) -> None:
    """Raise Untrusted, unless the person has accepted this content of the file, or the caller says that its SHA-256
    is `accepted`."""
    said = digest(content)
    if accepted is not None and accepted.lower() == said:
        return
    answer = read_answer(person, file)
    if answer is not None and answer.sha256 == said:
        return
    if answer is None:
        brief = f"{file} is in a checkout, and {person.name} has not accepted it, so it counts for nothing"
    else:
        brief = f"{file} has changed since {person.name} accepted it ({day(answer.when)}), so it counts for nothing"
    raise Untrusted(
        brief,
        details=f"The checkout is {checkout.top}. Answers of {person.name} are kept in {directory_of(person)}.",
        resolution=f"`hutch trust {shlex.quote(file)}` shows its requests, and asks you",
    )


def make_offer(layout: Layout, person: Person, path: Path | None, check: Check) -> Offer | None:
    """The offer of the hutch.toml that would be loaded; None for one that is in no checkout. Raises ConfigError for a
    file that could not be loaded, or that widens something."""
    found = find_file(path)
    file = resolved(found)
    checkout = find_checkout(str(found), file, person)
    if checkout is None:
        return None
    judge = partial(check_place, file, checkout, person)
    content = read_content(file, believed_owners(path, found), judge=judge)
    config = config_of(file, text_of(file, content), layout=layout, check=check, checkout=checkout)
    check_parts(config)
    return Offer(file, checkout.top, content, asks_of(config), read_answer(person, file))


def check_place(file: str, checkout: Checkout | None, person: Person, directory: int) -> None:
    """Refuse a file that was opened in a directory outside of that checkout, or inside of one where there is none."""
    if not is_within(directory, checkout, person):
        raise HutchError(f"{file} is not where it was", resolution=MOVED)


def check_parts(config: Config) -> None:
    """Refuse shares of a part of the checkout in which the host runs something, such as the directory that
    core.hooksPath names: what protects that is found from the top, and so in a share of the whole alone."""
    assert config.checkout is not None
    parts = [
        (f"workspaces.{name}.mounts[{index}].source", mount.source, real_path(mount.source))
        for name, workspace in config.workspaces.items()
        for index, mount in enumerate(workspace.mounts)
        if mount.is_writable and real_path(mount.source) != config.checkout
    ]
    found = find_protected(config.checkout) if parts else {}
    protected = [path for path, hold in found.items() if hold != "way"]
    refuse_files(
        [
            (config.file, Problem("holds files that host tools run", key, value, PARTS_HINT))
            for key, value, source in parts
            if any(is_inside(path, source) or is_inside(source, path) for path in protected)
        ],
        {name: workspace.use for name, workspace in config.workspaces.items()},
    )


def asks_of(config: Config) -> Asks:
    """What a file asks for beside the defaults, in the order of its workspaces and of the model's keys."""
    return {name: _asked(workspace) for name, workspace in config.workspaces.items()}


def _asked(workspace: WorkspaceSpec) -> Mapping[str, Any]:
    values = {key: getattr(workspace, key) for key in WorkspaceSpec.__dataclass_fields__}
    return {key: plain(value) for key, value in values.items() if value != usual(key)}


def usual(key: str) -> Any:
    """The value of a key that a file does not say; None for one that it has to."""
    field = WorkspaceSpec.__dataclass_fields__.get(key)
    return None if field is None or field.default is MISSING else field.default


def day(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(when))
