"""Files between the host and a workspace: a tar archive over a pipe, made and taken in by a shell and tar inside.

Not scp: it follows every link that it meets, on either side. So a copy of a tree would hold what its links lead to, and
a link that a guest left in a tree would have root read the host's own files into the next workspace.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from typing import TYPE_CHECKING

from hutch.access.pack import Packer
from hutch.access.piped import Take
from hutch.access.unpack import Unpacker
from hutch.api.result import Copied
from hutch.errors import HutchError, UsageError
from hutch.files import kept_open
from hutch.frozen import dataclass
from hutch.trees.cursor import DIRECTORY
from hutch.trees.removing import empty_directory

if TYPE_CHECKING:
    from hutch.api.workspace import Argument

# $1 is the path, $2 the directory that it is in, $3 its name there.
SEND = """
if [ -d "$1" ]; then cd "$1" && exec tar -cf - .; fi
cd "$2" && exec tar -chf - "./$3"
"""
# The script says where it stands, and unpacks there.
TAKE = """
if [ -d "$1" ]; then cd "$1" && echo directory; else cd "$2" && echo other; fi || exit 1
exec tar -xpf -
"""
CHANGED = 1  # tar's exit code when something has changed while it was read
KEPT = 1 << 14  # bytes of the errors that are kept to explain a failure
ANSWER = 1 << 10  # bytes of output, at most, where none or a word is expected
WITHOUT_NAME = ("", ".", "..")

Carry = Callable[[Sequence[str], Take, Take, Iterable[bytes | None]], int]
"""A function that runs a command inside: it gets its arguments, takers of its output and errors, and its input (see
Piped), and returns its exit code."""


@dataclass(frozen=True)
class Side:
    """A workspace as a copy sees it."""

    name: str
    carry: Carry


def put(side: Side, source: Argument, target: Argument, *, into: bool = False) -> Copied:
    """Copy a file or a directory of the host into a workspace; see `Workspace.put`."""
    path, directory, name = split_inside(target)
    own = name_of(os.fspath(source))
    said, errors = bytearray(), Tail()

    def answer(data: bytes) -> None:
        said.extend(data)
        if len(said) > ANSWER:
            raise HutchError(f"{side.name}: tar has more to say than it should")

    with closing(Packer(os.fspath(source))) as packer:

        def pieces() -> Iterator[bytes | None]:
            while b"\n" not in said:
                yield None
            is_there = said.startswith(b"directory\n")
            as_name = name if not is_there else own if into or not packer.is_tree else ""
            if not packer.is_tree and (as_name in WITHOUT_NAME or (path.endswith("/") and not is_there)):
                raise HutchError(f"{side.name}: {os.fspath(target)} is no directory")
            yield from packer.pieces(as_name)

        code = side.carry(["sh", "-c", TAKE, "sh", path, directory, name], answer, errors.take, pieces())
        if code != 0:
            raise HutchError(f"{side.name}: {os.fspath(target)} cannot be written", details=errors.text())
        if not packer.is_handed_on:
            raise HutchError(f"{side.name}: tar ended before it had read all of {packer.path}", details=errors.text())
        return Copied(packer.files, packer.size, tuple(packer.left_out))


def get(side: Side, source: Argument, target: Argument, *, limit: int, into: bool = False) -> Copied:
    """Copy a file or a directory from a workspace to the host; see `Workspace.get`."""
    path, directory, name = split_inside(source)
    own, errors, local = name_of(path), Tail(), os.fspath(target)
    if "\0" in local or not local:
        raise UsageError(f"{local!r} is no path")
    is_there = os.path.isdir(local)
    parent = local if is_there else os.path.dirname(local.rstrip("/")) or ("/" if local.startswith("/") else ".")
    with _explained(local), ExitStack() as stack:
        above = stack.enter_context(kept_open(os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)))
        staging = stack.enter_context(_staging(above))
        unpacker = stack.enter_context(closing(Unpacker(staging, limit, side.name)))
        code = side.carry(["sh", "-c", SEND, "sh", path, directory, name], unpacker.feed, errors.take, ())
        if code not in (0, CHANGED) or not unpacker.is_complete:
            raise HutchError(f"{side.name}: {os.fspath(source)} cannot be copied", details=errors.text())
        if unpacker.is_tree:
            as_name = os.path.basename(local.rstrip("/")) if not is_there else own if into else ""
        else:
            as_name = own if is_there else os.path.basename(local)
            if as_name in WITHOUT_NAME:
                raise HutchError(f"{local} is no directory")
        _check(staging, Unpacker.ITEM, above, as_name or ".")
        if as_name:
            _place(staging, Unpacker.ITEM, above, as_name)
        else:
            _merge(staging, Unpacker.ITEM, above)
        return Copied(unpacker.files, unpacker.size, tuple(unpacker.left_out))


def split_inside(path: Argument) -> tuple[str, str, str]:
    """A path inside, the directory that it is in and its name there, none of which begins as an option does."""
    text = os.fspath(path)
    if "\0" in text or not text:
        raise UsageError(f"{text!r} is no path")
    text = text.removeprefix("~/") or "." if text.startswith("~/") else text
    text = text if text.startswith("/") else f"./{text}"
    directory, name = os.path.split(text.rstrip("/") or "/")
    return text, directory, name


def name_of(path: str) -> str:
    """The name of a copy of it in a directory; "" where only its content is copied."""
    name = os.path.basename(path.rstrip("/"))
    return "" if name in WITHOUT_NAME else name


class Tail:
    """The last KEPT bytes of an output."""

    def __init__(self) -> None:
        self.data = b""

    def take(self, data: bytes) -> None:
        self.data = (self.data + data)[-KEPT:]

    def text(self) -> str:
        return self.data.decode("utf-8", "replace").strip()


# On the host.


@contextmanager
def _staging(above: int) -> Iterator[int]:
    """A new directory that only the caller may enter, where a copy stands until it is whole."""
    name = f".hutch-{secrets.token_hex(8)}"
    os.mkdir(name, 0o700, dir_fd=above)
    with _opened(above, name) as descriptor:
        try:
            if not _is_own(descriptor):
                raise HutchError(
                    f"somebody put another directory in the place of {name}, which hutch had just made",
                    resolution="copy into a directory in which nobody else can rename",
                )
            try:
                yield descriptor
            finally:
                with suppress(HutchError):  # leftovers of a copy are no reason to fail it
                    empty_directory(descriptor, name)
        finally:
            with suppress(OSError):  # nor is anybody else's emptied that has the name by now
                os.rmdir(name, dir_fd=above)


def _is_own(directory: int) -> bool:
    """Whether a directory is empty, and belongs to whoever makes a file in it: which owner that has, is the file
    system's to say."""
    if os.listdir(directory):
        return False
    name = ".hutch-owner"
    with kept_open(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)) as made:
        is_own = os.fstat(made).st_uid == os.fstat(directory).st_uid
        os.unlink(name, dir_fd=directory)
        return is_own


