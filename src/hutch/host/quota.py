"""How much a home may hold: a project quota, where its file system has them. ext4 and xfs do, when they are told to.

The project has the number of the workspace's first uid, which no other workspace has. Every directory of it hands it on
to what is made there, and the kernel lets nobody in a user namespace change that. Limits are set through a descriptor
of the home (quotactl_fd), so nothing has to be known of devices, and no quota tools are needed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from contextlib import suppress

from hutch.host.mountinfo import observe_mountinfo, parse_mountinfo
from hutch.trees.changing import present
from hutch.trees.cursor import DIRECTORY, call, opened, pinned, walk, way_to

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
HINTS = {
    "ext4": "its file system needs the features `project` and `quota` (tune2fs -O project,quota, unmounted) and the "
    "mount option prjquota",
    "xfs": "its file system needs the mount option prjquota",
}


def why_unlimited(path: str) -> str:
    """Why no quota can limit what is in the directory `path`, in words; "" where one can, or where there is nothing."""
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


def ensure_quota(home: str, project: int, size: int | None) -> None:
    """Limit a home, as far as that is possible here; with None, take back a limit that it has. May be called again."""
    if size is None and not _has_project(home, project):
        return  # as nearly always
    with suppress(FileNotFoundError, NotADirectoryError), opened(home) as top:
        is_ours = _project_of(top) == project
        if not is_enforced(top):
            return
        if read_limit(top, project) != (size or 0):
            _set_limit(top, project, size or 0)
        if not is_ours:
            _enlist(top, project)


def release_quota(home: str, project: int, *, is_kept: bool) -> None:
    """Take back limit and project of a workspace that is purged. `is_kept` is said of a home that stays. What cannot be
    done holds up no purge: the number means nothing to anybody else."""
    with suppress(OSError), opened(home) as top:
        if _project_of(top) != project:
            return
        if is_enforced(top):
            _set_limit(top, project, 0)
        if is_kept:
            _enlist(top, 0)


def read_limit(descriptor: int, project: int) -> int | None:
    """Bytes that a project may hold, 0 for no limit; None where nobody counts."""
    block = bytearray(LIMITS.size)
    try:
        _quotactl(descriptor, Q_GETQUOTA, project, block)
    except OSError as error:
        return 0 if error.errno == errno.ENOENT else None
    return int(LIMITS.unpack(block)[0]) * BLOCK


def render_limit(size: int) -> bytes:
    """What the kernel is told: bytes, and files; 0 is no limit."""
    blocks = -(-size // BLOCK)
    files = max(size // BYTES_PER_FILE, FEWEST_FILES) if size else 0
    return LIMITS.pack(blocks, blocks, 0, files, files, 0, 0, 0, QIF_LIMITS)


def _set_limit(descriptor: int, project: int, size: int) -> None:
    _quotactl(descriptor, Q_SETQUOTA, project, bytearray(render_limit(size)))


def _quotactl(descriptor: int, command: int, project: int, data: bytearray) -> None:
    import ctypes

    area = (ctypes.c_char * len(data)).from_buffer(data)
    call("syscall", SYS_QUOTACTL_FD, descriptor, ctypes.c_uint(command << 8 | PROJECTS), ctypes.c_uint(project), area)


def _has_project(home: str, project: int) -> bool:
    """The same as below, for a first look that costs a start nothing and changes nothing."""
    try:
        descriptor = os.open(home, DIRECTORY)
    except OSError:
        return False
    try:
        return _project_of(descriptor) == project
    finally:
        os.close(descriptor)


def _project_of(descriptor: int) -> int | None:
    try:
        return int(ATTRIBUTES.unpack(fcntl.ioctl(descriptor, FSGETXATTR, bytes(ATTRIBUTES.size)))[3])
    except OSError:  # a file system without such attributes
        return None


def _enlist(top: int, project: int) -> None:
    """Put a tree into a project. The top comes last: by it one knows that the rest is done. What is made in it while
    this goes on has been missed, so it is looked at once more."""
    for directory, name in walk(top):
        with present(), pinned(directory, name) as found:
            _enlist_one(found, project)
    _mark(top, project)
    for name in os.listdir(top):
        with present(), pinned(top, name) as found:
            _enlist_one(found, project)


def _enlist_one(found: int, project: int) -> None:
    """What is neither a file nor a directory has no room of its own, and is not opened."""
    if not (stat.S_ISREG(mode := os.fstat(found).st_mode) or stat.S_ISDIR(mode)):
        return
    descriptor = os.open(way_to(found), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _mark(descriptor, project)
    finally:
        os.close(descriptor)


def _mark(descriptor: int, project: int) -> None:
    flags, size, extents, _, copy = ATTRIBUTES.unpack(fcntl.ioctl(descriptor, FSGETXATTR, bytes(ATTRIBUTES.size)))
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        flags = flags | HANDED_ON if project else flags & ~HANDED_ON
    fcntl.ioctl(descriptor, FSSETXATTR, ATTRIBUTES.pack(flags, size, extents, project, copy))
