"""The log of a service where systemd keeps none: a file that is bounded, and costs nobody a start."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hutch.runtime import runner as running
from hutch.runtime.runner import LOG_BYTES, Log


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = Log(str(tmp_path / "machine.log"), 1000)
    yield log
    os.close(log._file)


def kept(log: Log) -> bytes:
    path = Path(log.path)
    older = path.with_name(path.name + ".1")
    return (older.read_bytes() if older.exists() else b"") + path.read_bytes()


def test_the_log_is_roots_alone(log: Log) -> None:
    assert Path(log.path).stat().st_mode & 0o7777 == 0o644  # its directory says who reads it


def test_the_log_is_bounded_and_keeps_the_end(log: Log) -> None:
    everything = b""
    for number in range(500):
        line = f"line {number}\r\n".encode()
        everything += line
        log.write(line)
        assert len(kept(log)) <= log.limit
        assert everything.endswith(kept(log))
        assert len(kept(log)) >= min(len(everything), log.limit // 2 - len(line))


def test_one_piece_fits_in(tmp_path: Path) -> None:
    """So the bound of a log that nothing is said of holds for whatever is read at once."""
    assert running.CHUNK <= LOG_BYTES // 2
    log = Log(str(tmp_path / "machine.log"))
    assert log.limit == LOG_BYTES
    os.close(log._file)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["write", "open"])
def test_a_bad_disk_costs_output_only(log: Log, monkeypatch: pytest.MonkeyPatch, call: str, number: int) -> None:
    def full(*arguments: Any) -> int:
        raise OSError(number, os.strerror(number))

    log.write(b"a" * 400)
    with monkeypatch.context() as patched:
        patched.setattr(os, call, full)
        log.write(b"b" * 400)  # would begin a new file
    assert kept(log) == b"a" * 400
    log.write(b"c" * 400)
    assert kept(log) == b"a" * 400 + b"c" * 400


def test_the_log_goes_on_where_it_was(log: Log) -> None:
    log.write(b"one\r\n")
    again = Log(log.path, 1000)
    again.note("two")
    first, second = kept(log).decode().splitlines()
    assert first == "one"
    assert second.startswith("hutch 2") and second.endswith(": two")
    os.close(again._file)


def test_the_log_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("elsewhere")
    with pytest.raises(OSError):
        Log(str(tmp_path / "link"), 1000)
