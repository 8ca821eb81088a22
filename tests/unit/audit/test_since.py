"""How people say when a span of time began."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from hutch.audit.since import FORMS, since_of
from hutch.errors import UsageError

NOW = datetime(2026, 11, 29, 11, 0, 0, tzinfo=UTC).timestamp()
BERLIN = "CET-1CEST,M3.5.0,M10.5.0/3"


@pytest.fixture(autouse=True)
def local(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A zone with summer time, which is over at NOW."""
    with monkeypatch.context() as zone:
        zone.setenv("TZ", BERLIN)
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("text", "when"),
    [
        ("2h", "2026-11-29T09:00:00"),
        ("30min", "2026-11-29T10:30:00"),
        ("3d", "2026-11-26T11:00:00"),
        ("90s", "2026-11-29T10:58:30"),
        ("2026-11-28", "2026-11-27T23:00:00"),
        ("2026-10-25", "2026-10-24T22:00:00"),
        ("2026-10-26", "2026-10-25T23:00:00"),
        ("2026-10-20 09:30", "2026-10-20T07:30:00"),
        ("36d", "2026-10-24T11:00:00"),
        ("09:30", "2026-11-29T08:30:00"),
        ("2026-11-28 09:30", "2026-11-28T08:30:00"),
        ("2026-11-28T09:30:15", "2026-11-28T08:30:15"),
        ("2026-11-28T09:30:15.250Z", "2026-11-28T09:30:15.250"),
        ("2026-11-28T09:30-02:00", "2026-11-28T11:30:00"),
        (" 2h\n", "2026-11-29T09:00:00"),
    ],
)
def test_a_time(text: str, when: str) -> None:
    assert since_of(text, NOW) == datetime.fromisoformat(when).replace(tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    "text", ["", "noon", "2", "h", "0h", "2m", "-2h", "25:00", "2026-13-01", "2026-11-28T", "9999999d", "२h", "2h 3d"]
)
def test_no_time(text: str) -> None:
    with pytest.raises(UsageError, match="is no time") as caught:
        since_of(text, NOW)
    assert caught.value.resolution == FORMS
