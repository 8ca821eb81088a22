"""The record of a workspace's question or connection: its form in a file, and how records become one. Pure.

The writer of these files reads packets that guests made, so nothing in a file is believed: a line is a record, or it is
nothing.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar, get_args

from hutch.frozen import dataclass
from hutch.spec.record import iso

Item = TypeVar("Item")
What = Literal["dns", "connection"]
Verdict = Literal["allowed", "refused", "learned", "lost"]
"""The verdict on an event. A "lost" one happened, and nobody knows what it was: `why` says how that came about."""

NOT_LISTED = "not listed"
"""The usual reason of a refusal. No list could open what is refused for another reason."""
DENIED = "denied by a person"
"""The reason where somebody has said no, by `hutch deny`."""

LONGEST_NAME = 255
LONGEST_WHY = 80
LONGEST_LINE = 1024
AT_ONCE = 32
"""Lines that are written by one request to the keeper, which has a bound."""
LATEST = 253_000_000_000  # of the year 9987: what is later has no date
MOST = 1 << 62


@dataclass(frozen=True)
class EgressEvent:
    """Something that happened `count` times, for the last time at `time`, in seconds since the epoch.

    `name` is the domain that was asked for, or through which the workspace learned the address that it connected to.
    """

    time: float
    what: What
    verdict: Verdict
    name: str | None = None
    address: str | None = None
    port: int | None = None
    protocol: str | None = None
    count: int = 1
    why: str = ""

    @property
    def subject(self) -> tuple[object, ...]:
        """All fields but the time and the count."""
        return (self.what, self.verdict, self.name, self.address, self.port, self.protocol, self.why)

    @property
    def line(self) -> str:
        return json.dumps(self.__dict__, separators=(",", ":")) + "\n"


def lost(time: float, count: int, why: str) -> EgressEvent:
    """An event that says that so many are missing here."""
    return EgressEvent(time, "connection", "lost", count=count, why=why)


def in_batches(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    """The items, in as many parts as there are requests to write their lines."""
    return (items[begin : begin + AT_ONCE] for begin in range(0, len(items), AT_ONCE))


def escaped(name: str) -> str:
    r"""A name as it may stand in a record: what is not printable ASCII as \DDD, byte by byte, and not too long."""
    text = "".join(
        chr(byte) if 0x20 < byte < 0x7F else f"\\{byte:03d}" for byte in name.encode("utf-8", "surrogateescape")
    )
    return text[:LONGEST_NAME]


def parse_line(line: bytes) -> EgressEvent | None:
    """The record that a line holds; None for anything else."""
    if len(line) > LONGEST_LINE:
        return None
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or values.keys() != EgressEvent.__dataclass_fields__.keys():
        return None
    is_sound = all(check(values[key]) for key, check in CHECKS.items())
    return EgressEvent(**values) if is_sound else None


def _is_text(value: object, longest: int, *, is_word: bool) -> bool:
    lowest = "!" if is_word else " "
    return isinstance(value, str) and len(value) <= longest and all(lowest <= char <= "~" for char in value)


def _is_number(value: object, lowest: int, highest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and lowest <= value <= highest


def _is_time(value: object) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and 0 <= value <= LATEST  # type: ignore[operator]


def _is_address(value: object) -> bool:
    try:
        return isinstance(value, str) and str(ipaddress.IPv4Address(value)) == value
    except ValueError:
        return False


CHECKS: dict[str, Any] = {
    "time": _is_time,
    "what": lambda value: value in get_args(What),
    "verdict": lambda value: value in get_args(Verdict),
    "name": lambda value: value is None or _is_text(value, LONGEST_NAME, is_word=True),
    "address": lambda value: value is None or _is_address(value),
    "port": lambda value: value is None or _is_number(value, 0, 65535),
    "protocol": lambda value: value is None or _is_text(value, 8, is_word=True),
    "count": lambda value: _is_number(value, 1, MOST),
    "why": lambda value: _is_text(value, LONGEST_WHY, is_word=False),
}


@dataclass(frozen=True)
class Seen(EgressEvent):
    """An event that happened again and again, between `first` and `time`. `why` is the last one's."""

    first: float = 0.0

    def to_json(self) -> dict[str, Any]:
        times = {"time": iso(self.time, "milliseconds"), "first": iso(self.first, "milliseconds")}
        return {**times, **self.__dict__, **times}


def aggregate(records: Iterable[EgressEvent]) -> list[Seen]:
    """Merge records that differ in nothing but time, count and reason; in the order in which they last happened."""
    found: dict[tuple[object, ...], Seen] = {}
    for record in records:
        key = record.subject[:-1]
        before = found.pop(key, None)  # so that it goes to the end
        values = {**record.__dict__, "first": record.time}
        if before is not None:
            values["first"] = min(before.first, record.time)
            values["time"] = max(before.time, record.time)
            values["count"] += before.count
        found[key] = Seen(**values)
    return sorted(found.values(), key=lambda seen: seen.time)
