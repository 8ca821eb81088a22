"""A container's files for the machine that it becomes.

What root of a container made in a share belongs to the container's own uids on the host. A machine's shares know one
owner only, so it all becomes the owner's. The tree is a guest's: it is walked in a throw-away container, by a root that
is none of the host's.
"""

from __future__ import annotations

import os
from dataclasses import replace

from hutch.apply.starting import surroundings_of
from hutch.backends.identity import guest_uid
from hutch.backends.nspawn import inspection
from hutch.backends.share import sources
from hutch.errors import HutchError
from hutch.images.contain import run_contained
from hutch.run import CommandFailed
from hutch.spec.model import Network
from hutch.spec.names import Places
from hutch.state import Record

PATIENCE = 600.0  # seconds; there may be millions of files


def hand_over(places: Places, record: Record) -> None:
    """Give everything that the container made in its shares to the owner. It does not run. May be called again."""
    assert isinstance(record.wanted.owner, int)
    command = render_command(guest_uid(record.wanted.owner))
    for source, _, readonly in sources(record.wanted):
        if readonly or not os.path.isdir(source):
            continue
        work = inspection(
            record.name,
            replace(record.wanted, home=source),
            surroundings_of(places, record, Network(), ()),
            command,
            as_root=True,
        )
        try:
            run_contained(
                work, group=places.inspection_cgroup(record.name), on_line=lambda line: None, timeout=PATIENCE
            )
        except CommandFailed as error:
            raise HutchError(
                f"{record.name}: what the container made in {source} cannot be handed over to the machine",
                details=error.details,
                resolution="the next `hutch up` tries again",
            ) from error


def render_command(uid: int) -> tuple[str, ...]:
    """Run as root inside, in the share. Nobody's files, from 65534 on, are foreign and stay as they are."""
    own, foreign = ("-uid", str(uid), "-gid", str(uid)), ("-uid", "+65533")
    return ("find", ".", "-xdev", "!", "(", *own, ")", "!", *foreign, "-exec", "chown", "-h", f"{uid}:{uid}", "{}", "+")
