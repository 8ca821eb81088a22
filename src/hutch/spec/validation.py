"""Validation: turns a table of the file into one of the model's dataclasses, by pydantic-core, with plain findings.

A wrong key never hides another one: what fails is reported and left out, and the rest is validated again,
so that the checks between keys see all that is right. Values are handed to it as JSON, where it is
strict about types and still takes a list for a tuple.
"""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from hutch.frozen import dataclass
from hutch.spec.model import Idle, Mount
from hutch.spec.validators import validator

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

T = TypeVar("T")
Path = tuple[str | int, ...]
"""The path of a value: keys, and indexes of arrays from 0."""
Table = dict[str, Any]
Kept = dict[str, list[int]]
"""For each list of a table, the indexes in the file of the entries that are still in it."""

STAND_IN = 0.5  # for a value that JSON lacks, or that is nested too deep: no key takes a fraction
DEEPEST = 6
INSIDE: Mapping[str, type] = {"mounts": Mount, "idle": Idle}
EXPLANATIONS = {
    "bool_type": ("must be true or false", "without quotes"),
    "tuple_type": ("must be a list", 'in brackets, such as ["one", "two"]'),
    "dict_type": ("must be a table", 'such as { KEY = "value" }'),
    "dataclass_type": ("must be a table", 'such as { key = "value" }'),
}


@dataclass(frozen=True)
class FieldProblem:
    """One thing wrong at one key path of the file, before it is known on which line that is."""

    path: Path
    message: str
    hint: str = ""


@dataclass(frozen=True)
class Validated(Generic[T]):
    """The valid part of a table, as a dataclass and as the table that is left; and the findings about the rest."""

    value: T
    table: Table
    kept: Kept
    findings: list[FieldProblem]


def validate(cls: type[T], table: Table, at: Path, stand_ins: Table | None = None) -> Validated[T]:
    """`table` as `cls`, as far as it is valid. `stand_ins` are for required keys that turn out wrong."""
    # Spares the start-up of `hutch doctor`, which reads no file where a network is set up.
    from pydantic_core import ValidationError

    model: Any = cls
    rest: Table = json_ready(table)
    kept: Kept = {key: list(range(len(value))) for key, value in rest.items() if isinstance(value, list)}
    findings: list[FieldProblem] | None = None
    while True:
        try:
            value = validator(model).validate_json(json.dumps(rest))
        except ValidationError as error:
            errors = error.errors(include_url=False)
        else:
            return Validated(value, rest, kept, findings or [])
        if findings is None:  # later rounds only see what the first one left behind
            findings = [explain(cls, details, at) for details in errors]
        leave_out(rest, kept, errors)
        rest = {**(stand_ins or {}), **rest}


def json_ready(value: Any, depth: int = 0) -> Any:
    """A copy of a TOML value in JSON's types, of bounded depth."""
    if depth < DEEPEST and isinstance(value, dict):
        return {key: json_ready(entry, depth + 1) for key, entry in value.items()}
    if depth < DEEPEST and isinstance(value, list):
        return [json_ready(entry, depth + 1) for entry in value]
    if isinstance(value, (str, float)) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    return STAND_IN


def leave_out(table: Table, kept: Kept, errors: Iterable[ErrorDetails]) -> None:
    """Remove from `table` the values that `errors` are about; of a missing value, the table that should hold it."""
    places: set[Path] = set()
    for error in errors:
        place = location(error)
        places.add(place[:-1] if error["type"] == "missing" else place)
    for place in sorted(places, key=lambda path: [(str(type(part)), part) for part in path], reverse=True):
        holder: Any = table
        for part in place[:-1]:
            holder = holder[part]
        if place:
            del holder[place[-1]]
        if len(place) == 2 and isinstance(place[1], int):
            del kept[str(place[0])][place[1]]


def location(error: ErrorDetails) -> Path:
    return tuple(part for part in error["loc"] if part != "[key]")


def explain(cls: type, error: ErrorDetails, at: Path) -> FieldProblem:
    """One of pydantic's errors in the words of a user of hutch.toml."""
    place = location(error)
    owner = INSIDE.get(str(place[0]), cls) if len(place) > 1 else cls
    key = str(place[-1])
    kind = error["type"]
    message, hint = EXPLANATIONS.get(kind, (error["msg"], ""))
    if kind == "value_error":
        reason = error["ctx"]["error"]
        message, hint = getattr(reason, "message", str(reason)), getattr(reason, "hint", "")
    elif kind == "literal_error":
        whole = next(str(part) for part in reversed(place) if isinstance(part, str))
        message, hint = "is not one of the known values", choices(owner, whole)
    elif kind == "unexpected_keyword_argument":
        message, hint = "unknown key", nearest(key, owner.__dataclass_fields__)  # type: ignore[attr-defined]
    elif kind == "missing":
        message, hint = "is missing", choices(owner, key) or meaning(owner, key)
    return FieldProblem((*at, *place), message, hint)


def choices(cls: type, key: str) -> str:
    """The values of a key that takes one of a few words: `"container" or "vm"`."""
    kind = typing.get_type_hints(cls)[key]
    words = [word for part in (kind, *typing.get_args(kind)) for word in typing.get_args(part) if isinstance(word, str)]
    return " or ".join(f'"{word}"' for word in dict.fromkeys(words))


def meaning(cls: type, key: str) -> str:
    fields: Mapping[str, Any] = cls.__dataclass_fields__  # type: ignore[attr-defined]
    return str(fields[key].metadata["meaning"])


def nearest(key: str, known: Iterable[str]) -> str:
    """A hint: the known key that is nearest, or all known keys."""
    # Spares the start-up of `hutch up` for files that are right.
    import difflib

    names = list(known)
    close = difflib.get_close_matches(key.lower().replace("-", "_"), names, n=1)
    return f'did you mean "{close[0]}"?' if close else f"known here: {', '.join(names)}"


def dotted(path: Path) -> str:
    """A path as it is shown to people: `workspaces.web.mounts[0].source`, odd keys in quotes."""
    shown = ""
    for part in path:
        if isinstance(part, int):
            shown += f"[{part}]"
        else:
            bare = re.fullmatch(r"[A-Za-z0-9_-]+", part)
            shown += ("." if shown else "") + (part if bare else shorten(json.dumps(part)))
    return shown


def undotted(key: str) -> Path:
    """The path that `dotted` shows as `key`, for keys that need no quotes."""
    return tuple(int(index) if index else name for name, index in re.findall(r"([^.\[\]]+)(?!\])|\[([0-9]+)\]", key))


def shorten(text: str, length: int = 60) -> str:
    """`text` on one line, cut to `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1] + "…"
