"""Unpacks a tar archive that a workspace sends, and trusts none of it.

Python's tarfile believes what a header says of its own size, so only its parser of single headers is used here. All is
made below one directory that nobody else knows, by descriptors that follow no link: a name, a link or a change of mind
of the sender's leads nowhere else. Devices are not made, and no link that could lead out of the tree; nothing becomes
setuid, or writable for others than its owner, who is the caller.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
from collections.abc import Generator
from contextlib import AbstractContextManager, suppress

from hutch.errors import HutchError, explained
from hutch.files import kept_open, write_all
from hutch.trees.cursor import DIRECTORY, shown

BLOCK = 512
ENTRIES = 1_000_000
DEPTH = 200  # directories within each other
EXTENSION = 1 << 16  # bytes of a header that extends another; a name has 4096 at most
TRAILER = 1 << 20  # bytes after the end: tar fills its last record
TOLD = 1000  # things left out that are told of one by one
LATEST = 1 << 33  # seconds; no file is as young
RECORD = re.compile(rb"([0-9]{1,7}) ([^=]{1,200})=")

NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

Parts = tuple[str, ...]
Reading = Generator[None, None, bytes]


class Unpacker:
    """Makes `item`, in the directory `root`, a descriptor of the caller's, from what is fed to it: a directory with all
    that is in it, or one file. `limit` are bytes of content, and of headers that extend others."""

    ITEM = "item"
    ENTRIES = ENTRIES
    RECORDS: frozenset[bytes] = frozenset((b"path", b"linkpath", b"size"))
    """The records of pax headers that matter."""

    def __init__(self, root: int, limit: int, sender: str) -> None:
        self.root = root
        self.limit = limit
        self.sender = sender
        self.files = self.size = self.entries = 0
        self.is_complete = False
        self.is_tree: bool | None = None
        self._left = limit
        self._left_out: list[str] = []
        self._untold = 0
        self._trailer = 0
        self._buffer = bytearray()
        self._at: Parts = ()
        self._descriptor = -1
        self._work = self._run()

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises HutchError for what no honest sender says."""
        self._buffer += data
        with suppress(StopIteration):
            next(self._work)

    @property
    def left_out(self) -> list[str]:
        """The entries that were left out, in sentences."""
        return [*self._left_out, *([f"and {self._untold} more"] if self._untold else [])]

    def close(self) -> None:
        self._work.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    # Parsing the stream.

    def _run(self) -> Generator[None]:
        extended: dict[str, str] = {}
        while not self.is_complete:
            block = yield from self._take(BLOCK)
            if not block.strip(b"\0"):
                self.is_complete = True
                break
            member = self._parse(block)
            self.entries += 1
            if self.entries > self.ENTRIES:
                raise self._refuse(f"more than {self.ENTRIES} files")
            if member.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                key = "path" if member.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
                data = yield from self._take_extension(member)
                extended[key] = os.fsdecode(data.split(b"\0")[0])
            elif member.type == tarfile.XHDTYPE:
                extended |= self._parse_records((yield from self._take_extension(member)))
            elif member.type == tarfile.XGLTYPE:
                yield from self._take_extension(member)
            else:
                self._extend(member, extended)
                extended = {}
                yield from self._make(member)
        while True:
            self._trailer += len(self._buffer)
            self._buffer.clear()
            if self._trailer > TRAILER:
                raise self._refuse("more after the end")
            yield

    def _take(self, size: int) -> Reading:
        while len(self._buffer) < size:
            yield
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _take_extension(self, member: tarfile.TarInfo) -> Reading:
        if not 0 < member.size <= EXTENSION:
            raise self._refuse("a header without measure")
        self._spend(member.size)
        data = yield from self._take(_padded(member.size))
        return data[: member.size]

    def _parse(self, block: bytes) -> tarfile.TarInfo:
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError, OverflowError) as error:
            raise self._refuse("no header of a tar archive") from error

    def _parse_records(self, data: bytes) -> dict[str, str]:
        """The records of a pax header that matter: "LENGTH KEY=VALUE\\n" each."""
        found: dict[str, str] = {}
        end = 0
        while end < len(data):
            matched = RECORD.match(data, end)
            end += int(matched[1]) if matched else 0
            if matched is None or not matched.end() < end <= len(data) or data[end - 1 : end] != b"\n":
                raise self._refuse("a damaged header")
            key, value = matched[2], data[matched.end() : end - 1]
            if key.startswith(b"GNU.sparse"):
                raise self._refuse("a sparse file, which nobody asked for")
            if key in self.RECORDS:
                found[key.decode()] = os.fsdecode(value)
        return found

    def _extend(self, member: tarfile.TarInfo, extended: dict[str, str]) -> None:
        member.name = extended.get("path", member.name)
        member.linkname = extended.get("linkpath", member.linkname)
        if size := extended.get("size"):
            if not re.fullmatch("[0-9]{1,19}", size, re.ASCII):
                raise self._refuse("a damaged header")
            member.size = int(size)

    # Making files and directories.

    def _make(self, member: tarfile.TarInfo) -> Generator[None]:
        parts = self._parts_of(member.name)
        if self.is_tree is None:
            self._begin(member, parts)
        elif not self.is_tree:
            raise self._refuse("more than the one file")
        where = (self.ITEM, *parts) if self.is_tree else (self.ITEM,)
        if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
            yield from self._make_file(member, where)
            return
        if member.type == tarfile.DIRTYPE:
            self._make_directory(member, where)
        elif member.type == tarfile.SYMTYPE:
            self._make_link(member, where)
        elif member.type == tarfile.LNKTYPE:
            self._make_hard_link(member, where)
        elif member.type in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE):
            self._make_odd(member, where)
        else:
            raise self._refuse("an unknown entry type")
        if member.size > 0 and member.type not in (tarfile.LNKTYPE, tarfile.SYMTYPE):
            raise self._refuse("content outside of a file")

    def _begin(self, member: tarfile.TarInfo, parts: Parts) -> None:
        self.is_tree = member.type == tarfile.DIRTYPE
        if self.is_tree:
            if parts:
                raise self._refuse("another directory than the one that was asked for")
            os.mkdir(self.ITEM, 0o700, dir_fd=self.root)
        elif member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
            raise HutchError(f"{self.sender}: {shown(parts)} is neither a file nor a directory")

    def _make_file(self, member: tarfile.TarInfo, where: Parts) -> Generator[None]:
        self._spend(member.size)
        self.files += 1
        self.size += member.size
        with (
            self._explained(where),
            kept_open(os.open(where[-1], NEW_FILE, 0o600, dir_fd=self._directory(where[:-1]))) as descriptor,
        ):
            left = member.size
            while left:
                if not self._buffer:
                    yield
                piece = bytes(self._buffer[:left])
                del self._buffer[:left]
                left -= len(piece)
                self._write(descriptor, piece)
            self._finish_file(descriptor, member)
        yield from self._take(_padded(member.size) - member.size)

    def _write(self, descriptor: int, piece: bytes) -> None:
        write_all(descriptor, piece)

    def _finish_file(self, descriptor: int, member: tarfile.TarInfo) -> None:
        """Set what is to be set of a file that has its content."""
        os.fchmod(descriptor, member.mode & 0o755 | 0o600)
        when = int(min(max(member.mtime, 0), LATEST))
        os.utime(descriptor, (when, when))

    def _make_directory(self, member: tarfile.TarInfo, where: Parts) -> None:
        with self._explained(where):
            if len(where) > 1:
                with suppress(FileExistsError):
                    os.mkdir(where[-1], 0o700, dir_fd=self._directory(where[:-1]))
            self._finish_directory(self._directory(where), member, where)

    def _finish_directory(self, descriptor: int, member: tarfile.TarInfo, where: Parts) -> None:
        """Set what is to be set of a directory, into which its content is still to come."""
        os.fchmod(descriptor, member.mode & 0o755 | 0o700)

    def _make_odd(self, member: tarfile.TarInfo, where: Parts) -> None:
        """Make a pipe or a device, or leave it out."""
        self._leave_out(where[1:], "a device or a pipe")

    def _make_link(self, member: tarfile.TarInfo, where: Parts) -> None:
        if not stays_inside(member.linkname, len(where) - 2):
            self._leave_out(where[1:], f"a link to {shown((member.linkname,))}, which lies outside of the copy")
            return
        with self._explained(where):
            os.symlink(member.linkname, where[-1], dir_fd=self._directory(where[:-1]))

    def _make_hard_link(self, member: tarfile.TarInfo, where: Parts) -> None:
        """Make another name for a file that has come already."""
        source = (self.ITEM, *self._parts_of(member.linkname))
        with self._explained(where), kept_open(os.dup(self._directory(source[:-1]))) as there:
            if not self._is_linkable(os.stat(source[-1], dir_fd=there, follow_symlinks=False).st_mode):
                raise self._refuse("a hard link whose target is no file")
            here = self._directory(where[:-1])
            os.link(source[-1], where[-1], src_dir_fd=there, dst_dir_fd=here, follow_symlinks=False)
        self.files += 1

    def _is_linkable(self, mode: int) -> bool:
        """Whether what has this mode may have another name."""
        return stat.S_ISREG(mode)

    def _directory(self, where: Parts) -> int:
        """A directory of the tree as a descriptor, good until the next call. Directories come before their content."""
        if self._descriptor < 0 or where != self._at:
            following = os.dup(self.root)
            for part in where:
                with kept_open(following) as before:
                    following = os.open(part, DIRECTORY, dir_fd=before)
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._at, self._descriptor = where, following
        return self._descriptor

    def _parts_of(self, name: str) -> Parts:
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        if name.startswith("/") or ".." in parts or "\0" in name or len(parts) > DEPTH:
            raise self._refuse(f"a name that leads elsewhere: {shown((name,))}")
        return parts

    def _leave_out(self, parts: Parts, why: str) -> None:
        if len(self._left_out) < TOLD:
            self._left_out.append(f"{shown(parts)}: {why}")
        else:
            self._untold += 1

    def _spend(self, size: int) -> None:
        """Count what is sent towards the limit."""
        if not 0 <= size <= self._left:
            raise HutchError(
                f"{self.sender} sends more than {self.limit} bytes; nothing was kept",
                resolution="a higher limit takes it",
            )
        self._left -= size

    def _explained(self, where: Parts) -> AbstractContextManager[None]:
        """A context that explains errors of a name that is too long, that came twice, or that lies below a file."""
        return explained(f"{self.sender}: {shown(where[1:])} cannot be written")

    def _refuse(self, what: str) -> HutchError:
        return HutchError(f"{self.sender} sends {what}; nothing was kept")


def stays_inside(target: str, depth: int) -> bool:
    """Whether a symbolic link, `depth` directories below the top of a tree, surely leads to what is in the tree.

    Its leading ".."s are real directories, since no file is made below a link; behind a name it could be a link that
    leads up, and from there ".." would lead out.
    """
    if target.startswith("/") or not target or "\0" in target:
        return False
    parts = [part for part in target.split("/") if part not in ("", ".")]
    up = next((number for number, part in enumerate(parts) if part != ".."), len(parts))
    return up <= depth and ".." not in parts[up:]


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
