"""`hutch egress`: what is shown of what a workspace did, as a table, as JSON, as it happens, and as a list."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from typing import Any

import pytest

from hutch.egress.journal import Journal
from hutch.egress.record import EgressEvent, lost
from hutch.spec.names import Layout
from hutch.spec.record import Record
from hutch.state import write_record
from tests.support.keeping import kept_in
from tests.unit.cli.conftest import Run
from tests.unit.facts import workspace

HEADER = ["LAST", "VERDICT", "NAME", "ADDRESS", "PORT", "COUNT", "WHY"]
ASKED = EgressEvent(1000.0, "dns", "refused", "evil.example", count=3, why="not listed")
REACHED = EgressEvent(1001.5, "connection", "learned", "api.example.org", "203.0.113.5", 443, "tcp", why="not listed")
PINGED = EgressEvent(1002.0, "connection", "refused", None, "10.0.0.1", None, "icmp", why="a private network")
LOST = lost(1003.0, 12, "more than could be heard")


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.localtime", __import__("time").gmtime)


@pytest.fixture
def declare(layout: Layout) -> Callable[..., None]:
    def declare(**keys: Any) -> None:
        write_record(layout, Record("web", "/f", workspace(**keys), "image-1", 0x7000_0000, "0" * 32))

    return declare


@pytest.fixture
def record(layout: Layout) -> Callable[..., None]:
    """Writes as the egress proxy does."""

    def record(*events: EgressEvent) -> None:
        layout.egress_records("web").mkdir(exist_ok=True, parents=True)
        journal = Journal(kept_in(layout.egress).record)
        for event in events:
            journal.note("web", event)
        journal.flush()

    return record


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]


def test_a_table_of_what_happened(hutch: Run, declare: Callable[..., None], record: Callable[..., None]) -> None:
    declare(egress=("example.org",))
    record(ASKED, REACHED, PINGED, LOST)
    record(EgressEvent(**{**vars(REACHED), "time": 1004.0, "count": 2}))
    result = hutch("egress", "web")
    assert (result.code, result.err) == (0, "")
    assert rows(result.out) == [
        HEADER,
        ["1970-01-01 00:16:40", "refused", "evil.example", "-", "dns", "3", "not listed"],
        ["1970-01-01 00:16:42", "refused", "-", "10.0.0.1", "icmp", "1", "a private network"],
        ["1970-01-01 00:16:43", "lost", "-", "-", "-", "12", "more than could be heard"],
        ["1970-01-01 00:16:44", "learned", "api.example.org", "203.0.113.5", "443/tcp", "3", "not listed"],
    ]


def test_as_json(hutch: Run, declare: Callable[..., None], record: Callable[..., None]) -> None:
    declare(egress="none")
    assert hutch("egress", "web", "--json").out == "[]\n"
    record(REACHED)
    record(EgressEvent(**{**vars(REACHED), "time": 1004.0, "count": 2}))
    (entry,) = json.loads(hutch("egress", "--json", "web").out)
    assert entry == {
        "time": "1970-01-01T00:16:44.000+00:00",
        "first": "1970-01-01T00:16:41.500+00:00",
        "what": "connection",
        "verdict": "learned",
        "name": "api.example.org",
        "address": "203.0.113.5",
        "port": 443,
        "protocol": "tcp",
        "count": 3,
        "why": "not listed",
    }


def test_nothing_happened(hutch: Run, declare: Callable[..., None]) -> None:
    declare(egress="none")
    result = hutch("egress", "web")
    assert (rows(result.out), result.err) == ([HEADER], "")
    assert hutch("egress", "web", "--suggest").out == "# nothing has been recorded yet\negress = []\n"


@pytest.mark.parametrize("policy", ["internet", "all"])
@pytest.mark.parametrize(
    ("options", "out"), [([], ""), (["--json"], "[]\n"), (["-f"], ""), (["--suggest"], "")], ids=str
)
def test_who_is_not_watched(
    policy: str, options: list[str], out: str, hutch: Run, declare: Callable[..., None]
) -> None:
    declare(egress=policy)
    result = hutch("egress", "web", *options)
    assert (result.code, result.out) == (0, out)
    assert result.err == (
        "hutch: web: nothing is recorded with this policy; `learn = true` beside `egress` records, and lets pass\n"
    )


def test_what_was_recorded_is_shown(hutch: Run, declare: Callable[..., None], record: Callable[..., None]) -> None:
    declare(egress="internet")
    record(REACHED)
    assert len(rows(hutch("egress", "web").out)) == 2
    assert "api.example.org:443" in hutch("egress", "web", "--suggest").out


def test_a_list_to_paste(hutch: Run, declare: Callable[..., None], record: Callable[..., None]) -> None:
    declare(egress=("example.org",), learn=True)
    record(ASKED, REACHED, PINGED, LOST)
    result = hutch("egress", "web", "--suggest")
    assert tomllib.loads(result.out) == {"egress": ["example.org", "evil.example", "api.example.org:443"]}
    assert "names are chosen by whoever works in web" in result.err
    assert hutch("-q", "egress", "web", "--suggest").err == ""


@pytest.mark.parametrize("options", [["--suggest", "-f"], ["--suggest", "--json"]])
def test_a_list_is_neither_followed_nor_json(options: list[str], hutch: Run) -> None:
    result = hutch("egress", "web", *options)
    assert (result.code, result.out) == (2, "")
    assert "--suggest goes without -f and --json" in result.err


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Does one thing each time that a follower waits, and then has the person at the terminal press Ctrl-C."""

    def meanwhile(*steps: Callable[[], None]) -> None:
        left = iter(steps)

        def sleep(_: float) -> None:
            step = next(left, None)
            if step is None:
                raise KeyboardInterrupt
            step()

        monkeypatch.setattr("time.sleep", sleep)

    return meanwhile


