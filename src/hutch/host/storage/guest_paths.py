"""The walk of the paths that a guest names in a shared directory: they are gone as the kernel goes them, what is passed
in the directory is noted, and what is elsewhere is not told.

Whoever asks may be root, and a guest writes as much as it likes, so a look is bounded; what is read are regular files
of a bounded size, outside of the directory those that its owner may read, and directories; nothing else is opened. Only
what a walk has led to is asked for as a whole: what leads to a file system that may not answer would make the look wait
for ever.
"""

from __future__ import annotations

import errno
import os
import posixpath
import pwd
import stat
import time

from hutch.failure import HutchError
from hutch.files import kept_open, reopen_regular
from hutch.host.storage.mountinfo import is_below, observe_mountinfo, parse_mountinfo
from hutch.texts import printable
from hutch.trees.cursor import PINNED, SUPERFLUOUS, open_strictly

TYPE_CHECKING = False  # programs that start with a workspace use it
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal

    Hold = Literal["", "way", "directory", "file", "itself"]

MOST = 4096  # paths of one directory, with those that lead to them: each is a mount
LARGEST = 1 << 20  # bytes of a file that is read
MOST_LOOKED = 20_000  # entries of directories, and files; a guest can make as many as it likes
MOST_LETTERS = 1 << 24  # of all variables, in each of which is the name of its section, and of paths that are kept
MOST_SECONDS = 2.0  # of a processor: the whole of a large checkout takes a tenth
LONGEST = 255  # bytes of a name
LONGEST_PATH = 4095
DEEPEST_PATH = 64  # directories
DEEPEST = 40  # links, and modules in modules
ANSWERING = frozenset((
    "bcachefs", "btrfs", "devtmpfs", "ecryptfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "hfs", "hfsplus",
    "iso9660", "jfs", "msdos", "nilfs2", "ntfs3", "overlay", "ramfs", "reiserfs", "rootfs", "squashfs", "tmpfs", "udf",
    "vfat", "xfs", "zfs",
))  # fmt: skip
"""The types of file systems that wait for no server and no program, unless they lie over one that does. /proc is not
among them: git would find other files there, and some have effects."""
NOWHERE = "/dev/null"  # in which nothing can be
GONE = (*SUPERFLUOUS, errno.ENAMETOOLONG)
WITHOUT = "share a part of it; or protect_default = false, and list the read-only paths in `protect`"


