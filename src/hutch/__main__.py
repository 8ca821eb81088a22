"""The `hutch` script and `python -m hutch` begin here, before click and all else is imported."""

from __future__ import annotations

import gc
import os
import sys
from typing import NoReturn


def entry() -> NoReturn:
    """Run the command line, and leave without Python's own clean-up: it takes longer than some commands, and there is
    nothing for it to do, since whatever must be undone has been when main returns. For the same reason nothing
    collects garbage: a command ends before that could pay, and it is a seventh of the start-up of `hutch start`."""
    gc.disable()
    try:
        # Spares the start-up of `hutch start` the collecting while all that is imported.
        from hutch.cli import main

        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:  # before main could catch it
        code = 130
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    entry()
