"""Sharing: the accounts and groups of the host that a workspace is shared with.

A file says "NAME" and "@GROUP". A record has their numbers, "1001" and "@1002": what a name means is decided when the
file is loaded, as for the owner. The same words name the holders of hutch's own keys. Reads the user database, changes
nothing.
"""

from __future__ import annotations

import grp
import pwd
from collections.abc import Collection, Iterable
from dataclasses import replace

from hutch.frozen import dataclass
from hutch.spec.field_types import Invalid
from hutch.spec.names import UID_FIRST
from hutch.spec.record import Record
from hutch.spec.values import NOBODY

MOST_SHARED = 64
"""The most accounts and groups of a workspace: each has an entry in access control lists, and a key inside."""
RETIRED = "retired"
"""The holder of a key of root's that others have had: it opens what has run since then, and nothing that starts."""
BY_ROOTS_KEY = "@hutch by root's key"
"""Beside the holders in what a workspace runs with: a copy of root's key opens it, which the group `hutch` had."""
BY_AN_EARLIER_KEY = " by an earlier key"
"""Behind a group there: a key opens it that somebody may have kept who has left the group."""


@dataclass(frozen=True)
class Viewers:
    """Accounts and groups by their numbers, each once, in ascending order."""

    uids: tuple[int, ...] = ()
    gids: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.uids or self.gids)


def find_holder(said: str) -> str:
    """The holder that "NAME" or "@GROUP" means.

    Raises Invalid for a name that the host does not know, for root and nobody, and for ids that are hutch's own or
    beyond.
    """
    try:
        number = grp.getgrnam(said[1:]).gr_gid if is_group(said) else pwd.getpwnam(said).pw_uid
    except (KeyError, ValueError):
        if is_group(said):
            raise Invalid("is not a group of this host", "a group that `getent group` lists") from None
        hint = "a user name that `getent passwd` lists; a group is written with an @"
        raise Invalid("is not a user of this host", hint) from None
    if number in (0, NOBODY) or number >= UID_FIRST:
        kind, why = ("group", "root reaches every workspace") if is_group(said) else ("user", "root reaches it anyway")
        raise Invalid(f"is the {kind} {number}", why if number == 0 else f"an ordinary {kind} of this host")
    return f"@{number}" if is_group(said) else str(number)


def viewers(holders: Iterable[str]) -> Viewers:
    """The accounts and groups that these words mean."""
    both = set(holders)
    uids = sorted(int(each) for each in both if not is_group(each))
    return Viewers(tuple(uids), tuple(sorted(gid_of(each) for each in both if is_group(each))))


def is_group(holder: str) -> bool:
    return holder.startswith("@")


def gid_of(holder: str) -> int:
    return int(holder.removeprefix("@"))


def holder_words(holder: str) -> str:
    """The holder by name, as in a file; by number where the host does not know it any more."""
    holder, space, way = holder.partition(" ")
    try:
        name = f"@{grp.getgrgid(gid_of(holder)).gr_name}" if is_group(holder) else pwd.getpwuid(int(holder)).pw_name
    except (KeyError, OverflowError, ValueError):
        name = holder
    return f"{name}{space}{way}"


def with_lost_keys(record: Record, lost: Collection[str]) -> Record:
    """The record of a workspace that may be opened by keys which others than their holders have: what it was started
    with is not in force, so `up` puts other keys in the place of these."""
    if record.booted is None or not lost:
        return record
    before = record.booted.workspace.share_with
    after = tuple(f"{each}{BY_AN_EARLIER_KEY}" if each in lost else each for each in before)
    if "0" in lost and BY_ROOTS_KEY not in after:
        after = (*after, BY_ROOTS_KEY)
    workspace = replace(record.booted.workspace, share_with=after)
    return replace(record, booted=replace(record.booted, workspace=workspace))
