"""What has a machine's monitor set its balloon, against a program that plays that: it may refuse, say nothing, or hang
up at any time."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import hutch
from hutch.backends.qemu_monitor import PATIENCE
from hutch.spec.programs import own_program

GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 10}, "package": ""}, "capabilities": []}}
PANIC = {"event": "SHUTDOWN", "data": {"guest": True, "reason": "guest-panic"}}
SIZE = 1 << 30


class Machine:
    """The machine's end: what it was told is kept, and `answer` says what it answers to each command."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told: list[dict[str, Any]] = []
        self.answer: Callable[[dict[str, Any]], Mapping[str, object] | None] = lambda command: {"return": {}}
        self.first: Mapping[str, object] | None = GREETING
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            link, _ = self._listener.accept()
        except OSError:
            return
        with link:
            if self.first is None:
                return
            try:
                self._say(link, self.first)
                while text := link.recv(4096):  # a command comes in one piece
                    self.told.append(json.loads(text))
                    answer = self.answer(self.told[-1])
                    if answer is None:
                        return
                    if answer:
                        self._say(link, {**answer, "id": self.told[-1].get("id")})
            except OSError:
                return  # it has hung up

    def _say(self, link: socket.socket, words: Mapping[str, object]) -> None:
        link.sendall(json.dumps(words).encode() + b"\r\n")

    def close(self) -> None:
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
        self._thread.join(10)

    def leave_memory(self) -> str:
        """Have the program say so; why it could not, "" when it could."""
        spec = find_spec("qemu.qmp")
        assert spec is not None and spec.origin is not None
        package = Path(hutch.__file__).parent
        program = own_program("hutch.backends.qemu_monitor", sys.executable, package, needs_others=True)
        argv = (*program, str(self.path), str(Path(spec.origin).parents[2]), str(SIZE))
        result = subprocess.run(argv, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
        assert "Traceback" not in result.stderr
        assert (result.returncode != 0) == bool(result.stderr)
        return result.stderr.strip()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path / "control")
    yield machine
    machine.close()


def test_its_balloon_is_told(machine: Machine) -> None:
    assert machine.leave_memory() == ""
    told = [(command["execute"], command.get("arguments")) for command in machine.told]
    assert told == [("qmp_capabilities", {}), ("balloon", {"value": SIZE})]


def test_one_that_refuses_is_quoted(machine: Machine) -> None:
    refusal = {"error": {"class": "DeviceNotActive", "desc": "No balloon device has been activated"}}
    machine.answer = lambda command: refusal if command["execute"] == "balloon" else {"return": {}}
    assert machine.leave_memory() == "the machine's monitor refuses: No balloon device has been activated"


@pytest.mark.parametrize("first", [None, PANIC, {"return": "nonsense"}], ids=["nothing", "an event", "nonsense"])
def test_one_that_says_something_else_refuses(machine: Machine, first: Mapping[str, object] | None) -> None:
    machine.first = first
    assert machine.leave_memory().startswith("the machine's monitor ")


def test_one_that_hangs_up_refuses(machine: Machine) -> None:
    machine.answer = lambda command: None if command["execute"] == "balloon" else {"return": {}}
    assert machine.leave_memory().startswith("the machine's monitor refuses: ")  # and says how


def test_one_that_is_gone_is_asked_for_nothing(machine: Machine) -> None:
    machine.close()
    assert machine.leave_memory().startswith("the machine's monitor refuses: ")
    assert machine.told == []


def test_one_that_does_not_answer_is_not_waited_for(machine: Machine) -> None:
    machine.answer = lambda command: {} if command["execute"] == "balloon" else {"return": {}}
    begun = time.monotonic()
    assert machine.leave_memory() == "the machine's monitor does not answer"
    assert time.monotonic() - begun < PATIENCE + 5
