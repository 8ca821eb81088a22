"""The page of `hutch report`, as text, JSON and HTML, with what an attacker would have on it."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from hutch.access.git_changes import Changes, FileChange, RepositoryChanges
from hutch.api.summary import Report, summarize
from hutch.audit.events import Entry
from hutch.cli.report_page import LONGEST, MOST_ROWS, render_html, render_text
from hutch.spec.record import stamp
from tests.unit.facts import check_golden

NOON = 1_764_417_600.0
EVIL = "<script>alert(1)</script>&\"'"
"""Printable, so that a record takes it."""
WORSE = f"{EVIL}\x1b]0;pwned\x07\u202e\n\r\t"
"""What no record takes; a page holds off this too."""
RUN = {"reason": "", "seconds": 3661.0, "memory_peak": 512 << 20, "cpu_seconds": 42.25, "tasks_peak": 61}


def at(after: float, event: str, by: str | None = "ann", /, **values: object) -> Entry:
    return Entry(NOON + after, event, by, values)


def egress(seconds: float, verdict: str, name: str | None, count: int, **more: object) -> Entry:
    times = {"first": stamp(NOON + seconds), "last": stamp(NOON + seconds + 5)}
    where = {"name": name, "address": None, "port": None, "protocol": None, "why": ""}
    return at(seconds, "egress", None, **{**where, "verdict": verdict, "count": count, **times, **more})


ENTRIES = (
    at(0, "plan", command="up", file="/home/ann/hutch.toml", action="create",
       reasons=[{"key": "workspace", "old": None, "new": "declared"}, {"key": EVIL, "old": "1", "new": EVIL}]),
    at(1, "created", type="container", image="debian-trixie-1", file="/home/ann/hutch.toml"),
    at(2, "started", start_kind="cold", seconds=0.72),
    at(3, "exec", session="0" * 16, argv=["sh", "-c", f"echo {EVIL}"], root=False),
    at(4.5, "exec-ended", session="0" * 16, code=3, seconds=1.5),
    at(5, "ssh", session="2" * 16, argv=["uptime"]),
    at(5.2, "connected", None, port=50_000),
    egress(6, "asked", "api.example.org", 12),
    egress(7, "allowed", "api.example.org", 3, address="203.0.113.5", port=443, protocol="tcp"),
    egress(8, "refused", EVIL, 40, why="not listed"),
    egress(9, "lost", None, 1000, why="too many different ones"),
    at(10, "allowed", host="pkg.example.org:443", until=stamp(NOON + 3600)),
    at(11, "denied", host="evil.example", until=None),
    at(12, "forward", session="1" * 16, ports=[8000, 9000], auto=False, reverse=[5432]),
    at(13, "forward-ended", session="1" * 16, seconds=1.0),
    at(14, "cut", None, why="there were too many of them", count=7, kinds=["egress"]),
    at(15, "stopped", **RUN),
    at(16, "removed", kept="/var/lib/hutch/workspaces/web/home"),
)  # fmt: skip
FILES = (FileChange("a.py", 3, 1), FileChange("logo.png"), FileChange(EVIL, is_tracked=False))
CHANGES = Changes(
    (
        RepositoryChanges("/home/dev/clone", problem="git would run filters of its own to look into it"),
        RepositoryChanges("/src/x", 2, FILES, 5),
    ),
    (f"/src/x/{EVIL}",),
    more=2,
    more_new=1,
)  # fmt: skip


def made(*entries: Entry) -> Report:
    report = summarize("web", entries, made=NOON + 7200, since=None)
    return replace(report, damages=(), is_verified=True, is_end_known=True)


WHOLE = replace(made(*ENTRIES), changes=CHANGES)
DAMAGED = replace(WHOLE, damages=("web.jsonl: line 3 does not follow from the one before it",))


def test_text() -> None:
    check_golden("report/web.txt", render_text(WHOLE))


def test_html() -> None:
    check_golden("report/web.html", render_html(DAMAGED))


def test_json() -> None:
    check_golden("report/web.json", json.dumps(WHOLE.to_json(), indent=1) + "\n")


def test_a_workspace_that_did_nothing() -> None:
    assert render_text(made()).splitlines()[:4] == [
        "Report on web, times in UTC",
        "span    nothing is recorded",
        "events  0",
        "record  whole",
    ]
    unseen = replace(made(), unseen="root alone looks")
    assert "Files changed\n  root alone looks\n" in render_text(unseen)


def test_connections_without_a_session_are_told() -> None:
    lines = render_text(made(at(0, "connected", None, port=50_000))).splitlines()
    at_title = lines.index("Commands and sessions")
    assert lines[at_title + 1] == "  1 connection from this host to its port 22, the last at 2025-11-29 12:00:00"


def test_damage_is_said_and_what_was_not_looked_at_too() -> None:
    assert "record  damaged in 1 place\n" in render_text(DAMAGED)
    assert "  web.jsonl: line 3 does not follow" in render_text(DAMAGED)
    partly = replace(made(*ENTRIES), is_verified=False, is_end_known=False)
    assert "in its newest file; --verify looks at all; where it ends, only root's state can tell" in render_text(partly)


@pytest.mark.parametrize("place", ["entry", "change", "problem", "damage"])
def test_nothing_reaches_a_terminal_or_a_browser(place: str) -> None:
    report = made(at(0, "allowed", host="x", until=None))
    [decision] = report.decisions
    report = {
        "entry": replace(report, decisions=(replace(decision, values={"host": WORSE, "until": None}, by=WORSE),)),
        "change": replace(
            report, changes=Changes((RepositoryChanges(WORSE, 1, (FileChange(WORSE, 1, 1),)),), (WORSE,))
        ),
        "problem": replace(report, changes=Changes(problem=WORSE), unseen=WORSE),
        "damage": replace(report, damages=(WORSE,)),
    }[place]
    text = render_text(report)
    assert all(char.isprintable() or char == "\n" for char in text)
    assert "pwned" in text
    parser = Parser()
    parser.feed(render_html(report))
    assert "pwned" in parser.text
    assert parser.tags <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "h1",
        "h2",
        "section",
        "table",
        "tr",
        "th",
        "td",
        "p",
    }
    assert parser.attributes <= {"lang", "charset", "content", "http-equiv", "name", "class"}


class Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = set[str](), set[str](), ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_a_page_stays_readable_however_much_there_is() -> None:
    many = made(*(at(number, "allowed", host="n" * 500, until=None) for number in range(1100)))
    text = render_text(many)
    assert "  and 1000 more\n" in text
    assert len(text.splitlines()) < MOST_ROWS + 20
    assert max(map(len, text.splitlines())) < LONGEST + 80
    assert render_html(many).count("<tr>") == 1000 + 4
