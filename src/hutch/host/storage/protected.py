"""The paths of a shared directory that its guest must not change, since the host would run what they say: the names
that editors and direnv look for, and all of git's.

It looks at the directory as it is, follows what git would follow, and runs nothing.
"""

from __future__ import annotations

import os
import posixpath
import pwd
import stat
from contextlib import suppress

from hutch.failure import HutchError
from hutch.host.storage.git_config import COMMANDS, has_own_configurations, parse_config, pointer_in
from hutch.host.storage.guest_paths import DEEPEST, LARGEST, Paths, names_of
from hutch.host.storage.mountinfo import is_below
from hutch.texts import printable

TYPE_CHECKING = False  # programs that start with a workspace use it
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from hutch.host.storage.guest_paths import Hold
    from hutch.spec.model import WorkspaceSpec

NAMES = (
    ".vscode", ".idea", ".cursor", ".envrc", "hutch.toml", ".husky", ".github/hooks",
    ".claude/settings.json", ".claude/settings.local.json",
)  # fmt: skip
"""At the top of a checkout: what editors, direnv, hutch, husky and the host's own agents take commands from."""
FILES = (".gitattributes", ".gitmodules", ".lfsconfig")
"""The same, where they are there: a directory in the place of one would be in the way of git or git-lfs."""
WORDS = 4  # of a value, that may be a program and its arguments


def find_protected(
    source: str, more: Sequence[str] = (), *, is_default: bool = True, is_lenient: bool = False
) -> dict[str, Hold]:
    """Path on the host -> what is to be made there where nothing is, "" for what is there; those that lie in other ones
    are left out. A file that leads to "itself" tells git what it takes for granted without; a "way" is a directory that
    leads to another path, and is not protected. `more` are paths in the directory `source`. HutchError where there are
    too many; or where one cannot be looked at, unless the look `is_lenient`."""
    look = _Look(source, is_lenient=is_lenient)
    for entry in more:
        look.add(f"{source}/{entry}", "directory")
    if is_default:
        look.look_around()
    look.finish()
    found: dict[str, Hold] = {}
    outer = ""
    for path in sorted(look.found, key=lambda path: path.split("/")):  # what is in a directory follows that at once
        if not (outer and path.startswith(f"{outer}/")):
            found[path] = look.found[path]
            outer = outer if found[path] == "way" else path
    return found


def list_protected(source: str, more: tuple[str, ...], is_default: bool) -> frozenset[str]:
    """The paths that `find_protected` finds, for somebody to read: without those that are closed to the caller."""
    with suppress(HutchError, OSError, UnicodeError):  # it does not start
        found = find_protected(source, more, is_default=is_default, is_lenient=True)
        return frozenset(path for path, hold in found.items() if hold != "way")
    return frozenset()


def protected_paths(
    workspace: WorkspaceSpec, find: Callable[[str, tuple[str, ...], bool], frozenset[str]] = list_protected
) -> list[str]:
    """The paths on the host that the workspace cannot change, though it is shown what is around them to be written.
    `find` is `list_protected`, or what remembers that."""
    found: set[str] = set()
    for mount in workspace.mounts if workspace.engine == "local" else ():
        if mount.is_writable and os.path.isdir(mount.source):
            found |= find(mount.source, workspace.protect, workspace.protect_default)
    return sorted(found)


def checkouts_around(source: str) -> list[str]:
    """The directories above a file or directory that are the top of a checkout, or a git directory themselves."""
    look = _Look(source)
    return [top for top in _all_above(source) if look.mode_of(f"{top}/.git") or look.is_git_directory(top)]


PARTS = frozenset(("objects", "refs", "logs", "hooks", "info", "lfs", "modules", "worktrees"))
"""Directories in git directories that hold no submodule of the level above."""


