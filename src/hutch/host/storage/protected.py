"""The paths of a shared directory that its guest must not change, since the host would run what they say: the names
that editors and direnv look for, and all of git's.

It looks at the directory as it is, follows what git would follow, and runs nothing. Whoever asks may be root: what is
read are regular files of a bounded size, outside of the directory those that its owner may read; nothing else is
opened; and what is told are paths in the shared directory only.
"""

from __future__ import annotations

import errno
import os
import posixpath
import pwd
import stat
import time
from contextlib import suppress

from hutch.failure import HutchError
from hutch.files import kept_open, reopen_regular
from hutch.host.storage.git_config import COMMANDS, has_own_configurations, parse_config, pointer_in
from hutch.host.storage.mountinfo import is_below, observe_mountinfo, parse_mountinfo
from hutch.trees.cursor import SUPERFLUOUS, way_to

TYPE_CHECKING = False  # programs that start with a workspace use it
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Literal

    from hutch.spec.model import WorkspaceSpec

    Hold = Literal["", "way", "directory", "file", "itself"]

NAMES = (
    ".vscode", ".idea", ".cursor", ".envrc", "hutch.toml", ".husky", ".github/hooks",
    ".claude/settings.json", ".claude/settings.local.json",
)  # fmt: skip
"""At the top of a checkout: what editors, direnv, hutch, husky and the host's own agents take commands from."""
FILES = (".gitattributes", ".gitmodules", ".lfsconfig")
"""The same, where they are there: a directory in the place of one would be in the way of git or git-lfs."""
MOST = 4096  # paths of one directory, with those that lead to them: each is a mount
LARGEST = 1 << 20  # bytes of a file that is read
MOST_LOOKED = 20_000  # entries of directories, and files; a guest can make as many as it likes
MOST_LETTERS = 1 << 24  # of all variables: a section of a megabyte is in the name of each that stands in it
MOST_SECONDS = 2.0  # of a processor: the whole of a large checkout takes a tenth
LONGEST = 255  # bytes of a name
LONGEST_PATH = 4095
DEEPEST_PATH = 64  # directories
DEEPEST = 40  # links, and modules in modules
WORDS = 4  # of a value, that may be a program and its arguments


def find_protected(source: str, more: Sequence[str] = (), *, is_default: bool = True) -> dict[str, Hold]:
    """Path on the host -> what is to be made there where nothing is, "" for what is there; those that lie in other ones
    are left out. A file that leads to "itself" tells git what it takes for granted without; a "way" is a directory that
    leads to another path, and is not protected. `more` are paths in the directory `source`. HutchError where there are
    too many."""
    look = _Look(source)
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
    """The paths that `find_protected` finds, for somebody to read."""
    with suppress(HutchError, OSError, UnicodeError):  # it does not start; or there is what is closed to the caller
        found = find_protected(source, more, is_default=is_default)
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


def is_git_directory(path: str) -> bool:
    return os.path.lexists(f"{path}/HEAD") and all(os.path.isdir(f"{path}/{name}") for name in ("objects", "refs"))


PARTS = frozenset(("objects", "refs", "logs", "hooks", "info", "lfs", "modules", "worktrees"))
"""Directories in git directories that hold no submodule of the level above."""


