"""Checkouts: a hutch.toml in one came with a repository, so it is somebody else's word. It counts for nothing until a
person has accepted its content, and then it only narrows what that person and the host allow.

Finds the checkout that a file is in, and the keys by which such a file would widen something. Reads directories, and
changes nothing. What was accepted is told by host/identity/answers.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from hutch.errors import HutchError
from hutch.files import looked_up
from hutch.frozen import dataclass
from hutch.spec.clashes import Real, is_inside
from hutch.spec.lookup import SYSTEM_FILE
from hutch.spec.model import WorkspaceSpec
from hutch.spec.person import Person
from hutch.spec.ranges import is_private
from hutch.spec.validation import FieldProblem, Table
from hutch.trees.cursor import upwards

if TYPE_CHECKING:
    from hutch.spec.crosscheck import Draft

GIT = ".git"
HOST_RUNS = frozenset({GIT, ".vscode", ".idea", ".cursor", ".envrc", ".husky"})
"""The names by which the host's own tools run what they find there."""
FREE = frozenset(
    """
    type hypervisor packages setup user shell mac cid vcpus memory disk restart_if_changed persist protect env use learn
    idle
    """.split()
)
"""The keys that a file in a checkout may give any value: what they change is inside the workspace, or is less. Those of
JUDGED depend on the value. No other key may differ from its default, one that is new to hutch included."""
JUDGED = frozenset({"image", "mounts", "egress", "publish"})
SECTIONS = ("defaults", "workspaces", "kits")
"""The tables of the whole file that are about its own workspaces alone."""
FIRST_PORT = 1024  # those below are for programs of the host's
HINT = "leave it out, or declare the workspace in a file of your own, outside of the checkout"


@dataclass(frozen=True)
class Checkout:
    """A checkout that has a hutch.toml. `grounds` is the directory in which that may share what it likes: the top of
    the checkout; None where that would be a home."""

    top: str
    grounds: str | None


def find_checkout(found: str, file: str, person: Person) -> Checkout | None:
    """The checkout of the file that the path `found` leads to, None for one that is in none.

    Raises HutchError for a link in a checkout that leads out of it: a repository does not choose among the files of a
    person.
    """
    own = own_directories(person)
    try:
        links = [str(at.parent) for at, status, _ in looked_up(Path(os.getcwd(), found)) if status and is_link(status)]
    except OSError:  # whoever opens the file meets that too
        links = []
    for directory in links:
        top = top_above(directory, own, person.uid)
        if top is not None and not is_inside(file, top):
            raise HutchError(
                f"{found} leads by a link out of the checkout {top}, so it counts for nothing",
                resolution=f"if you mean {file}, name it: --file {file}",
            )
    top = top_above(os.path.dirname(file), own, person.uid)
    return None if top is None else Checkout(top, grounds_of(top, os.path.dirname(file), person))


def is_within(directory: int, checkout: Checkout | None, person: Person) -> bool:
    """Whether a directory, by its descriptor, lies in that checkout, or in none: whatever its path leads to by now."""
    own = {identity for path in own_directories(person) if (identity := identity_of(path))}
    with closing(upwards(directory)) as ways:
        for at in ways:
            found = os.fstat(at)
            if (found.st_dev, found.st_ino) in own:
                return True  # the person's own or the host's, by whatever path, though perhaps in a checkout by that
            if has_git(".", person.uid, at):
                return checkout is not None and identity_of(checkout.top) == (found.st_dev, found.st_ino)
    return checkout is None


def identity_of(path: str) -> tuple[int, int] | None:
    """The identity of a directory, by whatever path; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def is_link(status: os.stat_result) -> bool:
    return stat.S_ISLNK(status.st_mode)


def own_directories(person: Person) -> frozenset[str]:
    """The directories whose files are the host's or the person's own, though they may be kept in git."""
    own = (SYSTEM_FILE.parent, person.config)
    return frozenset(os.path.realpath(path) for path in own if path is not None)


def top_above(directory: str, own: Iterable[str], uid: int) -> str | None:
    """The nearest directory, from this one upwards, that has a `.git`; None where there is none, or where one of the
    `own` directories comes first. `uid` is the person's. No git is run: it would read what lies there."""
    at = Path(directory)
    for above in (at, *at.parents):
        if str(above) in own:
            return None
        if has_git(str(above), uid):
            return str(above)
    return None


