"""What stands in for systemd: when it starts a service again, and what it makes of what that says and of its end.

All that needs no process; tests/host has the rest.
"""

from __future__ import annotations

import errno
import itertools
import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from hutch.runtime import runner as running
from hutch.runtime.runner import Runner
from hutch.runtime.units import MOST_RESTART_SECONDS, RESTART_SECONDS, STARTS_SECONDS, STEPS
from tests.unit.runtime.test_unit_read import TEXT, unit_of


class Group:
    """A cgroup in which nothing runs."""

    path = "hutch.slice/hutch-ws_web.slice/hutch@web.service"

    def __init__(self) -> None:
        self.made: list[str] = []

    def make(self, *groups: str) -> None:
        self.made += groups


Make = Callable[..., Runner]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """A runner of that unit, whose settings may be others; signals stay pytest's own."""
    made: list[Runner] = []
    monkeypatch.setattr(running, "signal", lambda number, handler: None)
    monkeypatch.setattr(running, "set_wakeup_fd", lambda descriptor, warn_on_full_buffer: None)

    def make(report: int = -1, **settings: float) -> Runner:
        changed = "".join(f"{key}={value}\n" for key, value in settings.items())
        group: Any = Group()
        runner = Runner(unit_of(tmp_path, TEXT + changed), group, str(tmp_path), report)
        made.append(runner)
        return runner

    yield make
    for runner in made:
        for descriptor in (runner.said, runner.output, runner.wake, runner.wakeup, runner.log._file):
            os.close(descriptor)


def test_it_makes_where_its_processes_go(make: Make) -> None:
    assert cast(Group, make().cgroup).made == ["machine", "supervisor"]


def test_each_start_comes_later_than_the_one_before(make: Make) -> None:
    runner = make()
    delays = [runner.delay(failures) for failures in range(1, STEPS + 4)]
    assert (delays[0], delays[STEPS]) == (RESTART_SECONDS, MOST_RESTART_SECONDS)
    assert all(later > sooner for sooner, later in itertools.pairwise(delays[: STEPS + 1]))
    assert delays[STEPS:] == [MOST_RESTART_SECONDS] * 3


@pytest.mark.parametrize("failures", [100, 1000, 10_000, 1_000_000])
def test_what_fails_for_days_is_started_all_the_same(make: Make, failures: int) -> None:
    assert make().delay(failures) == MOST_RESTART_SECONDS


