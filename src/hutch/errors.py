"""Errors as values: a brief, details, and what to do about it.

Every failure that a user can cause is a HutchError. One handler, in the command line, prints it and
chooses the exit code; nothing below that layer prints or exits. Bugs are left to be tracebacks.
"""

from __future__ import annotations

from collections.abc import Iterable

from hutch.failure import TROUBLES as TROUBLES
from hutch.failure import HutchError as HutchError
from hutch.failure import Unmet as Unmet
from hutch.failure import Untrusted as Untrusted
from hutch.failure import UsageError as UsageError
from hutch.failure import explained as explained
from hutch.failure import lacks_root as lacks_root
from hutch.failure import troubles_told as troubles_told
from hutch.failure import ways_in as ways_in
from hutch.frozen import dataclass


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
