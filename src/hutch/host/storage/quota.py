"""The limit of a home's size: a project quota, where its file system has them. ext4 and xfs do, when they are told to.

The project has the number of the workspace's first uid, which no other workspace has. Every directory of it hands it on
to new entries, and the kernel lets nobody in a user namespace change that. Limits are set through a descriptor of the
home (quotactl_fd), so nothing has to be known of devices, and no quota tools are needed.

The older files of a home have to be put into the project one by one. A note beside the workspace's record says that
this is done, or why it could not be: then it is not tried again for a day, since reconciling the host waits for it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time
from contextlib import suppress
from pathlib import Path

from hutch.errors import HutchError
from hutch.files import kept_open, write_atomic
from hutch.host.storage.mountinfo import observe_mountinfo, parse_mountinfo
from hutch.libc import call
from hutch.trees.changing import present
from hutch.trees.cursor import DIRECTORY, PATIENCE, opened, pinned, walk, way_to

SYS_QUOTACTL_FD = 443  # the same on every architecture; since Linux 5.14
PROJECTS = 2  # PRJQUOTA
Q_GETQUOTA, Q_SETQUOTA, Q_XGETQSTATV = 0x800007, 0x800008, 0x5808  # linux/quota.h, linux/dqblk_xfs.h
ENFORCED = 1 << 5  # FS_QUOTA_PDQ_ENFD
LIMITS = struct.Struct("=8QI4x")  # struct if_dqblk: limits and usage of blocks and of inodes, times, what is valid
BLOCK = 1024  # bytes, whatever the file system's own are
QIF_LIMITS = 1 | 4
FSGETXATTR, FSSETXATTR = 0x801C581F, 0x401C5820
ATTRIBUTES = struct.Struct("=5I8x")  # struct fsxattr: flags, …, the project as the fourth
HANDED_ON = 0x200  # FS_XFLAG_PROJINHERIT
BYTES_PER_FILE = 4096  # of a quota: small files without end would use up what all share, though they hold nothing
FEWEST_FILES = 65536
PASSES = 5  # over a home, until one finds nothing to change
TRY_AGAIN = 86400.0  # seconds
WHOLE = "whole"
HINTS = {
    "ext4": "its file system needs the features `project` and `quota` (tune2fs -O project,quota, unmounted) and the "
    "mount option prjquota",
    "xfs": "its file system needs the mount option prjquota",
}


def why_unlimited(path: str) -> str:
    """The reason why no quota can limit the directory `path`, in words; "" where one can, or where there is nothing."""
    try:
        with opened(path) as top:
            if is_enforced(top):
                return ""
            device = os.fstat(top).st_dev
    except OSError:
        return ""
    kind = type_of(device)
    return HINTS.get(kind, f"{kind or 'its file system'} has no project quotas that hutch can use")


def type_of(device: int) -> str:
    """The kind of a file system; "" for one that cannot be told."""
    number = f"{os.major(device)}:{os.minor(device)}"
    return next((kind for found, _, _, _, kind in parse_mountinfo(observe_mountinfo()) if found == number), "")


def is_enforced(descriptor: int) -> bool:
    """Whether limits of projects count on this file system."""
    state = bytearray(b"\x01" + bytes(255))  # struct fs_quota_statv, in its first version; the flags are at 2
    try:
        _quotactl(descriptor, Q_XGETQSTATV, 0, state)
    except OSError:
        return False
    return bool(int.from_bytes(state[2:4], "little") & ENFORCED)


def ensure_quota(home: str, project: int, size: int | None, note: Path) -> None:
    """Limit a home, as far as that is possible here; with None, take back a limit that it has. May be called again."""
    if size is None and not _has_project(home, project):
        return  # as nearly always
    with suppress(FileNotFoundError, NotADirectoryError), opened(home) as top:
        if not is_enforced(top):
            return
        if read_limit(top, project) != (size or 0):
            _set_limit(top, project, size or 0)
        identity = _identity(top, project)
        since, why = _noted(note, identity)
        if why != WHOLE and not 0 <= time.time() - since < TRY_AGAIN:
            try:
                _enlist(top, project)
                why = WHOLE
            except HutchError as error:
                why = error.brief
            except OSError as error:
                why = str(error.strerror)
            write_atomic(note, f"{identity}\n{int(time.time())}\n{why}".encode(), mode=0o600, is_lasting=False)


def why_partly(home: str, project: int, size: int, note: Path) -> str:
    """The reason why a quota limits less of a home than it could, in words; "" for none, as far as is known."""
    with suppress(OSError), opened(home) as top:
        if not is_enforced(top):
            return ""
        if read_limit(top, project) == 0:
            return f"the kernel did not take a limit of {size} bytes"
        why = _noted(note, _identity(top, project))[1]
        return "" if why in ("", WHOLE) else f"not all earlier files in it count: {why}"
    return ""


def _identity(top: int, project: int) -> str:
    """The identity of the very directory: another may be the home one day."""
    status = os.fstat(top)
    return f"{project} {status.st_dev} {status.st_ino}"


def _noted(note: Path, identity: str) -> tuple[float, str]:
    """The note of a home, (time, WHOLE or the reason); (0, "") where nothing is known."""
    try:
        found, since, why = note.read_text(encoding="utf-8").split("\n", 2)
        return (float(since), why) if found == identity else (0.0, "")
    except (OSError, ValueError):
        return 0.0, ""


def release_quota(home: str, project: int, *, is_kept: bool) -> None:
    """Take back limit and project of a workspace that is purged. `is_kept` is said of a home that stays. What cannot be
    done holds up no purge: the number means nothing to anybody else."""
    with suppress(OSError, HutchError), opened(home) as top:
        if _project_of(top) != project:
            return
        if is_enforced(top):
            _set_limit(top, project, 0)
        if is_kept:
            _enlist(top, 0)


def read_limit(descriptor: int, project: int) -> int | None:
    """The bytes that a project may hold, 0 for no limit; None where no quota counts."""
    block = bytearray(LIMITS.size)
    try:
        _quotactl(descriptor, Q_GETQUOTA, project, block)
    except OSError as error:
        return 0 if error.errno == errno.ENOENT else None
    return int(LIMITS.unpack(block)[0]) * BLOCK


def render_limit(size: int) -> bytes:
    """The limit for the kernel, of bytes, and of files; 0 is no limit."""
    blocks = -(-size // BLOCK)
    files = max(size // BYTES_PER_FILE, FEWEST_FILES) if size else 0
    return LIMITS.pack(blocks, blocks, 0, files, files, 0, 0, 0, QIF_LIMITS)


def _set_limit(descriptor: int, project: int, size: int) -> None:
    _quotactl(descriptor, Q_SETQUOTA, project, bytearray(render_limit(size)))


def _quotactl(descriptor: int, command: int, project: int, data: bytearray) -> None:
    import ctypes  # a start of what has no quota does without

    area = (ctypes.c_char * len(data)).from_buffer(data)
    call("syscall", SYS_QUOTACTL_FD, descriptor, ctypes.c_uint(command << 8 | PROJECTS), ctypes.c_uint(project), area)


def _has_project(home: str, project: int) -> bool:
    """Whether a home is in the project: a first look that costs a start nothing and changes nothing."""
    with suppress(OSError), kept_open(os.open(home, DIRECTORY)) as descriptor:
        return _project_of(descriptor) == project
    return False


def _project_of(descriptor: int) -> int | None:
    try:
        return int(ATTRIBUTES.unpack(fcntl.ioctl(descriptor, FSGETXATTR, bytes(ATTRIBUTES.size)))[3])
    except OSError:  # a file system without such attributes
        return None


def _enlist(top: int, project: int, *, seconds: float = PATIENCE) -> None:
    """Put a tree into a project. Each directory comes before what is in it: new entries are in the project too from
    then on, and the kernel lets nothing of another one be moved there. What is moved from one that is still to come
    into another such may be missed, so all of it is looked through until there is nothing left to do."""
    deadline = time.monotonic() + seconds
    _mark(top, project)
    for _ in range(PASSES):
        changed = 0
        for directory, name in walk(top, seconds=deadline - time.monotonic()):
            with present(), pinned(directory, name) as found:
                changed += _enlist_one(found, project)
        if not changed:
            return
    raise HutchError("it was changed all the while that it was looked through")


def _enlist_one(found: int, project: int) -> bool:
    """Put an entry into a project. Returns whether it was in another one. An entry that is neither a file nor a
    directory takes no room, and is not opened."""
    if not (stat.S_ISREG(mode := os.fstat(found).st_mode) or stat.S_ISDIR(mode)):
        return False
    with kept_open(os.open(way_to(found), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)) as descriptor:
        return _mark(descriptor, project)


def _mark(descriptor: int, project: int) -> bool:
    """Set the project of a file or directory. Returns whether that changed anything."""
    flags, size, extents, before, copy = ATTRIBUTES.unpack(fcntl.ioctl(descriptor, FSGETXATTR, bytes(ATTRIBUTES.size)))
    wanted = flags
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        wanted = flags | HANDED_ON if project else flags & ~HANDED_ON
    if (before, flags) == (project, wanted):
        return False
    fcntl.ioctl(descriptor, FSSETXATTR, ATTRIBUTES.pack(wanted, size, extents, project, copy))
    return True
