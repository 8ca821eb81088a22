"""Commands that run a module of hutch's own as a program."""

from __future__ import annotations

import os

from hutch.spec.names import PACKAGE


def own_program(
    module: str, python: str, package: str | os.PathLike[str] = PACKAGE, *, needs_others: bool = False
) -> tuple[str, ...]:
    """The beginning of a command that calls `main` of that module with the arguments that follow, as strings. `package`
    is where hutch's code lies when it runs. Nothing of a user's is read. Other people's packages, but for those
    that lie beside hutch, are found only where the module `needs_others`; it starts sooner without."""
    text = f"import sys; sys.path.insert(0, sys.argv[1]); from {module} import main; main(*sys.argv[2:])"
    return (python, "-I", *(() if needs_others else ("-S",)), "-c", text, os.path.dirname(package))
