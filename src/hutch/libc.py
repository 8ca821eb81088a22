"""Functions of the C library that Python has no name for."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # the runner does without the module that has it
if TYPE_CHECKING:
    from typing import Any

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
