"""What is printed: tables, plans, lists; and that nothing of a guest's or a stranger's drives the terminal."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.api.describing import describe
from hutch.cli.common import print_table, printable
from hutch.cli.declare import explain_action, print_plan, shown, shown_pair
from hutch.cli.show import absent, show_state, with_kept
from hutch.files import read_or_none
from hutch.plan.actions import Action, Change, Kind, Plan
from hutch.plan.planner import LEARNS
from hutch.spec.model import Idle, Mount, Publish
from hutch.spec.names import Layout
from hutch.spec.record import Age, Booted, Observation, Record
from hutch.state import AGES, WORKSPACE, copy_of, encode, write_ages, write_record
from tests.support.statuses import write_status
from tests.unit.cli.conftest import Run
from tests.unit.facts import KEY, NETWORK, workspace

CONTRACT = (
    "name type engine state ip mac cid image home hypervisor accelerator pid ready_seconds start_kind pending file"
).split()
RECORD = Record("web", "/srv/hutch.toml", workspace(), "image-1", 0x7000_0000, "0" * 32)


# Text.


def test_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NAME", "X"), [("a", "1"), ("longer", ""), ("b", "3")])
    assert capsys.readouterr().out == "NAME    X\na       1\nlonger\nb       3\n"


def test_a_table_without_rows(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NAME", "X"), [])
    assert capsys.readouterr().out == "NAME  X\n"


@pytest.mark.parametrize(
    ("text", "shows"),
    [
        ("plain é漢\n\ttab", "plain é漢\n\ttab"),
        ("\x1b[31m\a\r\x7f", "�[31m���"),
        ("\x9b2J\u202e\udcff", "�2J��"),
    ],
)
def test_printable(text: str, shows: str) -> None:
    assert printable(text) == shows


@given(st.text())
def test_nothing_drives_the_terminal(text: str) -> None:
    for safe in (printable(text), shown(text)):
        assert all(character.isprintable() or character in "\n\t" for character in safe)
    assert "\n" not in shown(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "unset"),
        ("", '""'),
        ("text", "text"),
        ("two\nlines", "two⏎lines"),
        (2, "2"),
        (False, "false"),
        ([], "none"),
        (["a", "é"], "a, é"),
        ({"host_port": 80}, '{"host_port": 80}'),
        ("x" * 70, "x" * 70),
        ("x" * 71, "x" * 67 + "…"),
    ],
)
def test_shown(value: Any, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("memory", 2 << 30, "2GiB"),
        ("memory", 1100 << 20, "1100MiB"),
        ("disk", 1 << 50, "1024TiB"),
        ("disk", 1, "1"),
        ("vcpus", 1 << 10, "1024"),
        ("publish", [asdict(Publish("", 80, 8080, "tcp"))], "80:8080"),
        ("publish", [asdict(Publish("127.0.0.1", 53, 5353, "udp"))], "127.0.0.1:53:5353/udp"),
        (
            "mounts",
            [
                asdict(Mount("/a b", "/src")),
                asdict(Mount("/c", "/d", readonly=True)),
                asdict(Mount("/e", "/f", mode="private")),
            ],
            "/a b on /src, /c on /d, readonly, /e on /f, private",
        ),
        ("env", [["A", "b c"], ["C", ""]], "A=b c, C="),
        ("idle", asdict(Idle("30min", "stop")), "stop after 30min"),
        ("authorized_keys", [f"{KEY} alice@host", KEY], "ssh-ed25519 …AQEBAQEB alice@host, ssh-ed25519 …AQEBAQEB"),
    ],
)
def test_values_are_shown_as_they_are_written(key: str, value: Any, text: str) -> None:
    assert shown(value, key) == text


def test_what_differs_looks_different() -> None:
    long = [f"package-{number}" for number in range(20)]
    old, new = shown_pair("packages", long, [*long[:-1], "other"])
    assert old != new and new.endswith(", other")
    assert shown_pair("packages", long, ["other"]) == (shown(long), "other")


def test_what_is_kept_is_listed_beside_what_is_there() -> None:
    kept = {
        "name": "old",
        "type": "vm",
        "ip": "192.168.83.9",
        "home": "/h",
        "file": "/f",
        "removed": None,
        "size": None,
    }
    there = [absent("new", "container", "/f"), absent("old", "vm", "/f")]  # the file declares that one too
    entries = with_kept(
        there, [kept, {**kept, "name": "older", "removed": "2026-11-28T23:00:00+00:00", "size": 3 << 20}]
    )
    assert [entry["name"] for entry in entries] == ["new", "old", "older"]
    assert len({tuple(sorted(entry)) for entry in entries}) == 1
    assert list(map(show_state, entries)) == ["absent", "removed", "removed 2026-11-28 (3 MiB kept)"]


# Plans.

MEMORY = Change("memory", None, 1 << 30, "restart")


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("restart", "memory: unset → 1GiB (restart)"),
        ("live", "memory: unset → 1GiB (restart)"),
        ("start", "memory: unset → 1GiB"),
        ("create", "memory: unset → 1GiB"),
    ],
)
def test_explain_action(kind: Kind, line: str) -> None:
    assert explain_action(Action("web", kind, (MEMORY,))) == [line]
    assert explain_action(Action("web", kind, (), ("mind",))) == ["note: mind"]


def test_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    actions = (Action("web", "restart", (MEMORY,), ("mind",)), Action("longer", "no change"))
    print_plan(Plan("/f", NETWORK, actions))
    assert capsys.readouterr().out == (
        "web     restart\n          memory: unset → 1GiB (restart)\n          note: mind\nlonger  no change\n"
    )
    print_plan(Plan("/f", NETWORK, ()), err=True)
    assert capsys.readouterr().err == "the file declares no workspace\n"


# ls and status.


def test_status_has_what_the_contract_names() -> None:
    entry = describe(RECORD, Observation("running", 7, 5.0, 0.4))
    assert list(entry) == list(dict.fromkeys([*CONTRACT[:8], *entry]))
    assert set(CONTRACT) <= entry.keys() == absent("web", "vm", "").keys()
    assert (entry["cid"], entry["pending"], entry["state"]) == (None, "none", "running")


def test_updates_that_wait_are_told(layout: Layout, hutch: Run) -> None:
    write_record(layout, RECORD)
    layout.images.mkdir()
    day, later = "2026-11-01T12:00:00+00:00", "2026-11-27T12:00:00+00:00"
    told = {"image_created": day, "updates": 2, "updates_asked": later}
    for number, packages in ((0, ()), (1, ("bash",)), (2, ("bash", "less"))):
        write_ages(layout, {"image-1": Age(day, later, packages)})
        words = ("", " (1 security update)", " (2 security updates)")[number]
        assert hutch("ls").out.splitlines()[1].endswith(f"  debian:trixie{words}  -")
    (entry,) = json.loads(hutch("ls", "--json").out)
    assert entry == {**entry, **told}
    assert entry["warnings"] == [
        "image: 2 security updates waiting (asked 2026-11-27); `hutch image refresh` makes it anew"
    ]
    for damaged in (b"", b"{", encode(AGES, {"image-1": {}}), encode(AGES, {"image-1": []})):
        layout.ages.write_bytes(damaged)
        (entry,) = json.loads(hutch("ls", "--json").out)
        assert entry == {**entry, **dict.fromkeys(told)}


@pytest.mark.parametrize("user", [0, 1000])
def test_ls_reads_each_file_once(user: int, layout: Layout, hutch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    age, facts, reads = Age("2026-11-01T12:00:00+00:00"), {"accelerator": "tcg"}, Counter[Path]()
    for name in ("one", "two"):
        record = Record(name, "/f", workspace(name, type="vm"), "image-1", 0, "0").with_booted()
        write_record(layout, record)
        write_status(layout, name, "running")
        layout.user_view(name).parent.mkdir(exist_ok=True)
        view = {**asdict(record), "facts": facts, "ages": {"image-1": asdict(age)}}
        layout.user_view(name).write_bytes(encode(WORKSPACE, view))
    write_ages(layout, {"image-1": age})

    def read(path: Path) -> bytes | None:
        reads[path] += 1
        return read_or_none(path)

    monkeypatch.setattr("os.geteuid", lambda: user)
    for module in ("state", "host.identity.user_view"):
        monkeypatch.setattr(f"hutch.{module}.read_or_none", read)
    told = [(entry["image_created"], entry["accelerator"]) for entry in json.loads(hutch("ls", "--json").out)]
    assert told == [(age.created, facts["accelerator"] if user else None)] * 2
    assert set(reads.values()) == {1}


def test_pending_is_of_what_runs() -> None:
    changed = Record(**{**vars_of(RECORD), "booted": Booted(workspace(user="me"), "image-1")})
    assert describe(changed, Observation("running"))["pending"] == "restart"
    assert describe(changed, Observation("stopped"))["pending"] == "none"


def vars_of(record: Record) -> dict[str, Any]:
    return {name: getattr(record, name) for name in Record.__dataclass_fields__}


@pytest.fixture
def running(layout: Layout) -> Layout:
    write_record(layout, RECORD.with_booted())
    write_record(layout, Record("gone", "/f", workspace("gone"), "image-1", 0, "0", removed=True))
    write_status(layout, "web", "running", ready_seconds=0.417)
    return layout


def test_ls(running: Layout, hutch: Run) -> None:
    Path("hutch.toml").write_text('[workspaces.web]\ntype = "container"\n[workspaces.new]\ntype = "vm"\n')
    result = hutch("ls")
    assert result.code == 0
    assert [line.split("  ") for line in map(squeezed, result.out.splitlines())] == [
        ["NAME", "TYPE", "STATE", "ADDRESS", "EGRESS", "IMAGE", "READY IN"],
        ["web", "container", "running", "192.168.83.2", "internet", "debian:trixie", "0.42 s"],
        ["new", "vm", "absent", "-", "-", "-", "-"],
    ]
    assert [entry["name"] for entry in json.loads(hutch("ls", "--json").out)] == ["web", "new"]


def test_ls_tells_members_where_somebody_is_on_a_cluster(
    running: Layout, hutch: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = {"web": Observation("running", member="m2")}
    monkeypatch.setattr("hutch.api.engine.observe_all", lambda layout, records: seen)
    assert [line.split("  ")[2:5] for line in map(squeezed, hutch("ls").out.splitlines())] == [
        ["STATE", "MEMBER", "ADDRESS"],
        ["running", "m2", "192.168.83.2"],
    ]


def test_ls_takes_the_file_that_up_would_take(hutch: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {name: tmp_path / f"{name}.toml" for name in ("system", "variable", "option")}
    for name, file in files.items():
        file.write_text(f'[defaults]\ntype = "vm"\n[workspaces.{name}]\n[workspaces.b]\ntype = "container"\n')
    monkeypatch.setattr("hutch.spec.lookup.SYSTEM_FILE", files["system"])
    assert [(e["name"], e["type"]) for e in json.loads(hutch("ls", "--json").out)] == [
        ("system", "vm"),
        ("b", "container"),
    ]
    Path("hutch.toml").write_text("[workspaces.here]\n")
    (entry,) = json.loads(hutch("ls", "--json").out)
    assert (entry["name"], entry["type"], entry["file"]) == ("here", None, os.path.realpath("hutch.toml"))
    assert "None" not in hutch("ls").out + hutch("status").out
    monkeypatch.setenv("HUTCH_FILE", str(files["variable"]))
    assert "variable" in hutch("ls").out
    assert "option" in hutch("ls", "-f", str(files["option"])).out


@pytest.mark.parametrize("command", ["ls", "status"])
def test_a_named_file_must_be_there(command: str, hutch: Run) -> None:
    result = hutch(command, "-f", "nosuch.toml")
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("hutch: nosuch.toml: there is no such file\n")


@pytest.mark.parametrize("command", ["ls", "status"])
def test_who_only_learns_is_told_loudly(command: str, layout: Layout, hutch: Run) -> None:
    listed = workspace(egress=("a.example", "b.example:443"))
    write_record(layout, Record(**{**vars_of(RECORD), "wanted": listed}))
    learning = workspace("lab", egress="none", learn=True)
    write_record(layout, Record(**{**vars_of(RECORD), "name": "lab", "wanted": learning}))
    result = hutch("-q", command)
    assert result.err == f"hutch: warning: lab: {LEARNS}\n"
    if command == "ls":
        column = [squeezed(line).split("  ")[4] for line in result.out.splitlines()]
        assert column == ["EGRESS", "none (LEARNING)", "list"]
    entries = {entry["name"]: entry for entry in json.loads(hutch(command, "--json").out)}
    assert (entries["web"]["egress"], entries["web"]["learn"]) == (["a.example", "b.example:443"], False)
    assert (entries["lab"]["egress"], entries["lab"]["learn"]) == ("none", True)


def squeezed(line: str) -> str:
    while "   " in line:
        line = line.replace("   ", "  ")
    return line


def test_status(running: Layout, hutch: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hutch.apply.inspecting.warnings_of", lambda *known: {"web": ["one", "two"]})
    (entry,) = json.loads(hutch("status", "web", "--json").out)
    assert entry["pid"] == os.getpid()
    text = hutch("status").out
    assert "autostart  false\n" in text
    assert "          name  web\n" in text
    assert "      warnings  one\n      warnings  two\n" in text
    assert "None" not in text
    assert hutch("status", "gone").code == 2


def test_status_shows_what_is_shared_and_published(layout: Layout, hutch: Run) -> None:
    mounts = (Mount("/srv/a", "/a"), Mount("/srv/b", "/b", readonly=True))
    shared = workspace(mounts=mounts, publish=(Publish("127.0.0.1", 8080, 80, "tcp"), Publish("", 53, 53, "udp")))
    write_record(layout, Record("web", "/f", shared, "image-1", 0x7000_0000, "0" * 32))
    text = hutch("status", "web").out
    assert "       publish  127.0.0.1:8080:80\n       publish  53:53/udp\n" in text
    assert "        mounts  /srv/a on /a\n        mounts  /srv/b on /b, read-only\n" in text


def test_nothing_is_there(hutch: Run) -> None:
    assert hutch("ls").out == "NAME  TYPE  STATE  ADDRESS  EGRESS  IMAGE  READY IN\n"
    assert json.loads(hutch("status", "--json").out) == []
    assert hutch("status").out == ""


@pytest.mark.parametrize(
    "content", [b"", b"[", b"\xff", b"workspaces = 1", b"workspaces = [1]", b"[workspaces]\nweb = 1", b"[[workspaces]]"]
)
def test_a_broken_file_does_not_hide_what_runs(content: bytes, running: Layout, hutch: Run) -> None:
    Path("hutch.toml").write_bytes(content)
    result = hutch("ls")
    assert (result.code, result.err) == (0, "")
    assert "web  " in result.out


def test_a_strangers_file_does_not_drive_the_terminal(hutch: Run) -> None:
    Path("hutch.toml").write_text('[workspaces."\\u001b[2J"]\ntype = "vm"\n[workspaces.x]\ntype = "\\u001b[31m"\n')
    for command in ("ls", "status"):
        result = hutch(command)
        assert result.code == 0
        assert "\x1b" not in result.out
        assert "x" in result.out


def test_a_damaged_record_is_told(running: Layout, hutch: Run) -> None:
    running.record("web").write_bytes(b"{")
    for command in (["ls"], ["status"], ["explain", "web"]):
        assert "`hutch up` rebuilds it from its copy" in hutch(*command).err
    copy_of(running.record("web")).unlink()
    for command in (["ls"], ["status"], ["start", "web"], ["stop", "web"], ["rm", "web"]):
        result = hutch(*command)
        assert (result.code, result.out) == (1, ""), command
        assert "is damaged" in result.err
        assert "Traceback" not in result.err


def test_no_images(hutch: Run) -> None:
    assert hutch("image", "ls").out == "ID  IMAGE  SIZE  BUILT  UPDATES  USED BY\n"
    assert json.loads(hutch("image", "ls", "--json").out) == []
    assert hutch("image", "rm", "debian-trixie-0123456789ab").code == 1
