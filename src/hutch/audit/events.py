"""The events that a record tells of: their fields, and who may tell of them. Pure.

What others than root have written is believed only as far as these checks go: exactly these fields, of these types and
lengths, and no character that a terminal would take as a command.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from datetime import datetime
from typing import Any, Literal

from hutch.frozen import dataclass
from hutch.spec.record import stamp

Source = Literal["host", "account", "person", "guest"]
"""Who causes an event: the host and root; other accounts, by what they have hutch do to the workspace; people, by what
they run inside; or the guest. Each of the last three has a budget of its own, so that none pushes out the past."""

LONGEST_TEXT = 512
"""Bytes of a text in a line: a reason, a name, a path."""
LONGEST_WORD = 256
ELLIPSIS = "..."
"""What stands for the part of a text or of a list that is too much."""
MOST_ITEMS = 32
"""Entries of a list: words, ports, the reasons of a plan."""
HIGHEST = 1 << 62

Check = Callable[[Any], bool]


@dataclass(frozen=True)
class Entry:
    """An event as it goes into a record. `time` is Unix time, `by` the account behind it: None where nobody asked for
    it. `values` are the fields of its kind, as FIELDS has them."""

    time: float
    event: str
    by: str | None
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> Source:
        if self.event in SOURCES:
            return SOURCES[self.event]
        if self.event == "started" and self.by is None:  # it may have rebooted
            return "guest"
        if self.by in (None, "root"):
            return "host"
        return "person" if self.event == "cut" else "account"

    @property
    def body(self) -> dict[str, Any]:
        """The fields as they stand in a line."""
        return {"time": stamp(self.time), "event": self.event, "by": self.by, **self.values}


def unstamped(text: object) -> float | None:
    """The Unix time of a text as `stamp` makes it; None for any other value."""
    if not isinstance(text, str) or not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text, re.ASCII):
        return None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def shown(text: str, longest: int = LONGEST_TEXT) -> str:
    """A text as a record takes it: on one line, harmless on a terminal, and not too long."""
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: longest + 1])
    if _size(plain) <= longest:
        return plain
    while _size(plain) > longest - len(ELLIPSIS):
        plain = plain[: len(plain) * 7 // 8]
    return plain + ELLIPSIS


def _size(text: str) -> int:
    """The bytes that a text takes in a line, without the quotes around it."""
    return len(json.dumps(text)) - 2


def words_of(argv: Sequence[str]) -> list[str]:
    """A command line as a record takes it; what is too much of it is an ellipsis."""
    words = [shown(word, LONGEST_WORD) for word in argv[:MOST_ITEMS]]
    return words if len(argv) <= MOST_ITEMS else [*words[:-1], ELLIPSIS]


# The checks of a value.


def _is_text(value: Any, longest: int = LONGEST_TEXT) -> bool:
    return isinstance(value, str) and value.isprintable() and _size(value) <= longest


def _is_words(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MOST_ITEMS and all(_is_text(w, LONGEST_WORD) for w in value)


def _is_whole(value: Any, highest: int = HIGHEST) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= highest


def _is_amount(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= HIGHEST


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_time(value: Any) -> bool:
    return unstamped(value) is not None


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9a-f]{16}", value, re.ASCII) is not None


def _is_port(value: Any) -> bool:
    return _is_whole(value, 65535)


def _is_ports(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MOST_ITEMS and all(map(_is_port, value))


def _is_reason(value: Any) -> bool:
    words = value.values() if isinstance(value, dict) and value.keys() == {"key", "old", "new"} else [0]
    return all(word is None or _is_text(word, LONGEST_WORD) for word in words)


def _is_reasons(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MOST_ITEMS and all(map(_is_reason, value))


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


_ENDED: dict[str, Check] = {
    "reason": _is_text,
    "seconds": _or_none(_is_amount),
    "memory_peak": _or_none(_is_whole),
    "cpu_seconds": _or_none(_is_amount),
    "tasks_peak": _or_none(_is_whole),
}

FIELDS: dict[str, dict[str, Check]] = {
    "created": {"type": _is_text, "image": _is_text, "file": _is_text},
    "started": {"start_kind": _is_text, "seconds": _or_none(_is_amount)},
    "stopped": _ENDED,
    "failed": _ENDED,
    "restarted": _ENDED,
    "removed": {"kept": _or_none(_is_text)},
    "undeleted": {"home": _is_text},
    "plan": {"command": _is_text, "file": _is_text, "action": _is_text, "reasons": _is_reasons},
    "exec": {"session": _is_id, "argv": _is_words, "root": _is_flag},
    "exec-ended": {"session": _is_id, "code": _or_none(_is_whole), "seconds": _is_amount},
    "ssh": {"session": _is_id, "argv": _is_words},
    "connected": {"port": _is_port},
    "forward": {"session": _is_id, "ports": _is_ports, "auto": _is_flag, "reverse": _is_ports},
    "forward-ended": {"session": _is_id, "seconds": _is_amount},
    "egress": {
        "name": _or_none(_is_text),
        "address": _or_none(_is_text),
        "port": _or_none(_is_port),
        "protocol": _or_none(_is_text),
        "verdict": lambda value: value in ("asked", "allowed", "refused", "learned", "lost"),
        "count": _is_whole,
        "first": _is_time,
        "last": _is_time,
        "why": _is_text,
    },
    "allowed": {"host": _is_text, "until": _or_none(_is_time)},
    "denied": {"host": _is_text, "until": _or_none(_is_time)},
    "cut": {"why": _is_text, "count": _is_whole, "kinds": _is_words},
}
"""For each kind of event its fields, with what each must be.

`seconds` are those from start to ready (started), the time that it ran (stopped, failed, restarted), or the time that a
command or session took. `memory_peak` is in bytes, `cpu_seconds` of all processors, `tasks_peak` a number of processes
and threads; None where the host cannot tell. `session` joins a beginning with its end. `code` is an exit code, None
where the end was not seen. `connected` is a connection from a port of this host to port 22, as the router saw it. A
`cut` says that `count` events, of these `kinds`, are not in the record, and why."""

SOURCES: dict[str, Source] = {
    **dict.fromkeys(("exec", "exec-ended", "ssh", "connected", "forward", "forward-ended"), "person"),
    **dict.fromkeys(("egress", "failed", "restarted"), "guest"),
}
"""Who causes events of a kind, whoever they are by."""

TOLD_BY_PEOPLE = frozenset(kind for kind, source in SOURCES.items() if source == "person") - {"connected"}
"""The kinds that an account may tell of in its inbox."""


def why_wrong(event: object, values: Mapping[str, Any]) -> str:
    """The reason why values are no event of a kind; "" for one."""
    fields = FIELDS.get(event) if isinstance(event, str) else None
    if fields is None:
        return "no such event"
    if values.keys() != fields.keys():
        return f"its fields are {', '.join(sorted(map(str, values)))}"[:LONGEST_TEXT]
    return next((f"{name} is wrong" for name, check in fields.items() if not check(values[name])), "")