def test_a_guest_that_leaves_no_process_is_ended_all_the_same(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a signal: what would ask it in order cannot be run."""

    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    runner = make()
    monkeypatch.setattr(os, "fork", fork)
    assert runner.verb("ExecStop", {"MAINPID": "4711"}) is False
    assert "cannot be run: Resource temporarily unavailable" in Path(runner.log.path).read_text()


class Clock:
    """Time that passes only when it is said so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    strftime = staticmethod(time.strftime)


class Story:
    """Starts of a service, each of which lasts so many seconds and then is to be started again or not."""

    def __init__(self, runner: Runner, monkeypatch: pytest.MonkeyPatch, *starts: tuple[float, bool]) -> None:
        self.runner, self.clock, self.left = runner, Clock(), list(starts)
        self.begun: list[float] = []
        self.groups: list[str | None] = []
        self.stops_in = float("inf")
        monkeypatch.setattr(running, "time", self.clock)
        monkeypatch.setattr(runner, "run_once", self.run_once)
        monkeypatch.setattr(runner, "await_any", self.await_any)

    def run_once(self, group: str | None) -> bool:
        self.begun.append(self.clock.now - 1000.0)
        self.groups.append(group)
        lasts, again = self.left.pop(0)
        self.clock.now += lasts
        return again

    def await_any(self, until: float) -> set[int]:
        """Something is logged half-way."""
        if until - self.clock.now > self.stops_in:
            self.clock.now += self.stops_in
            self.runner.stops += 1
        elif until - self.clock.now > 0.5:
            self.clock.now += (until - self.clock.now) / 2
        else:
            self.clock.now = until
        return set()

    def tell(self) -> list[float]:
        """When it was started."""
        self.runner.run(None)
        assert not self.left or self.runner.stops
        return self.begun


def said(runner: Runner) -> str:
    return Path(runner.log.path).read_text()


def test_what_ends_as_it_should_is_not_started_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Story(make(), monkeypatch, (5.0, False)).tell() == [0.0]


def test_what_fails_at_once_is_started_again_and_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ever more slowly, and without an end: so it is never too often."""
    runner = make()
    story = Story(runner, monkeypatch, *[(0.0, True)] * 50, (0.0, False))
    begun = story.tell()
    waited = [later - sooner for sooner, later in itertools.pairwise(begun)]
    assert waited == pytest.approx([runner.delay(failures) for failures in range(1, 51)])
    assert story.groups == [None, *["machine"] * 50]
    assert said(runner) == ""


def test_what_ran_for_a_while_begins_anew(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    lasts = [0.0, 0.0, 0.0, STARTS_SECONDS + 1.0, 0.0]
    begun = Story(make(), monkeypatch, *((seconds, True) for seconds in lasts), (0.0, False)).tell()
    waited = [later - sooner - ran for sooner, later, ran in zip(begun, begun[1:], lasts, strict=False)]
    assert waited[0] < waited[1] < waited[2]
    assert waited[3] == pytest.approx(RESTART_SECONDS)
    assert waited[4] == pytest.approx(waited[1])


def test_too_many_starts_within_a_while_are_the_last(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = make(StartLimitBurst=3, StartLimitIntervalSec=30)
    assert Story(runner, monkeypatch, *[(0.0, True)] * 3).tell() == pytest.approx([0.0, 2.0, 2.0 + runner.delay(2)])
    assert said(runner).endswith(": 4 starts within 30 s are too many: it is not started again\n")


def test_it_is_stopped_while_it_waits(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(make(), monkeypatch, (0.0, True), (0.0, True))
    story.stops_in = 1.0
    assert story.tell() == [0.0]
    assert story.clock.now == 1001.0


def test_one_that_is_stopped_before_it_began_does_not(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    story = Story(make(), monkeypatch, (0.0, True))
    story.runner._on_stop(signal.SIGTERM, None)
    assert story.tell() == []


ENDS = [
    (0, True, False, "success"),
    (0, False, False, "protocol"),  # it was not ready yet
    (0, False, True, "success"),
    (133, True, False, "success"),  # the guest asked for a reboot
    (133, False, False, "protocol"),
    (1, True, False, "exit-code"),
    (1, False, False, "exit-code"),
    (1, True, True, "exit-code"),
    (-signal.SIGTERM, True, True, "success"),
    (-signal.SIGTERM, False, True, "success"),
    (-signal.SIGTERM, False, False, "protocol"),
    (-signal.SIGKILL, True, False, "signal"),
    (-signal.SIGKILL, True, True, "signal"),
    (-signal.SIGSEGV, False, False, "signal"),
]


@pytest.mark.parametrize(("ended", "is_ready", "is_stopped", "result"), ENDS)
def test_an_end(make: Make, ended: int, is_ready: bool, is_stopped: bool, result: str) -> None:
    runner = make()
    runner.stops = int(is_stopped)
    assert runner.judge(ended, is_ready) == result


# One start, from the first moment to the last.

PID = 4242


class Main:
    """A main process, as its runner sees it: what it says, and when it has ended."""

    def __init__(self, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runner = runner
        self.pidfd, self.ended = os.pipe()
        self.heard, self.spoken = os.pipe()
        self.words: list[tuple[bytes, tuple[int, ...]]] = []
        self.sent: list[int] = []
        self.verbs: list[str] = []
        self.killed: list[tuple[int, int]] = []
        self.fails: set[str] = set()
        self.on_kill: Callable[[], None] = self.end
        self.on_verb: Callable[[], None] = lambda: None
        self.on_last_word: Callable[[], None] = lambda: None
        monkeypatch.setattr(os, "kill", self.kill)
        monkeypatch.setattr(runner, "verb", self.verb)

    def fileno(self) -> int:
        return self.heard

    def say(self, text: bytes, *pids: int) -> None:
        self.words.append((text, pids))
        os.write(self.spoken, b"x")

    def recvmsg(self, size: int, most: int, flags: int) -> tuple[bytes, list[tuple[int, int, bytes]], int, None]:
        """With the credentials that the kernel adds, and what is sent along; see unix(7)."""
        assert flags == socket.MSG_CMSG_CLOEXEC
        os.read(self.heard, 1)
        text, pids = self.words.pop(0)
        if not self.words:
            self.on_last_word()
        more = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, struct.pack("iII", pid, 0, 0)) for pid in pids]
        if self.sent:
            sent = struct.pack(f"{len(self.sent)}i", *self.sent)
            more.append((socket.SOL_SOCKET, socket.SCM_RIGHTS, sent))
        return text[:size], more, 0, None

    def end(self) -> None:
        os.write(self.ended, b"x")

    def kill(self, pid: int, number: int) -> None:
        self.killed.append((pid, number))
        self.on_kill()

    def verb(self, key: str, told: dict[str, str], deadline: float | None = None, unless: int = -1) -> bool:
        assert told == {"MAINPID": str(PID)}
        assert (deadline is not None, unless) == (True, self.pidfd if key == "ExecStartPost" else -1)
        self.verbs.append(key)
        self.on_verb()
        return key not in self.fails

    def stop(self) -> None:
        """As a signal does it."""
        self.runner._on_stop(signal.SIGTERM, None)
        os.write(self.runner.wakeup, bytes([signal.SIGTERM]))

    def serve(self) -> tuple[bool, str]:
        return self.runner.serve(PID, self.pidfd, cast(Any, self))

    def close(self) -> None:
        for descriptor in (self.pidfd, self.ended, self.heard, self.spoken):
            os.close(descriptor)


@pytest.fixture
def report() -> Iterator[tuple[int, int]]:
    """Both ends of what the command hears that started it. The runner closes its own."""
    ours, theirs = os.pipe()
    os.set_blocking(ours, False)
    yield ours, theirs
    os.close(ours)


@pytest.fixture
def main(make: Make, report: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Main]:
    runner = make(report[1])
    main = Main(runner, monkeypatch)
    yield main
    main.close()
    runner.tell("")


def told(report: tuple[int, int]) -> bytes | None:
    """None for nothing yet."""
    try:
        return os.read(report[0], 64)
    except BlockingIOError:
        return None


def hurry(main: Main, **settings: float) -> None:
    for key, value in settings.items():
        main.runner.unit._found[key] = [str(value)]


def test_it_is_ready_once_the_main_process_says_so(main: Main, report: tuple[int, int]) -> None:
    main.say(b"STATUS=x\nREADY=1\nX_NSPAWN_LEADER_PID=7", PID)
    main.on_verb = main.end
    assert main.serve() == (True, "")
    assert (main.verbs, main.killed) == (["ExecStartPost"], [])
    assert (told(report), told(report)) == (b"ready", b"")


@pytest.mark.parametrize("text", [b"READY=0", b"READY=10", b"xREADY=1", b"STATUS=READY=1", b"ready=1", b"\xff", b""])
def test_other_words_of_its_own(main: Main, report: tuple[int, int], text: bytes) -> None:
    main.say(text, PID)
    main.say(b"X_LAST=1", PID)
    hurry(main, TimeoutStartSec=0.05)
    assert main.serve() == (False, "timeout")
    assert (main.verbs, told(report)) == ([], None)


def test_what_is_sent_along_is_closed(main: Main) -> None:
    """Whoever sends a barrier waits for that; see sd_notify(3)."""
    reading, *main.sent = (*os.pipe(), os.open("/dev/null", os.O_RDONLY))
    main.say(b"BARRIER=1", PID)
    main.on_last_word = main.end
    assert main.serve() == (False, "")
    assert os.read(reading, 1) == b""  # nobody is left who could write
    with pytest.raises(OSError):
        os.fstat(main.sent[1])
    os.close(reading)


@pytest.mark.parametrize("pids", [(), (7,)])
def test_others_are_not_heard(main: Main, report: tuple[int, int], pids: tuple[int, ...]) -> None:
    main.say(b"READY=1", *pids)
    hurry(main, TimeoutStartSec=0.05)
    assert main.serve() == (False, "timeout")
    assert (main.verbs, told(report)) == ([], None)


def test_it_says_so_once(main: Main, report: tuple[int, int]) -> None:
    for _ in range(2):
        main.say(b"READY=1", PID)
    main.on_last_word = main.end
    assert main.serve() == (True, "")
    assert (main.verbs, told(report)) == (["ExecStartPost"], b"ready")


def test_an_end_of_its_own_accord(main: Main, report: tuple[int, int]) -> None:
    main.end()
    assert main.serve() == (False, "")
    assert (main.verbs, main.killed, told(report)) == ([], [], None)


def test_a_start_takes_no_longer_than_it_may(main: Main, report: tuple[int, int]) -> None:
    hurry(main, TimeoutStartSec=0.05)
    assert main.serve() == (False, "timeout")
    assert (main.verbs, main.killed, told(report)) == ([], [(PID, signal.SIGTERM)], None)


def test_one_that_is_ready_has_no_deadline(main: Main) -> None:
    hurry(main, TimeoutStartSec=0.05)
    main.say(b"READY=1", PID)
    rounds: list[float] = []
    await_any = main.runner.await_any

    def awaited(deadline: float | None, *descriptors: int) -> set[int]:
        if main.verbs:
            assert deadline is None
            rounds.append(0.0)
            time.sleep(0.06)
            main.end()
        return await_any(deadline, *descriptors)

    main.runner.await_any = awaited  # type: ignore[method-assign]
    assert main.serve() == (True, "")
    assert rounds and main.killed == []


def test_a_stop(main: Main) -> None:
    main.say(b"READY=1", PID)
    main.on_verb = main.stop
    assert main.serve() == (True, "")
    assert main.verbs == ["ExecStartPost", "ExecStop"]
    assert main.killed == [(PID, signal.SIGTERM)]


def test_a_stop_before_it_is_ready(main: Main, report: tuple[int, int]) -> None:
    """Whatever it says then is not heard any more."""

    def late() -> None:
        main.say(b"READY=1", PID)
        main.on_kill = main.end

    main.stop()
    main.on_kill = late
    hurry(main, TimeoutStopSec=0.05)
    assert main.serve() == (False, "timeout")
    assert (main.verbs, main.killed, told(report)) == ([], [(PID, signal.SIGTERM)], None)


def test_a_stop_takes_no_longer_than_it_may(main: Main) -> None:
    main.say(b"READY=1", PID)
    main.on_verb = main.stop
    main.on_kill = lambda: None
    hurry(main, TimeoutStopSec=0.05)
    assert main.serve() == (True, "timeout")
    assert main.killed == [(PID, signal.SIGTERM)]


def test_a_start_that_ends_late_and_not_at_all(main: Main) -> None:
    main.on_kill = lambda: None
    hurry(main, TimeoutStartSec=0.05, TimeoutStopSec=0.05)
    assert main.serve() == (False, "timeout")
    assert main.killed == [(PID, signal.SIGTERM)]


def test_what_follows_readiness_may_fail(main: Main, report: tuple[int, int]) -> None:
    """Then it is not ready, and is ended."""
    main.fails = {"ExecStartPost"}
    main.say(b"READY=1", PID)
    hurry(main, TimeoutStartSec=0.05)
    assert main.serve() == (False, "exit-code")
    assert (main.verbs, told(report)) == (["ExecStartPost"], None)


def test_the_command_that_started_it_is_told_once(make: Make, report: tuple[int, int]) -> None:
    runner = make(report[1])
    for _ in range(2):
        runner.tell("ready")
    assert (told(report), told(report)) == (b"ready", b"")


def test_the_command_that_started_it_may_be_gone(make: Make) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    make(theirs).tell("ready")


def test_what_the_service_writes_is_logged_while_anything_is_waited_for(make: Make) -> None:
    runner = make()
    reading, writing = os.pipe()
    os.write(runner.output, b"one\n")
    assert runner.await_any(time.monotonic() + 5, reading) == set()
    os.write(writing, b"x")
    os.write(runner.output, b"two\n")
    os.write(runner.wakeup, bytes([signal.SIGTERM, signal.SIGTERM]))
    assert runner.await_any(None, reading) == {reading}
    assert said(runner) == "one\ntwo\n"
    assert runner.await_any(time.monotonic() - 1) == set()
    runner.hear_output()  # there is no more
    os.close(reading)
    os.close(writing)