class _Look(Paths):
    """What git would follow of a shared directory, as deep as it goes."""

    def __init__(self, source: str, *, is_lenient: bool = False) -> None:
        super().__init__(source, is_lenient=is_lenient)
        self._seen: set[str] = set()  # git directories

    def look_around(self) -> None:
        """Note what git and editors run of this directory, be it a checkout, a part of one, or a git directory."""
        self._names(self.source)
        tops = [self.source, *_all_above(self.source)]
        for top in tops:
            if self.mode_of(f"{top}/.git"):
                self._checkout(top)
        for top in tops:
            if self.is_git_directory(top):
                self._git_directory(top, top)

    def is_git_directory(self, path: str) -> bool:
        return bool(self.mode_of(f"{path}/HEAD")) and all(
            self.may_be_directory(f"{path}/{name}") for name in ("objects", "refs")
        )

    def _names(self, top: str, hold: Hold = "") -> None:
        for name in (*NAMES, *FILES):
            self.add(f"{top}/{name}", hold if name in NAMES else "")

    def _checkout(self, top: str) -> None:
        self._names(top, "directory")
        git = f"{top}/.git"
        at, mode, rest = self.walk(git)
        if stat.S_ISDIR(mode) and not rest:
            self._git_directory(at, top)
            return
        self.add(git)
        if (text := self.read(git)).startswith("gitdir:"):
            self._git_directory(self.led(top, pointer_in(text[len("gitdir:") :])), top)

    def _git_directory(self, git: str, top: str, depth: int = 0) -> None:
        """Note what is in a git directory, of the working tree `top`; and in the one that its worktrees have in
        common."""
        if git in self._seen or depth > DEEPEST:
            return
        self._seen.add(git)
        common = git
        if pointer := pointer_in(self.read(f"{git}/commondir")):
            common = self.led(git, pointer)
        # A bare one is left alone: with such a file, git does not take it for bare any more.
        self.add(f"{git}/commondir", "itself" if git != top else "")
        self.add(f"{git}/gitdir")
        self.add(f"{git}/hooks", "directory")
        shared = list(self._configuration(f"{common}/config"))
        self._values([*shared, *self._own_configuration(git, shared)], top)
        self._submodules(git, depth)
        if common == git:
            self._worktrees(git, shared, depth)
        else:
            self._git_directory(common, _top_of(common, top), depth + 1)

    def _own_configuration(self, git: str, shared: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """The variables that only one working tree has, which are beside those that it has in common with others."""
        own = f"{git}/config.worktree"
        if has_own_configurations(shared):
            return list(self._configuration(own))
        self.add(own)
        return []

    def _submodules(self, git: str, depth: int) -> None:
        """Note what is in the git directories of submodules, of which each working tree has its own."""
        for module in self._modules(f"{git}/modules"):
            worktree = next(
                (value for key, value in self._read_config(f"{module}/config") if key == "core.worktree"), ""
            )
            inner = self.led(module, worktree) if worktree else module
            if worktree:
                self._working_tree(inner, depth)
            self._git_directory(module, inner, depth + 1)

    def _worktrees(self, git: str, shared: Sequence[tuple[str, str]], depth: int) -> None:
        """Note what the other working trees of a git directory are known by, and what lies in those within reach."""
        for place in self.directories(f"{git}/worktrees"):
            self.add(f"{place}/commondir")
            self.add(f"{place}/gitdir")
            variables = [*shared, *self._own_configuration(place, shared)]
            self._submodules(place, depth)
            if pointer := pointer_in(self.read(f"{place}/gitdir")):
                tree = self.led(place, posixpath.dirname(pointer))
                if self._working_tree(tree, depth):
                    self._values(variables, tree)

    def _working_tree(self, top: str, depth: int) -> bool:
        """Note what lies in a working tree that a git directory elsewhere says it has; returns whether it is there. It
        may have one of its own, as the main tree has, or what was cloned there since: work goes on in that, so it is
        looked through. Trees out of reach are left alone: a guest names what it likes, such as what waits for a
        server."""
        if not (f"{top}/".startswith(f"{self.source}/") or self.source.startswith(f"{top}/")):
            return False
        self._names(top)
        git, is_there = f"{top}/.git", self.is_directory(top)
        if is_there and stat.S_ISDIR(self.mode_of(git)) and self.is_git_directory(git):
            self._git_directory(git, top, depth + 1)
        else:
            self.add(git)
        return is_there

    def _configuration(self, file: str) -> Iterator[tuple[str, str]]:
        """The variables of a configuration file and of those that it includes, all of which are noted; each file
        once, by whatever path."""
        files, seen = [file], set[str]()
        while files:
            file = files.pop()
            if (place := self.led("/", file)) in seen:
                continue
            seen.add(place)
            self.add(file, "file")
            for key, value in self._read_config(file):
                yield key, value
                if key == "include.path" or (key.startswith("includeif.") and key.endswith(".path")):
                    files.append(posixpath.join(posixpath.dirname(file), self._expanded(value)))

    def _read_config(self, file: str) -> Iterator[tuple[str, str]]:
        text = self.read(file)
        if len(os.fsencode(text)) > LARGEST:
            raise self.too_much(f"is configured by {printable(file, 200)}, which is larger than 1 MiB")
        for key, value in parse_config(text):
            self.spend(letters=len(key) + len(value))
            yield key, value

    def _modules(self, place: str, depth: int = 0) -> Iterator[str]:
        """The git directories of submodules, whose names may have slashes."""
        for path in self.directories(place):
            # Of a git directory whose other parts somebody has taken away, the configuration is there: it is protected.
            if self.mode_of(f"{path}/config") or self.is_git_directory(path):
                yield path
            if depth < DEEPEST and posixpath.basename(path) not in PARTS:
                yield from self._modules(path, depth + 1)

    def _values(self, variables: Iterable[tuple[str, str]], top: str) -> None:
        """Note the directory of hooks, the programs of the working tree that git would run, and each file there that
        the first words of a value lead to: they may be a command."""
        for key, value in variables:
            self.spend()
            if key in ("core.hookspath", "init.templatedir"):
                path = posixpath.join(top, self._expanded(value))
                self.add(path, "directory")
                last, *above = names_of(path) or [""]
                if key == "core.hookspath" and last == "_":  # husky's hooks, which run the scripts beside it
                    place = self.led("/", "/".join(reversed(above)))
                    if not is_below(top, place):
                        self.add(place, "directory")
                continue
            for index, word in enumerate(value.removeprefix("!").split()[:WORDS]):
                path = posixpath.join(top, self._expanded(word.strip("'\"")))
                if "/" in word and index == 0 and COMMANDS.fullmatch(key):
                    self.add(path, "directory")
                elif "/" in word and stat.S_ISREG(self.walk(path, is_noted=False)[1]):
                    self.add(path)

    def _expanded(self, path: str) -> str:
        """A path whose "~", or "~NAME", is the home of whoever owns the directory, as git on the host would have it."""
        if not path.startswith("~"):
            return path
        try:
            owner = pwd.getpwuid(os.stat(self.source).st_uid)
        except (KeyError, OSError):
            return path
        user, _, rest = path[1:].partition("/")
        return posixpath.join(owner.pw_dir, rest) if user in ("", owner.pw_name) else path


def _all_above(path: str) -> Iterator[str]:
    while (path := posixpath.dirname(path)) != "/":
        yield path


def _top_of(common: str, otherwise: str) -> str:
    """The main working tree, whose git directory others have in common."""
    return posixpath.dirname(common) if posixpath.basename(common) == ".git" else otherwise
