"""Objects that a workspace sends: they are checked in a scratch repository of their own before the host's has them.

All of it may be a lie: the words before, the names, the pack. git checks each object as `transfer.fsckObjects` has it
do, that nothing is missing which one of them names, and that a branch is a commit. Time, memory and size are bounded.
Nothing is checked out.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from hutch.clones.git import PATIENCE, Repository, Scratch, told
from hutch.clones.refs import Header, Sent
from hutch.errors import HutchError, explained
from hutch.files import kept_open, write_all
from hutch.run import PIPE, Popen, TimeoutExpired, describe

PACK_HEADER = 12  # bytes: "PACK", a version, the number of objects
TRAILER = 64  # bytes that follow in a pack without objects, at most
TOO_LARGE = "maximum allowed size"  # in git's own words
KEPT = 1 << 14  # bytes of git's errors that explain a failure
SUFFIXES = (".pack", ".rev", ".idx")  # in this order: git takes a pack for whole that has an index


class Receiver:
    """Takes what a workspace sends, see `hutch.clones.refs`: gives the pack to git, which checks it. `limit` are the
    bytes of the pack. To be left as a context, which ends git."""

    def __init__(self, sender: str, repository: Repository, place: Scratch, limit: int) -> None:
        self.sender = sender
        self.place = place
        self.limit = limit
        self.header = Header(sender, repository.format)
        self._begin = b""
        self._is_empty = False
        self._process: Popen[bytes] | None = None
        self._errors = os.path.join(place.directory, "errors")

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()

    def take(self, data: bytes) -> None:
        """Take the next bytes. Raises HutchError for what cannot be, and where git has given up."""
        data = self.header.take(data)
        if not self.header.is_complete or not data:
            return
        if self._process is None:
            self._begin += data
            if len(self._begin) < PACK_HEADER:
                return
            self._is_empty = self._begin[:4] == b"PACK" and self._begin[8:PACK_HEADER] == b"\0" * 4
            if self._is_empty:
                self._check_empty()
                return
            self._start()
            data, self._begin = self._begin, b""
        self._write(data)

    def finish(self) -> Sent:
        """What was sent, when all has come and was found good."""
        if not self.header.is_complete or (self._process is None and not self._is_empty):
            raise HutchError(f"{self.sender} sends less than it should; nothing was kept")
        if self._process is not None:
            assert self._process.stdin is not None
            with suppress(BrokenPipeError):
                self._process.stdin.close()
            self._await()
        return self.header.sent()

    def _check_empty(self) -> None:
        if len(self._begin) > PACK_HEADER + TRAILER:
            raise HutchError(f"{self.sender} sends more than it should; nothing was kept")

    def _start(self) -> None:
        words = ("index-pack", "--stdin", "--fix-thin", "--strict", f"--max-input-size={self.limit}")
        with open(self._errors, "wb") as errors:
            self._process = self.place.limited.start(*words, stdin=PIPE, stderr=errors.fileno())

    def _write(self, data: bytes) -> None:
        assert self._process is not None and self._process.stdin is not None
        try:
            write_all(self._process.stdin.fileno(), data)
        except BrokenPipeError:
            self._await()
            raise HutchError(f"{self.sender} sends more than a pack of objects; nothing was kept") from None

    def _await(self) -> None:
        """Wait for git; HutchError where it has found something wrong."""
        assert self._process is not None
        try:
            code = self._process.wait(PATIENCE)
        except TimeoutExpired:
            raise HutchError(f"{self.sender} sends objects that git does not come to an end with") from None
        if code != 0:
            said = Path(self._errors).read_bytes()[-KEPT:].decode("utf-8", "replace").strip()
            raise HutchError(
                f"{self.sender} sends objects that git does not take; nothing was kept",
                details=said or f"git index-pack {describe(code)}",
                resolution="--limit takes more" if TOO_LARGE in said else "",
            )


def check_commits(sender: str, place: Scratch, objects: Iterable[str], known: Iterable[str]) -> None:
    """Raise HutchError unless these are commits that lack nothing, but for what is behind `known` ones."""
    wanted = sorted(set(objects))
    if not wanted:
        return
    told_of = "".join(f"{name}\n" for name in wanted).encode()
    with told(
        f"{sender} sends branches that lack objects; nothing was kept", "see whether git can read the clone inside"
    ):
        types = place.limited.run("cat-file", "--batch-check=%(objecttype)", stdin=told_of)
        if set(types.split(b"\n")[:-1]) != {b"commit"}:
            raise HutchError(f"{sender} sends a branch that is no commit, or that is missing; nothing was kept")
        limits = "".join(f"^{name}\n" for name in sorted(set(known))).encode()
        place.limited.run("rev-list", "--objects", "--quiet", "--stdin", stdin=told_of + limits)


def keep(repository: Repository, place: Scratch) -> None:
    """Copy what was received to the repository's own objects."""
    source, target = Path(place.directory, "objects", "pack"), Path(repository.objects, "pack")
    with explained(f"{target} cannot be written"):
        target.mkdir(exist_ok=True)
        packs = sorted(path.stem for path in source.glob("pack-*.idx"))
        with kept_open(os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)) as directory:
            for stem in packs:
                for suffix in SUFFIXES:
                    if (source / f"{stem}{suffix}").exists():
                        _copy(source / f"{stem}{suffix}", directory, f"{stem}{suffix}")


def _copy(source: Path, directory: int, name: str) -> None:
    """Copy a file of a pack, which is there whole or not at all, and over no link."""
    aside = f"tmp_pack_{secrets.token_hex(8)}"  # `git gc` removes old ones that a killed process has left
    descriptor = os.open(
        aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o444, dir_fd=directory
    )
    try:
        with open(descriptor, "wb") as copy, source.open("rb") as content:
            shutil.copyfileobj(content, copy)
            copy.flush()
            os.fsync(copy.fileno())
        os.rename(aside, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(OSError):
            os.unlink(aside, dir_fd=directory)
        raise
