"""A machine's monitor as its supervisor hears it, played by a program that may hang up at any time."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest
from hutch.runtime.monitor import PATIENCE, Monitor

GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 10}, "package": ""}, "capabilities": []}}
PANIC = {"event": "SHUTDOWN", "data": {"guest": True, "reason": "guest-panic"}}


class Machine:
    """The machine's end of the connection."""

    def __init__(self) -> None:
        spec = find_spec("qemu.qmp")
        assert spec is not None and spec.origin is not None
        ours, self.link = socket.socketpair()
        self.link.settimeout(30)
        self.monitor = Monitor(ours, str(Path(spec.origin).parents[2]))
        self.say(GREETING)
        assert json.loads(self.link.recv(4096))["execute"] == "qmp_capabilities"
        self.say({"return": {}})
        assert self.monitor._is_connected.wait(30)

    def say(self, words: Mapping[str, object]) -> None:
        self.link.sendall(json.dumps({"timestamp": {"seconds": 1, "microseconds": 1}, **words}).encode() + b"\r\n")


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.link.close()
    list(machine.monitor.last_words())
    machine.monitor.close()


@pytest.mark.parametrize("last", [None, PANIC], ids=["nothing", "panic"])
def test_a_machine_that_hangs_up(machine: Machine, last: Mapping[str, object] | None) -> None:
    """What it said before counts; that it hung up is no trouble of its own."""
    if last is not None:
        machine.say(last)
    machine.link.close()
    assert list(machine.monitor.last_words()) == ([("outcome", "guest-panic")] if last else [])


def test_one_that_has_hung_up_is_asked_for_nothing(machine: Machine) -> None:
    machine.link.close()
    list(machine.monitor.last_words())
    assert machine.monitor.leave_memory(1 << 30, 2 << 30) == "the machine's monitor does not answer"


def test_one_that_does_not_answer_is_not_waited_for(machine: Machine) -> None:
    begun = time.monotonic()
    assert machine.monitor.leave_memory(1 << 30, 2 << 30) == "the machine's monitor does not answer"
    assert time.monotonic() - begun < PATIENCE + 5
