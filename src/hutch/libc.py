"""Functions of the C library that Python has no name for."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # the runner does without the module that has it
if TYPE_CHECKING:
    from typing import Any

SYS_FSOPEN, SYS_FSCONFIG, SYS_FSMOUNT = 430, 431, 432  # the same on every architecture
CLOEXEC = 1  # FSOPEN_ and FSMOUNT_CLOEXEC
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 0, 1, 6
NOSUID_NODEV_NOEXEC = 0x2 | 0x4 | 0x8  # MOUNT_ATTR_…

_loaded: list[Any] = []


def library() -> Any:
    """The C library itself, for what returns something else than a number with -1 for a failure."""
    if not _loaded:
        # Spares the start-up of `hutch start`.
        import ctypes

        _loaded.append(ctypes.CDLL(None, use_errno=True))
    return _loaded[0]


def call(function: str, *arguments: object) -> int:
    """Call one by its name; a result below zero is raised as an OSError."""
    result = getattr(library(), function)(*arguments)
    if result < 0:
        # Spares the start-up of `hutch start`.
        import ctypes

        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


def mount_nowhere(kind: str, *flags: str, **options: str) -> int:
    """A descriptor of a file system that is mounted nowhere: who does not hold it has no way in, and with the last one
    it is gone. See fsopen(2), fsconfig(2), fsmount(2)."""
    context = call("syscall", SYS_FSOPEN, kind.encode(), CLOEXEC)
    try:
        for flag in flags:
            call("syscall", SYS_FSCONFIG, context, FSCONFIG_SET_FLAG, flag.encode(), None, 0)
        for name, value in options.items():
            call("syscall", SYS_FSCONFIG, context, FSCONFIG_SET_STRING, name.encode(), value.encode(), 0)
        call("syscall", SYS_FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0)
        return call("syscall", SYS_FSMOUNT, context, CLOEXEC, NOSUID_NODEV_NOEXEC)
    finally:
        os.close(context)
