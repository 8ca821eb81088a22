"""A program of its own: mount again what protects shared directories, where somebody on the host has taken it away.

    main(SHARES, PID)

Whoever on the host puts another file in the place of a protected one, as git and editors do, takes its mount away: the
kernel detaches what is mounted on a name that is renamed onto or removed, in all namespaces. This runs beside the guest
for as long as the process PID lives, hears of each change of the mounts, and mounts what is missing; submodules,
worktrees and the like that have come since are then protected too. Where it cannot, it ends PID. SHARES is JSON: lists
of the arguments of `protecting`.

The guest's mounts are slaves of those at the place of the share, so they get it as well. A mount that comes that way is
not locked there, but what lies on it is: so each is two, one on the other, and nobody gets at the lower one.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys

from hutch.failure import HutchError
from hutch.files import kept_open
from hutch.host.storage.mount_calls import cloned, put
from hutch.host.storage.mountinfo import observe_mountinfo, parse_mountinfo
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
    """Mount what is missing of a share's protection. Raises Changing once the rest is there; OSError, HutchError."""
    points = {point for _, _, point, _, _ in parse_mountinfo(observe_mountinfo())}
    if share.place not in points:  # it was taken away from the guest
        return
    changed = None
    for way, is_readonly in steps_of(share.hold()):
        if "/".join((share.place, *way)) not in points:
            try:
                mount_pair(share.place, way, is_readonly=is_readonly)
            except OSError as error:
                if error.errno not in SUPERFLUOUS:
                    raise
                changed = error
    if changed is not None:
        raise Changing from changed


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
        while True:
            is_changing = False
            for share in shares:
                try:
                    if why := try_to_renew(share):
                        signal.pidfd_send_signal(process, signal.SIGKILL)  # it fails, so it is started anew
                        sys.exit(why)
                except Changing:
                    is_changing = True
            # A look that mounts something is a change of the mounts itself.
            found = end.poll(AGAIN) if is_changing else poll.poll()
            if process in (descriptor for descriptor, _ in found):
                return


def try_to_renew(share: Share) -> str:
    """Renew a share's protection. Returns why that is not possible, "" otherwise. Raises Changing."""
    try:
        renew(share)
    except HutchError as error:
        return f"{error.brief}: {error.resolution}"
    except OSError as error:
        if error.errno in SUPERFLUOUS:
            raise Changing from error
        return f"protected paths in {share.source} cannot be mounted again: {error}"
    return ""


def main(shares: str, pid: str) -> None:
    watch([Share(*arguments) for arguments in json.loads(shares)], int(pid))
