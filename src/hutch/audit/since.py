"""The beginning of a span of time, as people say it. Computes, in the local zone where they name none: what that was on
the day that is meant, not what it is today."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from hutch.errors import UsageError
from hutch.spec.field_types import Invalid
from hutch.spec.values import Duration

FORMS = "a duration such as 30min, 2h or 3d, a date such as 2026-11-28, or a time such as 09:30 or 2026-11-28T09:30"
DATE = r"\d{4}-\d\d-\d\d"
TIME = r"\d\d:\d\d(:\d\d)?"


def since_of(text: str, now: float) -> float:
    """The Unix time that `text` names, said at `now`. UsageError for anything else."""
    try:
        found = _moment(text.strip(), now)
        when = found.timestamp() if found is not None else None
    except (ValueError, OverflowError, OSError, Invalid):
        when = None
    if when is None:
        raise UsageError(f"--since {text[:40]!r} is no time", resolution=FORMS)
    return when


def _moment(text: str, now: float) -> datetime | None:
    """The moment; without a zone it is local."""
    if re.fullmatch(rf"{DATE}([T ]{TIME}(\.\d{{1,6}})?(Z|[+-]\d\d:?\d\d)?)?", text, re.ASCII):
        return datetime.fromisoformat(text)
    if re.fullmatch(TIME, text, re.ASCII):
        today = datetime.fromtimestamp(now, UTC).astimezone().date()
        return datetime.fromisoformat(f"{today.isoformat()}T{text}")
    if re.fullmatch(r"\d+[a-z]+", text, re.ASCII):
        return datetime.fromtimestamp(now - Duration().seconds(text), UTC)
    return None
