"""What runs in a workspace for a clone: the commands, and what their exit codes mean. Computes; runs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from hutch.errors import HutchError

HERE = Path(__file__).parent
NO_GIT, TAKEN, NO_CLONE = 90, 91, 92
"""Exit codes of the scripts."""


def make_command(directory: str, branch: str, format: str, who: tuple[str, str]) -> list[str]:
    """The command that makes a clone of what it reads."""
    return _script("make", directory, branch, format, *who)


def make_input(refs: Iterable[tuple[str, str]], shallow: Sequence[str]) -> bytes:
    """What it reads before the pack: the refs with their objects, and the commits without parents."""
    lines = [*(f"create {ref} {object}" for ref, object in refs), "", *shallow, ""]
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")


def send_command(directory: str, what: str, branch: str = "") -> list[str]:
    """The command that sends "branches", the "branch" of that name, or the "work" that is there."""
    return _script("send", directory, what, branch)


def remember_command(directory: str) -> list[str]:
    return _script("remember", directory)


def found_command(directory: str) -> list[str]:
    """The command that ends with 0 where the clone is."""
    return ["sh", "-c", 'cd && test -e "$1/.git"', "sh", directory]


def _script(name: str, *words: str) -> list[str]:
    return ["sh", "-c", (HERE / f"{name}.sh").read_text(encoding="utf-8"), "sh", *words]


def explain(workspace: str, directory: str, code: int, said: str, what: str) -> HutchError:
    """The failure that an exit code tells of; `said` are the last words of the command, the guest's."""
    if code == NO_GIT:
        return HutchError(
            f"{workspace} has no git inside", resolution='packages = ["git"] in its hutch.toml, then `hutch up`'
        )
    if code == TAKEN:
        return HutchError(
            f"{workspace} has something else at ~/{directory}", resolution="move that away, or use another workspace"
        )
    if code == NO_CLONE:
        return HutchError(
            f"{workspace} has no clone at ~/{directory} any more", resolution=f"`hutch exec {workspace} -- ls -la`"
        )
    return HutchError(f"{workspace}: {what}", details=said)
