"""Writing in a user's hutch.toml, as root: by the descriptor of its directory, since its owner may write there too."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from hutch.errors import HutchError, explained
from hutch.files import TEMPORARY, kept_open, write_all
from hutch.spec.lookup import LARGEST_FILE
from hutch.spec.reading import Judge, read_content, text_of
from hutch.trees.cursor import open_strictly

NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def read_exactly(file: str, owners: Collection[int] | None, judge: Judge) -> str:
    """The text of a file that is safe to believe, see read_content(), with its line ends as they are."""
    content = read_content(file, owners, judge=judge)
    text_of(file, content)  # which says what is wrong with it
    return content.decode()


def replace_text(file: str, before: str, after: str) -> None:
    """Write the new text of a file, whose path has no symbolic link, unless it has changed since. Owner and mode
    stay."""
    path = Path(file)
    temporary = f".{path.name}{TEMPORARY}"
    with explained(f"{file} cannot be written"), kept_open(open_strictly(path.parent)) as directory:
        with kept_open(os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)) as old:
            status = os.fstat(old)
            content = os.pread(old, LARGEST_FILE + 1, 0)
        if content != before.encode() or not stat.S_ISREG(status.st_mode):
            raise HutchError(f"{file} has just been changed by somebody else", resolution="try again")
        with suppress(FileNotFoundError):  # a killed run's
            os.unlink(temporary, dir_fd=directory)
        try:
            with kept_open(os.open(temporary, NEW_FILE, 0o600, dir_fd=directory)) as new:
                write_all(new, after.encode())
                os.fchown(new, status.st_uid, status.st_gid)
                os.fchmod(new, stat.S_IMODE(status.st_mode) & 0o777)
                os.fsync(new)
            os.rename(temporary, path.name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=directory)
            raise
        os.fsync(directory)
