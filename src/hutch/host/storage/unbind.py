"""A program of its own: unmount a directory or file that is mounted over itself, and nothing else.

Whoever can write around a share may put something else in the place of its name at any moment: a symbolic link that
leads to another mount, say. So it is opened without following links, the mount that was opened is looked for
in the kernel's list, and that very mount is detached, by its descriptor.
"""

from __future__ import annotations

import sys

from hutch.host.storage.bind import open_strictly
from hutch.host.storage.mountinfo import Tree, observe_mountinfo
from hutch.libc import call
from hutch.trees.cursor import mount_of, way_to

MNT_DETACH = 2


def main(path: str) -> None:
    try:
        descriptor = open_strictly(path, may_be_file=True)
    except OSError as error:
        sys.exit(f"{path}: {error.strerror}")
    if Tree(observe_mountinfo()).over_itself(path) != mount_of(descriptor):
        sys.exit(f"{path} is not mounted over itself")
    try:
        call("umount2", way_to(descriptor).encode(), MNT_DETACH)
    except OSError as error:
        sys.exit(f"{path} cannot be unmounted: {error.strerror}")