class _Look:
    """One look at a shared directory; `found` is what it found."""

    def __init__(self, source: str) -> None:
        self.source, self._real = source, os.path.realpath(source)
        self.found: dict[str, Hold] = {}
        self._around: set[str] = set()  # the directories on the way to what is found
        self._passed: set[str] = set()  # the directories that a path leaves by ".."
        self._absent: set[str] = set()  # what would be protected if it were there
        self._mounts: dict[str, str] = {}  # place -> type
        self._seen: set[str] = set()
        self._left, self._letters = MOST_LOOKED, MOST_LETTERS
        self._until = time.thread_time() + MOST_SECONDS

    def add(self, path: str, hold: Hold = "", depth: int = 0) -> None:
        """Note a path, if it leads into the directory; and where a link leads from it, that too. A path that is not
        there is held, with the directories that lead to it; where a file is in its way, that."""
        at, mode, rest = self._walk(path)
        if depth > DEEPEST or not self._is_inside(at):
            return
        if rest or not mode:
            if hold and mode:  # where a file stays, nothing comes
                self._note(at, "")
            elif hold:
                self._hold(at, rest, hold)
            else:
                self._absent.add(posixpath.join(at, *rest))
            return
        self._note(at, "")
        if stat.S_ISDIR(mode):  # a hook is often a link to a script of the working tree
            for entry in self._entries(at):
                if entry.is_symlink():
                    self.add(entry.path, depth=depth + 1)

    def finish(self) -> None:
        """Note what only the whole look tells. A way that would be protected if it were there is made, so the next look
        protects it, and so does this one. The directories that a path leaves by ".." are held, unless something in them
        is protected: a link in the place of one would lead elsewhere."""
        for path in self._absent:
            if self.found.get(path) == "way":
                self.found[path] = "directory"
        for path in sorted(self._passed, reverse=True):  # what is in a directory comes before that
            if path not in self._around:
                self._note(path, "")

    def _walk(self, path: str, *, is_noted: bool = True) -> tuple[str, int, list[str]]:
        """Go an absolute path as the kernel does, the links that `is_noted` notes in the directory included. Returns
        where it ends, the mode of what is there, which is 0 for nothing, and the names that would follow."""
        self._spend()
        at, mode, rest, links = "/", stat.S_IFDIR, _names_of(path), 0
        while rest and stat.S_ISDIR(mode):
            if (name := rest.pop()) == "..":
                if is_noted and self._is_inside(at):
                    self._passed.add(at)
                at = posixpath.dirname(self._real if at == self.source else at)
                continue
            above, at = at, posixpath.join(at, name)
            at = self.source if at == self._real else at
            mode = self._mode_of(at)
            if stat.S_ISLNK(mode):
                if is_noted and self._is_inside(at):
                    self._note(at, "")
                target, links = _target_of(at), links + 1
                if not target or links > DEEPEST:
                    break
                at, mode = "/" if target.startswith("/") else above, stat.S_IFDIR
                rest += _names_of(target)
        return at, mode, rest[::-1]

    def _led(self, place: str, path: str) -> str:
        """Where a path in a file of git's leads from the directory that it counts from; what leads there is noted."""
        at, _, rest = self._walk(posixpath.join(place, path))
        return posixpath.join(at, *rest)

    def _is_inside(self, path: str) -> bool:
        return path.startswith(f"{self.source}/")

    def _mode_of(self, path: str) -> int:
        """The mode of what is at a path, links not followed; 0 where nothing is. Nothing is taken to be on file systems
        that are not on the way to the directory: a guest names what it likes, such as what waits for a server."""
        if path == self.source:
            return stat.S_IFDIR
        if not self._is_inside(path) and not is_below(self._real, path):
            self._mounts = self._mounts or {mount[2]: mount[-1] for mount in parse_mountinfo(observe_mountinfo())}
            if path in self._mounts or self._mounts.get(posixpath.dirname(path)) == "autofs":
                return 0
        try:
            return os.lstat(path).st_mode
        except OSError as error:
            if self._is_inside(path) and error.errno not in (*SUPERFLUOUS, errno.ENAMETOOLONG):
                raise
            return 0

    def _hold(self, path: str, rest: list[str], hold: Hold) -> None:
        """Note what leads from a path that is not there to the last of the `rest`, which is held."""
        whole = posixpath.join(path, *rest)
        if len(os.fsencode(whole)) > LONGEST_PATH or any(len(os.fsencode(n)) > LONGEST for n in whole.split("/")):
            return
        if ".." in rest:  # nothing is led on from a file
            rest, hold = [], "file"
        for name in rest:
            self._note(path, "way")
            path = f"{path}/{name}"
        self._note(path, hold)

    def _note(self, path: str, hold: Hold) -> None:
        if self.found.get(path, "way") == "way":  # what is protected is not just a way to something
            self.found[path] = hold
        if path.removeprefix(self.source).count("/") > DEEPEST_PATH:
            raise self._too_much(f"has paths to protect that lie more than {DEEPEST_PATH} directories deep")
        while (path := posixpath.dirname(path)) != self.source and path not in self._around:
            self._around.add(path)
        if len(self.found) + len(self._around) > MOST:
            raise self._too_much(f"has more than {MOST} paths to protect, and directories on the way to them")

    def _spend(self, files: int = 0, letters: int = 0) -> None:
        """Count what is looked at, by a guest's choice: it may not make a look of root's last, nor fill the memory."""
        self._left -= files
        self._letters -= letters
        if self._left < 0:
            raise self._too_much(f"has more than {MOST_LOOKED} files to look through for protected ones")
        if self._letters < 0:
            raise self._too_much(f"is configured by more than {MOST_LETTERS >> 20} MiB of variables")
        if time.thread_time() > self._until:
            raise self._too_much(f"takes more than {MOST_SECONDS:g} s of a processor to look through")

    def _too_much(self, what: str) -> HutchError:
        way = "share a part of it; or protect_default = false, and list the read-only paths in `protect`"
        return HutchError(f"{self.source} {what}", resolution=way)

    def _entries(self, directory: str) -> list[os.DirEntry[str]]:
        """The entries of a directory, none where it cannot be read."""
        found = []
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    self._spend(1)
                    if len(os.fsencode(entry.path)) <= LONGEST_PATH:
                        found.append(entry)
        except OSError:
            return []
        return found

    def _directories(self, directory: str) -> list[str]:
        return sorted(entry.path for entry in self._entries(directory) if entry.is_dir(follow_symlinks=False))

    def look_around(self) -> None:
        """Note what git and editors run of this directory, be it a checkout, a part of one, or a git directory."""
        self._names(self.source)
        tops = [self.source, *_all_above(self.source)]
        for top in tops:
            if os.path.lexists(f"{top}/.git"):
                self._checkout(top)
        for top in tops:
            if is_git_directory(top):
                self._git_directory(top, top)

    def _names(self, top: str, hold: Hold = "") -> None:
        for name in (*NAMES, *FILES):
            self.add(f"{top}/{name}", hold if name in NAMES else "")

    def _checkout(self, top: str) -> None:
        self._names(top, "directory")
        git = f"{top}/.git"
        if os.path.isdir(git):
            if os.path.islink(git):
                self.add(git)
            self._git_directory(os.path.realpath(git), top)
            return
        self.add(git)
        if (text := self._read(git)).startswith("gitdir:"):
            self._git_directory(self._led(top, pointer_in(text[len("gitdir:") :])), top)

    def _git_directory(self, git: str, top: str, depth: int = 0) -> None:
        """Note what is in a git directory, of the working tree `top`; and in the one that its worktrees have in
        common."""
        if git in self._seen or depth > DEEPEST:
            return
        self._seen.add(git)
        common = git
        if pointer := pointer_in(self._read(f"{git}/commondir")):
            common = self._led(git, pointer)
        # A bare one is left alone: with such a file, git does not take it for bare any more.
        self.add(f"{git}/commondir", "itself" if git != top else "")
        self.add(f"{git}/gitdir")
        variables = list(self._configuration(f"{common}/config"))
        own = has_own_configurations(variables)
        for place in dict.fromkeys((git, common)):
            self.add(f"{place}/config.worktree", "file" if own else "")
            self.add(f"{place}/hooks", "directory")
        if own:
            variables += self._configuration(f"{git}/config.worktree")
        self._values(variables, top)
        if common != git:
            self._git_directory(common, _top_of(common, top), depth + 1)
            return
        for module in self._modules(f"{git}/modules"):
            worktree = next(
                (value for key, value in self._read_config(f"{module}/config") if key == "core.worktree"), ""
            )
            inner = self._led(module, worktree) if worktree else module
            if worktree:
                self._working_tree(inner, depth)
            self._git_directory(module, inner, depth + 1)
        for place in self._directories(f"{git}/worktrees"):
            for file in ("commondir", "gitdir", "config.worktree"):
                self.add(f"{place}/{file}", "file" if own and file == "config.worktree" else "")
            if pointer := pointer_in(self._read(f"{place}/gitdir")):
                tree = self._led(place, posixpath.dirname(pointer))
                if self._working_tree(tree, depth):  # git goes there by the same configuration
                    self._values(variables, tree)

    def _working_tree(self, top: str, depth: int) -> bool:
        """Note what lies in a working tree that a git directory elsewhere says it has; returns whether it is there. It
        may have one of its own, as the main tree has, or what was cloned there since: work goes on in that, so it is
        looked through. Trees out of reach are left alone: a guest names what it likes, such as what waits for a
        server."""
        if not (f"{top}/".startswith(f"{self.source}/") or self.source.startswith(f"{top}/")):
            return False
        self._names(top)
        git = f"{top}/.git"
        if is_git_directory(git) and not os.path.islink(git):
            self._git_directory(git, top, depth + 1)
        else:
            self.add(git)
        return os.path.isdir(top)

    def _configuration(self, file: str) -> Iterator[tuple[str, str]]:
        """The variables of a configuration file and of those that it includes, all of which are noted; each file
        once, by whatever path."""
        files, seen = [file], set[str]()
        while files:
            file = files.pop()
            if (place := self._led("/", file)) in seen:
                continue
            seen.add(place)
            self.add(file, "file")
            for key, value in self._read_config(file):
                yield key, value
                if key == "include.path" or (key.startswith("includeif.") and key.endswith(".path")):
                    files.append(posixpath.join(posixpath.dirname(file), self._expanded(value)))

    def _read(self, path: str) -> str:
        """The text of a file, "" where there is none that can be read. A link leads git anywhere, so outside of the
        directory it is a file that the owner of the directory may read. The kernel's own files, which have no size, are
        not read: that may have effects."""
        self._spend(1)
        try:
            with kept_open(os.open(path, os.O_PATH | os.O_CLOEXEC)) as pin:
                found, is_inside = os.fstat(pin), os.readlink(way_to(pin)).startswith(f"{self._real}/")
                if not found.st_size or not (is_inside or is_open_to(os.stat(self.source).st_uid, found)):
                    return ""
                with kept_open(reopen_regular(pin)) as file:
                    return os.fsdecode(os.read(file, LARGEST + 1))
        except BlockingIOError as error:
            raise HutchError(
                f"{path} cannot be read, so the protected paths of {self.source} are not known",
                details="somebody has a lease on it (see `lslocks`)",
            ) from error
        except OSError:
            return ""

    def _read_config(self, file: str) -> Iterator[tuple[str, str]]:
        text = self._read(file)
        if len(os.fsencode(text)) > LARGEST:
            raise self._too_much(f"is configured by {file}, which is larger than 1 MiB")
        for key, value in parse_config(text):
            self._spend(letters=len(key) + len(value))
            yield key, value

    def _modules(self, place: str, depth: int = 0) -> Iterator[str]:
        """The git directories of submodules, whose names may have slashes."""
        for path in self._directories(place):
            # Of a git directory whose other parts somebody has taken away, the configuration is there: it is protected.
            if os.path.lexists(f"{path}/config") or is_git_directory(path):
                yield path
            if depth < DEEPEST and posixpath.basename(path) not in PARTS:
                yield from self._modules(path, depth + 1)

    def _values(self, variables: Iterable[tuple[str, str]], top: str) -> None:
        """Note the directory of hooks, the programs of the working tree that git would run, and each file there that
        the first words of a value lead to: they may be a command."""
        for key, value in variables:
            self._spend()
            if key in ("core.hookspath", "init.templatedir"):
                path = posixpath.join(top, self._expanded(value)).rstrip("/")
                self.add(path, "directory")
                if posixpath.basename(path) == "_":  # husky's hooks, which run the scripts beside it
                    above = self._led("/", posixpath.dirname(path))
                    if not is_below(top, above):
                        self.add(above, "directory")
                continue
            for index, word in enumerate(value.removeprefix("!").split()[:WORDS]):
                path = posixpath.join(top, self._expanded(word.strip("'\"")))
                if "/" in word and index == 0 and COMMANDS.fullmatch(key):
                    self.add(path, "directory")
                elif "/" in word and stat.S_ISREG(self._walk(path, is_noted=False)[1]):
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


def _names_of(path: str) -> list[str]:
    """The names of a path, the last one first."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _target_of(link: str) -> str:
    """Where a link leads; "" where it is no link any more, for which there will be another look."""
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _all_above(path: str) -> Iterator[str]:
    while (path := posixpath.dirname(path)) != "/":
        yield path


def _top_of(common: str, otherwise: str) -> str:
    """The main working tree, whose git directory others have in common."""
    return posixpath.dirname(common) if posixpath.basename(common) == ".git" else otherwise


def is_open_to(uid: int, found: os.stat_result) -> bool:
    """Whether a user may read a file, by its owner and mode. The directories above it do not count: who closes one to
    its owner for a while must not hide what is in it."""
    if uid in (0, found.st_uid) or found.st_mode & stat.S_IROTH:
        return True
    try:
        account = pwd.getpwuid(uid)
        groups = os.getgrouplist(account.pw_name, account.pw_gid)
    except KeyError:
        return False
    return bool(found.st_mode & stat.S_IRGRP) and found.st_gid in groups
