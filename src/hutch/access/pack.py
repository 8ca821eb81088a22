"""Makes a tar archive of a file or a directory of the host, in pieces. Others may write in the directory meanwhile, so
it is read by descriptors that follow no link: what is in the archive was in the tree."""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager

from hutch.errors import HutchError

CHUNK = 1 << 18
DEPTH = 200  # directories within each other
ODD = "a device, a pipe or a socket"
RECORD = 10240  # what tar reads and writes in one go
CHANGED = (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.ENOTDIR, errno.EINVAL)
"""What opening an entry says that is not there any more, or is another thing than it was."""


class Opened:
    """A file or a directory that is open, its name in the archive, and what of a directory is still to be read."""

    def __init__(self, descriptor: int, name: str) -> None:
        self.descriptor, self.name = descriptor, name
        self.entries: list[str] = []


class Packer:
    """The archive of what a descriptor is of, under the name `name`; "" for the directory where it is unpacked."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.files = self.size = 0
        self.is_handed_on = False
        self.left_out: list[str] = []
        try:
            self.descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise HutchError(f"{path} cannot be read: {error.strerror}") from error
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
        """The archive, from its first byte to its last."""
        size = 0
        for piece in self._tree(name) if self.is_tree else self._file(self.descriptor, name):
            size += len(piece)
            yield piece
        self.is_handed_on = True  # all but the end, of which tar does not read more than it needs
        yield bytes(-(size + 1024) % RECORD + 1024)

    def _tree(self, top: str) -> Iterator[bytes]:
        """A directory, and what is in it: each directory on the way down is held open while what is in it is read."""
        above = [Opened(os.dup(self.descriptor), top)]
        try:
            yield from self._begin(above[0])
            while above:
                if not above[-1].entries:
                    os.close(above.pop().descriptor)
                    continue
                found = self._open(above[-1], above[-1].entries.pop())
                if isinstance(found, bytes):
                    yield found
                elif found and stat.S_ISDIR(os.fstat(found.descriptor).st_mode):
                    above.append(found)
                    if len(above) > DEPTH + 1:
                        raise HutchError(f"{self.path}: there are more than {DEPTH} directories within each other")
                    yield from self._begin(found)
                elif found:
                    try:
                        yield from self._file(found.descriptor, found.name)
                    finally:
                        os.close(found.descriptor)
        finally:
            for directory in above:
                os.close(directory.descriptor)

    def _begin(self, directory: Opened) -> Iterator[bytes]:
        with self._explained(directory.name):
            status = os.fstat(directory.descriptor)
            directory.entries = sorted(os.listdir(directory.descriptor), reverse=True)
        if directory.name:  # what it is unpacked in stays as it is
            yield _header(directory.name, status, tarfile.DIRTYPE)

    def _open(self, directory: Opened, entry: str) -> Opened | bytes | None:
        """A file or a directory, open; or the header of a link; or nothing, for what is left out."""
        name = f"{directory.name}/{entry}" if directory.name else entry
        with self._explained(name):
            try:
                status = os.stat(entry, dir_fd=directory.descriptor, follow_symlinks=False)
                if stat.S_ISLNK(status.st_mode):
                    target = os.readlink(entry, dir_fd=directory.descriptor)
                    return _header(name, status, tarfile.SYMTYPE, target)
                if stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode):
                    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                    opened = Opened(os.open(entry, flags, dir_fd=directory.descriptor), name)
                    if stat.S_IFMT(os.fstat(opened.descriptor).st_mode) in (stat.S_IFDIR, stat.S_IFREG):
                        return opened
                    os.close(opened.descriptor)
                self.left_out.append(f"{name!r}: {ODD}")
            except OSError as error:
                if error.errno not in CHANGED:
                    raise
                self.left_out.append(f"{name!r}: it has just gone")
        return None

    def _file(self, descriptor: int, name: str) -> Iterator[bytes]:
        with self._explained(name):
            status = os.fstat(descriptor)
        yield _header(name, status, tarfile.REGTYPE)
        self.files += 1
        self.size += status.st_size
        left = status.st_size
        while left:
            # One that has become shorter meanwhile is filled up, so that the archive stays one.
            with self._explained(name):
                piece = os.read(descriptor, min(left, CHUNK)) or bytes(min(left, CHUNK))
            left -= len(piece)
            yield piece
        yield bytes(-status.st_size % tarfile.BLOCKSIZE)

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise HutchError(f"{self.path}: {name or '.'!r} cannot be read: {error.strerror}") from error


def _header(name: str, status: os.stat_result, kind: bytes, target: str = "") -> bytes:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.mode = stat.S_IMODE(status.st_mode) & 0o777
    member.mtime = max(int(status.st_mtime), 0)
    member.linkname = target
    member.size = status.st_size if kind == tarfile.REGTYPE else 0
    return member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
