"""The directory or tarball that a rootfs image is made from: what kind it is, and whether it has changed.

Metadata only; its content is read where it is unpacked, without root's rights (see build).
"""

from __future__ import annotations

import hashlib
import os
import stat

from hutch.errors import HutchError
from hutch.spec.names import Layout

COMPRESSIONS = {".tar": "", ".tar.gz": "--gzip", ".tgz": "--gzip", ".tar.xz": "--xz", ".tar.zst": "--zstd"}


def compression(path: str) -> str | None:
    """The option that makes tar unpack `path`; None when the name is not that of a tarball."""
    return next((option for suffix, option in COMPRESSIONS.items() if path.endswith(suffix)), None)


def observe_fingerprint(path: str, layout: Layout) -> str:
    """A fingerprint that tells one state of the source from another, without reading file contents.

    Raises HutchError for what cannot be a source: it must not be, hold, or lie in the host's root or hutch's state.
    """
    real, state = os.path.realpath(path), os.path.realpath(layout.state)
    if real == "/" or os.path.commonpath([real, state]) in (real, state):
        raise HutchError(
            f"rootfs:{path} cannot be an image",
            details="it is the host itself, or it holds or lies in hutch's own state",
            resolution="name a directory that holds nothing but the tree",
        )
    try:
        status = os.stat(real)
        if stat.S_ISDIR(status.st_mode):
            return f"directory {real} {digest_metadata(real)}"
    except OSError as error:
        raise HutchError(f"rootfs:{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode) or compression(real) is None:
        raise HutchError(
            f"rootfs:{path} is neither a directory nor a tarball",
            resolution=f"tarballs are told by their names: {', '.join(COMPRESSIONS)}",
        )
    return f"tarball {real} {status.st_size} {status.st_mtime_ns}"


def digest_metadata(root: str) -> str:
    """A hash over names, types, modes, owners, sizes and times below `root`, on its file system only.

    The walk goes by directory descriptors and follows no symbolic link.
    """
    digest = hashlib.sha256()
    device = os.stat(root).st_dev
    for path, directories, files, descriptor in os.fwalk(root, onerror=_fail):
        inside = []
        for name in sorted(directories + files):
            status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            if status.st_dev != device:
                continue
            size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
            fields = (path, name, status.st_mode, status.st_uid, status.st_gid, size, status.st_mtime_ns)
            digest.update(repr(fields).encode("utf-8", "surrogateescape"))
            if stat.S_ISDIR(status.st_mode):
                inside.append(name)
        directories[:] = inside
    return digest.hexdigest()


def _fail(error: OSError) -> None:
    raise error
