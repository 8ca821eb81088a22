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
        entries = self._directory(self.descriptor, name, 0) if self.is_tree else self._file(self.descriptor, name)
        for piece in entries:
            size += len(piece)
            yield piece
        self.is_handed_on = True  # all but the end, of which tar does not read more than it needs
        yield bytes(-(size + 1024) % RECORD + 1024)

    def _directory(self, descriptor: int, name: str, depth: int) -> Iterator[bytes]:
        if depth > DEPTH:
            raise HutchError(f"{self.path}/{name}: there are more than {DEPTH} directories within each other")
        with self._explained(name):
            status, entries = os.fstat(descriptor), sorted(os.listdir(descriptor))
        if name:  # what it is unpacked in stays as it is
            yield _header(name, status, tarfile.DIRTYPE)
        for entry in entries:
            yield from self._entry(descriptor, entry, f"{name}/{entry}" if name else entry, depth)

    def _entry(self, directory: int, entry: str, name: str, depth: int) -> Iterator[bytes]:
        descriptor, target = -1, ""
        with self._explained(name):
            try:
                status = os.stat(entry, dir_fd=directory, follow_symlinks=False)
                if stat.S_ISLNK(status.st_mode):
                    target = os.readlink(entry, dir_fd=directory)
                elif stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode):
                    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                    descriptor = os.open(entry, flags, dir_fd=directory)
            except OSError as error:
                if error.errno not in CHANGED:
                    raise
                self.left_out.append(f"{name!r}: it has just gone")
                return
        if target:
            yield _header(name, status, tarfile.SYMTYPE, target)
        elif descriptor < 0:
            self.left_out.append(f"{name!r}: {ODD}")
        else:
            try:
                yield from self._opened(descriptor, name, depth)
            finally:
                os.close(descriptor)

    def _opened(self, descriptor: int, name: str, depth: int) -> Iterator[bytes]:
        with self._explained(name):
            mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            yield from self._directory(descriptor, name, depth + 1)
        elif stat.S_ISREG(mode):
            yield from self._file(descriptor, name)
        else:
            self.left_out.append(f"{name!r}: {ODD}")

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