def _check(source: int, name: str, target: int, as_name: str) -> None:
    """Raise what `_place` would, before anything is moved: no file takes the place of a directory, or the other way
    round."""
    try:
        there = os.stat(as_name, dir_fd=target, follow_symlinks=False)
    except FileNotFoundError:
        return
    is_tree = stat.S_ISDIR(os.stat(name, dir_fd=source, follow_symlinks=False).st_mode)
    if is_tree != stat.S_ISDIR(there.st_mode):
        number = errno.ENOTDIR if is_tree else errno.EISDIR
        raise OSError(number, os.strerror(number), as_name)
    if is_tree:
        with _opened(source, name) as come, _opened(target, as_name) as below:
            for entry in os.listdir(come):
                _check(come, entry, below, entry)


def _place(source: int, name: str, target: int, as_name: str) -> None:
    """Move a received entry to its place. It takes the place of a file, and is added to a directory."""
    try:
        os.rename(name, as_name, src_dir_fd=source, dst_dir_fd=target)
    except OSError as error:
        is_tree = stat.S_ISDIR(os.stat(name, dir_fd=source, follow_symlinks=False).st_mode)
        if not is_tree or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        with _opened(target, as_name) as there:
            _merge(source, name, there)


def _merge(source: int, name: str, target: int) -> None:
    """Add the content of a received directory to one that is there."""
    with _opened(source, name) as come:
        for entry in os.listdir(come):
            _place(come, entry, target, entry)


def _opened(directory: int, name: str) -> AbstractContextManager[int]:
    return kept_open(os.open(name, DIRECTORY, dir_fd=directory))


@contextmanager
def _explained(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # Names below were chosen by the workspace.
        below = f" ({os.fsdecode(error.filename2 or error.filename)!r})" if error.filename else ""
        raise HutchError(f"{path} cannot be written: {error.strerror}{below}") from error
