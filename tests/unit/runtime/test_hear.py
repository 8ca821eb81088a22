"""What a guest says is the attacker's: it is heard in small pieces, and only the words that mean something count. Of
calls over vsock only the machine's own do, and no more than a few at once.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.runtime.hear import (
    LONGEST_CALL,
    MOST_AT_ONCE,
    MOST_BYTES,
    MOST_CALLS,
    Calls,
    SerialPort,
    await_ready,
    main,
    read_cid,
)

# A machine's port.


class Wire:
    """The machine's end of the pipe that its port is."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "port.out"
        os.mkfifo(self.path)
        self.port = SerialPort(str(self.path))

    def say(self, *pieces: bytes) -> bool:
        """Whether any of these made it ready."""
        heard = [self.say_one(piece) for piece in pieces]
        return any(heard)

    def say_one(self, piece: bytes) -> bool:
        machine = os.open(self.path, os.O_WRONLY)
        assert os.write(machine, piece) == len(piece)
        os.close(machine)
        return self.port.hears_ready()

    def close(self) -> None:
        os.close(self.port.fileno())


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    wire = Wire(tmp_path)
    yield wire
    wire.close()


@pytest.mark.parametrize(
    "pieces",
    [(b"READY=1\n",), (b"READY=1\r\n",), (b"RE", b"ADY=1", b"\n"), (b"noise\nREADY=1\nmore",), (b"\xff\0\nREADY=1\n",)],
)
def test_ready_at_its_port(wire: Wire, pieces: tuple[bytes, ...]) -> None:
    assert wire.say(*pieces)


@pytest.mark.parametrize("pieces", [(b"READY=1",), (b"READY=10\n",), (b"xREADY=1\n",), (b"ready=1\n",), (b"\n\n",)])
def test_not_ready_at_its_port(wire: Wire, pieces: tuple[bytes, ...]) -> None:
    assert not wire.say(*pieces)
    assert not wire.port.is_spent


def test_a_flood_is_not_read_to_its_end(wire: Wire) -> None:
    piece = b"x" * 4096
    for _ in range(MOST_BYTES // len(piece)):
        assert not wire.port.is_spent
        assert not wire.say(piece)
        assert len(wire.port._rest) <= 64
    assert wire.port.is_spent


def test_a_port_that_is_closed_is_opened_again(wire: Wire) -> None:
    """A guest that boots may do so; a pipe that is held open both ways has no end."""
    assert not wire.say(b"noise\n")
    assert not wire.port.hears_ready()
    assert not wire.port.is_spent
    assert wire.say(b"READY=1\n")


@given(st.lists(st.binary(min_size=1, max_size=200), max_size=30))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]) -> None:
    wire = Wire(tmp_path_factory.mktemp("port"))
    lines = b"".join(pieces).split(b"\n")[:-1]
    is_ready = any(line.rstrip(b"\r") == b"READY=1" for line in lines)
    assert wire.say(*pieces) == is_ready
    wire.close()


# Calls.

OURS, OTHERS = 4711, 4712


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
        self.calls = Calls(listener, lambda: OURS)

    def hears_ready(self) -> bool:
        """In all that there is to hear, for as long as anything is listened to."""
        return any(self.calls.hears_ready() for _ in range(2 * MOST_AT_ONCE))

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


def test_until_the_machine_has_an_id_every_call_is_somebody_elses(line: Line, tmp_path: Path) -> None:
    line.calls._caller = lambda: read_cid(str(tmp_path / "cid"))
    early = line.board.call(OURS, b"READY=1")
    assert not line.hears_ready() and is_over(early)
    assert read_cid(str(OURS)) == OURS  # in a script of before an upgrade
    (tmp_path / "cid").write_text(f"{OURS}\n")
    line.board.call(OURS, b"READY=1")
    assert line.hears_ready()


@pytest.mark.parametrize("text", [b"READY=1", b"READY=1\n", b"STATUS=Up\nREADY=1\nX_A=1", b"\xff\0\nREADY=1"])
def test_ready(line: Line, text: bytes) -> None:
    call = line.board.call(OURS, text)
    assert line.hears_ready()
    assert is_over(call)  # systemd waits for that
    assert line.calls.is_spent
    assert not line.board.is_open  # whoever calls now is refused


@pytest.mark.parametrize("text", [b"READY=0", b"READY=10", b"xREADY=1", b"STATUS=READY=1", b"ready=1", b"\n\n", b"\0"])
def test_not_ready(line: Line, text: bytes) -> None:
    call = line.board.call(OURS, text)
    assert not line.hears_ready()
    assert is_over(call)
    line.board.call(OURS, b"READY=1")
    assert line.hears_ready()


