"""The words that a workspace sends before its objects, and the names of branches. Computes; a guest has written it all.

What is sent begins with a line "OBJECT REF" for each ref and the line "pack"; behind that comes a pack of git's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from hutch.errors import HutchError
from hutch.frozen import dataclass

HEADS = "refs/heads/"
HEAD = "HEAD"
TREE = "tree"
"""The ref that stands for the files of a workspace as they are, committed or not."""
END = b"pack\n"
MOST_REFS = 10_000
LONGEST_HEADER = 4 << 20  # bytes
LONGEST_NAME = 200  # bytes of a branch's name, which becomes the name of a file, with more before and behind it
TOLD = 20  # branches left out that are told of one by one
OBJECT = {"sha1": 40, "sha256": 64}
"""The length of an object's name, in hexadecimal digits, by the format of a repository."""

# What git's own check-ref-format refuses.
FORBIDDEN = re.compile(r"[\0-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")


def is_branch(name: str) -> bool:
    """Whether a branch may have this name on the host: one that git allows, that can be printed, and that no command
    takes for an option or for HEAD."""
    parts = name.split("/")
    return (
        0 < len(name.encode("utf-8", "surrogateescape")) <= LONGEST_NAME
        and name.isprintable()
        and FORBIDDEN.search(name) is None
        and not any(part.startswith(".") or part.endswith(".lock") or not part for part in parts)
        and not name.startswith("-")
        and not name.endswith(".")
        and name not in ("@", HEAD)
    )


@dataclass(frozen=True)
class Sent:
    """The refs that a workspace has sent: `branches` and `tree` are names of objects. `left_out` are sentences."""

    branches: dict[str, str]
    tree: str = ""
    left_out: tuple[str, ...] = ()


class Header:
    """A parser for the lines before the pack. `sender` is the workspace's name, `format` that of its objects."""

    def __init__(self, sender: str, format: str) -> None:
        self.sender = sender
        self.digits = OBJECT[format]
        self.is_complete = False
        self._rest = b""
        self._lines: list[bytes] = []
        self._size = 0

    def take(self, data: bytes) -> bytes:
        """Take the next bytes; returns what is behind the header already. Raises HutchError for what is no header."""
        if self.is_complete:
            return data
        self._size += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for number, line in enumerate(lines):
            if line + b"\n" == END:
                self.is_complete = True
                return b"\n".join([*lines[number + 1 :], self._rest])
            self._lines.append(line)
        if self._size > LONGEST_HEADER or len(self._lines) > MOST_REFS:
            raise HutchError(f"{self.sender} sends more than {MOST_REFS} branches; nothing was kept")
        return b""

    def sent(self) -> Sent:
        """What the header says. Raises HutchError where it says what no git does."""
        branches: dict[str, str] = {}
        tree, odd = "", []
        for line in self._lines:
            found = re.fullmatch(rb"([0-9a-f]{%d}) ([^\0]+)" % self.digits, line)
            if found is None:
                raise HutchError(f"{self.sender} sends an invalid list of branches; nothing was kept")
            object, ref = found[1].decode(), found[2].decode("utf-8", "surrogateescape")
            if ref == TREE:
                tree = object
            elif ref == HEAD:
                branches[HEAD] = object
            elif is_branch(name := ref.removeprefix(HEADS)) and ref.startswith(HEADS):
                branches[name] = object
            else:
                odd.append(name)
        if clash := clashing(branches):
            raise HutchError(f"{self.sender} sends a branch {clash} and one below it; nothing was kept")
        return Sent(branches, tree, tuple(left_out(odd)))


def clashing(names: Iterable[str]) -> str:
    """A branch in whose place another one needs a directory; "" for none. git never has both."""
    every = set(names)
    above = ("/".join(name.split("/")[:depth]) for name in every for depth in range(1, name.count("/") + 1))
    return next((name for name in above if name in every), "")


def left_out(names: Sequence[str]) -> list[str]:
    """Sentences about branches whose names cannot be theirs on the host."""
    told = [f"the branch {name[:LONGEST_NAME]!a}, which cannot be called that here" for name in names[:TOLD]]
    return [*told, *([f"and {len(names) - TOLD} more"] if len(names) > TOLD else [])]


def tracking(workspace: str, branch: str = "") -> str:
    """The ref of the host's repository where a branch of a workspace goes; without one, what they all begin with."""
    return f"refs/remotes/{workspace}/{branch}"


def start_of(workspace: str) -> str:
    """The ref of the host's repository that keeps the commit with which a workspace's clone began."""
    return f"refs/hutch/{workspace}/start"
