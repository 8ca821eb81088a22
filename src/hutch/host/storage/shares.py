"""The host's side of directories that a guest can write: homes and writable mounts are nosuid,nodev here.

A setuid file that a guest makes must not be honoured by anyone on the host, so each such directory is
bind-mounted over itself with these options for as long as the workspace is declared. So is a single file, unless only
its owner can reach it anyway: nothing on the host can be renamed onto a mount.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from hutch.errors import HutchError, explained
from hutch.files import read_or_none, write_atomic
from hutch.frozen import dataclass
from hutch.host.services.units import waiting_mounts
from hutch.host.storage.bind import is_file, is_out_of_reach
from hutch.host.storage.mountinfo import Tree, observe_mountinfo, parse_mountinfo
from hutch.run import CommandFailed, run
from hutch.spec import member
from hutch.spec.model import WorkspaceSpec
from hutch.spec.names import UID_COUNT, Layout
from hutch.spec.programs import own_program
from hutch.spec.rights import as_caller
from hutch.state import SHARES, decode, encode, make_directory
from hutch.trees.changing import make_file_inside, make_inside, make_owned, take_setuid, take_setuid_of
from hutch.trees.cursor import opened

T = TypeVar("T")

OPTIONS = {"nosuid", "nodev"}
TRY_AGAIN = 86400.0  # seconds
HOW_TO_NAME = "name the directory itself, by a path without symbolic links"
NOBODY: Mapping[str, int] = {}
BIND = str(Path(__file__).with_name("bind.py"))


Stuck = tuple[float, str]  # since when a mount has to stay that nobody wants, and why


@dataclass(frozen=True)
class Guest:
    """The owners of files that a workspace makes: its own range of uids, and its owner."""

    uid_base: int
    owner: int


def check_directory(path: str, *, may_be_absent: bool, may_be_file: bool = False) -> str:
    """The reason why a directory cannot be shared, in words; "" when it can. As for bind.py: no symbolic links."""
    for part in [*reversed(Path(path).parents), Path(path)]:
        what = "" if part == Path(path) else f"leads through {part}, which "
        try:
            mode = os.lstat(part).st_mode
        except FileNotFoundError:
            return "" if may_be_absent else f"{what}does not exist"
        except OSError as error:
            return f"{what}cannot be looked at: {error.strerror}"
        if stat.S_ISLNK(mode):
            with as_caller():
                return f"{what}is a symbolic link; the real path is {os.path.realpath(path)}"
        if may_be_file and part == Path(path) and stat.S_ISREG(mode):
            return ""
        if not stat.S_ISDIR(mode):
            both = may_be_file and not what
            return f"{what}is {'neither a directory nor a regular file' if both else 'not a directory'}"
    return ""


def mount_points(workspace: WorkspaceSpec) -> dict[str, Path]:
    """Target -> the directory of the host's that it covers, for mounts inside the home. A mount inside another mount is
    not in the home."""
    assert workspace.home is not None
    inside = Path("/home", workspace.user)
    targets = [Path(mount.target) for mount in workspace.mounts]
    return {
        str(target): Path(workspace.home, target.relative_to(inside))
        for target in targets
        if inside in target.parents and not any(other in target.parents for other in targets)
    }


def has_mount_points(workspace: WorkspaceSpec) -> bool:
    """Whether every mount inside the home has something to be mounted on."""
    return not any(
        check_directory(str(point), may_be_absent=False, may_be_file=True) for point in mount_points(workspace).values()
    )


def ensure_mount_points(name: str, workspace: WorkspaceSpec, gid: int) -> None:
    """Make directories and empty files of the owner's for the mounts inside the home. A container's own root cannot
    make them: in a home that is mapped to the owner's uid, it has none. Private files come by themselves."""
    assert isinstance(workspace.owner, int) and workspace.home is not None
    home, by_target = Path(workspace.home), {mount.target: mount for mount in workspace.mounts}
    for target, point in mount_points(workspace).items():
        parts, mount = point.relative_to(home).parts, by_target[target]
        try:
            if not is_file(mount.source):
                make_inside(home, parts, workspace.owner, gid)
            elif not mount.is_private:
                make_file_inside(home, parts, workspace.owner, gid)
        except OSError as error:
            raise HutchError(
                f"{name}: there can be no mount on {target}: {point} cannot be made: {error.strerror}",
                resolution="each part of it must be a directory, not a file or a symbolic link, or be absent",
            ) from error


