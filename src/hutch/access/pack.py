"""Makes a tar archive of a file or a directory of the host, in pieces. Others may write in the directory meanwhile, so
it is read by descriptors that follow no link: what is in the archive was in the tree."""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import AbstractContextManager

from hutch.errors import HutchError, explained
from hutch.files import kept_open

CHUNK = 1 << 18
DEPTH = 200  # directories within each other
ODD = "a device, a pipe or a socket"
RECORD = 10240  # bytes that tar reads and writes in one go
CHANGED = (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.ENOTDIR, errno.EINVAL)
"""Error numbers of opening an entry that is gone, or that has become something else."""


class Packer:
    """Makes the archive of a file or directory, which is `descriptor` where that is given."""

    def __init__(self, path: str, descriptor: int | None = None) -> None:
        self.path = path
        self.files = self.size = 0
        self.is_handed_on = False
        self.left_out: list[str] = []
        with explained(f"{path} cannot be read"):
            if descriptor is None:
                descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self.descriptor = descriptor
        self.status = os.fstat(self.descriptor)
        if not (self.is_tree or stat.S_ISREG(self.status.st_mode)):
            self.close()
            raise HutchError(f"{path} is neither a file nor a directory")

    @property
    def is_tree(self) -> bool:
        return stat.S_ISDIR(self.status.st_mode)

    def close(self) -> None:
        os.close(self.descriptor)

    def pieces(self, name: str) -> Iterator[bytes]:
        """The archive's bytes, with `name` as its top; "" for the directory where it is unpacked."""
        size = 0
        for piece in self._entry(self.descriptor, name, 0):
            size += len(piece)
            yield piece
        self.is_handed_on = True  # all but the end, of which tar does not read more than it needs
        yield bytes(-(size + 1024) % RECORD + 1024)

    def _entry(self, descriptor: int, name: str, depth: int) -> Iterator[bytes]:
        """Yield the archive of a file, or of a directory, each of which stays open while its content is read."""
        with self._explained(name):
            status = os.fstat(descriptor)
            entries = sorted(os.listdir(descriptor)) if stat.S_ISDIR(status.st_mode) else None
        if entries is None:
            yield from self._file(descriptor, name, status)
            return
        if depth > DEPTH:
            raise HutchError(f"{self.path}: there are more than {DEPTH} directories within each other")
        if name:  # the directory of unpacking stays as it is
            yield self.header(name, status, tarfile.DIRTYPE)
        for entry in entries:
            below = f"{name}/{entry}" if name else entry
            found = self._open(descriptor, entry, below)
            if isinstance(found, bytes):
                yield found
            elif found is not None:
                with kept_open(found):
                    yield from self._entry(found, below, depth + 1)

    def _open(self, directory: int, entry: str, name: str) -> int | bytes | None:
        """An entry: a file or directory as a descriptor, a link as its header, None for what is left out."""
        with self._explained(name):
            try:
                status = os.stat(entry, dir_fd=directory, follow_symlinks=False)
                if stat.S_ISLNK(status.st_mode):
                    return self.header(name, status, tarfile.SYMTYPE, os.readlink(entry, dir_fd=directory))
                if stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode):
                    opened = os.open(
                        entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory
                    )
                    if stat.S_IFMT(os.fstat(opened).st_mode) in (stat.S_IFDIR, stat.S_IFREG):
                        return opened
                    os.close(opened)
                return self._odd(name, status)
            except OSError as error:
                if error.errno not in CHANGED:
                    raise
                self.left_out.append(f"{name!r}: it has just gone")
        return None

    def _odd(self, name: str, status: os.stat_result) -> bytes | None:
        """The archive of what is neither a file nor a directory nor a link; None leaves it out."""
        self.left_out.append(f"{name!r}: {ODD}")
        return None

    def _file(self, descriptor: int, name: str, status: os.stat_result) -> Iterator[bytes]:
        yield self.header(name, status, tarfile.REGTYPE)
        self.files += 1
        self.size += status.st_size
        left = status.st_size
        while left:
            # A file that has become shorter meanwhile is filled up with zeroes, so that the archive stays valid.
            with self._explained(name):
                piece = os.read(descriptor, min(left, CHUNK)) or bytes(min(left, CHUNK))
            left -= len(piece)
            yield piece
        yield bytes(-status.st_size % tarfile.BLOCKSIZE)

    def header(self, name: str, status: os.stat_result, kind: bytes, target: str = "") -> bytes:
        """The header of an entry: its owner is whoever unpacks it."""
        return render_header(member_of(name, status, kind, target))

    def _explained(self, name: str) -> AbstractContextManager[None]:
        return explained(f"{self.path}: {name or '.'!r} cannot be read")


def member_of(name: str, status: os.stat_result, kind: bytes, target: str = "") -> tarfile.TarInfo:
    """An entry, whose mode says nothing but who may do what, and which belongs to nobody in particular."""
    member = tarfile.TarInfo(name)
    member.type = kind
    member.mode = stat.S_IMODE(status.st_mode) & 0o777
    member.mtime = max(int(status.st_mtime), 0)
    member.linkname = target
    member.size = status.st_size if kind == tarfile.REGTYPE else 0
    return member


def render_header(member: tarfile.TarInfo) -> bytes:
    return member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
