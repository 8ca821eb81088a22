"""What a report makes of a record: joined, counted, bounded."""

from __future__ import annotations

from typing import Any

from hutch.api.summary import MOST, MOST_NAMES, Connections, Destination, Peaks, Report, summarize
from hutch.audit.events import FIELDS, Entry
from hutch.spec.record import stamp

NOON = 1_764_417_600.0
ID = "0123456789abcdef"


def entry(event: str, after: float = 0.0, by: str | None = "ann", /, **values: Any) -> Entry:
    """An event with all of its fields; those that are not told are None, or empty."""
    empty: dict[str, Any] = {
        **dict.fromkeys(("root", "auto"), False),
        **dict.fromkeys(("why", "reason"), ""),
        "ports": [],
        "reverse": [],
        "argv": [],
        "reasons": [],
        "seconds": 0.0 if event.endswith("-ended") else None,
    }
    whole = {field: values.get(field, empty.get(field)) for field in FIELDS[event]}
    return Entry(NOON + after, event, by, whole)


def egress(
    verdict: str, name: str | None, seconds: float, count: int = 1, port: int | None = None, **more: Any
) -> Entry:
    first = stamp(NOON + seconds - 10)
    where = {"name": name, "port": port, "protocol": "tcp" if port else None}
    last = {"count": count, "first": first, "last": stamp(NOON + seconds)}
    return entry("egress", seconds, None, verdict=verdict, **where, **last, **more)


def made(*entries: Entry, since: float | None = None) -> Report:
    return summarize("web", entries, made=NOON + 3600, since=since)


def test_a_span_and_its_lines() -> None:
    assert made() == Report("web", NOON + 3600, None)
    report = made(entry("created", type="vm", image="i", file="f"), entry("started", 5, start_kind="cold"))
    assert (report.lines, report.first, report.last) == (2, NOON, NOON + 5)
    assert [each.event for each in report.life] == ["created", "started"]


def test_beginnings_and_ends_of_sessions_are_joined() -> None:
    other = "f" * 16
    report = made(
        entry("exec", 1, session=ID, argv=["make", "test"], root=True),
        entry("exec", 2, session=other, argv=["sleep", "9"]),
        entry("ssh", 3, session="e" * 16),
        entry("exec-ended", 4, session=ID, code=2, seconds=3.0),
    )
    told = [(each.kind, each.argv, each.root, each.code, each.seconds) for each in report.sessions]
    assert told == [
        ("exec", ("make", "test"), True, 2, 3.0),
        ("exec", ("sleep", "9"), False, None, None),
        ("ssh", (), False, None, None),
    ]


def test_an_end_whose_beginning_lies_before_the_span() -> None:
    report = made(entry("exec-ended", 4, session=ID, code=0, seconds=3.0), since=NOON)
    [session] = report.sessions
    assert (session.time, session.seconds, session.argv) == (NOON + 1, 3.0, ())


def test_connections_are_counted_whoever_opened_them() -> None:
    report = made(entry("connected", 5, None, port=50_000), entry("connected", 9, None, port=50_002))
    assert report.connections == Connections(2, NOON + 5, NOON + 9)
    assert report.to_json()["connections"] == {"count": 2, "first": stamp(NOON + 5), "last": stamp(NOON + 9)}
    assert made().connections is None


def test_names_are_counted_with_one_verdict_each() -> None:
    report = made(
        egress("asked", "a.example", 10, 3),
        egress("allowed", "a.example", 10, 5, 443),
        egress("allowed", "a.example", 60, 2, 80),
        egress("refused", None, 20, 1, 22, address="203.0.113.9", why="not listed"),
        egress("lost", None, 30, 90, why="too many different ones"),
    )
    assert report.destinations == (
        Destination("refused", "203.0.113.9", ("22/tcp",), 1, NOON + 10, NOON + 20, "not listed"),
        Destination("lost", None, (), 90, NOON + 20, NOON + 30, "too many different ones"),
        Destination("allowed", "a.example", ("443/tcp", "80/tcp"), 7, NOON, NOON + 60, ""),
        Destination("asked", "a.example", ("dns",), 3, NOON, NOON + 10, ""),
    )


def test_peaks_are_the_most_of_all_runs_and_processor_time_is_their_sum() -> None:
    report = made(
        entry("stopped", memory_peak=100, cpu_seconds=1.5, tasks_peak=9),
        entry("failed", memory_peak=300, cpu_seconds=2.0, tasks_peak=None),
        entry("stopped"),
    )
    assert report.peaks == Peaks(300, 3.5, 9)
    assert made(entry("stopped")).peaks == Peaks()


def test_what_has_no_room_is_counted() -> None:
    report = made(
        *(entry("allowed", number, host=f"n{number}.example") for number in range(MOST + 3)),
        *(entry("exec-ended", number, session=ID, code=0, seconds=1.0) for number in range(MOST + 4)),
        *(egress("refused", f"n{number}.example", number) for number in range(MOST_NAMES + 5)),
    )
    assert report.left_out == {"decisions": 3, "sessions": 4, "destinations": MOST_NAMES + 5 - MOST}
    assert report.decisions[-1].values["host"] == f"n{MOST + 2}.example"  # the newest are kept
    lengths = [len(each) for each in (report.decisions, report.sessions, report.destinations)]
    assert lengths == [MOST, MOST, MOST]


def test_a_line_that_is_no_event_is_counted_and_not_believed() -> None:
    odd = [Entry(NOON, "exec", "ann", {"session": 5}), Entry(NOON, "teleported", None, {}), Entry(NOON, "egress", None)]
    report = made(*odd)
    assert (report.lines, report.left_out) == (3, {"unknown": 3})


def test_the_json_is_plain() -> None:
    report = made(entry("created", type="vm", image="i", file="f"), entry("exec", session=ID, argv=["a"]))
    found = report.to_json()
    assert found["life"] == [
        {"time": stamp(NOON), "event": "created", "by": "ann", "type": "vm", "image": "i", "file": "f"}
    ]
    assert found["sessions"][0]["argv"] == ["a"]
    assert (found["made"], found["since"], found["changes"]) == ("2025-11-29T13:00:00.000Z", None, None)
