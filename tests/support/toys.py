"""The backends that only tests have, as lines of the registry. Run as a program, it is a hutch that has them too."""

from __future__ import annotations

import sys
from pathlib import Path

CONTAINER = ("local", "container", "toy", "tests.support.toy_backend")
MACHINE = ("local", "vm", "toy-machine", "tests.support.toy_machine")
LINES = (CONTAINER, MACHINE)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])  # nothing beside this file is to be imported by its bare name

    from hutch.spec import kinds

    kinds.BACKENDS = (*kinds.BACKENDS, *LINES)

    from hutch.cli import main

    sys.exit(main())
