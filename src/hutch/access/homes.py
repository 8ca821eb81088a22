"""A whole home as a tar archive, on its way to a server or from one: made and unpacked by root, on this host.

As copies are, it is read and written by descriptors that follow no link, and nothing of it is believed. Unlike a copy,
it is to be the same home afterwards: owners, modes, times, links and pipes go along. In the archive, owners are numbers
as the guest has them, where the login user has one known to both sides; here a file of the login user's is the owner's,
and any other is of the workspace's own range. What would be setuid is not any more: here no home may have such
programs. Devices and sockets, access lists and other extended attributes are left behind.

The archive is GNU's and pax's by turns, as tar reads both: names as bytes, since nobody says what they are encoded in,
and times with their fractions.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from hutch.access.pack import Packer, member_of, render_header
from hutch.access.unpack import LATEST, Parts, Unpacker
from hutch.errors import HutchError, explained
from hutch.files import kept_open, write_all
from hutch.frozen import dataclass
from hutch.spec.names import UID_COUNT
from hutch.trees.changing import present, set_owner
from hutch.trees.cursor import DIRECTORY, opened, pinned, shown, walk

NOBODY = 65534
"""The uid inside of files on this host which are neither the login user's nor of the workspace's range: as the guest
sees them already."""
MOST_FILES = 4_000_000
SECONDS = 1800.0  # for a look at all files
TICK = 0.02  # seconds by which the kernel's time of a change may be behind the clock
SPARE = 64 << 20  # bytes of a file system that a home does not get
TIME = re.compile(r"(-?[0-9]{1,12})(?:\.([0-9]{1,20}))?", re.ASCII)


@dataclass(frozen=True)
class Owners:
    """The owners of a home's files on this host: the login user's are `uid` and `gid`, all others are of the range that
    begins with `base`. `login` is the number that the login user and its group have in the archive."""

    uid: int
    gid: int
    base: int
    login: int

    def going(self, status: os.stat_result) -> tuple[int, int]:
        """(uid, gid) in the archive for a file that is here."""
        return self._inside(status.st_uid, self.uid), self._inside(status.st_gid, self.gid)

    def _inside(self, number: int, own: int) -> int:
        if number == own:
            return self.login
        inside = number - self.base
        return inside if 0 <= inside < UID_COUNT and inside != self.login else NOBODY

    def coming(self, uid: int, gid: int) -> tuple[int, int]:
        """(uid, gid) here for a file in an archive. Raises ValueError for a number that no guest has."""
        return self._outside(uid, self.uid), self._outside(gid, self.gid)

    def _outside(self, number: int, own: int) -> int:
        if not 0 <= number < UID_COUNT:
            raise ValueError(number)
        return own if number == self.login else self.base + number


@dataclass(frozen=True)
class Measure:
    """The number of the files in a home, all else included, and the bytes of their content: a hole counts as zeroes."""

    files: int
    size: int

    def __str__(self) -> str:
        return f"{self.files} files, {self.size / 2**20:.1f} MiB"


def measure(home: str) -> Measure:
    """How much a home holds. One that is not there holds nothing."""
    files = size = 0
    try:
        with opened(home) as top:
            for directory, name in walk(top, seconds=SECONDS):
                with explained(f"{home} cannot be looked through"), present():
                    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
                    files += 1
                    size += status.st_size if stat.S_ISREG(status.st_mode) else 0
    except (FileNotFoundError, NotADirectoryError):
        return Measure(0, 0)
    return Measure(files, size)


def calm() -> float:
    """A moment, in Unix time, from which changes are told from those before it."""
    time.sleep(2 * TICK)
    return time.time()


def check_unchanged(home: str, since: float) -> None:
    """Refuse a home in which anybody has changed something since that moment: a copy of it is stale. Raises Changed."""
    with explained(f"{home} cannot be looked through"), opened(home) as top:
        if os.fstat(top).st_ctime >= since - TICK:
            raise _changed(home, ".")
        for directory, name in walk(top, seconds=SECONDS):
            with present():
                if os.stat(name, dir_fd=directory, follow_symlinks=False).st_ctime >= since - TICK:
                    raise _changed(home, name)


class Changed(HutchError):
    """A home is not as it was when it was copied."""


def _changed(home: str, name: str) -> Changed:
    return Changed(
        f"{home} was changed while it was copied, so the copy is not used",
        details=f"among others: {shown((name,))}",
        resolution="try again when nobody works in it",
    )


# Going.


class HomePacker(Packer):
    """Makes the archive of a home. `disarmed` counts programs that are setuid or setgid, and will not be. `end` is the
    name of the last entry, an empty file that is not in the home: tar takes an archive that ends early for whole."""

    def __init__(self, home: str, descriptor: int, owners: Owners, end: str = "") -> None:
        super().__init__(home, descriptor)
        self.owners, self.end = owners, end
        self.disarmed = self.sent = 0
        self._linked: dict[tuple[int, int], str] = {}

    def pieces(self, name: str = ".") -> Iterator[bytes]:
        for piece in super().pieces(name):
            self.sent += len(piece)
            yield piece

    def _entry(self, descriptor: int, name: str, depth: int) -> Iterator[bytes]:
        yield from super()._entry(descriptor, name, depth)
        if depth == 0 and self.end:
            member = tarfile.TarInfo(f"{name}/{self.end}")
            member.mode, member.uid, member.gid = 0o600, self.owners.login, self.owners.login
            yield render_header(member)

    def header(self, name: str, status: os.stat_result, kind: bytes, target: str = "") -> bytes:
        member = member_of(name, status, kind, target)
        member.mode = stat.S_IMODE(status.st_mode)
        if kind == tarfile.REGTYPE and member.mode & (stat.S_ISUID | stat.S_ISGID):
            self.disarmed += 1
            member.mode &= 0o1777
        member.uid, member.gid = self.owners.going(status)
        return _time_header(status.st_mtime_ns) + render_header(member)

    def _odd(self, name: str, status: os.stat_result) -> bytes | None:
        if stat.S_ISFIFO(status.st_mode):
            return self.header(name, status, tarfile.FIFOTYPE)
        return super()._odd(name, status)

    def _file(self, descriptor: int, name: str, status: os.stat_result) -> Iterator[bytes]:
        if status.st_nlink > 1:
            first = self._linked.setdefault((status.st_dev, status.st_ino), name)
            if first != name:
                yield self.header(name, status, tarfile.LNKTYPE, first)
                return
        yield from super()._file(descriptor, name, status)


def _time_header(nanoseconds: int) -> bytes:
    """A pax header with the time of the entry behind it; a name of its own tells tar's messages what it is."""
    seconds, rest = divmod(max(nanoseconds, 0), 10**9)
    record = b" mtime=%d.%09d\n" % (seconds, rest)
    length = len(record) + 2
    record = b"%d%b" % (length, record)
    assert len(record) == length
    member = tarfile.TarInfo("PaxHeaders/time")
    member.type, member.size = tarfile.XHDTYPE, len(record)
    return member.tobuf(tarfile.USTAR_FORMAT) + record + bytes(-len(record) % tarfile.BLOCKSIZE)


