"""The look for git work that exists nowhere else: the commands that run in a workspace or a copy of it, and what they
say. What runs them is the caller's, and the answer is the guest's word."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from hutch.spec.model import WorkspaceSpec
from hutch.texts import printable

PATIENCE = 60.0  # seconds that looking for repositories may take
FOUND = "hutch-unsaved "
LONGEST = 200  # characters of a line that are shown
MOST_SHOWN = 50
SCRIPTS = Path(__file__).parent
GIT = ".git"
REPOSITORIES = ("(", "-name", GIT, "-prune", "-o", "-name", "HEAD", "(", "-type", "f", "-o", "-type", "l", ")")
CACHES = (".cache", ".cargo", "go/pkg")
"""Directories in which package managers keep bare repositories, of what others have."""
FOUND_ONES = (
    *(
        "!",
        "(",
        "-path",
        f"*/{GIT}/*",
        "!",
        "-path",
        f"*/{GIT}/modules",
        "!",
        "-path",
        f"*/{GIT}/modules/*",
        "-prune",
        ")",
    ),
    *("(", "-name", GIT, "-o", "-name", "HEAD", "(", "-type", "f", "-o", "-type", "l", ")"),
    *(word for path in CACHES for word in ("!", "-path", f"*/{path}/*")),
    ")",
)
"""The repositories that are looked into: those of submodules, too, whose checkout may be gone."""
DISTRIBUTION = (
    *(f"/usr/{name}" for name in ("bin", "include", "lib", "libexec", "sbin", "share")),
    *("/var/cache/apt", "/var/lib/apt", "/var/lib/dpkg"),
)
"""Directories of a root that hold packages, most of its files, and nobody's checkouts."""


def find_command(workspace: WorkspaceSpec) -> tuple[str, ...]:
    """The command that looks for repositories below the current directory, a workspace's home, and into them. It ends
    in failure where the shell that looks does, which something of the home's could kill."""
    look = unsaved_script(shared_places(workspace), is_home=True)
    return ("find", ".", "-xdev", *FOUND_ONES, "-exec", "sh", "-c", look, "sh", "{}", "+")


def find_in_root_command(workspace: WorkspaceSpec) -> tuple[str, ...]:
    """The same for the root of the workspace that it runs in, without what is mounted there, home above all."""
    paths = [word for path in DISTRIBUTION for word in ("-o", "-path", path)][1:]
    left_out = ("(", *paths, ")", "-prune", "-o")
    named = (*FOUND_ONES, "-exec", "sh", "-c", root_script(workspace), "sh", "{}", "+")
    return ("find", "/", "-ignore_readdir_race", "-xdev", *left_out, *named)


def look_command(workspace: WorkspaceSpec, repositories: Iterable[str]) -> tuple[str, ...]:
    """The command that looks into these repositories of a root, by the paths of their `.git`, or a bare one's HEAD."""
    return ("sh", "-c", root_script(workspace), "sh", *repositories)


def look_into_layer_command(
    workspace: WorkspaceSpec, repositories: Iterable[str], layer: str, host: str
) -> tuple[str, ...]:
    """The same for those of a private mount, see unsaved_script()."""
    return ("sh", "-c", unsaved_script(shared_places(workspace), layer, host), "sh", *repositories)


def root_script(workspace: WorkspaceSpec) -> str:
    """The look into what goes with a root: the home stays."""
    return unsaved_script((f"/home/{workspace.user}", *shared_places(workspace)))


def shared_places(workspace: WorkspaceSpec) -> list[str]:
    """The places inside of directories of the host's. What is written in a private one goes with the home."""
    return [mount.target for mount in workspace.mounts if not mount.is_private]


def unsaved_script(kept: Iterable[str], layer: str = "", host: str = "", *, is_home: bool = False) -> str:
    """The look for unsaved work in what goes while the directories `kept`, by their paths inside, stay. What it looks
    at may be a home, or a `layer` on a directory of the `host`, which are shown at these places."""
    told = {"kept": "\n".join(kept), "layer": layer, "host": host, "is_home": "yes" if is_home else ""}
    words = "".join(f"{key}={shlex.quote(value)}\n" for key, value in told.items())
    return f"home=$HOME\n{words}{script('unsaved')}"


def is_in_cache(path: str) -> bool:
    """Whether a path from the root lies in a package manager's cache."""
    return any(f"/{cache}/" in f"/{path}" for cache in CACHES)


def script(name: str) -> str:
    """The text of a look of git's, one of the scripts beside this file, with what all of them begin with."""
    return "".join((SCRIPTS / f"{part}.sh").read_text(encoding="utf-8") for part in ("sealed_git", name))


def found_in(line: str) -> str:
    """The repository and its work that a line of the look tells of, printable; "" for any other line."""
    if not line.startswith(FOUND):
        return ""
    return printable(line.removeprefix(FOUND), LONGEST)


class Listener:
    """Takes the lines of a look, as many as a guest likes to cause, and keeps what a person wants to read."""

    def __init__(self) -> None:
        self._found: list[str] = []
        self._more = 0

    def take(self, line: str) -> None:
        if not (found := found_in(line)):
            return
        if len(self._found) < MOST_SHOWN:
            self._found.append(found)
        else:
            self._more += 1

    @property
    def found(self) -> list[str]:
        return [*self._found, f"{self._more} more"] if self._more else self._found[:]


def found_among(said: bytes) -> list[str]:
    """What the whole output of a look tells of."""
    listener = Listener()
    for line in said.decode("utf-8", "replace").splitlines():
        listener.take(line)
    return listener.found
