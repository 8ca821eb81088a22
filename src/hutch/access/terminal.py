"""A pseudo-terminal of a container's own. What runs inside finds it under /dev/pts, as it does one of sshd's."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
from contextlib import ExitStack

from hutch.files import kept_open
from hutch.trees.cursor import PINNED, open_strictly, way_to

MULTIPLEXER = os.makedev(5, 2)
TIOCSPTLCK, TIOCGPTPEER = 0x4004_5431, 0x5441  # asm-generic/ioctls.h; TIOCGPTPEER since Linux 4.13
BOTH_WAYS = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC


def open_terminal(pidfd: int, leader: int, uid: int) -> tuple[int, int]:
    """Open one; returns the host's end, and the command's. `leader` is the container's process 1 with its `pidfd`,
    `uid` the number that the login user has inside. Where the guest has none to give, it is one of the host's, which
    works as well, and has no name inside."""
    try:
        with kept_open(os.open(f"/proc/{leader}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
            owner = _first_uid(leader) + uid
            signal.pidfd_send_signal(pidfd, 0)  # so it was that process's
            return _open_below(root, owner)
    except OSError:
        return os.openpty()


def _open_below(root: int, owner: int) -> tuple[int, int]:
    """Open a pseudo-terminal. All of /dev is the guest's: follow no link, open only the kernel's own multiplexer."""
    with kept_open(open_strictly("dev/pts/ptmx", below=root, flags=PINNED, is_one_mount=False)) as found:
        status = os.fstat(found)
        if not stat.S_ISCHR(status.st_mode) or status.st_rdev != MULTIPLEXER:
            raise FileNotFoundError
        outer = os.open(way_to(found), BOTH_WAYS)
    with ExitStack() as undo:
        undo.callback(os.close, outer)
        fcntl.ioctl(outer, TIOCSPTLCK, b"\0\0\0\0")
        inner = fcntl.ioctl(outer, TIOCGPTPEER, BOTH_WAYS)
        undo.callback(os.close, inner)
        os.fchown(inner, owner, -1)
        undo.pop_all()
    return outer, inner


def _first_uid(leader: int) -> int:
    """The uid on the host of the container's root."""
    with open(f"/proc/{leader}/uid_map", encoding="ascii") as file:
        return int(file.readline().split()[1])
