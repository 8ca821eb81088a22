"""What the service of a machine under cloud-hypervisor makes of the machine's events: the shell that follows them, fed
through a pipe."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.backends import cloud_hypervisor
from hutch.runtime.units import LIBRARY


def event(source: str, name: str, properties: dict[str, str] | None = None) -> bytes:
    """As cloud-hypervisor writes it."""
    timestamp = {"secs": 0, "nanos": 71234}
    said = {"timestamp": timestamp, "source": source, "event": name, "properties": properties}
    return json.dumps(said, indent=2).encode() + b"\n\n"


STARTING = event("vmm", "starting")
NOISE = event("virtio-device", "reset", {"id": "_net1"})
REBOOTING = event("vm", "rebooting")
PANICKED = event("guest", "panic", {"event": "panic"})


class Follower:
    """What follows a machine's events, through a pipe; the machine is one that sleeps."""

    def __init__(self, directory: Path) -> None:
        self.noted = directory / "noted"
        for path in (self.noted, directory / "vm"):
            path.mkdir()
        events = directory / "vm" / "events"
        os.mkfifo(events)
        self.link = os.open(events, os.O_RDWR | os.O_CLOEXEC)
        self.machine = subprocess.Popen(["sleep", "60"])
        (self.noted / "machine").write_text(str(self.machine.pid))
        script = directory / "script"
        dialect = Path(cloud_hypervisor.__file__).with_suffix(".sh").read_text()
        script.write_text(f"set -eu\nruntime={directory} vm={directory}/vm\n{dialect}\n{LIBRARY.read_text()}")
        with open(events, "rb") as reading:
            self.process = subprocess.Popen(["sh", script, "follow"], stdin=reading)

    def hear(self, data: bytes) -> None:
        while data:
            assert select.select([], [self.link], [], 20)[1], "nobody reads any more"
            data = data[os.write(self.link, data[:4096]) :]

    def is_killed(self, seconds: float = 0.3) -> bool:
        """Whether the machine has been; one that has not been lives on."""
        try:
            return self.machine.wait(seconds) == -signal.SIGKILL
        except subprocess.TimeoutExpired:
            return False

    def end(self) -> str:
        """Nobody says anything any more, since the machine has ended. What that meant."""
        if self.link >= 0:
            os.close(self.link)
            self.link = -1
        assert self.process.wait(20) == 0
        outcome = self.noted / "outcome"
        return outcome.read_text() if outcome.exists() else ""

    def close(self) -> None:
        self.end()
        self.machine.kill()
        self.machine.wait(10)


@pytest.fixture
def follower(tmp_path: Path) -> Iterator[Follower]:
    follower = Follower(tmp_path)
    yield follower
    follower.close()


@pytest.mark.parametrize(
    ("said", "outcome"),
    [(REBOOTING, "reset"), (PANICKED + REBOOTING, "panic"), (STARTING + NOISE + REBOOTING + PANICKED, "reset")],
    ids=["reset", "panic", "reset first"],
)
def test_a_machine_that_would_go_on_is_ended(follower: Follower, said: bytes, outcome: str) -> None:
    follower.hear(said[:20])
    assert not follower.is_killed()
    follower.hear(said[20:])
    assert follower.is_killed(20)
    assert follower.end() == outcome


def test_what_it_said_last_is_heard(follower: Follower) -> None:
    follower.machine.kill()
    follower.machine.wait(10)
    follower.hear(STARTING + REBOOTING)
    assert follower.end() == "reset"


def test_one_that_ends_without_a_word(follower: Follower) -> None:
    follower.hear(STARTING + NOISE)
    assert follower.end() == ""
    assert not follower.is_killed()


NO_EVENTS = {
    "another source": event("guest", "rebooting") + event("virtio-device", "rebooting", {"id": "vm"}),
    "a panic of the machine's": event("vm", "panic", {"event": "panic"}),
    "another panic": event("guest", "panic", {"event": "crash_loaded"}) + event("guest", "panic"),
    "a property": event("vm", "resized", {"event": "rebooting"}) + event("guest", "resized", {"event": "panic"}),
    "of two events": event("vm", "resized") + event("guest", "rebooting") + b'{\n  "event": "rebooting"\n}\n',
    "a name": event("virtio-device", "reset", {"id": '"source": "vm",\n  "event": "rebooting"'}),
    "half a word": event("vm", "reboot") + event("vm", "not-rebooting"),
    "a command": event("$(kill -9 $PPID)", "`reboot`", {"event": '\\";reboot;"'}),
}


@pytest.mark.parametrize("said", NO_EVENTS.values(), ids=NO_EVENTS)
def test_what_means_no_end(follower: Follower, said: bytes) -> None:
    follower.hear(said)
    assert not follower.is_killed()
    follower.hear(REBOOTING)
    assert follower.is_killed(20)


LENGTHS = {
    "noise": NOISE * 2000,
    "a line": b"x" * 300_000 + b"\n",
    "lines": b"\n" * 100_000,
    "NULs": bytes(100_000),
    "anything": bytes(range(256)) * 500 + b"\n",
}


@pytest.mark.parametrize("said", LENGTHS.values(), ids=LENGTHS)
def test_an_end_is_heard_after_much_else(follower: Follower, said: bytes) -> None:
    follower.hear(said)
    assert not follower.is_killed()
    follower.hear(REBOOTING)
    assert follower.is_killed(20)
    assert follower.end() == "reset"
