"""A program of its own: mount again what protects shared directories, where somebody on the host has taken it away.

    main(SHARES, PID)

Whoever on the host puts another file in the place of a protected one, as git and editors do, takes its mount away: the
kernel detaches what is mounted on a name that is renamed onto or removed, in all namespaces. This runs beside the guest
for as long as the process PID lives, hears of each change of the mounts, and mounts what is missing; submodules,
worktrees and the like that have come since are then protected too. Where it cannot, or fails itself, it ends PID.
SHARES is JSON: lists of the arguments of `protecting`.

The guest's mounts are slaves of those at the place of the share, so they get it as well. A mount that comes that way is
not locked there, but what lies on it is: so each is two, one on the other, and nobody gets at the lower one.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import stat
import sys
from contextlib import suppress

from hutch.failure import HutchError
from hutch.files import kept_open
from hutch.host.storage.mount_calls import cloned, put
from hutch.host.storage.mountinfo import Tree, observe_mountinfo
from hutch.host.storage.protecting import Share, Way, apart, opened_at, steps_of
from hutch.libc import call
from hutch.trees.cursor import SUPERFLUOUS, way_to

MNT_DETACH = 2
STAGE = "stage"
AGAIN = 100  # milliseconds until another look, where something changed during one


class Changing(Exception):
    """Something changed during a look, so there has to be another one: what is protected has not been seen to the
    end."""


def renew(share: Share) -> None:
    """Mount what is missing of a share's protection. Raises Changing once the rest is there; OSError, HutchError.

    What counts is what a path finds: a mount of a directory hides those that were mounted in it before. So all in it is
    mounted anew, and nothing where the directory cannot be."""
    tree = Tree(observe_mountinfo())
    if not tree.options(share.place):  # it was taken away from the guest
        return
    mounted: set[Way] = set()
    missed: set[Way] = set()
    for way, is_readonly in steps_of(share.hold()):
        options = set() if way[:-1] in mounted else tree.options("/".join((share.place, *way)))
        if way[:-1] in missed:
            missed.add(way)
        elif not options or (is_readonly and "ro" not in options):
            try:
                mount_pair(share.place, way, is_readonly=is_readonly)
                mounted.add(way)
            except OSError as error:
                if error.errno not in SUPERFLUOUS:
                    raise
                missed.add(way)
    if missed:
        raise Changing


def mount_pair(place: str, way: Way, *, is_readonly: bool) -> None:
    """Mount what a way leads to over itself, twice. Both come at once: they are put together on another mount of the
    directory, which nobody sees."""
    stage = f"{place}.{STAGE}"
    os.makedirs(stage, exist_ok=True)
    with (
        kept_open(os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as top,
        kept_open(apart(top)) as alone,
        kept_open(os.open(stage, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as at,
    ):
        put(alone, at)
        try:
            with (
                kept_open(opened_at(place, way)) as entry,
                kept_open(opened_at(stage, way)) as staged,
                kept_open(apart(entry, is_readonly=is_readonly)) as lower,
                kept_open(apart(entry, is_readonly=is_readonly)) as upper,
            ):
                if stat.S_IFMT(os.fstat(entry).st_mode) != stat.S_IFMT(os.fstat(staged).st_mode):
                    raise OSError(errno.ENOENT, "another thing took its place")  # EINVAL, to the kernel
                put(lower, staged)
                put(upper, lower)
                with kept_open(cloned(lower, is_whole=True)) as pair:
                    put(pair, entry)
        finally:
            call("umount2", way_to(alone).encode(), MNT_DETACH)


def watch(shares: list[Share], pid: int) -> None:
    with kept_open(os.pidfd_open(pid)) as process, open("/proc/self/mountinfo", "rb") as mounts:
        end, poll = select.poll(), select.poll()
        end.register(process, select.POLLIN)
        poll.register(process, select.POLLIN)
        poll.register(mounts, select.POLLPRI)
        try:
            is_over = False
            while not is_over:
                renewed = [is_renewed(share) for share in shares]
                # A look that mounts something is a change of the mounts itself.
                found = poll.poll() if all(renewed) else end.poll(AGAIN)
                is_over = process in (descriptor for descriptor, _ in found)
        except BaseException:  # of whatever kind: a guest that could end this by what it writes would be rid of it
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(process, signal.SIGKILL)  # it fails, so it is started anew
            raise


def is_renewed(share: Share) -> bool:
    """Renew a share's protection; False where there has to be another look. Exits where it cannot be renewed."""
    try:
        renew(share)
    except Changing:
        return False
    except HutchError as error:
        sys.exit(f"{error.brief}: {error.resolution}")
    except OSError as error:
        if error.errno in SUPERFLUOUS:
            return False
        sys.exit(f"protected paths in {share.source} cannot be mounted again: {error}")
    return True


def main(shares: str, pid: str) -> None:
    watch([Share(*arguments) for arguments in json.loads(shares)], int(pid))
