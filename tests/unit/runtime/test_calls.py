"""Calls over vsock: only the machine's own count, only what means something, and no more than a few at once."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.runtime.calls import LONGEST_CALL, MOST_AT_ONCE, MOST_CALLS, Calls

OURS, OTHERS = 4711, 4712
READY = [("ready", "vsock")]


class Switchboard:
    """Stands for a socket of the host's vsock that listens: `call` is a call from a context id."""

    def __init__(self) -> None:
        self._here, self._there = socket.socketpair()
        self.waiting: list[tuple[socket.socket, tuple[int, int]]] = []
        self.made: list[socket.socket] = []
        self.is_open = True

    def call(self, cid: int, text: bytes = b"") -> socket.socket:
        theirs, ours = socket.socketpair()
        self.made += theirs, ours
        self.waiting.append((ours, (cid, 1 << 20)))
        self._there.send(b"x")
        theirs.sendall(text)
        theirs.settimeout(5)
        return theirs

    def setblocking(self, flag: bool) -> None:
        assert not flag

    def fileno(self) -> int:
        return self._here.fileno()

    def accept(self) -> tuple[socket.socket, tuple[int, int]]:
        self._here.recv(1)
        return self.waiting.pop(0)

    def close(self) -> None:
        self.is_open = False
        self._there.close()
        self._here.close()


class Line:
    """A switchboard and what listens at it."""

    def __init__(self) -> None:
        self.board = Switchboard()
        listener: Any = self.board
        self.calls = Calls(listener, OURS)

    def hear(self) -> list[tuple[str, str]]:
        """All that there is to hear."""
        said: list[tuple[str, str]] = []
        for _ in range(2 * MOST_AT_ONCE):
            said += self.calls.hear()
        return said

    def close(self) -> None:
        self.calls.close()
        for end in self.board.made:
            end.close()


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    yield line
    line.close()


def is_over(call: socket.socket) -> bool:
    with call:
        try:
            return call.recv(1) == b""
        except ConnectionResetError:  # it said something that nobody read
            return True


@pytest.mark.parametrize("text", [b"READY=1", b"READY=1\n", b"STATUS=Up\nREADY=1\nX_A=1", b"\xff\0\nREADY=1"])
def test_ready(line: Line, text: bytes) -> None:
    call = line.board.call(OURS, text)
    assert line.hear() == READY
    assert is_over(call)  # systemd waits for that
    assert line.calls.is_spent
    assert not line.board.is_open  # whoever calls now is refused


@pytest.mark.parametrize("text", [b"READY=0", b"READY=10", b"xREADY=1", b"STATUS=READY=1", b"ready=1", b"\n\n", b"\0"])
def test_not_ready(line: Line, text: bytes) -> None:
    call = line.board.call(OURS, text)
    assert line.hear() == []
    assert is_over(call)
    line.board.call(OURS, b"READY=1")
    assert line.hear() == READY


def test_another_machine_is_not_heard(line: Line) -> None:
    """Nor does it use up what this one has."""
    for _ in range(2 * MOST_CALLS):
        with line.board.call(OTHERS, b"READY=1"):
            assert list(line.calls.hear()) == []
    assert not line.calls.is_spent
    line.board.call(OURS, b"READY=1")
    assert line.hear() == READY


def test_calls_that_say_nothing_are_few_at_once(line: Line) -> None:
    held = [line.board.call(OURS) for _ in range(MOST_AT_ONCE)]
    assert line.hear() == []
    one_too_many = line.board.call(OURS)
    assert line.hear() == []
    assert is_over(one_too_many)
    held[0].sendall(b"x" * LONGEST_CALL + b"\nREADY=1")
    assert line.hear() == []
    held[1].sendall(b"READY=1")
    assert line.hear() == READY
    assert all(is_over(call) for call in held)


def test_calls_are_not_answered_without_end(line: Line) -> None:
    for _ in range(MOST_CALLS):
        with line.board.call(OURS):
            assert list(line.calls.hear()) == []
    assert line.calls.is_spent
    assert not line.board.is_open


@given(st.lists(st.tuples(st.sampled_from([OURS, OTHERS]), st.binary(max_size=200) | st.just(b"READY=1")), max_size=8))
def test_any_calls(made: list[tuple[int, bytes]]) -> None:
    line = Line()
    for cid, text in made:
        line.board.call(cid, text or b"\n")
    is_ready = any(cid == OURS and b"READY=1" in text.splitlines() for cid, text in made)
    assert line.hear() == (READY if is_ready else [])
    line.close()
