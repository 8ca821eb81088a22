"""What a guest says is the attacker's: it is heard in small pieces, and only the words that mean something count."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.runtime.sources import MOST_BYTES, Notifications, Port


class Wire:
    """The other end of a socket: gives what it is told to, then blocks or, being `closed`, ends."""

    def __init__(self, *pieces: bytes, closed: bool = False) -> None:
        self.pieces = list(pieces)
        self.closed = closed
        self.sent: list[bytes] = []

    def setblocking(self, flag: bool) -> None:
        assert not flag

    def fileno(self) -> int:
        return 7

    def recv(self, size: int) -> bytes:
        if self.pieces:
            piece = self.pieces.pop(0)
            if len(piece) > size:
                self.pieces.insert(0, piece[size:])
            return piece[:size]
        if self.closed:
            return b""
        raise BlockingIOError

    def send(self, data: bytes) -> int:
        self.sent.append(data)
        return len(data)


def hear(port: Port, times: int) -> list[tuple[str, str]]:
    return [said for _ in range(times) for said in port.hear()]


def port(wire: Any) -> Port:
    return Port(wire)


@pytest.mark.parametrize(
    "pieces",
    [(b"READY=1\n",), (b"READY=1\r\n",), (b"RE", b"ADY=1", b"\n"), (b"noise\nREADY=1\nmore",), (b"\xff\0\nREADY=1\n",)],
)
def test_ready(pieces: tuple[bytes, ...]) -> None:
    found = port(Wire(*pieces))
    assert hear(found, len(pieces)) == [("ready", "its port")]
    assert found.is_spent  # whatever it says from now on is not read


@pytest.mark.parametrize("pieces", [(b"READY=1",), (b"READY=10\n",), (b"xREADY=1\n",), (b"ready=1\n",), (b"\n\n",)])
def test_not_ready(pieces: tuple[bytes, ...]) -> None:
    found = port(Wire(*pieces))
    assert hear(found, len(pieces) + 1) == []
    assert not found.is_spent


def test_a_flood_is_not_read_to_its_end() -> None:
    found = port(Wire(b"x" * (4 * MOST_BYTES)))
    assert hear(found, MOST_BYTES // 4096) == []
    assert found.is_spent


def test_a_port_that_is_closed_is_spent() -> None:
    found = port(Wire(closed=True))
    assert hear(found, 1) == []
    assert found.is_spent


@given(st.lists(st.binary(max_size=200), max_size=30))
def test_any_bytes(pieces: list[bytes]) -> None:
    found = port(Wire(*(piece or b"\n" for piece in pieces)))
    assert all(said == ("ready", "its port") for said in hear(found, len(pieces)))


def test_it_can_be_told_to_power_off() -> None:
    wire = Wire()
    port(wire).power_off()
    assert wire.sent == [b"poweroff\n"]


def notifications(*pieces: bytes) -> list[tuple[str, str]]:
    wire: Any = Wire(*pieces)
    source = Notifications(wire, 1)
    return [said for _ in pieces for said in source.hear()]


def test_notifications() -> None:
    assert notifications(b"X_NSPAWN_LEADER_PID=12\n", b"STATUS=x\nREADY=1") == [("leader", "12"), ("ready", "")]


@pytest.mark.parametrize("said", [b"X_NSPAWN_LEADER_PID=-1", b"X_NSPAWN_LEADER_PID=1e3", b"READY=0", b"\xff"])
def test_other_notifications(said: bytes) -> None:
    assert notifications(said) == []
