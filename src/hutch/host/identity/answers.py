"""The answers of a person to `hutch trust`: for each hutch.toml in a checkout, the content that was accepted, and what
it asked for.

One small file for each, in the person's own state directory. Root reads it on that person's behalf: by descriptors,
over no symbolic link, and only where nobody else can have written it. Root writes it with that person's rights, since
a link in their home would lead root astray.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hutch.errors import HutchError, explained
from hutch.files import kept_open, open_regular, write_atomic
from hutch.frozen import dataclass
from hutch.spec.lookup import LARGEST_FILE
from hutch.spec.person import Person
from hutch.spec.rights import as_person
from hutch.trees.cursor import open_strictly

LARGEST = 16 * LARGEST_FILE  # bytes: the words of a hutch.toml, each escaped
MOST = 10_000  # answers that are listed
LATEST = 2**38  # seconds; a time beyond is none

Asks = Mapping[str, Mapping[str, Any]]
"""Workspace -> key -> value: what a file asks for beside the defaults, in the types of JSON."""


@dataclass(frozen=True)
class Answer:
    """The content of a file that a person accepted, by its SHA-256 in hex; `when` is in seconds since 1970."""

    file: str
    sha256: str
    when: float
    asks: Asks

    def to_json(self) -> dict[str, Any]:
        return {"file": self.file, "sha256": self.sha256, "when": self.when, "asks": self.asks}


def directory_of(person: Person) -> Path:
    """The directory of a person's answers. Raises HutchError for a person without a home."""
    if person.state is None:
        raise HutchError(
            f"{person.name} has no home on this host, so there is no place for their answers",
            resolution="set XDG_STATE_HOME to an absolute path, or use a file outside of a checkout",
        )
    return person.state / "trust"


def read_answer(person: Person, file: str) -> Answer | None:
    """The answer about a file, None without one. Raises HutchError for one that somebody else may have given."""
    with _opened(person) as directory:
        return None if directory is None else _read(person, directory, _name_of(file), file)


def read_answers(person: Person) -> list[Answer]:
    """All answers of a person, by the paths of the files; those that cannot be believed are left out."""
    found = []
    with _opened(person) as directory:
        if directory is None:
            return []
        for name in sorted(os.listdir(directory))[:MOST]:
            with suppress(HutchError):
                found.append(_read(person, directory, name))
    return sorted((answer for answer in found if answer is not None), key=lambda answer: answer.file)


def write_answer(person: Person, file: str, content: bytes, asks: Asks) -> None:
    """Remember that the person, who calls, accepted this content of the file."""
    answer = Answer(file, digest(content), time.time(), asks)
    directory = directory_of(person)
    with explained(f"the answer cannot be written in {directory}"), as_person(person):
        os.makedirs(directory, mode=0o700, exist_ok=True)
        write_atomic(directory / _name_of(file), json.dumps(answer.to_json()).encode(), mode=0o600)
    if read_answer(person, file) is None:  # raises for a directory that root would not believe either
        raise HutchError(f"{directory} does not keep its files")


def remove_answer(person: Person, file: str) -> bool:
    """Forget the answer about a file; whether there was one."""
    path = directory_of(person) / _name_of(file)
    with explained(f"the answer in {path.parent} cannot be removed"), as_person(person):
        try:
            os.unlink(path)
        except FileNotFoundError:
            return False
    return True


def digest(content: bytes) -> str:
    # Spares the start-up of `hutch run`, which asks for no answer where all is as it should be.
    import hashlib

    return hashlib.sha256(content).hexdigest()


def _name_of(file: str) -> str:
    return f"{digest(os.fsencode(file))}.json"


@contextmanager
def _opened(person: Person) -> Iterator[int | None]:
    """The directory of answers, None where there is none."""
    path = directory_of(person)
    try:
        descriptor = open_strictly(path)
    except FileNotFoundError:
        yield None
        return
    except OSError as error:
        raise _doubtful(str(path), _why(error)) from error
    with kept_open(descriptor):
        _check(person, str(path), os.fstat(descriptor))
        yield descriptor


def _read(person: Person, directory: int, name: str, file: str = "") -> Answer | None:
    """One answer in the directory; None where there is no such file."""
    path = str(directory_of(person) / name)
    try:
        descriptor = open_regular(name, follow=False, dir_fd=directory)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _doubtful(path, _why(error)) from error
    with open(descriptor, "rb") as stream:
        _check(person, path, os.fstat(stream.fileno()))
        content = stream.read(LARGEST + 1)
    found = _parse(content)
    if found is None or _name_of(found.file) != name or (file and found.file != file):
        raise _doubtful(path, "is damaged")
    return found


def _parse(content: bytes) -> Answer | None:
    """The answer that a file holds; None where it holds none."""
    try:
        said: Any = json.loads(content) if len(content) <= LARGEST else None
        file, sha256, when, asks = os.fsdecode(os.fsencode(said["file"])), said["sha256"], said["when"], said["asks"]
        is_right = isinstance(sha256, str) and 0 <= float(when) < LATEST
        is_right = is_right and all(isinstance(keys, dict) for keys in asks.values())
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    return Answer(file, sha256, float(when), asks) if is_right else None


def _check(person: Person, path: str, status: os.stat_result) -> None:
    """Refuse what somebody else than the person, or root, can have written."""
    if status.st_uid not in (0, person.uid):
        raise _doubtful(path, f"belongs to uid {status.st_uid}, who is neither root nor {person.name}")
    if status.st_mode & 0o022:
        raise _doubtful(path, "can be written by its group or by others")


def _why(error: OSError) -> str:
    is_link = error.errno in (errno.ELOOP, errno.ENOTDIR)
    return "is, or lies behind, a symbolic link or a file" if is_link else f"cannot be read: {error.strerror}"


def _doubtful(path: str, why: str) -> HutchError:
    return HutchError(
        f"{path}, the note of accepted files, {why}, so nothing counts as accepted",
        resolution="remove it; `hutch trust` asks again",
    )