def has_git(directory: str, uid: int, below: int | None = None) -> bool:
    """Whether a directory, by its path from the one `below`, has a `.git`, of whatever kind: worktrees and submodules
    have a file. One that a stranger has put into a directory such as /tmp does not count, or nobody's file below
    would."""
    try:
        found = os.stat(f"{directory}/{GIT}", dir_fd=below, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # nobody can tell that it has none
        return True
    above = os.stat(directory, dir_fd=below, follow_symlinks=False)
    is_everybodys = above.st_mode & stat.S_ISVTX and above.st_mode & stat.S_IWOTH
    return not is_everybodys or found.st_uid in (uid, above.st_uid)


def grounds_of(top: str, directory: str, person: Person) -> str | None:
    """The directory in which a file may share what it likes. Where somebody keeps a whole home in git, that is not the
    repository's to give: what is beside the file is."""
    homes = [str(person.home)] if person.home is not None else []
    return next((at for at in (top, directory) if not any(is_inside(home, at) for home in homes)), None)


# The keys that widen.


def check_checkout(data: Table, drafts: Iterable[Draft], checkout: Checkout, real: Real) -> Iterator[FieldProblem]:
    """The problems of a file that gives itself more than the person and the host do without it."""
    for section in data.keys() - set(SECTIONS):
        for key in data[section] if isinstance(data[section], dict) else ():
            yield FieldProblem((section, key), "is the host's or yours to say, not a checkout's", HINT)
    for draft in drafts:
        yield from check_keys(draft)
        yield from check_directories(draft, checkout, real)
        yield from check_egress(draft)
        yield from check_ports(draft)


def check_keys(draft: Draft) -> Iterator[FieldProblem]:
    """Keys that are not a checkout's to say, whatever their values."""
    for key, field in WorkspaceSpec.__dataclass_fields__.items():
        if key not in FREE | JUDGED and getattr(draft.workspace, key) != field.default:
            yield FieldProblem(draft.path(key), "gives it more than a file in a checkout may", HINT)


def check_directories(draft: Draft, checkout: Checkout, real: Real) -> Iterator[FieldProblem]:
    """It shares directories of its own checkout. What protects the names in a share by which the host runs something
    does not protect the share itself, so it is none of these."""
    shares = [
        (draft.path("mounts", index, "source"), mount.source) for index, mount in enumerate(draft.workspace.mounts)
    ]
    scheme, _, tree = draft.workspace.image.partition(":")
    if scheme in ("rootfs", "nix"):
        shares.append((draft.path("image"), tree))
    for path, directory in shares:
        aliases = {directory, real(directory)}
        grounds = {checkout.grounds, real(checkout.grounds)} if checkout.grounds is not None else set()
        if not all(any(is_inside(alias, ground) for ground in grounds) for alias in aliases):
            where = f"is not inside {checkout.grounds}" if grounds else "is shared from a checkout that is your home"
            yield FieldProblem(path, f"{where}, and a file in a checkout shares nothing else", HINT)
        elif any(HOST_RUNS & set(Path(alias.lower()).parts) for alias in aliases):
            yield FieldProblem(path, "holds files that host tools run", HINT)


def check_egress(draft: Draft) -> Iterator[FieldProblem]:
    """It reaches no more than without a word about it: no private network."""
    # Spares the start-up of `hutch run`, which only asks where a checkout is.
    from hutch.spec.policy import policy_of

    message = "opens private networks, which a file in a checkout may not"
    egress = draft.workspace.egress
    if isinstance(egress, str):
        if policy_of(draft.workspace).private_networks:
            yield FieldProblem(draft.path("egress"), message, HINT)
        return
    for index, entry in enumerate(egress):
        network = entry.partition(":")[0]
        if "/" in network and is_private(network):
            yield FieldProblem(draft.path("egress", index), message, HINT)


def check_ports(draft: Draft) -> Iterator[FieldProblem]:
    """Its ports are for the programs of this host, and none of the host's own."""
    for index, port in enumerate(draft.workspace.publish):
        if not port.is_local or port.host_port < FIRST_PORT:
            message = "is not a port of the loopback from 1024 on, and a file in a checkout publishes no other"
            yield FieldProblem(draft.path("publish", index), message, f'such as "127.0.0.1:8080:{port.guest_port}"')
