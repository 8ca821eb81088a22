"""A program of its own: mount again what protects shared directories, where somebody on the host has taken it away.

    main(SHARES, PID)

Whoever on the host puts another file in the place of a protected one, as git and editors do, takes its mount away: the
kernel detaches what is mounted on a name that is renamed onto or removed, in all namespaces. Whoever renames one away
takes its mount along. This runs beside the guest for as long as the process PID lives, hears of each change of the
mounts and of these names, and mounts what is missing; submodules, worktrees and the like that have come since are then
protected too. Where it cannot, it fails, and whoever runs it ends PID: see runtime/unit.sh. SHARES is JSON: lists of
the arguments of `protecting`.

The guest's mounts are slaves of those at the place of the share, so they get it as well. A mount that comes that way is
not locked there, but what lies on it is: so each is two, one on the other, and nobody gets at the lower one.
"""

from __future__ import annotations

import errno
import json
import os
import select
import stat
import sys
from contextlib import suppress
from pathlib import Path

from hutch.failure import HutchError
from hutch.files import kept_open
from hutch.host.storage.mount_calls import cloned, put
from hutch.host.storage.mountinfo import Tree, observe_mountinfo
from hutch.host.storage.protecting import Share, Way, apart, opened_at, steps_of
from hutch.inotify import CREATE, DELETE, MOVED_FROM, MOVED_TO, ONLYDIR, OVERFLOW, Inotify
from hutch.libc import call
from hutch.trees.cursor import SUPERFLUOUS, mount_of, way_to

TYPE_CHECKING = False  # it starts with a workspace
if TYPE_CHECKING:
    from collections.abc import Iterable

MNT_DETACH = 2
STAGE = "stage"
AGAIN = 100  # milliseconds until another look, where something changed during one
SELDOM = 1000  # where names may change without a word


class Names:
    """The names on the ways to what is protected. It hears of each that comes or goes, as long as the kernel tells of
    so many directories."""

    def __init__(self) -> None:
        self._names: dict[int, set[str]] = {}
        self.told: Inotify | None = None
        with suppress(OSError):  # the user has no more of them: containers have some ten each
            self.told = Inotify(CREATE | DELETE | MOVED_FROM | MOVED_TO | ONLYDIR)
        self.patience = SELDOM if self.told is None else None

    def follow(self, place: str, ways: Iterable[Way]) -> None:
        """Hear of these names from now on. What is there no more stays noted: it costs a look at most."""
        if self.told is None:
            return
        inside: dict[Way, set[str]] = {}
        for way, _ in steps_of(ways):
            inside.setdefault(way[:-1], set()).add(way[-1])
        for directory, names in inside.items():
            try:
                with kept_open(opened_at(place, directory)) as descriptor:
                    self._names.setdefault(self.told.add(way_to(descriptor)), set()).update(names)
            except OSError as error:
                if error.errno not in (*SUPERFLUOUS, errno.ENOSPC):
                    raise
                if error.errno == errno.ENOSPC:
                    self.patience = SELDOM

    def has_changed(self) -> bool:
        """Whether what has been told since the last time is about one of them."""
        events = list(self.told.read()) if self.told is not None else ()
        return any(mask & OVERFLOW or name in self._names.get(number, ()) for number, mask, name in events)


class Watched:
    """A share, and the ways to what was protected of it when it was last looked at."""

    def __init__(self, share: Share, names: Names) -> None:
        self._share, self._names = share, names
        self._ways: list[Way] = []

    def is_renewed(self) -> bool:
        """Mount what is missing of the share's protection; False where something changes meanwhile, so that there has
        to be another look. Exits where it cannot be.

        The files that the last look found come first: to find more, hutch follows what the guest writes, and that may
        last, fail, or lead astray. A directory may have come to be one in which only a part is protected."""
        try:
            mount_missing(self._share.place, self._ways, files_only=True)
            self._ways = self._share.hold()
            self._names.follow(self._share.place, self._ways)
            return mount_missing(self._share.place, self._ways)
        except HutchError as error:
            sys.exit(f"{error.brief}: {error.resolution}")
        except OSError as error:
            if error.errno in SUPERFLUOUS:
                return False
            sys.exit(f"protected paths in {self._share.source} cannot be mounted again: {error}")