def find_mounts(mountinfo: str) -> dict[str, set[str]]:
    """Mount point -> options of the topmost mount there, from the text of /proc/self/mountinfo."""
    return {point: options for _, _, point, options, _ in parse_mountinfo(mountinfo)}


def observe_tree() -> Tree:
    return Tree(observe_mountinfo())


def ensure_shares(
    layout: Layout,
    paths: Iterable[str],
    guests: Mapping[str, Iterable[Guest]] | None = None,
    members_own: Mapping[str, int] = NOBODY,
) -> None:
    """Put the options on every path that does not have them; take our mounts from paths that are no longer shared, once
    nothing there would count that they kept from counting. `guests` are those who write there. A directory that a guest
    made impossible to look through keeps its mount, and holds up nothing else: `kept_guards` tells of it. One that
    cannot be guarded leaves no other one unguarded: HutchError tells of all of them in the end. What is `members_own`
    (by uid) is guarded only as long as it is theirs: a member may put something else in its place, which is told of
    when the workspace starts, and holds up nobody.

    Which mounts are ours stands in a file of the runtime directory: like them, it is gone after a reboot.
    """
    text = observe_mountinfo()
    wanted = list(dict.fromkeys(paths))
    known = noted_guests(layout)
    for path, those in (guests or {}).items():
        known[path] = {*known.get(path, ()), *those}
    ours = noted_shares(layout, wanted, find_mounts(text), Tree(text).self_binds())
    stuck: dict[str, Stuck] = {}
    if gone := [path for path in ours if path not in wanted]:
        stuck = _take_away(gone, ours, known, noted_stuck(layout))
        text = observe_mountinfo()
    mounts, tree = find_mounts(text), Tree(text)
    kept = [path for path in ours if path in mounts]
    kept += [path for path in wanted if path not in kept and waits_for_mount(path)]  # its service puts ours there
    binds = tree.self_binds()
    failed: dict[str, HutchError] = {}

    def try_to_mount(path: str) -> None:
        try:
            _mount(path, members_own.get(path))
        except HutchError as error:
            if path not in members_own:
                failed[path] = error

    open_ones = sorted(unguarded(wanted, tree, members_own), key=len)  # one that is around others hides theirs
    for path in open_ones:
        kept += [path] if path not in kept else []
        _note(layout, kept, binds, known, stuck)  # before the mount: a crash in between leaves none that nobody knows
        try_to_mount(path)
    if open_ones:
        for path in unguarded((path for path in wanted if path not in failed), observe_tree(), members_own):
            try_to_mount(path)
        binds = observe_tree().self_binds()
    _note(layout, kept, binds, known, stuck)
    _raise_all(failed)


def _raise_all(failed: Mapping[str, HutchError]) -> None:
    """Raise the failures of directories, by path: one as it is, several as one with all reasons."""
    if len(failed) == 1:
        raise next(iter(failed.values()))
    if failed:
        reasons = (f"{error.brief}: {error.details}" for error in failed.values())
        raise HutchError(f"{', '.join(failed)} cannot be shared", details="\n".join(reasons), resolution=HOW_TO_NAME)


def _take_away(
    gone: Collection[str], ours: Collection[str], known: Mapping[str, Iterable[Guest]], before: Mapping[str, Stuck]
) -> dict[str, Stuck]:
    """Unmount directories that are mounted over themselves, as often as they are, at the paths that are `gone`, the
    inner ones first. Returns those that have to stay, and why. Mounts hidden by something else's are not touched, nor
    is that."""
    stuck: dict[str, Stuck] = {}
    while True:
        tree = observe_tree()
        there = [path for path in ours if tree.over_itself(path)]
        free = [
            path
            for path in there
            if path in gone and path not in stuck and not any(other.startswith(f"{path}/") for other in there)
        ]  # a mount in it that is to stay would go too
        if not free:
            return stuck
        if why := _why_stuck(free[0], known.get(free[0], ()), before.get(free[0])) or _unmount(free[0]):
            stuck[free[0]] = why


