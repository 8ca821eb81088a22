"""Mounts by descriptors: none of these calls finds anything by a path, so nobody can put something else in its place.

mount(8) does without them on some distributions, whose mount of "." over itself fails: see "fd-based-mount" in
`mount --version`.
"""

from __future__ import annotations

import os
import struct

from hutch.libc import call

SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_MOUNT_SETATTR = 428, 429, 442  # the same on every architecture
AT_EMPTY_PATH, AT_RECURSIVE, OPEN_TREE_CLONE = 0x1000, 0x8000, 1
MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH = 0x04, 0x40
MOUNT_ATTR_RDONLY = 0x1
ATTRIBUTES = {"ro": MOUNT_ATTR_RDONLY, "nosuid": 0x2, "nodev": 0x4, "noexec": 0x8}
"""Options of mount(8), as the kernel knows them."""


def cloned(descriptor: int, *, is_whole: bool = False) -> int:
    """A mount of what a descriptor pins, which is mounted nowhere yet; the `whole` tree of mounts there, or one."""
    flags = AT_EMPTY_PATH | OPEN_TREE_CLONE | os.O_CLOEXEC | (AT_RECURSIVE if is_whole else 0)
    return call("syscall", SYS_OPEN_TREE, descriptor, b"", flags)


def set_attributes(mount: int, flags: int, propagation: int = 0, *, is_recursive: bool = False) -> None:
    """See mount_setattr(2)."""
    attributes = struct.pack("QQQQ", flags, 0, propagation, 0)
    how = AT_EMPTY_PATH | (AT_RECURSIVE if is_recursive else 0)
    call("syscall", SYS_MOUNT_SETATTR, mount, b"", how, attributes, len(attributes))


def put(tree: int, descriptor: int) -> None:
    """Mount a tree on what a descriptor pins."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    call("syscall", SYS_MOVE_MOUNT, tree, b"", descriptor, b"", flags)
