"""What a supervisor says of itself, and what is believed of it."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hutch.host.services.process import start_time
from hutch.runtime.console import Log
from hutch.runtime.observe import Observation, observe
from hutch.runtime.status import first_words, write_status
from hutch.spec.names import Places


@pytest.fixture
def places(tmp_path: Path) -> Places:
    found = Places(tmp_path / "state", tmp_path / "run")
    found.runtime("web").mkdir(parents=True)
    return found


def said(state: str, *, alive: bool = True, **more: Any) -> dict[str, Any]:
    """The words of a supervisor that is this very process, or was a process before it."""
    started = start_time(os.getpid())
    assert started is not None
    words = {"state": state, "pid": os.getpid(), "started": started if alive else started - 1, "since": 5.0}
    return {**words, "ready_seconds": 0.4, "leader": [7, 8], "reason": "", "warnings": ["w"], **more}


def see(places: Places, words: dict[str, Any]) -> Observation:
    write_status(str(places.status("web")), words)
    return observe(places, "web")


def test_nothing_was_ever_said(places: Places) -> None:
    assert observe(places, "web") == Observation(cgroup=places.cgroup("web"))
    assert not Observation().is_up


def test_running(places: Places) -> None:
    found = Observation("running", os.getpid(), 5.0, 0.4, (7, 8), "", places.cgroup("web"), ("w",))
    assert see(places, said("running")) == found
    assert see(places, said("running", cgroup="a.slice/b.service")) == replace(found, cgroup="a.slice/b.service")


@pytest.mark.parametrize("state", ["starting", "running", "stopping"])
def test_a_living_supervisor_is_believed(state: str, places: Places) -> None:
    found = see(places, said(state))
    assert (found.state, found.pid, found.is_up) == (state, os.getpid(), True)


@pytest.mark.parametrize("state", ["starting", "running", "stopping"])
def test_a_dead_supervisor_is_not(state: str, places: Places) -> None:
    """Its pid may be somebody else's by now: the start time tells."""
    found = see(places, said(state, alive=False))
    assert (found.state, found.reason) == ("failed", "its supervisor was killed")
    assert (found.pid, found.leader, found.is_up) == (None, None, False)


@pytest.mark.parametrize(("state", "reason"), [("stopped", ""), ("failed", "it ended with code 1")])
def test_last_words(state: str, reason: str, places: Places) -> None:
    found = see(places, said(state, alive=False, reason=reason))
    assert (found.state, found.reason, found.pid, found.is_up) == (state, reason, None, False)


def test_no_leader_yet(places: Places) -> None:
    assert see(places, said("starting", leader=None)).leader is None


WRONG: list[dict[str, object]] = [
    {"state": "runnjng"},
    {"state": None},
    {"pid": "1"},
    {"pid": 0},
    {"started": "5"},
    {"since": []},
    {"leader": [1]},
    {"leader": [1, None]},
    {"reason": None},
    {"warnings": "x"},
    {"warnings": [1]},
]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"state": "run', b"[]", b"{}", b"\xff", b"[" * 100000]
    + [json.dumps({**first_words(os.getpid()), "state": "running", **wrong}).encode() for wrong in WRONG],
)
def test_words_that_make_no_sense_are_a_failure(content: bytes, places: Places) -> None:
    """And never taken for a workspace that was never started."""
    path = places.status("web")
    path.write_bytes(content)
    found = observe(places, "web")
    assert (found.state, found.reason, found.pid, found.leader) == ("failed", f"{path} is damaged", None, None)


def test_words_are_replaced_whole(places: Places) -> None:
    path = places.status("web")
    write_status(str(path), said("starting"))
    first = path.stat().st_ino
    write_status(str(path), said("running"))
    assert path.stat().st_ino != first
    assert os.listdir(path.parent) == ["status.json"]


# The machine's log.


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(str(tmp_path / "machine.log"), 1000)


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
    log.close()


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
    log.close()


def test_the_log_goes_on_where_it_was(log: Log) -> None:
    log.write(b"one\r\n")
    log.close()
    again = Log(log.path, 1000)
    again.note("two")
    assert again.tail(5).startswith("one\nhutch 2")
    assert again.tail(5).endswith(": two")
    assert again.tail(1).endswith(": two")


def test_the_log_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("elsewhere")
    with pytest.raises(OSError):
        Log(str(tmp_path / "link"), 1000)


def test_the_tail_is_printable_and_not_empty(log: Log) -> None:
    log.write(b"first\r\n\r\n  \r\n\x1b[31mred\x07 \xff\xc3\xa9\r\n")
    assert log.tail(10) == "first\n[31mred \N{REPLACEMENT CHARACTER}é"