def _why_stuck(path: str, guests: Iterable[Guest], before: Stuck | None) -> Stuck | None:
    """The reason why a mount that nobody wants has to stay; None when it may go. After a failure it stays for a while,
    since reconciling the host waits for it."""
    if before is not None and 0 <= time.time() - before[0] < TRY_AGAIN:
        return before
    try:
        for guest in guests:
            disarm(path, guest)
    except HutchError as error:
        return time.time(), error.brief
    return None


def _unmount(path: str) -> Stuck | None:
    """Unmount a directory that is mounted over itself. Returns why that failed: it may have been moved just now."""
    try:
        run([*own_program("hutch.host.storage.unbind", sys.executable), path])
    except CommandFailed as error:
        return time.time(), error.details or error.brief
    return None


def release(layout: Layout, path: str) -> None:
    """Take our mount from a directory that is about to be deleted, whatever is in it. May be called again."""
    ours, binds = _mounted(layout)
    if path not in ours:
        return
    while observe_tree().over_itself(path):
        if why := _unmount(path):
            raise HutchError(f"{path} stays mounted over itself: {why[1]}")
    kept = [other for other in ours if other != path]
    stuck = {other: told for other, told in noted_stuck(layout).items() if other in kept}
    _note(layout, kept, binds, noted_guests(layout), stuck)


def hold(layout: Layout, path: str, why: str) -> bool:
    """Keep our mount on a directory, for `ensure_shares` to find. False where there is none."""
    ours, binds = _mounted(layout)
    if path in ours:
        _note(layout, ours, binds, noted_guests(layout), {**noted_stuck(layout), path: (time.time(), why)})
    return path in ours


def _mounted(layout: Layout) -> tuple[list[str], dict[str, int]]:
    """The paths on which mounts of ours are at this moment, and the ids of all such mounts."""
    text = observe_mountinfo()
    mounts, binds = find_mounts(text), Tree(text).self_binds()
    return [path for path in noted_shares(layout, (), mounts, binds) if path in mounts], binds


def kept_guards(layout: Layout) -> list[str]:
    """Sentences: the directories that are guarded although nobody shares them any more, and why. A member, who need not
    know of others' directories, is told nothing."""
    stuck = noted_stuck(layout) if member.acting is None else {}
    return [f"{path} stays mounted nosuid,nodev over itself: {why}" for path, (_, why) in stuck.items()]


def noted_shares(layout: Layout, wanted: Iterable[str], mounts: Iterable[str], binds: Mapping[str, int]) -> list[str]:
    """The paths on which mounts of ours are. Nobody else mounts anything in the directories of workspaces; elsewhere it
    stands in the file, and without one that can be read shared paths are taken for ours. A directory may have been
    renamed since: its mount, one of `binds`, goes with it and keeps its id."""
    inside = [path for path in mounts if path.startswith(f"{layout.workspaces}/")]
    data = read_or_none(layout.shares)
    if data is None:
        return inside
    try:
        body = decode(SHARES, layout.shares, data)
        known = {int(number): point for point, number in binds.items()}
        moved = {path: known[number] for path, number in body["ids"].items() if number in known and path not in mounts}
        noted = [moved.get(path, str(path)) for path in body["paths"]]
    except (HutchError, KeyError, TypeError):
        noted = [path for path in wanted if path in mounts]
    return list(dict.fromkeys((*noted, *inside)))


def unguarded(paths: Iterable[str], mounts: Tree, members_own: Mapping[str, int]) -> tuple[str, ...]:
    """The paths that are to have the options, and do not. A path that cannot be shared needs no guard, and so does one
    of a member's at which something of another's is."""
    open_ones = [path for path in dict.fromkeys(paths) if not mounts.options(path) >= OPTIONS]
    return tuple(
        path
        for path in open_ones
        if not check_directory(path, may_be_absent=False, may_be_file=True)
        and not (is_file(path) and is_out_of_reach(path))
        and members_own.get(path) in (None, os.lstat(path).st_uid)
    )