@contextmanager
def packing(home: str, owners: Owners, end: str = "") -> Iterator[HomePacker]:
    """A packer of a home that is there, by a path without symbolic links. See HomePacker."""
    with explained(f"{home} cannot be read"), opened(home) as top:
        descriptor = os.dup(top)
    with closing(HomePacker(home, descriptor, owners, end)) as packer:
        yield packer


# Coming.


class HomeUnpacker(Unpacker):
    """Makes a home in a directory of root's own that nobody else can enter. To be finished once all has come."""

    ENTRIES = MOST_FILES
    RECORDS = frozenset((b"path", b"linkpath", b"size", b"mtime", b"uid", b"gid"))

    def __init__(self, root: int, limit: int, sender: str, owners: Owners, files: int = MOST_FILES) -> None:
        self.ENTRIES = files
        super().__init__(root, limit, sender)
        self.owners = owners
        self.disarmed = 0
        self._times: dict[Parts, int] = {}

    def finish(self) -> None:
        """Set the times of all directories, in which nothing more is made. Raises HutchError unless all has come."""
        if not self.is_complete or not self.is_tree:
            raise HutchError(f"{self.sender} has not sent all of the home; nothing was kept")
        for where, when in self._times.items():
            with self._explained(where):
                os.utime(self._directory(where), ns=(when, when))

    def _extend(self, member: tarfile.TarInfo, extended: dict[str, str]) -> None:
        super()._extend(member, extended)
        member.pax_headers = {"ns": str(self._time(member, extended.get("mtime")))}
        for key in ("uid", "gid"):
            if key in extended:
                if not re.fullmatch("[0-9]{1,10}", extended[key], re.ASCII):
                    raise self._refuse("a damaged header")
                setattr(member, key, int(extended[key]))

    def _time(self, member: tarfile.TarInfo, said: str | None) -> int:
        """The time of an entry in nanoseconds, within what a file can have."""
        if said is None:
            return int(min(max(member.mtime, 0), LATEST)) * 10**9
        found = TIME.fullmatch(said)
        if found is None:
            raise self._refuse("a damaged header")
        return min(max(int(found[1]), 0), LATEST) * 10**9 + int((found[2] or "0")[:9].ljust(9, "0"))

    def _ids(self, member: tarfile.TarInfo) -> tuple[int, int]:
        try:
            return self.owners.coming(member.uid, member.gid)
        except ValueError as error:
            raise self._refuse(f"a file of somebody whom no guest knows, {error}") from error

    def _write(self, descriptor: int, piece: bytes) -> None:
        """Zeroes are left out: a hole need not fill the disk."""
        if piece.strip(b"\0"):
            write_all(descriptor, piece)
        else:
            os.lseek(descriptor, len(piece), os.SEEK_CUR)

    def _finish_file(self, descriptor: int, member: tarfile.TarInfo) -> None:
        os.ftruncate(descriptor, member.size)
        os.fchown(descriptor, *self._ids(member))
        self.disarmed += bool(member.mode & (stat.S_ISUID | stat.S_ISGID))
        os.fchmod(descriptor, member.mode & 0o1777)
        self._set_time(descriptor, member)

    def _finish_directory(self, descriptor: int, member: tarfile.TarInfo, where: Parts) -> None:
        self._times[where] = int(member.pax_headers["ns"])
        if len(where) == 1:  # the home itself is the login user's, whatever the guest has made of it
            os.fchown(descriptor, self.owners.uid, self.owners.gid)
            os.fchmod(descriptor, member.mode & 0o777 | 0o700)
            return
        os.fchown(descriptor, *self._ids(member))
        os.fchmod(descriptor, member.mode & 0o3777)

    def _set_time(self, descriptor: int, member: tarfile.TarInfo) -> None:
        when = int(member.pax_headers["ns"])
        os.utime(descriptor, ns=(when, when))

    def _make_link(self, member: tarfile.TarInfo, where: Parts) -> None:
        """Make the link as it is: it may lead anywhere, as any link that a guest makes. Nobody follows it here."""
        if not member.linkname or "\0" in member.linkname:
            raise self._refuse("a link that leads nowhere")
        with self._explained(where):
            directory = self._directory(where[:-1])
            os.symlink(member.linkname, where[-1], dir_fd=directory)
            self._finish_named(directory, member, where[-1])

    def _make_odd(self, member: tarfile.TarInfo, where: Parts) -> None:
        if member.type != tarfile.FIFOTYPE:
            super()._make_odd(member, where)
            return
        with self._explained(where):
            directory = self._directory(where[:-1])
            os.mkfifo(where[-1], 0o600, dir_fd=directory)
            os.chmod(where[-1], member.mode & 0o777, dir_fd=directory)
            self._finish_named(directory, member, where[-1])

    def _finish_named(self, directory: int, member: tarfile.TarInfo, name: str) -> None:
        """Set owner and time of something that was just made, and that is not opened. Nobody else is in here."""
        with pinned(directory, name) as descriptor:
            set_owner(descriptor, *self._ids(member))
        when = int(member.pax_headers["ns"])
        os.utime(name, ns=(when, when), dir_fd=directory, follow_symlinks=False)

    def _is_linkable(self, mode: int) -> bool:
        return not stat.S_ISDIR(mode)


Send = Callable[[Callable[[bytes], None], Callable[[], bool]], None]
"""A function that feeds an archive, and can ask whether all of it has come."""


def unpack_home(directory: str, owners: Owners, sender: str, send: Send) -> HomeUnpacker:
    """Have `send` feed a home, and make it as `Unpacker.ITEM` in a directory of root's own: no more than its file
    system has room for. Returns what tells of it. Raises HutchError; what has come by then is for the caller to
    remove."""
    room = os.statvfs(directory)
    limit = max(0, room.f_bavail * room.f_frsize - SPARE)
    files = min(MOST_FILES, room.f_favail) if room.f_files else MOST_FILES
    with (
        explained(f"{directory} cannot be written"),
        kept_open(os.open(directory, DIRECTORY)) as top,
        closing(HomeUnpacker(top, limit, sender, owners, files)) as unpacker,
    ):
        send(unpacker.feed, lambda: unpacker.is_complete)
        unpacker.finish()
        return unpacker
