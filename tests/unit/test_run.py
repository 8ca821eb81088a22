"""How the end of a command is put in words, and how commands are heard side by side, within bounds."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import pytest

from hutch import run
from hutch.run import CommandFailed, Completed, describe


@pytest.mark.parametrize(
    ("returncode", "words"),
    [
        (3, "failed with code 3"),
        (-signal.SIGKILL, "was killed by SIGKILL"),
        (-signal.SIGRTMIN, "was killed by SIGRTMIN"),
        (-(signal.SIGRTMIN + 3), f"was killed by signal {signal.SIGRTMIN + 3}"),
    ],
)
def test_how_it_ended(returncode: int, words: str) -> None:
    assert describe(returncode) == words


class Pipes:
    """A command that runs nothing: pipes, of which the test holds the other ends."""

    def __init__(self, argv: Sequence[str], stdin: int | None) -> None:
        self.pid = 1
        self.returncode: int | None = None
        self.killed = False
        self.code = 0
        out, self.to_stdout = os.pipe()
        err, self.to_stderr = os.pipe()
        self.stdout, self.stderr = open(out, "rb"), open(err, "rb")  # noqa: SIM115 - whoever runs it closes them
        self.stdin = None
        self.from_stdin = -1
        if stdin is not None:
            self.from_stdin, into = os.pipe()
            self.stdin = open(into, "wb")  # noqa: SIM115
        self.ended, self.end = os.pipe()
        self.behave(*argv)

    def behave(self, output: str, code: str = "0", errors: str = "") -> None:
        """Say something, and end with a code; "never" for one that goes on."""
        os.write(self.to_stdout, output.encode())
        os.write(self.to_stderr, errors.encode())
        if code != "never":
            self.code = int(code)
            os.close(self.end)

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self.killed = True
        self.code = -9

    def wait(self) -> int:
        self.returncode = self.code
        return self.code


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[Pipes]:
    """The commands that were started."""
    started: list[Pipes] = []

    def start(argv: Sequence[str], *, stdin: int | None, **_: object) -> Pipes:
        started.append(Pipes(argv, stdin))
        return started[-1]

    monkeypatch.setattr(run, "start", start)
    monkeypatch.setattr(os, "pidfd_open", lambda pid: started[-1].ended)
    return started


def test_commands_side_by_side_answer_in_their_order(commands: list[Pipes]) -> None:
    argvs = [[f"{number}", "0" if number % 2 else "3", "oh"] for number in range(2 * run.AT_ONCE + 1)]
    results = run.exchange(argvs, most=100)
    assert results == [Completed(0 if n % 2 else 3, b"%d" % n, b"oh") for n in range(len(argvs))]
    assert not any(command.killed for command in commands)


def test_a_command_that_says_too_much_is_killed_alone(commands: list[Pipes]) -> None:
    first, second = run.exchange([["x" * 11, "never"], ["x" * 10]], most=10)
    assert isinstance(first, CommandFailed)
    assert first.reason == "said more than 10 bytes"
    assert second == Completed(0, b"x" * 10, b"")
    assert [command.killed for command in commands] == [True, False]


def test_a_command_that_overruns_is_killed_alone(commands: list[Pipes]) -> None:
    first, second = run.exchange([["a", "never", "oh"], ["b"]], timeout=0.05, most=10)
    assert isinstance(first, CommandFailed)
    assert (first.reason, first.stderr) == ("did not end within 0.05 s", "oh")
    assert second == Completed(0, b"b", b"")
    assert [command.killed for command in commands] == [True, False]


def test_a_command_that_waits_for_a_connection_is_killed_early(
    commands: list[Pipes], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = iter([False, True])
    monkeypatch.setattr(run, "is_connecting", lambda pid: next(looks))
    [found] = run.exchange([["a", "never", "oh"]], timeout=5.0, most=10, connect=0.02)
    assert isinstance(found, run.NotConnected)
    assert (found.reason, found.stderr) == ("found nobody to connect to within 0.02 s", "oh")
    assert commands[0].killed


def test_commands_whose_turn_does_not_come_in_time_are_not_started(commands: list[Pipes]) -> None:
    argvs = [["a", "never"]] * run.AT_ONCE + [["b"]] * 1000
    results = run.exchange(argvs, timeout=0.05, most=10, within=0.04)
    reasons = [each.reason for each in results if isinstance(each, CommandFailed)]
    assert reasons == ["did not end within 0.05 s"] * run.AT_ONCE + ["was not started within 0.04 s"] * 1000
    assert [isinstance(each, run.NotStarted) for each in results] == [False] * run.AT_ONCE + [True] * 1000
    assert len(commands) == run.AT_ONCE
    assert run.exchange([["a"]], most=10, within=0.0)[0] != Completed(0, b"a", b"")


def test_a_command_is_told_what_is_for_it(commands: list[Pipes]) -> None:
    run.exchange([["", "never"], ["", "never"]], stdin=[b"\x00one", b""], timeout=0.05, most=10)
    assert os.read(commands[0].from_stdin, 100) == b"\x00one"
    assert os.read(commands[0].from_stdin, 100) == b""
    assert commands[1].stdin is None


def test_of_errors_the_end_is_kept(commands: list[Pipes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "MOST_ERRORS", 3)
    assert run.exchange([["", "1", "abcdef"]], most=10) == [Completed(1, b"", b"def")]
