"""A program of its own: show a directory or file in a container that runs, or take it away; or show it /proc and /sys.

    python hot_mount.py attach SHARE TARGET LEADER
    python hot_mount.py detach LEADER POINT...
    python hot_mount.py reveal TARGET LEADER

It runs in the mount namespace of a container's main process, where SHARE is mounted. LEADER is the pid, as seen there,
of the container's PID 1. All that lies at TARGET and at each POINT is the guest's: paths are resolved with its root as
the root, and whoever called has set a time for all of it, since a guest's file system may never answer. See
open_tree(2), move_mount(2), openat2(2). It imports next to nothing.

The mount is copied in the container's own user namespace: the kernel locks its options on that way, so that root inside
cannot make it writable (mount_namespaces(7), "Restrictions on mount namespaces"). The mounts on it, which protect what
is in it, are locked to it too: they are there wherever it is. The mount itself is not locked, while those are that
nspawn makes: nobody could take them away again.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import sys
from collections.abc import Callable
from contextlib import suppress

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x0002_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000
SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_OPENAT2 = 428, 429, 437  # the same on every architecture
SYS_FSOPEN, SYS_FSCONFIG, SYS_FSMOUNT = 430, 431, 432
CLOEXEC, CREATE = 1, 6  # FSOPEN_ and FSMOUNT_CLOEXEC, FSCONFIG_CMD_CREATE
NOSUID_NODEV_NOEXEC = 0x2 | 0x4 | 0x8  # MOUNT_ATTR_…
PR_SET_DUMPABLE = 4
AT_FDCWD = -100
OPEN_TREE_CLONE, AT_RECURSIVE = 1, 0x8000
MOVE_FROM_DESCRIPTOR, MOVE_TO_DESCRIPTOR = 0x04, 0x40  # MOVE_MOUNT_{F,T}_EMPTY_PATH
RESOLVE_NO_MAGICLINKS, RESOLVE_IN_ROOT = 0x02, 0x10
UMOUNT_NOFOLLOW, MNT_DETACH = 8, 2
ANYTHING = os.O_PATH | os.O_CLOEXEC
FOLDER = ANYTHING | os.O_DIRECTORY

libc = ctypes.CDLL(None, use_errno=True)


def call(function: Callable[..., object], *arguments: object) -> int:
    """Call into libc; OSError for what the kernel refuses."""
    result = function(*arguments)
    assert isinstance(result, int)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def namespace_of(leader: str, kind: str) -> int:
    return os.open(f"/proc/{leader}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)


def open_inside(path: str, root: int, flags: int = FOLDER) -> int:
    """A descriptor of the directory `path`, whose links lead nowhere but into `root`."""
    how = struct.pack("QQQ", flags, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    return call(libc.syscall, SYS_OPENAT2, root, os.fsencode(path), how, len(how))


def make_inside(path: str, root: int) -> int:
    """A descriptor of the directory `path`, as open_inside gives it; missing directories are made."""
    try:
        return open_inside(path, root)
    except FileNotFoundError:
        parent = make_inside(os.path.dirname(path), root)
    with suppress(FileExistsError):
        os.mkdir(os.path.basename(path), 0o755, dir_fd=parent)
    return os.open(os.path.basename(path), FOLDER | os.O_NOFOLLOW, dir_fd=parent)


def make_file_inside(path: str, root: int) -> int:
    """A descriptor of what is at `path`, found as by open_inside; where nothing is, an empty file is made."""
    try:
        return open_inside(path, root, ANYTHING)
    except FileNotFoundError:
        parent = make_inside(os.path.dirname(path), root)
    name = os.path.basename(path)
    with suppress(FileExistsError):
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=parent))
    return os.open(name, ANYTHING | os.O_NOFOLLOW, dir_fd=parent)


def attach(share: str, target: str, leader: str) -> None:
    user, mount = namespace_of(leader, "user"), namespace_of(leader, "mnt")
    call(libc.setns, user, CLONE_NEWUSER)
    call(libc.unshare, CLONE_NEWNS)
    tree = call(
        libc.syscall, SYS_OPEN_TREE, AT_FDCWD, os.fsencode(share), OPEN_TREE_CLONE | AT_RECURSIVE | os.O_CLOEXEC
    )
    call(libc.setns, mount, CLONE_NEWNS)
    become_root()
    put(tree, target)


def become_root() -> None:
    """Make this process the container's root from here on."""
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    os.umask(0o022)


def put(tree: int, target: str) -> None:
    """Mount what a descriptor holds in the container, by a path of its own."""
    make = make_inside if stat.S_ISDIR(os.fstat(tree).st_mode) else make_file_inside
    place = make(target, os.open("/", FOLDER))
    flags = MOVE_FROM_DESCRIPTOR | MOVE_TO_DESCRIPTOR
    call(libc.syscall, SYS_MOVE_MOUNT, tree, b"", place, b"", flags)


def reveal(target: str, leader: str) -> None:
    """Mount /proc and /sys whole. /proc shows the process namespace of its mounter, which only children are in after
    setns(2). The child is undumpable, so that the guest's root, who sees it there, cannot look into it."""
    user, mount, net, pid = (namespace_of(leader, kind) for kind in ("user", "mnt", "net", "pid"))
    call(libc.prctl, PR_SET_DUMPABLE, 0, 0, 0, 0)
    call(libc.setns, net, CLONE_NEWNET)
    call(libc.setns, pid, CLONE_NEWPID)
    child = os.fork()
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    # The host's root makes these: the container's may only mount what it sees whole.
    trees = {name: make_mount(name) for name in ("proc", "sysfs")}
    call(libc.setns, user, CLONE_NEWUSER)
    call(libc.setns, mount, CLONE_NEWNS)
    become_root()
    for name, tree in trees.items():
        put(tree, f"{target}/{name}")


def make_mount(kind: str) -> int:
    """A descriptor of a file system of the kernel's, mounted nowhere yet."""
    context = call(libc.syscall, SYS_FSOPEN, kind.encode(), CLOEXEC)
    call(libc.syscall, SYS_FSCONFIG, context, CREATE, None, None, 0)
    return call(libc.syscall, SYS_FSMOUNT, context, CLOEXEC, NOSUID_NODEV_NOEXEC)


def detach(leader: str, *points: str) -> None:
    call(libc.setns, namespace_of(leader, "mnt"), CLONE_NEWNS)
    for point in points:
        try:
            call(libc.umount2, os.fsencode(point), MNT_DETACH | UMOUNT_NOFOLLOW)
        except OSError as error:
            if error.errno not in (
                errno.EINVAL,
                errno.ENOENT,
            ):  # it is locked to one that goes too, or has gone with it
                raise


def main() -> None:
    actions: dict[str, Callable[..., None]] = {"attach": attach, "detach": detach, "reveal": reveal}
    action, *arguments = sys.argv[1:]
    try:
        actions[action](*arguments)
    except OSError as error:
        sys.exit(error.strerror)


if __name__ == "__main__":
    main()
