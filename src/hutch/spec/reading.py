"""Reading: the text of a file that is safe to believe, its tables, and the lines of what is wrong in it.

A hutch.toml and the file of a kit are read alike. Root acts on them, on behalf of someone else.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager

from hutch.errors import ConfigError, Problem
from hutch.files import kept_open, open_regular
from hutch.spec.lookup import LARGEST_FILE, LONGEST_LINE, is_unwieldy
from hutch.spec.rights import as_caller
from hutch.spec.validation import FieldProblem, Table, dotted, shorten
from hutch.spec.validation import Path as KeyPath
from hutch.trees.cursor import PINNED_DIRECTORY, open_strictly, upwards

Judge = Callable[[int], None]
MOVED = "somebody else can rename on its path: move it, and try again"


def judge_nothing(directory: int) -> None:
    """The judge of a caller who has none."""


def read_file(
    file: str, owners: Collection[int] | None = None, *, way: str = "", reader: int = 0, judge: Judge = judge_nothing
) -> str:
    """The text of a file that is safe to believe; see `read_content`."""
    return text_of(file, read_content(file, owners, way=way, reader=reader, judge=judge))


def read_content(
    file: str, owners: Collection[int] | None = None, *, way: str = "", reader: int = 0, judge: Judge = judge_nothing
) -> bytes:
    """The bytes of a file that is safe to believe, through one descriptor: another file may be there by now. No link is
    on its path `file`, which somebody may have judged: one that has been put there since is refused.

    `owners` are the uids whose file is believed, None for everybody's; `way` says what to do about another one's. A
    file that the user `reader` chose by a link must not be closed to that user: errors quote what is in it. `judge` is
    asked about the directory that the file lies in, a descriptor: by its path, another one may have been judged.
    """

    def refuse(message: str, hint: str = "") -> ConfigError:
        return ConfigError([Problem(message, hint=hint, file=file)])

    with ExitStack() as stack:
        try:
            directory, descriptor = stack.enter_context(_opened(file))
        except OSError as error:
            raise refuse(f"cannot be opened: {error.strerror}") from None
        try:
            if os.readlink(f"/proc/self/fd/{descriptor}") != file:
                raise refuse("leads elsewhere by now", MOVED)
            judge(directory)
            status = os.fstat(descriptor)
            if owners is not None and status.st_uid not in owners:
                hint = f"read it, and if you trust it {way or f'name it: --file {file}'}"
                raise refuse(f"belongs to uid {status.st_uid}, who is neither root nor you", hint)
            if reader and is_closed(directory, status, reader):
                raise refuse(f"is closed to uid {reader}, whose link leads to it")
            if status.st_mode & 0o022:
                raise refuse("can be written by its group or by others", f"chmod go-w {file}")
            with open(descriptor, "rb", closefd=False) as stream:
                content = stream.read(LARGEST_FILE + 1)
        except OSError as error:
            raise refuse(f"cannot be read: {error.strerror}") from None
    if len(content) > LARGEST_FILE:
        raise refuse("is larger than 1 MiB")
    return content


@contextmanager
def _opened(file: str) -> Iterator[tuple[int, int]]:
    """The directory of a file, and the file in it, as the caller may open them. No link leads there, above all none to
    the mounts of somebody else, among which a path tells nothing."""
    with ExitStack() as stack:
        with as_caller():
            directory = stack.enter_context(kept_open(open_strictly(os.path.dirname(file), flags=PINNED_DIRECTORY)))
            descriptor = stack.enter_context(
                kept_open(open_regular(os.path.basename(file), follow=False, dir_fd=directory))
            )
        yield directory, descriptor


def text_of(file: str, content: bytes) -> str:
    """The text of a file with this content."""
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ConfigError([Problem("is not UTF-8 text", file=file, line=line)]) from None
    if line := is_unwieldy(text):
        raise ConfigError([Problem(f"the line is longer than {LONGEST_LINE} characters", file=file, line=line)])
    return text


def is_closed(directory: int, status: os.stat_result, reader: int) -> bool:
    """Whether a file that was opened in a directory is another one's than `reader`'s, and not everybody's to read."""
    if status.st_uid == reader:
        return False
    if not status.st_mode & stat.S_IROTH:
        return True
    with closing(upwards(directory)) as ways:
        return not all(a.st_uid == reader or a.st_mode & stat.S_IXOTH for a in map(os.fstat, ways))


def parse_toml(file: str, text: str) -> Table:
    """The tables of the file. A syntax error is its only problem: behind it nothing can be told."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        problem = Problem("nests too deeply", file=file)
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        message = str(error)
        place = re.search(r" \(at line ([0-9]+), column [0-9]+\)$", message)
        end = re.search(r" \(at end of document\)$", message)
        line = int(place[1]) if place else text.rstrip("\n").count("\n") + 1 if end else 0
        reason = message[: (place or end or re.search("$", message)).start()]  # type: ignore[union-attr]
        problem = Problem(f"is not valid TOML: {shorten(reason, 200)}", file=file, line=line)
    raise ConfigError([problem])


def locate(file: str, text: str, findings: Iterable[FieldProblem], above: KeyPath = ()) -> list[Problem]:
    """The findings with their lines and the values as they are written, in the order of the file; each once, though a
    finding in [defaults] is made again in every workspace. `above` is the part of their paths that is not in the file:
    a kit's own file has its keys bare."""
    # Spares the start-up of `hutch up` for files that are right.
    from hutch.spec.positions import Positions

    positions = Positions(text)
    found = ((finding, finding.path[len(above) :]) for finding in dict.fromkeys(findings))
    places = ((finding, path, positions.find(path)) for finding, path in found)
    problems = [
        Problem(finding.message, dotted(path), shorten(place.text), finding.hint, file, place.line)
        for finding, path, place in places
    ]
    return sorted(problems, key=lambda problem: (problem.line, problem.key))
