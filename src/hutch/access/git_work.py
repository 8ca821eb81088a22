"""The look for git work that exists nowhere else: the commands that run in a workspace or a copy of it, and what they
say. What runs them is the caller's, and the answer is the guest's word."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hutch.texts import printable

PATIENCE = 60.0  # seconds that looking for repositories may take
FOUND = "hutch-unsaved "
LONGEST = 200  # characters of a line that are shown
MOST_SHOWN = 50
SCRIPTS = Path(__file__).parent
GIT = ".git"
LOOK_INTO_ALL = ("-prune", "-exec", "sh", "-c")
DISTRIBUTION = (
    *(f"/usr/{name}" for name in ("bin", "include", "lib", "libexec", "sbin", "share")),
    *("/var/cache/apt", "/var/lib/apt", "/var/lib/dpkg"),
)
"""Directories of a root that hold packages, most of its files, and nobody's checkouts."""


def find_command() -> tuple[str, ...]:
    """The command that looks for repositories below the current directory, and into them. It ends in failure where the
    shell that looks does, which something of the home's could kill."""
    return ("find", ".", "-xdev", "-name", GIT, *LOOK_INTO_ALL, script("unsaved"), "sh", "{}", "+")


def find_in_root_command() -> tuple[str, ...]:
    """The same for the root of the workspace that it runs in, without what is mounted there, home above all."""
    paths = [word for path in DISTRIBUTION for word in ("-o", "-path", path)][1:]
    left_out = ("(", *paths, ")", "-prune", "-o")
    named = ("-name", GIT, *LOOK_INTO_ALL, script("unsaved"), "sh", "{}", "+")
    return ("find", "/", "-ignore_readdir_race", "-xdev", *left_out, *named)


def look_command(repositories: Iterable[str]) -> tuple[str, ...]:
    """The command that looks into these repositories, by the paths of their `.git`."""
    return ("sh", "-c", script("unsaved"), "sh", *repositories)


def script(name: str) -> str:
    """The text of a look of git's, one of the scripts beside this file, with what all of them begin with."""
    return "".join((SCRIPTS / f"{part}.sh").read_text(encoding="utf-8") for part in ("sealed_git", name))


def found_in(line: str) -> str:
    """The repository and its work that a line of the look tells of, printable; "" for any other line."""
    if not line.startswith(FOUND):
        return ""
    return printable(line.removeprefix(FOUND), LONGEST)


def shortened(found: list[str]) -> list[str]:
    """What was found, as far as a person wants to read it."""
    return found if len(found) <= MOST_SHOWN else [*found[:MOST_SHOWN], f"{len(found) - MOST_SHOWN} more"]
