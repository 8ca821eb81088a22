"""Sockets between this host and its virtual machines, for those that ask for them."""

from __future__ import annotations

import functools
import os

from hutch.run import CommandFailed, run

DEVICE = "/dev/vhost-vsock"
MODULE = "vhost_vsock"


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
