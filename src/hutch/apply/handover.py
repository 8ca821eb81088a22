"""A container's files for the machine that it becomes.

What root of a container made in a share belongs to the container's own uids on the host. A machine's shares know one
owner only, so it all becomes the owner's: each thing by its inode, if that is this workspace's, and by no name of the
guest's.
"""

from __future__ import annotations

from hutch.backends.share import sources
from hutch.errors import HutchError
from hutch.host.identity.ssh import owner_of
from hutch.spec.names import UID_COUNT
from hutch.state import Record
from hutch.trees.changing import give
from hutch.trees.cursor import opened


def hand_over(record: Record) -> None:
    """Give everything that the container made in its shares to the owner. It does not run. May be called again. What is
    foreign to it stays as it is."""
    owner = record.wanted.owner
    assert isinstance(owner, int)
    gid, _ = owner_of(owner)
    for source, _, readonly in sources(record.wanted):
        if readonly:
            continue
        try:
            with opened(source) as top:
                give(top, range(record.uid_base, record.uid_base + UID_COUNT), owner, gid)
        except (FileNotFoundError, NotADirectoryError):
            continue  # it is made, or refused, when the machine starts
        except (HutchError, OSError) as error:
            why = error.brief if isinstance(error, HutchError) else error.strerror
            raise HutchError(
                f"{record.name}: what the container made in {source} cannot be handed over to the machine",
                details=str(why),
                resolution="the next `hutch up` tries again",
            ) from error