def mount_missing(place: str, ways: Iterable[Way], *, files_only: bool = False) -> bool:
    """Mount what is missing at the place of a share; returns whether all is there then. OSError. `files_only` leaves
    out the directories that would be read-only.

    What counts is what a path finds: a mount of a directory hides those that were mounted in it before. So all in it is
    mounted anew, and nothing where the directory cannot be."""
    tree = Tree(observe_mountinfo())
    if not tree.options(place):  # it was taken away from the guest
        return True
    mounted: set[Way] = set()
    missed: set[Way] = set()
    for way, is_readonly in steps_of(ways):
        path = "/".join((place, *way))
        options = set() if way[:-1] in mounted else tree.options(path)
        if files_only and is_readonly and is_directory(place, way):
            continue
        if way[:-1] in missed:
            missed.add(way)
        elif not options or (is_readonly and "ro" not in options):
            try:
                mount_pair(place, way, is_readonly=is_readonly)
                mounted.add(way)
            except OSError as error:
                if error.errno not in SUPERFLUOUS:
                    raise
                missed.add(way)
    return not missed


def is_directory(place: str, way: Way) -> bool:
    """Whether a way ends at a directory. A path may lead elsewhere by now, to what does not answer."""
    try:
        with kept_open(opened_at(place, way)) as entry:
            return stat.S_ISDIR(os.fstat(entry).st_mode)
    except OSError as error:
        if error.errno not in SUPERFLUOUS:
            raise
        return False


def mount_pair(place: str, way: Way, *, is_readonly: bool) -> None:
    """Mount what a way leads to over itself, twice. Both come at once: they are put together where nobody sees them.
    ENOENT where something else has taken its place meanwhile."""
    stage = Path(f"{place}.{STAGE}")
    (stage / "directory").mkdir(parents=True, exist_ok=True)
    (stage / "file").touch()
    with (
        kept_open(os.open(stage, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as at,
        kept_open(apart(at)) as alone,
        kept_open(opened_at(place, way)) as entry,
    ):
        put(alone, at)
        try:
            name = "directory" if stat.S_ISDIR(os.fstat(entry).st_mode) else "file"
            with (
                kept_open(os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=alone)) as staged,
                kept_open(apart(entry, is_readonly=is_readonly)) as lower,
                kept_open(apart(entry, is_readonly=is_readonly)) as upper,
            ):
                put(lower, staged)
                put(upper, lower)
                with kept_open(cloned(lower, is_whole=True)) as pair:
                    put(pair, entry)
        except OSError:
            _refuse_detached(entry, place, way)
            raise
        finally:
            call("umount2", way_to(alone).encode(), MNT_DETACH)


def _refuse_detached(entry: int, place: str, way: Way) -> None:
    """Raise ENOENT where the mount on which something was opened is no more on its way: to the kernel, that is as
    invalid as what can never be mounted."""
    with kept_open(opened_at(place, way)) as now:
        if mount_of(now) != mount_of(entry):
            raise OSError(errno.ENOENT, "its mount has been taken away")


def watch(shares: list[Share], pid: int) -> None:
    names = Names()
    watched = [Watched(share, names) for share in shares]
    with kept_open(os.pidfd_open(pid)) as process, open("/proc/self/mountinfo", "rb") as mounts:
        end, poll = select.poll(), select.poll()
        end.register(process, select.POLLIN)
        poll.register(process, select.POLLIN)
        poll.register(mounts, select.POLLPRI)
        if names.told is not None:
            poll.register(names.told, select.POLLIN)
        found: set[int] = set()
        while process not in found:
            renewed = [each.is_renewed() for each in watched]
            # A look that mounts something is a change of the mounts itself.
            found = await_change(poll, names) if all(renewed) else {each for each, _ in end.poll(AGAIN)}


def await_change(poll: select.poll, names: Names) -> set[int]:
    """Wait until there has to be another look; returns the descriptors that say so."""
    while True:
        found = {each for each, _ in poll.poll(names.patience)}
        if names.told is None or found != {names.told.fileno()} or names.has_changed():
            return found


def main(shares: str, pid: str) -> None:
    watch([Share(*arguments) for arguments in json.loads(shares)], int(pid))
