"""Sockets between this host and its virtual machines: their presence, and whether a machine's number is still free.

The numbers (context ids) are the whole host's, foreign machines included, and nobody keeps a list of them: one learns
that a number is taken by asking for it.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import struct

from hutch.files import kept_open
from hutch.run import CommandFailed, run

DEVICE = "/dev/vhost-vsock"
MODULE = "vhost_vsock"
SET_GUEST_CID = 0x4008AF60  # VHOST_VSOCK_SET_GUEST_CID, _IOW(0xAF, 0x60, __u64): see linux/vhost.h


def has_vsock() -> bool:
    """Whether the host has vsock; its kernel's module is loaded if there is one."""
    if can_open(DEVICE):
        return True
    return load_module() and can_open(DEVICE)


def can_open(device: str) -> bool:
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


@functools.cache
def load_module() -> bool:
    """Load the module, once for each command: a missing one does not come by asking twice."""
    try:
        return run(["modprobe", "--quiet", MODULE], check=False).returncode == 0
    except CommandFailed:
        return False


def is_free(cid: int) -> bool:
    """Whether no machine of this host has the context id: the id is taken, and given back at once. Without vsock, none
    is in use."""
    try:
        device = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return True
    with kept_open(device):
        try:
            fcntl.ioctl(device, SET_GUEST_CID, struct.pack("=Q", cid))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
    return True