def test_another_machine_is_not_heard(line: Line) -> None:
    """Nor does it use up what this one has."""
    for _ in range(2 * MOST_CALLS):
        with line.board.call(OTHERS, b"READY=1"):
            assert not line.calls.hears_ready()
    assert not line.calls.is_spent
    line.board.call(OURS, b"READY=1")
    assert line.hears_ready()


def test_calls_that_say_nothing_are_few_at_once(line: Line) -> None:
    held = [line.board.call(OURS) for _ in range(MOST_AT_ONCE)]
    assert not line.hears_ready()
    one_too_many = line.board.call(OURS)
    assert not line.hears_ready()
    assert is_over(one_too_many)
    held[0].sendall(b"x" * LONGEST_CALL + b"\nREADY=1")
    assert not line.hears_ready()
    held[1].sendall(b"READY=1")
    assert line.hears_ready()
    assert all(is_over(call) for call in held)


def test_calls_are_not_answered_without_end(line: Line) -> None:
    for _ in range(MOST_CALLS):
        with line.board.call(OURS):
            assert not line.calls.hears_ready()
    assert line.calls.is_spent
    assert not line.board.is_open


@given(st.lists(st.tuples(st.sampled_from([OURS, OTHERS]), st.binary(max_size=200) | st.just(b"READY=1")), max_size=8))
def test_any_calls(made: list[tuple[int, bytes]]) -> None:
    line = Line()
    for cid, text in made:
        line.board.call(cid, text or b"\n")
    is_ready = any(cid == OURS and b"READY=1" in text.splitlines() for cid, text in made)
    assert line.hears_ready() == is_ready
    line.close()


# Both together, until one of them has said so.


def test_whichever_says_so_first(wire: Wire, line: Line) -> None:
    line.board.call(OURS, b"READY=1")
    assert await_ready([wire.port, line.calls]) == "vsock"


def test_its_port_says_so_where_no_call_comes(wire: Wire, line: Line) -> None:
    machine = os.open(wire.path, os.O_WRONLY)
    os.write(machine, b"READY=1\n")
    os.close(machine)
    assert await_ready([wire.port, line.calls]) == "its port"


def flood(path: Path) -> None:
    machine = os.open(path, os.O_WRONLY)
    assert os.write(machine, b"x" * MOST_BYTES) == MOST_BYTES
    os.close(machine)


def test_a_port_that_floods_does_not_keep_a_call_from_being_heard(wire: Wire, line: Line) -> None:
    flood(wire.path)
    assert await_ready([wire.port]) == ""
    line.board.call(OURS, b"READY=1")
    assert await_ready([wire.port, line.calls]) == "vsock"


# The program.


@pytest.fixture
def port(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "port.out"
    os.mkfifo(path)
    held = os.open(path, os.O_RDWR)
    yield path
    os.close(held)


class Told:
    """The main process of the machine's service, to which that it is ready is said by a signal."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.signals: list[tuple[int, int]] = []
        monkeypatch.setattr(os, "kill", lambda pid, number: self.signals.append((pid, number)))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    return Told(monkeypatch)


def test_it_notes_that_it_hears_and_says_how_it_was_told(
    port: Path, tmp_path: Path, told: Told, capfd: pytest.CaptureFixture[str]
) -> None:
    machine = os.open(port, os.O_WRONLY)
    os.write(machine, b"READY=1\n")
    os.close(machine)
    with pytest.raises(SystemExit) as ended:
        main(str(tmp_path / "hearing"), "port", str(port), "4242")
    assert ended.value.code == 0
    assert capfd.readouterr().out == "ready, says the guest over its port\n"
    assert told.signals == [(4242, signal.SIGUSR1)]
    assert (tmp_path / "hearing").read_bytes() == b""


def test_it_gives_up_a_guest_that_says_too_much(port: Path, tmp_path: Path, told: Told) -> None:
    flood(port)
    with pytest.raises(SystemExit, match="the guest said too much before it was ready"):
        main(str(tmp_path / "hearing"), "port", str(port), "4242")
    assert told.signals == []


def test_what_cannot_be_heard_is_told_and_not_noted(tmp_path: Path, told: Told) -> None:
    with pytest.raises(SystemExit, match=r"the guest's ready port cannot be opened: .*nowhere"):
        main(str(tmp_path / "hearing"), "port", str(tmp_path / "nowhere"), "4242")
    with pytest.raises(SystemExit, match="the guest's ready port cannot be opened"):
        main(str(tmp_path / "hearing"), "socket", str(tmp_path / "nowhere"), "vm_901", "4242")
    assert not (tmp_path / "hearing").exists()
    assert told.signals == []