def waits_for_mount(path: str) -> bool:
    """Whether a path is absent, and systemd is to mount something on the way to it."""
    return not os.path.lexists(path) and bool(waiting_mounts(path))


def noted_guests(layout: Layout) -> dict[str, set[Guest]]:
    """The guests that could write in the paths on which mounts of ours are, as far as the note can be read."""
    return _noted(layout, "guests", lambda those: {Guest(int(base), int(owner)) for base, owner in those})


def noted_stuck(layout: Layout) -> dict[str, Stuck]:
    """The paths whose mounts have to stay: since when, and why."""
    return _noted(layout, "stuck", lambda told: (float(told[0]), str(told[1])))


def _noted(layout: Layout, part: str, read: Callable[[Any], T]) -> dict[str, T]:
    """One part of the notes on each path, as far as they can be read."""
    try:
        data = read_or_none(layout.shares)
        body = {} if data is None else decode(SHARES, layout.shares, data)
        return {path: read(value) for path, value in body.get(part, {}).items()}
    except (HutchError, OSError, LookupError, TypeError, ValueError, AttributeError):
        return {}


def disarm(path: str, guest: Guest) -> None:
    """Take setuid and setgid from a guest's files: nothing will keep them from counting any more. Files that are
    neither the guest's nor its owner's stay as they are."""
    own = {guest.owner, *range(guest.uid_base, guest.uid_base + UID_COUNT)}
    nothing = (FileNotFoundError, NotADirectoryError)  # nothing is shared where no directory is
    with explained(f"{path} cannot be looked through for setuid files"), suppress(*nothing):
        if is_file(path):
            with opened(os.path.dirname(path)) as top:
                take_setuid_of(top, os.path.basename(path), own)
        else:
            with opened(path) as top:
                take_setuid(top, own)


def _note(
    layout: Layout,
    kept: list[str],
    binds: Mapping[str, int],
    guests: Mapping[str, set[Guest]],
    stuck: Mapping[str, Stuck],
) -> None:
    ids = {path: binds[path] for path in kept if path in binds}
    numbers = {path: sorted((guest.uid_base, guest.owner) for guest in guests.get(path, ())) for path in kept}
    content = encode(SHARES, {"paths": kept, "ids": ids, "guests": numbers, **({"stuck": stuck} if stuck else {})})
    if kept and read_or_none(layout.shares) != content:
        make_directory(layout.run)
        write_atomic(layout.shares, content, mode=0o600, is_lasting=False)
    elif not kept:
        layout.shares.unlink(missing_ok=True)


def render_guard(path: str, member: int | None = None) -> list[str]:
    """The command that puts the options on a directory, by mounting it over itself; on that of a `member`, as long as
    it is theirs."""
    options = ",".join(sorted(OPTIONS, reverse=True))
    return [sys.executable, "-I", "-S", BIND, path, "=", options, *([] if member is None else [str(member)])]


def _mount(path: str, member: int | None) -> None:
    try:
        run(render_guard(path, member))
    except CommandFailed as error:
        raise HutchError(
            f"{path} cannot be shared",
            details=error.details,
            resolution=HOW_TO_NAME,
        ) from error


def ensure_closed(directory: Path, gid: int) -> None:
    """Let nobody but root and the owner's group pass into a workspace's own directory: the home in it keeps what a
    guest made setuid, also when no mount guards it, after a removal or a reboot."""
    make_directory(directory, 0o750)
    if not is_closed(directory, gid):
        os.chown(directory, 0, gid)
        directory.chmod(0o750)


def is_closed(directory: Path, gid: int) -> bool:
    found = os.stat(directory)
    return (found.st_gid, stat.S_IMODE(found.st_mode)) == (gid, 0o750)


def ensure_home(path: Path, uid: int, gid: int) -> None:
    """Make a home. An existing one must be the owner's already: root does not chown what guests write."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        make_owned(path, uid, gid)
        return
    if found.st_uid != uid:
        raise HutchError(
            f"{path} belongs to uid {found.st_uid}, not to the workspace's owner {uid}",
            resolution=f"if that is meant: chown -R {uid}:{gid} {path} (while the workspace is stopped)",
        )
