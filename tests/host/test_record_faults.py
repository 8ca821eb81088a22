"""The files of a record when its writer is killed, its disk is full, or somebody else changes them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from hutch.audit import chain, inbox, writing
from hutch.audit.events import Entry
from hutch.audit.reading import damages, files_of, read_head, read_record
from hutch.audit.telling import begin, inboxes_lock, make_inbox, tell
from hutch.audit.writing import record
from hutch.files import held
from hutch.inboxes import HEADING, append
from hutch.spec.names import Layout
from tests.support.faulty import Striker

ANN = 41_999  # an account of nobody's
STARTED = {"start_kind": "cold", "seconds": 1.0}
TOLD = '{"state": "%s", "by": null, "boot": "%s", "at": %d, "ran": 5, "ready_seconds": 0.9, "reason": "", '
TOLD += '"memory_peak": null, "cpu_usec": 50000, "tasks_peak": 7}\n'


@pytest.fixture
def layout() -> Iterator[Layout]:
    """A hutch of files alone, in a directory of root's."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="hutch-record-") as directory:
        made = Layout(Path(directory, "state"), Path(directory, "run"))
        for name in ("web", "lab"):
            made.workspace(name).mkdir(parents=True)
        made.run.mkdir()
        yield made


def write(layout: Layout, count: int = 1, name: str = "web", warned: list[str] | None = None) -> bool:
    entries = [Entry(time.time(), "started", "ann", STARTED)] * count
    return record(layout, name, entries, lambda _, text: None if warned is None else warned.append(text))


def kinds(layout: Layout, name: str = "web") -> list[str]:
    return [line.entry.event for line in read_record(layout, name)]


def cuts(layout: Layout, name: str = "web") -> list[tuple[str, int]]:
    found = [line.entry.values for line in read_record(layout, name) if line.entry.event == "cut"]
    return [(values["why"], values["count"]) for values in found]


def told(layout: Layout, name: str = "web") -> list[str]:
    return [str(damage) for damage in damages(layout, name)]


# Kills, and a disk that fails.


def prepare(layout: Layout, name: str = "web") -> None:
    """A record of a few lines, and something in each inbox."""
    write(layout, 3, name)
    make_inbox(layout, name, ANN)
    with (layout.inboxes(name) / str(ANN)).open("a") as file:
        for number in range(3):
            values = {"session": f"{number:016x}", "argv": ["make"], "root": False}
            file.write(json.dumps({"time": f"2026-11-28T12:00:0{number}.000Z", "event": "exec", **values}) + "\n")
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    layout.audit_ends(name).write_text(
        "".join(TOLD % (state, boot, at) for at, state in enumerate(("running", "failed")))
    )


def work(layout: Layout) -> None:
    inbox.fold(layout, "web")
    write(layout, 2)


