"""A call of the library in a process of its own: what that is given, what comes back, and that nothing is left over."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import hutch
from hutch.api import job as jobs
from hutch.api.cloning import read_result
from hutch.api.job import HEADER, Call, Job, decode_plain, frame, plain_frame
from hutch.api.worker import portable
from hutch.clones.notes import Clone
from hutch.spec.names import HANDED_ON, Layout


def call(path: Path, **arguments: object) -> Call:
    return Call(Layout(path / "state", path / "run"), "status", arguments)


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


class Process:
    """As much of a Popen as it takes to end one."""

    def __init__(self) -> None:
        self.pid, self.stdin, self.stdout, self.stderr = 0, None, None, None
        self.calls: list[str] = []

    def kill(self) -> None:
        self.calls.append("kill")

    def wait(self, timeout: float | None = None) -> None:
        self.calls.append("wait")


class Stubborn(Process):
    def poll(self) -> None:
        return None

    def wait(self, timeout: float | None = None) -> None:
        raise KeyboardInterrupt


def test_it_knows_who_asks_and_how_to_reach_the_internet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, str] = {}

    def start(argv: Sequence[str], *, env: dict[str, str], **options: Any) -> None:
        given.update(env)
        raise hutch.HutchError("enough")

    monkeypatch.setattr(jobs, "start", start)
    wanted = {"SUDO_UID": "1001", "http_proxy": "http://proxy:3128", "NO_PROXY": "example.org", "TERM": "xterm"}
    for name in (*HANDED_ON, "LD_PRELOAD", "SSH_AUTH_SOCK"):
        monkeypatch.setenv(name, "x")
        if name in HANDED_ON:
            monkeypatch.delenv(name)
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    before = descriptors()
    with pytest.raises(hutch.HutchError, match="enough"):
        Job(call(tmp_path))
    assert given == wanted
    assert descriptors() == before


def test_a_process_that_cannot_be_watched_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process()

    def pidfd_open(pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(jobs, "start", lambda *arguments, **options: process)
    monkeypatch.setattr("hutch.access.piped.os.pidfd_open", pidfd_open)
    before = descriptors()
    with pytest.raises(OSError, match="Too many open files"):
        Job(call(tmp_path))
    assert process.calls == ["kill", "wait"]
    assert descriptors() == before


def test_whoever_is_interrupted_again_leaves_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first Ctrl-C has it end what was begun, which takes a while; the second does not wait for that."""
    monkeypatch.setattr(jobs, "start", lambda *arguments, **options: Stubborn())
    before = descriptors()
    monkeypatch.setattr("hutch.access.piped.os.pidfd_open", lambda pid: os.open("/dev/null", os.O_RDONLY))
    monkeypatch.setattr("hutch.access.piped.signal.pidfd_send_signal", lambda descriptor, number: None)
    with pytest.raises(KeyboardInterrupt):
        Job(call(tmp_path)).close()
    assert descriptors() == before


def test_a_call_that_cannot_be_sent_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "start", lambda *arguments, **options: pytest.fail("started"))
    before = descriptors()
    with pytest.raises(AttributeError, match="local object"):
        Job(call(tmp_path, function=lambda: None))
    assert descriptors() == before


def test_a_socket_whose_other_end_left_something_unread_has_ended() -> None:
    from hutch.access.piped import _hear

    heard: list[bytes] = []
    mine, theirs = socket.socketpair()
    with mine:
        theirs.sendall(b"the last")
        mine.sendall(b"unread")
        theirs.close()
        while _hear(mine.fileno(), heard.append):
            pass
    assert b"".join(heard) in (b"the last", b"")  # the kernel may drop what it had


