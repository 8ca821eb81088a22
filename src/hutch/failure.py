"""Failures as values: a brief, details, and what to do about it. hutch.errors has them all, and those of a file.

Imports are few: of the programs that start with each workspace, some stay beside it.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

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


def lacks_root(resolution: str = "") -> HutchError:
    return HutchError("this needs root: run it with sudo or doas", resolution=resolution)


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


class Untrusted(HutchError):
    """A hutch.toml in a checkout whose content the caller has not accepted, so it counts for nothing."""