def struck(layout: Layout, how: str, number: int, work: Callable[[Layout], None]) -> bool:
    """Do the work in a process of its own, with one fault in it. Returns whether there was one."""
    report = layout.run.parent / "report"
    report.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            striker = Striker(how, number, os.open(report, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
            os.write = striker.wrap(os.write, "os.write", is_write=True)
            os.fdatasync = striker.wrap(os.fdatasync, "os.fdatasync", is_write=True)
            sys.addaudithook(striker.hook)
            work(layout)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    if how == "kill" and os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert status == 0, report.read_text()
    return number <= len(report.read_text().splitlines())


@pytest.mark.parametrize("how", ["kill", "ENOSPC", "EIO"])
def test_a_fault_at_any_write(layout: Layout, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No line is lost that was there, none comes twice, and nothing counts as damage, whatever has happened."""
    monkeypatch.setattr(writing, "LARGEST", 900)  # so that a new file begins on the way
    for number in range(1, 200):
        shutil.rmtree(layout.state)
        layout.workspace("web").mkdir(parents=True)
        prepare(layout)
        if not struck(layout, how, number, work):
            break
        assert told(layout) == [], number
        before = kinds(layout)
        assert before[:3] == ["started"] * 3
        work(layout)
        found = kinds(layout)
        assert told(layout) == [], number
        assert found[: len(before)] == before, number
        assert found.count("exec") == 3 and found.count("failed") == 1, (number, found)
        assert not list(layout.inboxes("web").glob("*.folding"))
        counted, started = sum(count for _, count in cuts(layout)), found.count("started")
        # Before it 3, and 1 that the service told; 2 of the work that was struck, and 2 of the one after it.
        assert 6 <= started <= 8 if how == "kill" else (started, counted) in ((8, 0), (6, 2)), number
    assert 10 < number < 199


def test_a_full_disk_keeps_nothing_from_happening_and_what_is_missing_is_told(layout: Layout) -> None:
    layout.audits.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "hutch-test", layout.audits], check=True, timeout=10)
    warned: list[str] = []
    try:
        count = next(n for n in range(1000) if not write(layout, warned=warned))
        assert count > 10
        assert not write(layout, 2, warned=warned)
        assert [text.split(";")[0] for text in warned] == [
            "its record could not be written: No space left on device"
        ] * 2
        assert told(layout) == []
        assert kinds(layout) == ["started"] * count
        subprocess.run(["mount", "-o", "remount,size=64k", layout.audits], check=True, timeout=10)
        assert write(layout)
        assert kinds(layout) == [*["started"] * count, "cut", "started"]
        assert cuts(layout) == [("they could not be written", 3)]
        assert told(layout) == []
        assert not (layout.run / "recording").exists()
    finally:
        subprocess.run(["umount", layout.audits], check=True, timeout=10)


def test_it_keeps_what_it_promises_and_drops_what_is_older(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "LARGEST", 1000)
    for _ in range(40):
        write(layout, 2)
    files = files_of(layout, "web")
    older = [f"web.jsonl.{number}" for number in range(8, 0, -1)]
    assert [path.name for path in files if path.name != "web.jsonl"] == older
    head = read_head(layout, "web")
    assert head is not None and head.seq == 80 and head.first > 1
    assert told(layout) == []
    files[0].unlink()
    assert "missing before it" in told(layout)[0]


# Damage.


def change_a_byte(layout: Layout) -> None:
    path = layout.audit("web")
    path.write_bytes(path.read_bytes().replace(b'"seconds":1.0', b'"seconds":2.0', 1))


def cut_the_tail(layout: Layout) -> None:
    path = layout.audit("web")
    os.truncate(path, path.stat().st_size - 20)


def take_lines_away(layout: Layout) -> None:
    path = layout.audit("web")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2] + lines[4:]))


def swap(layout: Layout) -> None:
    write(layout, 9, "lab")
    path, other = layout.audit("web"), layout.audit("lab")
    path.rename(path.with_name("aside"))
    other.rename(path)
    path.with_name("aside").rename(other)


def go_back(layout: Layout) -> None:
    """An older state of the very same file."""
    path = layout.audit("web")
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))


def write_anew(layout: Layout) -> None:
    """Another record that is whole in itself."""
    link, lines = chain.GENESIS, list[bytes]()
    for _ in range(6):
        line, link = chain.chained(link, Entry(5.0, "started", "ann", STARTED), workspace=None if lines else "web")
        lines.append(line)
    layout.audit("web").write_bytes(b"".join(lines))


@pytest.mark.parametrize(
    ("damage", "words", "is_cut"),
    [
        (change_a_byte, "line 1 does not follow from the one before it", False),
        (cut_the_tail, "the line of number 6 is missing at its end", True),
        (take_lines_away, "the lines of numbers 3 to 4 are missing before its line 3", False),
        (swap, "it is the record of lab", True),
        (go_back, "the lines of numbers 4 to 6 are missing at its end", True),
        (write_anew, "is not the one that hutch's state knows by its number", True),
        (lambda layout: layout.audit("web").unlink(), "the lines of numbers 1 to 6 are missing", True),
    ],
)
def test_damage_shows_and_goes_on_to_show(
    layout: Layout, damage: Callable[[Layout], None], words: str, is_cut: bool
) -> None:
    write(layout, 6)
    assert told(layout) == []
    damage(layout)
    assert words in "\n".join(told(layout))
    assert write(layout)
    assert told(layout) != []
    assert bool(cuts(layout)) == is_cut
    before = told(layout)
    write(layout, 2)
    assert told(layout) == before


def test_what_is_no_file_of_roots_is_not_written_to(layout: Layout) -> None:
    layout.audits.mkdir(parents=True)
    target = layout.run / "target"
    target.write_text("")
    for plant in (layout.audit("web").symlink_to, layout.audit("web").hardlink_to):
        plant(target)
        assert not write(layout)
        assert target.read_text() == ""
        layout.audit("web").unlink()


# Inboxes.


def test_two_that_fold_at_once_lose_nothing_and_write_nothing_twice(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second comes while the first has taken the inboxes away and not written yet."""
    prepare(layout)
    second = Thread(target=inbox.fold, args=(layout, "web"))

    def slow(*words: Any, **more: Any) -> bool:
        monkeypatch.setattr(inbox, "record", record)
        second.start()
        second.join(0.3)
        return record(*words, **more)

    monkeypatch.setattr(inbox, "record", slow)
    inbox.fold(layout, "web")
    second.join(10)
    assert sorted(kinds(layout)) == ["exec"] * 3 + ["failed"] + ["started"] * 4
    assert sorted(os.listdir(layout.inboxes("web"))) == [str(ANN)]


def test_root_makes_no_inbox_over_one_that_is_being_made(layout: Layout) -> None:
    entry = Entry(time.time(), "exec", "ann", {"session": "0" * 16, "argv": [], "root": True})
    telling = Thread(target=tell, args=(layout, "web", entry))
    with held(inboxes_lock(layout, "web")):
        telling.start()
        telling.join(0.3)
        assert not (layout.inboxes("web") / "0").exists()
    telling.join(10)
    inbox.fold(layout, "web")
    assert kinds(layout) == ["exec"]


def test_an_account_that_left_waits_behind_what_it_told_before(layout: Layout) -> None:
    prepare(layout)
    box = layout.inboxes("web") / str(ANN)
    box.rename(box.with_name(f"{ANN}.folding"))
    make_inbox(layout, "web", ANN)
    inbox.ensure_inboxes(layout, "web", ())
    assert sorted(os.listdir(box.parent)) == [str(ANN), f"{ANN}.folding", "service"]
    inbox.fold(layout, "web")
    inbox.ensure_inboxes(layout, "web", ())
    assert kinds(layout).count("exec") == 3
    assert not box.exists()


def test_a_clock_that_was_set_brings_nothing_twice(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was killed once the lines were there has them told again by files that say the same as before."""
    prepare(layout)
    box = layout.inboxes("web")
    with (box / str(ANN)).open("a") as file:
        file.write("no event\n")
    monkeypatch.setattr(inbox, "remove_tree", lambda path: None)
    inbox.fold(layout, "web")
    monkeypatch.undo()
    before = kinds(layout)
    assert before.count("cut") == 1 and len(os.listdir(box)) == 3
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + 7.5)
    inbox.fold(layout, "web")
    assert kinds(layout) == before
    assert os.listdir(box) == [str(ANN)]


def test_a_record_that_is_a_link_holds_nothing_up(layout: Layout) -> None:
    """What is told for it waits, and other records go on."""
    target = layout.run / "target"
    target.write_text("")
    for name in ("lab", "web"):
        layout.record(name).write_text("{}")
        prepare(layout, name)
    content = layout.audit("lab").read_bytes()
    layout.audit("lab").unlink()
    layout.audit("lab").symlink_to(target)
    warned: list[str] = []
    for _ in range(2):
        inbox.fold_all(layout, lambda name, text: warned.append(f"{name}: {text}"))
    assert kinds(layout).count("exec") == 3
    assert target.read_text() == ""
    assert len(warned) == 2 and all(text.startswith("lab: ") for text in warned)
    layout.audit("lab").unlink()
    layout.audit("lab").write_bytes(content)
    inbox.fold(layout, "lab")
    assert kinds(layout, "lab").count("exec") == 3
    assert told(layout, "lab") == []


def test_what_an_account_puts_into_its_inbox_is_what_it_may_tell(layout: Layout) -> None:
    """It can forge nobody, no other event and no chain, hold nothing up, and fill nothing."""
    make_inbox(layout, "web", ANN)
    box = layout.inboxes("web") / str(ANN)
    good = {"time": "2026-11-28T12:00:00.000Z", "event": "exec", "session": "0" * 16, "argv": ["id"], "root": False}
    bad = [{**good, "by": "root"}, {**good, "event": "removed"}, {**good, "seq": 1, "hash": "0" * 64}]
    lines = [json.dumps(line).encode() for line in (*bad, good)]
    box.write_bytes(b"\n".join([(HEADING % 7).encode().rstrip(), *lines, b"\xff" * 90_000, b'{"half']))
    os.chown(box, ANN, ANN)
    began = time.monotonic()
    inbox.fold(layout, "web")
    assert time.monotonic() - began < 2
    entries = [line.entry for line in read_record(layout, "web")]
    assert [(entry.event, entry.by) for entry in entries] == [("exec", str(ANN)), ("cut", str(ANN)), ("cut", str(ANN))]
    assert cuts(layout) == [("they were no events", 5), ("there was no room for them in its inbox", 7)]
    assert told(layout) == []


def test_what_is_no_inbox_is_thrown_away(layout: Layout) -> None:
    make_inbox(layout, "web", ANN)
    directory, secret = layout.inboxes("web"), layout.run / "secret"
    secret.write_text("x" * 500)
    (directory / "1").symlink_to(secret)
    os.mkfifo(directory / "2.folding")
    (directory / "3.folding").mkdir()
    (directory / "4.folding").hardlink_to(secret)
    (directory / "5.folding").symlink_to("/dev/zero")
    with (directory / str(ANN)).open("ab") as file:
        file.truncate(1 << 32)
    began = time.monotonic()
    inbox.fold(layout, "web")
    assert time.monotonic() - began < 2
    assert set(kinds(layout)) == {"cut"}
    assert len(cuts(layout)) == 6
    assert sorted(os.listdir(directory)) == ["1", str(ANN)]
    assert secret.read_text() == "x" * 500
    assert (directory / str(ANN)).stat().st_size < 100


def test_an_inbox_that_is_full_counts(layout: Layout) -> None:
    for _ in range(6000):
        begin(layout, "web", "exec", argv=["make", "all"], root=False)
    inbox.fold(layout, "web")
    assert kinds(layout).count("exec") + cuts(layout)[0][1] == 6000
    assert tell(layout, "web", Entry(time.time(), "exec", "ann", {"session": "0" * 16, "argv": [], "root": True}))
    inbox.fold(layout, "web")
    assert kinds(layout)[-1] == "exec"


def test_what_a_guest_does_by_itself_is_by_nobody(layout: Layout) -> None:
    """The egress proxy tells of it, whose account is none that anybody knows."""
    make_inbox(layout, "web", layout.egress_uid)
    times = dict.fromkeys(("first", "last"), "2026-11-28T12:00:00.000Z")
    about = {"name": "a.example", "address": None, "port": None, "protocol": None, "verdict": "refused", "why": ""}
    body = {"time": "2026-11-28T12:00:00.000Z", "event": "egress", **about, "count": 1, **times}
    append(layout.inboxes("web") / str(layout.egress_uid), f"{json.dumps(body)}\nnonsense\n".encode())
    inbox.fold(layout, "web")
    found = [line.entry for line in read_record(layout, "web")]
    assert {(entry.event, entry.by) for entry in found} == {("egress", None), ("cut", None)}


def test_a_guest_that_floods_pushes_nothing_out(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets its share, and is counted from then on; what people and hutch did before and after is there."""
    monkeypatch.setattr(writing, "LARGEST", 1 << 20)
    times = dict.fromkeys(("first", "last"), "2026-11-28T12:00:00.000Z")
    about = {"name": "a.example", "address": None, "port": None, "protocol": None, "verdict": "refused", "why": ""}
    flood = [Entry(time.time(), "egress", None, {**about, "count": 1, **times})] * 5000
    write(layout)
    for _ in range(6):
        assert record(layout, "web", flood)
    write(layout)
    found = kinds(layout)
    assert found[0] == found[-1] == "started" and found.count("started") == 2
    assert sum(path.stat().st_size for path in files_of(layout, "web")) < 5 << 20
    assert json.loads(layout.audit_head("web").read_bytes())["out"] == {
        "guest": {"egress": 30_000 - found.count("egress")}
    }
    assert told(layout) == []
