"""Writing what happened, within bounds, and reading it while it is written."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from hutch.egress import journal
from hutch.egress.journal import LARGEST, MOST_AT_ONCE, TOO_MANY, UNWRITTEN, Journal, follow, read
from hutch.egress.record import EgressEvent, lost
from hutch.errors import HutchError
from tests.support.keeping import kept_in

ASKED = EgressEvent(100.0, "dns", "refused", "evil.example", why="not listed")
REACHED = EgressEvent(100.0, "connection", "allowed", "api.example.org", "203.0.113.5", 443, "tcp")


@pytest.fixture(autouse=True)
def places(tmp_path: Path) -> None:
    """Root makes them, see host/network/egress_proxy."""
    for name in ("web", "web-2", "lab"):
        (tmp_path / name).mkdir()


def at(record: EgressEvent, time: float, count: int = 1) -> EgressEvent:
    return replace(record, time=time, count=count)


def lines(directory: Path, name: str = "web/records.jsonl") -> list[str]:
    return (directory / name).read_text().splitlines()


def write(directory: Path, *records: EgressEvent, workspace: str = "web") -> None:
    written = Journal(kept_in(directory).record)
    for record in records:
        written.note(workspace, record)
        written.flush()


# Writing.


def test_the_first_is_written_at_once_and_equal_ones_within_a_second_are_one(tmp_path: Path) -> None:
    written = Journal(kept_in(tmp_path).record)
    written.note("web", at(ASKED, 100.0))
    written.flush(100.1)
    first = at(ASKED, 100.0)
    assert read(tmp_path, "web") == [first]
    for time in (100.2, 100.4, 100.9):
        written.note("web", at(ASKED, time))
    written.note("web", at(REACHED, 100.5))
    written.note("lab", at(ASKED, 100.9))
    written.flush(101.0)
    assert read(tmp_path, "web") == [first, at(REACHED, 100.5)]
    assert read(tmp_path, "lab") == [at(ASKED, 100.9)]
    written.flush(101.1)
    assert read(tmp_path, "web") == [first, at(REACHED, 100.5), at(ASKED, 100.9, 3)]
    written.note("web", at(ASKED, 101.3))
    written.flush(101.5)
    assert len(read(tmp_path, "web")) == 3
    written.flush()
    assert read(tmp_path, "web")[3:] == [at(ASKED, 101.3)]
    assert (tmp_path / "web/records.jsonl").stat().st_mode & 0o7777 == 0o640


def test_it_waits_until_a_second_has_passed_without_news(tmp_path: Path) -> None:
    written = Journal(kept_in(tmp_path).record)
    assert not written.is_waiting()
    written.note("web", at(ASKED, 100.0))
    assert written.is_waiting()
    written.flush(100.1)
    written.flush(101.0)
    assert written.is_waiting()
    written.flush(101.1)
    assert not written.is_waiting()
    assert read(tmp_path, "web") == [at(ASKED, 100.0)]


def test_a_clock_that_is_set_back_keeps_nothing_waiting(tmp_path: Path) -> None:
    written = Journal(kept_in(tmp_path).record)
    written.note("web", at(ASKED, 5000.0))
    written.flush(100.0)
    assert read(tmp_path, "web") == [at(ASKED, 5000.0)]


def test_a_flood_is_counted_and_not_kept(tmp_path: Path) -> None:
    written = Journal(kept_in(tmp_path).record)
    for number in range(10_000):
        written.note("web", replace(ASKED, name=f"{number}.example", time=100 + number / 20_000))
        if number == 5_000:
            written.flush(100 + number / 20_000)
    written.note("lab", ASKED)
    written.flush(101.6)
    *kept, first, last = read(tmp_path, "web")
    assert len(kept) == MOST_AT_ONCE
    assert first == lost(100.25, 5_001 - MOST_AT_ONCE, TOO_MANY)
    assert last == lost(100 + 9_999 / 20_000, 4_999, TOO_MANY)
    assert read(tmp_path, "lab") == [ASKED]


def test_two_files_and_no_more(tmp_path: Path) -> None:
    written = Journal(kept_in(tmp_path).record)
    for number in range(50_000):
        written.note("web", replace(ASKED, name=f"{number}.example"))
        if number % MOST_AT_ONCE == 0:
            written.flush()
    written.flush()
    written.note("web", at(REACHED, 200.0))
    written.flush()
    sizes = {path.name: path.stat().st_size for path in tmp_path.glob("*/*")}
    assert sorted(sizes) == ["records.jsonl", "records.jsonl.1"]
    assert max(sizes.values()) <= LARGEST
    assert sizes["records.jsonl.1"] > LARGEST * 0.9
    kept = read(tmp_path, "web")
    assert kept[-1] == at(REACHED, 200.0)
    numbers = [int(record.name.split(".")[0]) for record in kept[:-1] if record.name]
    assert numbers == list(range(numbers[0], 50_000))


def test_half_a_line_takes_no_other_with_it(tmp_path: Path) -> None:
    write(tmp_path, ASKED)
    with (tmp_path / "web/records.jsonl").open("a") as file:
        file.write('{"time":1')
    write(tmp_path, REACHED)
    assert read(tmp_path, "web") == [ASKED, REACHED]
    assert len(lines(tmp_path)) == 3


def test_a_full_disk_is_told_when_there_is_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, ASKED)
    written = Journal(kept_in(tmp_path).record)
    written.note("web", at(REACHED, 101.0, 5))
    written.note("web", at(ASKED, 101.0))
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:10]))
    written.flush(102.0)
    assert lines(tmp_path) == [ASKED.line.strip()]
    monkeypatch.setattr(os, "write", lambda descriptor, data: _full())
    written.flush(103.0)
    monkeypatch.setattr(os, "write", real)
    written.note("web", at(REACHED, 104.0))
    written.flush(110.0)
    assert read(tmp_path, "web") == [ASKED, lost(101.0, 6, UNWRITTEN), at(REACHED, 104.0)]


def _full() -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("safe")
    (tmp_path / "web/records.jsonl").symlink_to(tmp_path / "victim")
    write(tmp_path, ASKED)
    assert (tmp_path / "victim").read_text() == "safe"
    with pytest.raises(HutchError, match=r"records\.jsonl is not a file of hutch's"):
        read(tmp_path, "web")


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    write(tmp_path / "gone", ASKED)
    assert read(tmp_path / "gone", "web") == []


def test_what_is_gone_is_written_nowhere(tmp_path: Path) -> None:
    written = Journal(kept_in(tmp_path).record)
    written.note("web", ASKED)
    written.forget("web")
    written.note("web-2", ASKED)
    (tmp_path / "web-2").rmdir()
    written.flush()
    assert not list(tmp_path.glob("*/*"))
    assert read(tmp_path, "web-2") == []


# Reading.


def test_damaged_lines_are_passed_over(tmp_path: Path) -> None:
    damaged = b"\x00\xff\n" + b"[" * 5000 + b"\n{}\n" + b"x" * 200_000 + b"\n"
    (tmp_path / "web/records.jsonl").write_bytes(damaged + ASKED.line.encode() + b"\n" + REACHED.line.encode()[:-1])
    assert read(tmp_path, "web") == [ASKED]  # the last one is not written to its end


def test_of_a_file_that_cannot_be_ours_only_the_end_is_read(tmp_path: Path) -> None:
    with (tmp_path / "web/records.jsonl").open("wb") as file:
        file.truncate(1 << 40)
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + ASKED.line.encode())
    assert read(tmp_path, "web") == [ASKED]


def test_a_reader_that_follows_reads_no_more_than_can_be_written(tmp_path: Path) -> None:
    write(tmp_path, ASKED)

    def grow() -> None:
        with (tmp_path / "web/records.jsonl").open("r+b") as file:
            file.truncate(1 << 40)
            file.seek(0, os.SEEK_END)
            file.write(b"\n" + REACHED.line.encode())

    with closing(follow(tmp_path, "web", Writer(grow))) as batches:
        assert next(batches) == [ASKED]
        assert next(batches) == [REACHED]


def test_a_pipe_does_not_hold_anybody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "web/records.jsonl")
    with pytest.raises(HutchError):
        read(tmp_path, "web")


def test_what_was_moved_while_it_was_opened_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, ASKED)
    real = os.open

    def open_late(path: Path, *arguments: int) -> int:
        if str(path).endswith(".1"):
            return real(tmp_path / "web/records.jsonl", *arguments)
        return real(path, *arguments)

    (tmp_path / "web/records.jsonl.1").touch()
    monkeypatch.setattr(os, "open", open_late)
    assert read(tmp_path, "web") == [ASKED]


class Writer:
    """Does one thing each time that a reader waits."""

    def __init__(self, *steps: object) -> None:
        self._steps: Iterator[object] = iter(steps)

    def __call__(self) -> None:
        step = next(self._steps)
        assert callable(step)
        step()


def test_following_from_before_there_is_anything(tmp_path: Path) -> None:
    directory = tmp_path / "egress"
    steps = Writer(
        lambda: None,
        lambda: (directory / "web").mkdir(parents=True),
        lambda: write(directory, ASKED),
        lambda: None,
        lambda: write(directory, REACHED, at(ASKED, 200.0)),
        lambda: shutil.rmtree(directory / "web"),
        (directory / "web").mkdir,
        lambda: write(directory, at(REACHED, 300.0)),
    )
    with closing(follow(directory, "web", steps)) as batches:
        assert next(batches) == []
        assert next(batches) == [ASKED]
        assert next(batches) == [REACHED, at(ASKED, 200.0)]
        assert next(batches) == [at(REACHED, 300.0)]


def test_following_over_a_change_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "LARGEST", 10 * len(ASKED.line))
    expected = [at(ASKED, float(number)) for number in range(100, 200)]
    steps = Writer(*[lambda one=one: write(tmp_path, *one) for one in batched(expected)])
    found: list[EgressEvent] = []
    with closing(follow(tmp_path, "web", steps)) as batches:
        while len(found) < len(expected):
            found += next(batches)
    assert found == expected
    assert read(tmp_path, "web") == expected[-len(read(tmp_path, "web")) :]


def batched(records: list[EgressEvent]) -> Iterator[list[EgressEvent]]:
    for start in range(0, len(records), 7):
        yield records[start : start + 7]


def test_half_a_line_is_waited_for_or_taken_back(tmp_path: Path) -> None:
    path, line = tmp_path / "web/records.jsonl", ASKED.line.encode()

    def add(data: bytes) -> None:
        with path.open("ab") as file:
            file.write(data)

    steps = Writer(
        lambda: add(line[:20]),
        lambda: add(line[20:] + line[:30]),
        lambda: os.truncate(path, len(line)),
        lambda: add(REACHED.line.encode()),
    )
    with closing(follow(tmp_path, "web", steps)) as batches:
        assert next(batches) == []
        assert next(batches) == [ASKED]
        assert next(batches) == [REACHED]
