"""Errors as values: a brief, details, and what to do about it.

Every failure that a user can cause is a HutchError. One handler, in the command line, prints it and
chooses the exit code; nothing below that layer prints or exits. Bugs are left to be tracebacks.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import TypeVar

from hutch.frozen import dataclass

T = TypeVar("T")


class HutchError(Exception):
    """A failure with an explanation. `exit_code` is what the command line returns for it."""

    exit_code = 1

    def __init__(self, brief: str, *, details: str = "", resolution: str = "") -> None:
        super().__init__(brief)
        self.brief = brief
        self.details = details
        self.resolution = resolution

    def __reduce__(self) -> tuple[object, ...]:
        """The form in which an error goes to another process: as it is, whatever the arguments of its class are."""
        return Exception.__new__, (type(self), *self.args), self.__dict__


TROUBLES = frozenset(
    getattr(errno, name) for name in "EIO ENOSPC EDQUOT EROFS ENFILE EMFILE ENOMEM ESTALE EUCLEAN ENODEV ENXIO".split()
)
"""Errors of a host's disks and memory that any call may meet; any other OSError that nobody expects is a bug."""


def lacks_root() -> HutchError:
    return HutchError("this needs root: run it with sudo or doas")


@contextmanager
def troubles_told() -> Iterator[None]:
    """Raise a HutchError for a trouble of the host: used at the ways into hutch."""
    try:
        yield
    except OSError as error:
        if error.errno not in TROUBLES:
            raise
        raise HutchError(
            f"{error.filename or 'a file'} cannot be written or read: {error.strerror}",
            resolution="see to the disk (df, dmesg); the next `hutch up` goes on from where this one stopped",
        ) from error


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Raise a HutchError for an error of the file system, which says `what` cannot be done, and why."""
    try:
        yield
    except OSError as error:
        raise HutchError(f"{what}: {error.strerror}") from error


def ways_in(cls: type[T]) -> type[T]:
    """Decorate a class whose public methods are ways into hutch."""
    for name, method in list(vars(cls).items()):
        if isinstance(method, FunctionType) and not name.startswith("_"):
            setattr(cls, name, troubles_told()(method))
    return cls


class Unmet(HutchError):
    """A request could not be met; nothing is half done for that, and the records say how things are."""


class UsageError(HutchError):
    """The command line asks for something that cannot be; nothing was touched."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a hutch.toml.

    `key` is dotted as in the file ("workspaces.web.ip"); `line` counts from 1, 0 when unknown;
    `value` is the offending value as the user wrote it, shortened; `hint` says what would be right.
    """

    message: str
    key: str = ""
    value: str = ""
    hint: str = ""
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        what = f"{self.key} = {self.value}: " if self.key and self.value else f"{self.key}: " if self.key else ""
        hint = f" ({self.hint})" if self.hint else ""
        return f"{where}{what}{self.message}{hint}"


class ConfigError(HutchError):
    """A hutch.toml that cannot be used, with all of its problems."""

    exit_code = 2

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        file = self.problems[0].file if self.problems else ""
        super().__init__(
            f"{file or 'hutch.toml'}: {count} problem{'s' if count != 1 else ''}; nothing was changed",
            details="\n".join(str(problem) for problem in self.problems),
        )
