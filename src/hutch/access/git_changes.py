"""The look for what has changed in repositories that a guest can write: the command that runs in a throw-away
container, and its answer. Computes; runs nothing. All that is told is the guest's word, but for which repositories are
new: that is told by the times of the host's kernel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from hutch.access import git_work
from hutch.frozen import dataclass
from hutch.texts import printable

TOLD = "hutch-changed "
LONGEST = 400  # characters of a path, or of a problem
MOST_REPOSITORIES, MOST_FILES, MOST_NEW = 50, 1000, 200  # that are told; the rest is counted
FAILED = "!"
UNREADABLE = "git cannot read it"


@dataclass(frozen=True)
class FileChange:
    """A file that has changed, with the numbers of its lines; None for a binary one, and for one that git does not
    track."""

    path: str
    added: int | None = None
    deleted: int | None = None
    is_tracked: bool = True


@dataclass(frozen=True)
class RepositoryChanges:
    """What has changed in a repository: `commits` are those since then, `more` is the number of files beyond those that
    are told. `problem` is why git did not look, "" where it did."""

    path: str
    commits: int = 0
    files: tuple[FileChange, ...] = ()
    more: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Changes:
    """What a look has found. `new` are repositories below a shared directory that were made, or whose configuration or
    hooks were changed. `more` and `more_new` are the numbers of those that are not told. `problem` is why there was no
    look, or none to the end."""

    repositories: tuple[RepositoryChanges, ...] = ()
    new: tuple[str, ...] = ()
    more: int = 0
    more_new: int = 0
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        told = [{**each.__dict__, "files": [vars(file) for file in each.files]} for each in self.repositories]
        return {**self.__dict__, "repositories": told, "new": list(self.new)}

    def joined(self, other: Changes) -> Changes:
        problem = "; ".join(dict.fromkeys(filter(None, (self.problem, other.problem))))
        repositories = (*self.repositories, *other.repositories)
        more, more_new = self.more + other.more, self.more_new + other.more_new
        return Changes(repositories, (*self.new, *other.new), more, more_new, problem)


def changes_command(since: float, tops: Iterable[str]) -> tuple[str, ...]:
    """The command that looks for repositories below the directories `tops`, and for what has changed in them since a
    moment in Unix time."""
    named = (*git_work.REPOSITORIES, ")")
    look = ("-exec", "sh", "-c", git_work.script("changed"), "sh", str(int(since)), "{}", "+")
    return ("find", *tops, "-xdev", *named, *look)


class Listener:
    """Takes the lines of a look, as many as a guest likes to cause, and keeps what a report tells: repositories in
    which nothing has changed are left out."""

    def __init__(self, tops: Iterable[str]) -> None:
        self._tops = frozenset(tops)
        self._told: list[RepositoryChanges] = []
        self._new: list[str] = []
        self._more = self._more_new = 0
        self._current = RepositoryChanges("")
        self._files: list[FileChange] = []

    def take(self, line: str) -> None:
        if not line.startswith(TOLD):
            return
        kind, _, value = line.removeprefix(TOLD).partition(" ")
        if kind == "repository":
            self._finish()
            self._current = RepositoryChanges(printable(value, LONGEST))
        elif kind == "touched" and value not in self._tops:
            if len(self._new) < MOST_NEW:
                self._new.append(printable(value, LONGEST))
            else:
                self._more_new += 1
        elif kind == "problem" or value == FAILED:
            self._current = replace(self._current, problem=UNREADABLE if value == FAILED else printable(value, LONGEST))
        elif kind == "commits" and value.isdecimal():
            self._current = replace(self._current, commits=int(value[:9]))
        elif kind == "file" and (change := _numstat(value)):
            self._keep(change)
        elif kind == "untracked":
            self._keep(FileChange(printable(value, LONGEST), is_tracked=False))

    def _keep(self, file: FileChange) -> None:
        """Keep a file of the current repository, or count it: a look may tell of millions before it ends."""
        if len(self._files) < MOST_FILES:
            self._files.append(file)
        else:
            self._current = replace(self._current, more=self._current.more + 1)

    def _finish(self) -> None:
        """Keep what was told of a repository, if there is anything to tell and room for it."""
        found = replace(self._current, files=tuple(self._files))
        self._files = []
        if not (found.commits or found.files or found.problem):
            return
        if len(self._told) < MOST_REPOSITORIES:
            self._told.append(found)
        else:
            self._more += 1

    def changes(self, problem: str = "") -> Changes:
        """What was told until the end, or until the `problem`."""
        self._finish()
        self._current = RepositoryChanges("")
        told = tuple(sorted(self._told, key=lambda each: each.path))
        return Changes(told, tuple(sorted(self._new)), self._more, self._more_new, problem)


def _numstat(line: str) -> FileChange | None:
    """A line of `git diff --numstat`: lines added and deleted, "-" for a binary file, and the path."""
    parts = line.split("\t", 2)
    if len(parts) != 3:
        return None
    added, deleted = (int(word[:9]) if word.isdecimal() else None for word in parts[:2])
    return FileChange(printable(parts[2], LONGEST), added, deleted)