class Paths:
    """The paths of one look at a directory; `found` are those that are to be protected in it, and how each is held.
    What cannot be looked at is passed over where the look `is_lenient`: not by root, who protects what is there."""

    def __init__(self, source: str, *, is_lenient: bool = False) -> None:
        self.source, self._real, self._is_lenient = source, os.path.realpath(source), is_lenient
        self.found: dict[str, Hold] = {}
        self._around: set[str] = set()  # the directories on the way to what is found
        self._passed: set[str] = set()  # the directories that a path leaves by ".."
        self._absent: set[str] = set()  # what would be protected if it were there
        self._mounts: dict[str, str] = {}  # place -> type, "" for one that answers
        self._left, self._letters = MOST_LOOKED, MOST_LETTERS
        self._until = time.thread_time() + MOST_SECONDS

    def add(self, path: str, hold: Hold = "", depth: int = 0) -> None:
        """Note a path, if it leads into the directory; and where a link leads from it, that too. A path that is not
        there is held, with the directories that lead to it; where a file is in its way, that."""
        at, mode, rest = self.walk(path)
        if depth > DEEPEST or not self.is_inside(at):
            return
        if rest or not mode:
            if hold and mode:  # where a file stays, nothing comes
                self._note(at, "")
            elif hold:
                self._hold(at, rest, hold)
            elif not is_too_long(whole := posixpath.join(at, *rest)):
                self.spend(letters=len(whole))
                self._absent.add(whole)
            return
        self._note(at, "")
        if stat.S_ISDIR(mode):  # a hook is often a link to a script of the working tree, which a branch may not have
            for link in self.links(at):
                self.add(link, "file", depth + 1)

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

    def walk(self, path: str, *, is_noted: bool = True) -> tuple[str, int, list[str]]:
        """Go an absolute path as the kernel does, the links that `is_noted` notes in the directory included. Returns
        where it ends, the mode of what is there, which is 0 for nothing, and the names that would follow."""
        self.spend()
        at, mode, rest, links = "/", stat.S_IFDIR, names_of(path), 0
        while rest and stat.S_ISDIR(mode):
            if (name := rest.pop()) == "..":
                if is_noted and self.is_inside(at):
                    self._passed.add(at)
                at = posixpath.dirname(self._real if at == self.source else at)
                continue
            above, at = at, posixpath.join(at, name)
            at = self.source if at == self._real else at
            mode = self.mode_of(at)
            if stat.S_ISLNK(mode):
                if is_noted and self.is_inside(at):
                    self._note(at, "")
                target, links = _target_of(at), links + 1
                if not target or links > DEEPEST:
                    break
                at, mode = "/" if target.startswith("/") else above, stat.S_IFDIR
                rest += names_of(target)
        return at, mode, rest[::-1]

    def led(self, place: str, path: str) -> str:
        """Where a path in a file of git's leads from the directory that it counts from; what leads there is noted. Too
        many links lead nowhere."""
        at, mode, rest = self.walk(posixpath.join(place, path))
        return NOWHERE if stat.S_ISLNK(mode) else posixpath.join(at, *rest)

    def is_inside(self, path: str) -> bool:
        return path.startswith(f"{self.source}/")

    def mode_of(self, path: str) -> int:
        """The mode of what is at a path, links not followed; 0 where nothing is, or what may not answer. The directory
        of the path is one that a walk has led to. HutchError where something in the shared directory cannot be looked
        at."""
        if path == self.source:
            return stat.S_IFDIR
        if self._silent_type(path):
            return 0
        try:
            return os.lstat(path).st_mode
        except OSError as error:
            self._refuse_closed(path, error)
            return 0

    def is_directory(self, path: str) -> bool:
        """Whether a path leads to a directory. What it leads through is not noted."""
        _, mode, rest = self.walk(path, is_noted=False)
        return stat.S_ISDIR(mode) and not rest

    def may_be_directory(self, path: str) -> bool:
        """The same, or whether it leads to what is not asked."""
        at, mode, _ = self.walk(path, is_noted=False)
        return self.is_directory(path) or bool(not mode and self._silent_type(at))

    def _silent_type(self, path: str) -> str:
        """The type of the file system that begins at a path, where it is not asked since it may not answer; "" for all
        else. A guest names what it likes, such as what waits for a server; but on the way to the directory and in it,
        whoever shares that has asked before. What an automounter has mounted nothing on yet waits for that."""
        if self.is_inside(path) or is_below(self._real, path):
            return ""
        self._mounts = self._mounts or _types(observe_mountinfo(), self._real)
        place = path
        while place not in self._mounts and place != "/":
            place = posixpath.dirname(place)
        type = self._mounts.get(place, "")
        return type if place == path or type == "autofs" else ""

    def _refuse_silent(self, path: str, at: str, mode: int) -> None:
        """Raise HutchError where what git would read, by a path that has led to `at`, may not answer."""
        if not mode and (type := self._silent_type(at)):
            raise self._unknown(path, f"leads to {printable(at, 200)}, a file system that may not answer ({type})")

    def _refuse_closed(self, path: str, error: OSError) -> None:
        """Raise HutchError where something in the directory is there, and the kernel does not let it be looked at."""
        if self.is_inside(path) and not self._is_lenient and error.errno not in GONE:
            raise self._unknown(path, f"cannot be looked at ({error.strerror})") from error

    def _unknown(self, path: str, why: str, resolution: str = WITHOUT) -> HutchError:
        what = f"{printable(path, 200)} {why}: the protected paths of {self.source} are not known"
        return HutchError(what, resolution=resolution)

    def _hold(self, path: str, rest: list[str], hold: Hold) -> None:
        """Note what leads from a path that is not there to the last of the `rest`, which is held."""
        if is_too_long(posixpath.join(path, *rest)):
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
            raise self.too_much(f"has paths to protect that lie more than {DEEPEST_PATH} directories deep")
        while (path := posixpath.dirname(path)) != self.source and path not in self._around:
            self._around.add(path)
        if len(self.found) + len(self._around) > MOST:
            raise self.too_much(f"has more than {MOST} paths to protect, and directories on the way to them")

    def spend(self, files: int = 0, letters: int = 0) -> None:
        """Count what is looked at, by a guest's choice: it may not make a look of root's last, nor fill the memory."""
        self._left -= files
        self._letters -= letters
        if self._left < 0:
            raise self.too_much(f"has more than {MOST_LOOKED} files to look through for protected ones")
        if self._letters < 0:
            raise self.too_much(f"is configured by more than {MOST_LETTERS >> 20} MiB of variables and paths")
        if time.thread_time() > self._until:
            raise self.too_much(f"takes more than {MOST_SECONDS:g} s of a processor to look through")

    def too_much(self, what: str) -> HutchError:
        return HutchError(f"{self.source} {what}", resolution=WITHOUT)

    def links(self, directory: str) -> list[str]:
        """The symbolic links in a directory, none where it cannot be read."""
        return self._entries(directory, os.DirEntry.is_symlink)

    def directories(self, directory: str) -> list[str]:
        """The directories in the one that a path leads to, in order, and as it leads to them; what leads there is
        noted. HutchError where that may not answer."""
        at, mode, rest = self.walk(directory)
        self._refuse_silent(directory, at, mode)
        is_wanted = stat.S_ISDIR(mode) and not rest
        return sorted(self._entries(at, lambda entry: entry.is_dir(follow_symlinks=False))) if is_wanted else []

    def _entries(self, directory: str, is_wanted: Callable[[os.DirEntry[str]], bool]) -> list[str]:
        """Paths in a directory that is none by a link."""
        found = []
        try:
            with kept_open(open_strictly(self._real_path(directory))) as top, os.scandir(top) as entries:
                for entry in entries:
                    self.spend(1)
                    path = posixpath.join(directory, entry.name)
                    if len(os.fsencode(path)) <= LONGEST_PATH and is_wanted(entry):
                        found.append(path)
        except OSError as error:
            self._refuse_closed(directory, error)
            return []
        return found

    def _real_path(self, path: str) -> str:
        """What a walk has led to, by a path without links: its directory may be given by one with links."""
        return self._real + path[len(self.source) :] if is_below(path, self.source) else path

    def read(self, path: str) -> str:
        """The text of a file, "" where there is none that can be read. A link leads git anywhere, so outside of the
        directory it is a file that the owner of the directory may read; and one of no size is none, as those of the
        kernel are, which have effects. HutchError where git would ask what may not answer."""
        self.spend(1)
        at, mode, rest = self.walk(path, is_noted=False)
        self._refuse_silent(path, at, mode)
        if rest or not stat.S_ISREG(mode):
            return ""
        try:
            with kept_open(open_strictly(self._real_path(at), flags=PINNED)) as pin:
                found, owner = os.fstat(pin), os.stat(self.source).st_uid
                if not found.st_size or not (self.is_inside(at) or is_open_to(owner, found)):
                    return ""
                with kept_open(reopen_regular(pin)) as file:
                    return os.fsdecode(os.read(file, LARGEST + 1))
        except BlockingIOError as error:
            hint = "end the lease that somebody has on it: see `lslocks`"
            raise self._unknown(path, "cannot be read", hint) from error
        except OSError as error:
            self._refuse_closed(at, error)
            return ""


def names_of(path: str) -> list[str]:
    """The names of a path, the last one first."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def is_too_long(path: str) -> bool:
    """Whether nothing can be made there."""
    return len(os.fsencode(path)) > LONGEST_PATH or any(len(os.fsencode(name)) > LONGEST for name in path.split("/"))


def _types(mountinfo: str, source: str) -> dict[str, str]:
    """Mount point -> type of a file system that may not answer, "" for one that does. Of two at one place it is the one
    that may not, whichever a path finds: but for an automounter on which something is mounted. What the directory lies
    on has answered, wherever it is mounted as well: as hutch mounts shared directories over themselves."""
    mounts = list(parse_mountinfo(mountinfo))
    own = {place: device for device, _, place, _, type in mounts if is_below(source, place) and type != "autofs"}
    answered = set(own.values())
    types: dict[str, str] = {}
    for device, _, place, _, type in mounts:
        if types.get(place, "autofs") in ("autofs", ""):
            types[place] = "" if type in ANSWERING or device in answered else type
    return types


def _target_of(link: str) -> str:
    """Where a link leads; "" where it is no link any more, for which there will be another look."""
    try:
        return os.readlink(link)
    except OSError:
        return ""


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
