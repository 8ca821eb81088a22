"""`hutch approvals`, `allow` and `deny`, where no workspace runs: what is listed, put on record, refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from hutch.egress.journal import Journal
from hutch.egress.record import NOT_LISTED, EgressEvent
from hutch.spec.decisions import MOST
from hutch.spec.names import Layout
from hutch.spec.record import Decision, Record
from hutch.state import read_record, write_record
from tests.support.keeping import kept_in
from tests.unit.cli.conftest import Run
from tests.unit.cli.test_egress import rows
from tests.unit.facts import workspace

ASKED = EgressEvent(1000.0, "dns", "refused", "pkg.example.net", count=3, why=NOT_LISTED)
REACHED = EgressEvent(1001.0, "connection", "refused", None, "203.0.113.5", 443, "tcp", why=NOT_LISTED)
HEADER = ["LAST", "WORKSPACE", "NAME", "PORT", "COUNT", "TO OPEN IT"]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.localtime", __import__("time").gmtime)
    monkeypatch.setattr("hutch.apply.reconcile.reconcile_user_views", lambda *_: None)


@pytest.fixture
def declare(layout: Layout) -> Callable[..., None]:
    def declare(name: str = "web", *decisions: Decision, **keys: Any) -> None:
        wanted = workspace(name, **{"egress": ("example.org",), **keys})
        write_record(layout, Record(name, "/f", wanted, "image-1", 0x7000_0000, "0" * 32, decisions=decisions))

    return declare


@pytest.fixture
def record(layout: Layout) -> Callable[..., None]:
    """Writes as the egress proxy does."""

    def record(name: str, *events: EgressEvent) -> None:
        layout.egress_records(name).mkdir(exist_ok=True, parents=True)
        journal = Journal(kept_in(layout.egress).record)
        for event in events:
            journal.note(name, event)
        journal.flush()

    return record


def decisions(layout: Layout, name: str = "web") -> list[tuple[str, bool, bool]]:
    found = read_record(layout, name)
    assert found is not None
    return [(each.host, each.is_allowed, each.until is None) for each in found.decisions]


def test_what_was_refused_is_listed_with_the_way(
    hutch: Run, declare: Callable[..., None], record: Callable[..., None]
) -> None:
    declare()
    declare("lab", egress="none", ip="192.168.83.9")
    declare("free", egress="internet", ip="192.168.83.10")
    record("web", ASKED, REACHED)
    record("lab", *(EgressEvent(5.0, "dns", "refused", f"x{n}.evil.example", why=NOT_LISTED) for n in range(9)))
    result = hutch("approvals")
    assert (result.code, result.err) == (0, "")
    web = [
        ["1970-01-01 00:16:40", "web", "pkg.example.net", "-", "3", "hutch allow web pkg.example.net"],
        ["1970-01-01 00:16:41", "web", "203.0.113.5", "443", "1", '"203.0.113.5/32" in egress of hutch.toml'],
    ]
    flood = ["1970-01-01 00:00:05", "lab", "*.evil.example (9 names)", "-", "9"]
    assert rows(result.out) == [HEADER, [*flood, "look at them first: hutch egress lab"], *web]
    assert rows(hutch("approvals", "web").out) == [HEADER, *web]
    assert [entry["host"] for entry in json.loads(hutch("approvals", "--json", "web").out)] == [
        "pkg.example.net",
        "203.0.113.5",
    ]


def test_allow_is_put_on_record_and_shown(
    hutch: Run, declare: Callable[..., None], record: Callable[..., None], layout: Layout
) -> None:
    declare()
    record("web", ASKED)
    result = hutch("allow", "web", "PKG.Example.net")
    assert (result.code, result.out) == (0, "")
    assert "web: open: pkg.example.net\n" in result.err
    assert 'add "pkg.example.net" to egress in /' in result.err
    assert decisions(layout) == [("pkg.example.net", True, True)]
    (entry,) = json.loads(hutch("status", "--json").out)
    assert entry["allowed"] == ["pkg.example.net"]
    assert "allowed  pkg.example.net\n" in hutch("status").out
    assert rows(hutch("approvals").out) == [HEADER]
    assert '    "example.org",\n    "pkg.example.net",\n]' in hutch("egress", "web", "--suggest").out


def test_allow_for_a_while(hutch: Run, declare: Callable[..., None], layout: Layout) -> None:
    declare()
    assert " until 20" in hutch("allow", "web", "pkg.example.net:443", "--for", "30min").err
    assert decisions(layout) == [("pkg.example.net:443", True, False)]
    assert "pkg" not in hutch("egress", "web", "--suggest").out


def test_deny_closes_and_is_remembered(
    hutch: Run, declare: Callable[..., None], record: Callable[..., None], layout: Layout
) -> None:
    declare()
    record("web", ASKED)
    hutch("allow", "web", "pkg.example.net:443")
    assert hutch("deny", "web", "pkg.example.net").err == "web: closed: pkg.example.net\n"
    assert decisions(layout) == [("pkg.example.net", False, True)]
    listed = hutch("approvals", "web")
    assert rows(listed.out) == [HEADER]
    assert "1 more" in listed.err
    assert rows(hutch("approvals", "web", "--all").out)[1][-1] == "denied"
    suggested = hutch("egress", "web", "--suggest").out
    assert "# left out, denied by a person: pkg.example.net" in suggested
    assert '"pkg' not in suggested
    hutch("allow", "web", "pkg.example.net")
    assert decisions(layout) == [("pkg.example.net", True, True)]


@pytest.mark.parametrize(
    ("words", "keys", "code", "said"),
    [
        (("allow", "web", "10.0.0.1"), {}, 2, "is an address"),
        (("allow", "web", "10.0.0.0/8"), {}, 2, "is an address"),
        (("allow", "web", "localhost"), {}, 2, "has no dot"),
        (("allow", "web", "\x1b[2J.example"), {}, 2, "cannot be printed"),
        (("allow", "web", "a.example", "--for", "soon"), {}, 2, "is not a duration"),
        (("deny", "web", "a.example:443"), {}, 2, "leave the port out"),
        (("allow", "nobody", "a.example"), {}, 2, "there is no workspace nobody"),
        (("allow", "web", "a.example"), {"egress": "internet"}, 2, "nothing is refused by name"),
        (("allow", "web", "a.example"), {"egress": "all", "learn": True}, 2, "nothing is refused by name"),
        (("deny", "web", "a.example"), {"egress": "internet"}, 2, "nothing is refused by name"),
        (("approvals", "web"), {"egress": "internet"}, 2, "nothing is refused by name"),
        (("deny", "web", "example.org"), {}, 1, "itself opens example.org"),
        (("allow", "web", "example.org:80"), {}, 0, "lists example.org:80 already"),
    ],
)
def test_what_is_refused_changes_nothing(
    hutch: Run,
    declare: Callable[..., None],
    layout: Layout,
    words: tuple[str, ...],
    keys: dict[str, Any],
    code: int,
    said: str,
) -> None:
    declare(**keys)
    result = hutch(*words)
    assert result.code == code
    assert said in result.err
    assert result.err.replace("\n", "").isprintable()
    assert decisions(layout) == []


def test_decisions_are_bounded(hutch: Run, declare: Callable[..., None], layout: Layout) -> None:
    declare("web", *(Decision(f"x{number}.example", True, 1.0) for number in range(MOST)))
    result = hutch("allow", "web", "one-more.example")
    assert result.code == 1
    assert "--suggest" in result.err
    assert len(decisions(layout)) == MOST


def test_nobody_but_root_decides(hutch: Run, not_root: None) -> None:
    for words in (("allow", "web", "a.example"), ("deny", "web", "a.example")):
        assert "root" in hutch(*words).err


def test_no_record_drives_the_terminal(hutch: Run, declare: Callable[..., None], layout: Layout) -> None:
    declare()
    file = layout.egress_records("web") / "records.jsonl"
    file.parent.mkdir(parents=True)
    hostile = [
        {**vars(ASKED), "name": name} for name in ("\x1b[2J.example", "a\nb.example", "$(id).example", "a" * 255)
    ]
    file.write_text("".join(json.dumps(values) + "\n" for values in hostile))
    for options in ([], ["--json"], ["--all"]):
        result = hutch("approvals", *options)
        assert result.code == 0
        assert (result.out + result.err).replace("\n", "").isprintable()
    assert rows(hutch("approvals").out) == [HEADER]
