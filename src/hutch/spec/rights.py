"""The rights of the person on whose behalf root's process works: taken on while it looks at what is theirs.

A path of theirs may lead anywhere. With their rights it leads nowhere that they could not go themselves, and nobody
needs to find out whether it is the same place when it is used: what is opened then is theirs to see.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from hutch.errors import HutchError
from hutch.spec import member

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hutch.spec.member import Member
    from hutch.spec.person import Person

place: int | None = None
"""The directory in which the member called for whom this process works: a descriptor, since root is elsewhere; None for
one that is closed to them."""


@contextmanager
def as_person(person: Person | Member) -> Iterator[None]:
    """Have root's process act with the person's rights for a moment, in which no thread of it does anything else, and
    it must import nothing: what it would read of hutch may be closed to them. Its real uid stays root's, so that they
    can neither look into it nor end it; its priority, which they can change meanwhile, is as before afterwards."""
    if os.geteuid() != 0 or person.uid == 0:
        yield
        return
    gid, groups, before = os.getegid(), os.getgroups(), _schedule()
    try:
        os.initgroups(person.name, person.gid)
        os.setegid(person.gid)
        os.seteuid(person.uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(gid)
        os.setgroups(groups)
        if _schedule() != before:
            _put_back(*before)


Schedule = tuple[int, int, set[int]]
"""Priority, policy and processors of this process."""


def _schedule() -> Schedule:
    return os.getpriority(os.PRIO_PROCESS, 0), os.sched_getscheduler(0), os.sched_getaffinity(0)


def _put_back(priority: int, policy: int, processors: set[int]) -> None:
    os.setpriority(os.PRIO_PROCESS, 0, priority)
    os.sched_setscheduler(0, policy, os.sched_param(0))
    os.sched_setaffinity(0, processors)


@contextmanager
def as_caller() -> Iterator[None]:
    """Act with the rights of the member for whom this process works. Everybody else has their own, and so has who has
    taken on these already."""
    with nullcontext() if member.acting is None else as_person(member.acting):
        yield


def lost_directory(how: str) -> HutchError:
    """The failure for a current directory that cannot be used. One that was shared is a mount as long as a workspace
    shares it: a shell that has entered that stays in it, and `cd .` goes to what is at its path now."""
    way = "`cd .` where its path is still there, as after `hutch rm`; or change to another one"
    return HutchError(f"the current directory is {how}", resolution=way)


@contextmanager
def where_called() -> Iterator[None]:
    """The same, where the member called. Raises HutchError for a directory that is gone, or closed to them."""
    if member.acting is None or os.geteuid() != 0:
        yield
        return
    try:
        with as_person(member.acting):
            if place is None or not _has_entered(place):
                raise lost_directory("gone, or closed to you")
            yield
    finally:
        os.chdir("/")


def _has_entered(directory: int) -> bool:
    try:
        os.fchdir(directory)
        os.getcwd()
    except OSError:
        return False
    return True
