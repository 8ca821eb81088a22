"""The chain of a record: lines of which each carries the hash of the one before, and what is wrong with lines. Pure.

A line is one JSON object: `seq`, which counts from 1, the fields of an Entry, and `hash`: SHA-256, in hexadecimal, over
the hash of the line before and this line without `hash`, as it stands there (ASCII, without spaces). The first line of
a file has `workspace` too, and `previous`: the hash of the line before, which the file before ends with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from hutch.audit.events import HIGHEST, Entry, unstamped
from hutch.frozen import dataclass

LONGEST_LINE = 1 << 16
"""Bytes of a line, the break at its end included."""


@dataclass(frozen=True)
class Link:
    """A line's place in the chain."""

    seq: int
    hash: str


GENESIS = Link(0, "0" * 64)
"""What the first line of a record follows."""


@dataclass(frozen=True)
class Head:
    """What root's state knows of a record: its last line, and the first one that is kept. So a tail that was cut off,
    and older files that were taken away, show."""

    last: Link
    first: int = 1

    @property
    def seq(self) -> int:
        return self.last.seq


@dataclass(frozen=True)
class Line:
    """A line of a record as it was read. `previous` and `workspace` are there in the first one of a file."""

    seq: int
    hash: str
    entry: Entry
    data: bytes
    previous: str | None = None
    workspace: str | None = None

    @property
    def link(self) -> Link:
        return Link(self.seq, self.hash)


@dataclass(frozen=True)
class Damage:
    """Something that is wrong with a record, in words. `seq` is the first line that it is about; `file` is a name."""

    seq: int
    what: str
    file: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.what}" if self.file else self.what


def digest(previous: str, body: dict[str, Any]) -> str:
    # Spares the start-up of `hutch ls`: it brings OpenSSL with it.
    import hashlib

    return hashlib.sha256(previous.encode() + _rendered(body)).hexdigest()


def chained(previous: Link, entry: Entry, *, workspace: str | None = None) -> tuple[bytes, Link]:
    """The line of an entry that follows `previous`, with its break, and its place. With `workspace`, it is the first of
    a file."""
    opening = {} if workspace is None else {"workspace": workspace, "previous": previous.hash}
    body = {"seq": previous.seq + 1, **entry.body, **opening}
    link = Link(previous.seq + 1, digest(previous.hash, body))
    return _rendered({**body, "hash": link.hash}) + b"\n", link


def _rendered(body: dict[str, Any]) -> bytes:
    return json.dumps(body, separators=(",", ":"), allow_nan=False).encode()


OWN = ("seq", "time", "event", "by", "workspace", "previous", "hash")


def is_hash(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) is not None


def read_line(data: bytes) -> Line | None:
    """A line as it stands in a file; None for what is none, byte by byte. Whether it follows another one, `follows`
    says."""
    if len(data) > LONGEST_LINE:
        return None
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict):
        return None
    when = unstamped(body.get("time"))
    seq, event, by, hash = (body.get(key) for key in ("seq", "event", "by", "hash"))
    is_sound = when is not None and type(seq) is int and 0 < seq < HIGHEST and isinstance(event, str) and is_hash(hash)
    if not is_sound or not isinstance(by, (str, type(None))):
        return None
    previous, workspace = (body.get("previous"), body.get("workspace"))
    if not (previous is None or is_hash(previous)) or not isinstance(workspace, (str, type(None))):
        return None
    try:
        if _rendered(body) + b"\n" != data:  # a space, or an escape: it says the same, and is not what was written
            return None
    except ValueError:
        return None
    values = {key: value for key, value in body.items() if key not in OWN}
    assert when is not None and isinstance(seq, int) and isinstance(event, str) and isinstance(hash, str)
    return Line(seq, hash, Entry(when, event, by, values), data, previous, workspace)


def follows(previous: Link, line: Line) -> bool:
    """Whether a line is the one after `previous`, unchanged."""
    workspace = line.workspace if line.previous is not None else None
    if line.previous not in (None, previous.hash):
        return False
    return chained(previous, line.entry, workspace=workspace)[0] == line.data


def verified(
    lines: Iterable[tuple[str, bytes]], head: Head | None, workspace: str, *, is_whole: bool = True
) -> Iterator[Damage]:
    """What is wrong with the lines of a record, oldest first, each with the name of its file. Without `is_whole` they
    begin somewhere. A last line without its break is no damage, as long as the head does not know it: its writer was
    killed, and the next one takes it away."""
    at: Link | None = None
    file, number, seen_head = "", 0, head is None or head.seq == 0
    for name, data in lines:
        number = number + 1 if name == file else 1
        is_first, file = number == 1, name
        if not data.endswith(b"\n"):
            continue
        line = read_line(data)
        if line is None:
            yield Damage(at.seq + 1 if at else 1, f"line {number} is not as it was written", file)
            at = at and replace(at, seq=at.seq + 1, hash="")
            continue
        yield from _judged(at, line, file, number, workspace, is_first=is_first)
        if at is None and is_whole and head is not None and line.seq > head.first:
            yield Damage(head.first, f"{_lines(head.first, line.seq - 1)} missing before it", file)
        if head is not None and line.seq == head.seq:
            seen_head = line.hash == head.last.hash
            if not seen_head:
                yield Damage(line.seq, f"line {number} is not the one that hutch's state knows by its number", file)
                seen_head = True
        at = line.link
    if head is not None and not seen_head and (at is None or at.seq < head.seq):
        last = at.seq if at else head.first - 1
        yield Damage(last + 1, f"{_lines(last + 1, head.seq)} missing at its end", file)


def _lines(first: int, last: int) -> str:
    return f"the line of number {first} is" if first == last else f"the lines of numbers {first} to {last} are"


def _judged(at: Link | None, line: Line, file: str, number: int, workspace: str, *, is_first: bool) -> Iterator[Damage]:
    """What is wrong with a line after the one at `at`: None where nothing is known of that."""
    if line.workspace not in (None, workspace):
        yield Damage(line.seq, f"it is the record of {line.workspace}", file)
    if is_first and line.previous is None:
        yield Damage(line.seq, "its first lines are missing", file)
        return
    if at is None:
        previous = Link(line.seq - 1, line.previous or "")
    elif line.seq > at.seq + 1:
        yield Damage(at.seq + 1, f"{_lines(at.seq + 1, line.seq - 1)} missing before its line {number}", file)
        previous = Link(line.seq - 1, line.previous or "")
    elif line.seq <= at.seq:
        yield Damage(line.seq, f"line {number} has the number {line.seq}, which is not the next one", file)
        return
    else:
        previous = at if at.hash else Link(at.seq, line.previous or "")
    if not previous.hash:
        return  # the line before is not known, so that this one cannot be tried
    if not follows(previous, line):
        yield Damage(line.seq, f"line {number} does not follow from the one before it", file)
