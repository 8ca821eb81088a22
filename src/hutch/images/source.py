"""The directory or tarball that a rootfs image is made from: what kind it is, and whether it has changed.

Metadata only; its content is read where it is unpacked, without root's rights (see build).
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from hutch.errors import HutchError
from hutch.files import kept_open
from hutch.spec.names import Layout
from hutch.trees.cursor import open_strictly, way_to

COMPRESSIONS = {".tar": "", ".tar.gz": "--gzip", ".tgz": "--gzip", ".tar.xz": "--xz", ".tar.zst": "--zstd"}


def compression(path: str) -> str | None:
    """The option that makes tar unpack `path`; None when the name is not that of a tarball."""
    return next((option for suffix, option in COMPRESSIONS.items() if path.endswith(suffix)), None)


def observe_fingerprint(path: str, layout: Layout) -> str:
    """A fingerprint that tells one state of the source from another, without reading file contents.

    Raises HutchError for what cannot be a source: it must not be, hold, or lie in the host's root or hutch's state.
    """
    with opened_source(path) as source:
        real, state = os.readlink(way_to(source)), os.path.realpath(layout.state)
        if real == "/" or os.path.commonpath([real, state]) in (real, state):
            raise HutchError(
                f"rootfs:{path} cannot be an image",
                details="it is the host itself, or it holds or lies in hutch's own state",
                resolution="name a directory that holds nothing but the tree",
            )
        status = os.fstat(source)
        if stat.S_ISREG(status.st_mode):
            return f"tarball {real} {status.st_size} {status.st_mtime_ns}"
        try:
            return f"directory {real} {digest_metadata(source, real)}"
        except OSError as error:
            raise HutchError(f"rootfs:{path} cannot be read: {error.strerror}") from error


@contextmanager
def opened_source(path: str) -> Iterator[int]:
    """A descriptor that pins a source, a directory or a tarball. Its path is the real one, by which hutch.toml was
    judged: who has put a link there since would have root read another tree. Raises HutchError."""
    try:
        pin = open_strictly(path, flags=os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        is_link = error.errno == errno.ELOOP
        why = "there is a symbolic link on the way" if is_link else error.strerror
        resolution = "`hutch up` takes its target, if that may be" if is_link else ""
        raise HutchError(f"rootfs:{path} cannot be read: {why}", resolution=resolution) from error
    with kept_open(pin):
        mode = os.fstat(pin).st_mode
        if not (stat.S_ISDIR(mode) or (stat.S_ISREG(mode) and compression(path) is not None)):
            raise HutchError(
                f"rootfs:{path} is neither a directory nor a tarball",
                resolution=f"tarballs are told by their names: {', '.join(COMPRESSIONS)}",
            )
        yield pin


def digest_metadata(top: int, root: str) -> str:
    """A hash over names, types, modes, owners, sizes and times below `top`, whose path is `root`, on its file system
    only.

    The walk follows no symbolic link. It keeps nothing open above where it is, and takes what is as deep as a path is
    long.
    """
    digest = hashlib.sha256()
    waiting = [""]
    device = os.fstat(top).st_dev
    while waiting:
        below = waiting.pop()
        inside = []
        with kept_open(open_strictly(below or ".", below=top)) as descriptor:
            for name in sorted(os.listdir(descriptor)):
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
                if status.st_dev != device:
                    continue
                size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
                path = os.path.join(root, below) if below else root
                fields = (path, name, status.st_mode, status.st_uid, status.st_gid, size, status.st_mtime_ns)
                digest.update(repr(fields).encode("utf-8", "surrogateescape"))
                if stat.S_ISDIR(status.st_mode):
                    inside.append(os.path.join(below, name))
        waiting += reversed(inside)
    return digest.hexdigest()