class Odd(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("odd")


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (hutch.UsageError("there is none", resolution="make one"), hutch.UsageError, "there is none"),
        (Odd(1, 2), hutch.HutchError, "a bug of hutch's own: Odd: odd"),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "why"), hutch.HutchError, "a bug of hutch's own: UnicodeDecodeError"),
    ],
)
def test_what_was_raised_comes_back(error: Exception, kind: type[hutch.HutchError], text: str) -> None:
    try:
        raise error
    except Exception as caught:  # noqa: BLE001
        again = portable(caught)
    assert type(again) is kind
    assert again.brief.startswith(text)
    assert kind is hutch.UsageError or "test_job.py" in again.details


def test_an_error_that_has_something_odd_with_it_comes_back_too() -> None:
    error = hutch.UsageError("brief", details="details", resolution="resolution")
    error.odd = lambda: None  # type: ignore[attr-defined]
    again = portable(error)
    assert (type(again), again.brief, again.details, again.resolution) == (
        hutch.HutchError,
        "brief",
        "details",
        "resolution",
    )


def test_a_call_for_somebody_else_runs_as_their_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv: list[str] = []

    def start(words: Sequence[str], **options: object) -> None:
        argv.extend(words)
        raise hutch.HutchError("not now")

    monkeypatch.setattr(jobs, "start", start)
    with pytest.raises(hutch.HutchError, match="not now"):
        Job(Call(tmp_path, "fetch", {}, "web", account=(1000, 1001)))  # type: ignore[arg-type]
    assert argv[:5] == ["setpriv", "--reuid=1000", "--regid=1001", "--init-groups", "--"]


class Evil:
    """A value that runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (9,)


@pytest.mark.parametrize(
    "said", [frame("result", Evil()), plain_frame("error", ["too", "short"]), b"", b"head\xff", b"head[1]"]
)
def test_somebody_elses_process_is_not_believed(said: bytes) -> None:
    with pytest.raises(hutch.HutchError, match="does not say how it ended"):
        decode_plain(said[HEADER.size :])


def test_what_somebody_elses_process_says_comes_as_plain_values() -> None:
    clone = Clone("web", "/src/shop", "shop", "main", "f" * 40)
    kind, value = decode_plain(plain_frame("result", clone)[HEADER.size :])
    assert (kind, read_result("clone", value)) == ("result", clone)
    fetched = hutch.Fetched((hutch.FetchedBranch("main", "refs/remotes/web/main", "", "f" * 40),), ("old",), ("left",))
    assert read_result("fetch", decode_plain(plain_frame("result", fetched)[HEADER.size :])[1]) == fetched
    kind, error = decode_plain(plain_frame("error", hutch.UsageError("no", details="d", resolution="r"))[HEADER.size :])
    assert (kind, type(error), error.brief, error.details, error.resolution) == (
        "error",
        hutch.UsageError,
        "no",
        "d",
        "r",
    )
    for method, odd in (("clone", {}), ("fetch", {"branches": 1}), ("fetch", None)):
        with pytest.raises(hutch.HutchError, match="gives no valid result of"):
            read_result(method, odd)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_what_is_wrong_with_the_host_is_told_by_every_way_in(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number), "/var/lib/hutch/x")

    engine = hutch.Hutch(Layout(tmp_path / "state", tmp_path / "run"))
    (tmp_path / "hutch.toml").write_text("version = 1\n")
    monkeypatch.setattr("hutch.api.engine.read_record", fail)
    monkeypatch.setattr("hutch.api.job.start", fail)
    monkeypatch.setattr("hutch.api.running.os.geteuid", lambda: 0)
    monkeypatch.setattr("hutch.host.hardware.capacity.observe_capacity", fail)
    web = hutch.Workspace("web", engine)
    for way_in in (web.status, web.start, lambda: web.run(["true"]), lambda: web.put(tmp_path, "x"), hutch.load):
        with pytest.raises(hutch.HutchError, match=f"hutch/x cannot be written or read: {os.strerror(number)}"):
            way_in()
    with pytest.raises(hutch.HutchError, match="cannot be written or read"):
        asyncio.run(hutch.aio.Workspace("web", engine).run(["true"]))