@pytest.mark.parametrize("on_terminal", [False, True])
def test_as_it_happens(
    on_terminal: bool,
    hutch: Run,
    declare: Callable[..., None],
    record: Callable[..., None],
    meanwhile: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    declare(egress="none")
    record(ASKED)
    record(ASKED)
    meanwhile(lambda: None, lambda: record(REACHED, PINGED), lambda: record(ASKED))
    if on_terminal:
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    result = hutch("egress", "web", *([] if on_terminal else ["-f"]))
    assert (result.code, result.err) == (0, "")
    assert [[row[1], row[-2]] for row in rows(result.out)] == [
        ["VERDICT", "COUNT"],
        ["refused", "6"],  # so far, as one
        ["learned", "1"],
        ["refused", "1"],
        ["refused", "3"],
    ]
    header, *lines = result.out.splitlines()
    assert [line[header.index("COUNT") :].split()[0] for line in lines] == ["6", "1", "1", "3"]  # in their columns


def test_json_as_it_happens(
    hutch: Run, declare: Callable[..., None], record: Callable[..., None], meanwhile: Callable[..., None]
) -> None:
    declare(egress="none")
    record(ASKED)
    meanwhile(lambda: record(REACHED))
    found = [json.loads(line) for line in hutch("egress", "web", "--json", "-f").out.splitlines()]
    assert [entry["name"] for entry in found] == ["evil.example", "api.example.org"]
    assert found[0].keys() == found[1].keys()


def test_no_file_drives_the_terminal(hutch: Run, declare: Callable[..., None], layout: Layout) -> None:
    """Not even one that the egress proxy wrote who was taken over."""
    declare(egress="none")
    file = layout.egress_records("web") / "records.jsonl"
    file.parent.mkdir(parents=True)
    hostile = [
        {**vars(ASKED), key: value}
        for key, value in (("name", "\x1b[2J"), ("why", "\x9b"), ("protocol", "\x07"), ("address", "\u202e"))
    ]
    long = {**vars(ASKED), "name": "a" * 255}
    lines = [json.dumps(values).encode() for values in (*hostile, long)]
    file.write_bytes(b"\n".join([*lines, b"\x1b]0;x\x07", b""]))
    for options in ([], ["--json"], ["--suggest"]):
        result = hutch("egress", "web", *options)
        assert result.code == 0
        assert (result.out + result.err).replace("\n", "").replace("…", "").isascii()
        assert (result.out + result.err).replace("\n", "").isprintable()
    assert len(rows(hutch("egress", "web").out)) == 2
    assert max(map(len, hutch("egress", "web").out.splitlines())) < 130
    file.unlink()
    file.symlink_to("/etc/shadow")
    result = hutch("egress", "web")
    assert (result.code, result.out) == (1, "")
    assert "records.jsonl is not a file of hutch's" in result.err
