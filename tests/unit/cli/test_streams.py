"""Streams that wait for nobody before the end, and those that are not opened anew."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.cli import streams
from hutch.cli.streams import Keeping, finish, make_patient, open_anew

LONG = b"x" * (1 << 20)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output and error of a process that has just begun."""
    monkeypatch.setattr(streams, "_streams", [])
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))


def test_what_is_not_taken_at_once_is_taken_in_the_end(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    assert open_anew(writing)
    stream = Keeping(writing, is_quick=True)
    assert stream.write(LONG) == len(LONG)  # waits for nobody
    assert stream.write(b"end") == 3
    taken: list[bytes] = []

    def take() -> None:
        while sum(map(len, taken)) < len(LONG) + 3:
            taken.append(os.read(reading, 1 << 16))

    reader = threading.Thread(target=take)
    reader.start()
    stream.write_all()
    reader.join(10)
    assert b"".join(taken) == LONG + b"end"


def test_a_file_gets_all_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    assert not open_anew(descriptor)
    stream = Keeping(descriptor, is_quick=False)
    stream.write(b"text")
    assert path.read_bytes() == b""
    stream.write_all()
    stream.write(b", and what comes later")
    os.close(descriptor)
    assert path.read_bytes() == b"text, and what comes later"


@pytest.mark.parametrize(("target", "code"), [("/dev/full", "No space left"), ("pipe", 141)], ids=["full", "unread"])
def test_output_that_cannot_be_written_is_no_success(said: None, target: str, code: object) -> None:
    before = {number: os.dup(number) for number in (1, 2)}
    reading, writing = os.pipe()
    os.dup2(writing if target == "pipe" else os.open(target, os.O_WRONLY), 1)
    os.close(writing)
    try:
        make_patient()
        streams._streams[0].is_quick = False  # as where the reader goes between a write and the end
        print("text")
        os.close(reading)
        with pytest.raises(SystemExit) as caught:
            finish()
    finally:
        for number, saved in before.items():
            os.dup2(saved, number)
            os.close(saved)
    assert str(code) in str(caught.value.code)


def test_a_pipe_gets_a_description_of_its_own(pipe: tuple[int, int]) -> None:
    """Flags that the caller sets on theirs count no more."""
    reading, writing = pipe
    theirs = os.dup(writing)
    assert open_anew(writing)
    assert not os.get_blocking(writing)
    assert os.get_blocking(theirs)
    os.write(writing, b"text")
    assert os.read(reading, 9) == b"text"
    os.close(theirs)


@pytest.mark.parametrize("flags", [os.O_RDONLY | os.O_NONBLOCK, os.O_PATH], ids=["reading", "naming"])
def test_what_the_caller_could_not_write_to_is_not_opened(tmp_path: object, flags: int) -> None:
    path = f"{tmp_path}/pipe"
    os.mkfifo(path)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    given = os.open(path, flags)
    open_anew(given)
    assert os.fstat(given).st_rdev == os.makedev(1, 3)
    assert os.read(reading, 9) == b""
    for descriptor in (given, reading):
        os.close(descriptor)
