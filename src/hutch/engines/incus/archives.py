"""Archives of homes, through the standard streams of tar in a transfer container."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing

from hutch.access.piped import Overdue, Piped, Take
from hutch.engines import CutShort
from hutch.engines.incus.client import Client
from hutch.engines.incus.failures import NoAnswer, printable
from hutch.errors import HutchError
from hutch.run import PIPE, start

INSIDE = "/srv/hutch-home"
"""The place of the home in a transfer container."""
SEND = (
    f"tar --create --file=- --directory={INSIDE} --format=posix --pax-option=delete=atime,delete=ctime "
    "--numeric-owner --one-file-system . && read -r go"
)
"""Waits until it is told that all has come: of a command that has ended, a busy server may lose the last output."""
UNEXPECTED_END = "Unexpected EOF in archive"
"""The words of tar where its input ends within an entry: a busy server may lose the end of a command's input, too."""
SLOWEST = 1 << 18  # bytes in a second, of a connection that is still one
LEAST_SECONDS = 600.0
KEPT = 1 << 14  # bytes of errors that explain a failure


def unpack(client: Client, transfer: str, name: str, pieces: Iterable[bytes], size: int, end: str) -> None:
    """Make the home of a workspace of the pieces of an archive, of about `size` bytes, whose last entry has the name
    `end`. Raises CutShort where not all have come."""
    try:
        _carry(client, transfer, name, render_take(end), _nothing_more, pieces, size)
    except HutchError as error:
        if UNEXPECTED_END in error.details or end in error.details:
            raise CutShort(error.brief, details=error.details) from error
        raise


def pack(client: Client, transfer: str, name: str, take: Take, is_whole: Callable[[], bool], size: int) -> None:
    """Have `take` get an archive of a workspace's home, of about `size` bytes, until it `is_whole`."""
    _carry(client, transfer, name, SEND, take, _until(is_whole), size)


def render_take(end: str) -> str:
    """The script that unpacks a home. Where the connection ends between two entries, tar takes that for the end: the
    last one, which is removed then, tells whether all have come."""
    return (
        f"tar --extract --file=- --directory={INSIDE} --same-owner --numeric-owner --same-permissions && "
        f'when=$(stat -c %y {INSIDE}) && rm {INSIDE}/{end} && touch -d "$when" {INSIDE} && sync -f {INSIDE}'
    )


def _carry(
    client: Client, transfer: str, name: str, script: str, take: Take, pieces: Iterable[bytes | None], size: int
) -> None:
    """Run a script in the transfer container to its end. Raises HutchError unless it ended well."""
    words = ("exec", transfer, "--force-noninteractive", "--env=LC_ALL=C", "--", "sh", "-c", script)
    code, errors = carry(client, words, take, pieces, LEAST_SECONDS + size / SLOWEST)
    if code != 0:
        raise HutchError(
            f"the home of {name} cannot be copied: tar in the transfer container ended with the code {code}",
            details=printable(errors.decode("utf-8", "replace")),
            resolution="it needs GNU tar in the workspace's image" if code == 127 else "",
        )


def carry(
    client: Client, words: tuple[str, ...], take: Take, pieces: Iterable[bytes | None], seconds: float
) -> tuple[int, bytes]:
    """Run a verb of the client with streams; returns its exit code and the end of what it said of errors. Raises
    NoAnswer after so many seconds."""
    errors = bytearray()

    def take_errors(data: bytes) -> None:
        errors.extend(data)
        del errors[:-KEPT]

    process = start(client.argv(*words), stdin=PIPE, stdout=PIPE, stderr=PIPE)
    with closing(Piped(process)) as piped:
        assert process.stdout is not None and process.stderr is not None
        try:
            code = piped.carry(
                {process.stdout.fileno(): take, process.stderr.fileno(): take_errors}, pieces, seconds=seconds
            )
        except Overdue:
            raise NoAnswer(
                f"the remote {client.place.remote} has not taken or sent a home within {seconds:.0f} s",
                details=printable(errors.decode("utf-8", "replace")),
            ) from None
    return code, bytes(errors)


def _until(is_whole: Callable[[], bool]) -> Iterator[bytes | None]:
    """The input of SEND: nothing until all has come."""
    while not is_whole():
        yield None
    yield b"\n"


def _nothing_more(data: bytes) -> None:
    """Take the output of tar that extracts: it has none that matters."""
