"""The shell that is a machine's service under systemd, with a program that plays the machine: what it makes of what
comes through the pipes, all of which is the attacker's. Real machines: tests/host/vm/test_machine_service.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hutch.backends.launch import REBOOT, Helper, Launch, Limits
from hutch.backends.service import listening, pipes_step
from hutch.host.services.process import is_alive
from hutch.spec.names import Places
from tests.support.service import Service
from tests.unit.facts import surroundings

QUICK = 20.0
LINKS = ("port", "monitor")
SHUTDOWN = (
    'printf \'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN",'
    ' "data": {"guest": true, "reason": "%s"}}\\r\\n\' '
)
READY = "echo READY=1 >port.out; "
AWAIT = 'read -r command <port.in; echo "told to $command"; '
Play = Callable[..., Service]


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    """Starts the service of a machine that is a shell script, run where the pipes are."""
    runtime = tmp_path / "runtime"
    started: list[Service] = []

    def start(script: str, helper: tuple[str, ...] = (), **more: Any) -> Service:
        socket = f"{runtime}/vm/share0"
        launch = Launch(
            workspace="lab",
            backend="qemu",
            network_namespace="",
            cgroup="",
            directories=(f"{runtime}/vm",),
            files=(),
            prepare=((pipes_step(f"{runtime}/vm", LINKS, 0),),),
            connect=(),
            argv=("sh", "-euc", f"cd {runtime}/vm; {script}"),
            cleanup=(),
            limits=Limits(),
            runtime=str(runtime),
            helpers=(Helper(helper, "share it", socket, 0, 1024),) if helper else (),
            links=LINKS,
            restart_codes=(REBOOT,),
            **{"stop_seconds": QUICK, **more},
        )
        started.append(Service(launch, Places(tmp_path, tmp_path), tmp_path / "unit"))
        return started[-1]

    yield start
    for service in started:
        service.end()


def serving(tmp_path: Path, script: str) -> tuple[str, ...]:
    """A helper that listens where it is to, and then runs a script."""
    host = surroundings(python=sys.executable, package=str(Path(__file__).parents[2] / "src" / "hutch"))
    return (
        *listening(host, (f"{tmp_path}/runtime/vm/share0", 0, 3)),
        "sh",
        "-c",
        f"cd {tmp_path}/runtime/vm; {script}",
    )


def test_ready_and_told_to_end(play: Play) -> None:
    service = play(f"echo on the console; {READY}{AWAIT}")
    assert service.is_ready(QUICK)
    status = service.status
    assert (status["state"], status["pid"]) == ("running", service.process.pid)
    assert 0 < status["ready_seconds"] < QUICK
    assert service.stop() == 0
    assert "on the console\n" in service.text
    assert "told to poweroff\n" in service.text
    status = service.status
    assert (status["state"], status["reason"]) == ("stopped", "")
    assert not is_alive(status["pid"], status["started"])  # whoever still finds one of it ends that


def test_it_starts_with_as_little_memory_as_is_left_to_it(play: Play) -> None:
    hear = "for _ in 1 2; do read -r said <monitor.in; echo $said; done; "
    service = play(f"exec 4<>monitor.in; {hear}{READY}{AWAIT}", balloon=1 << 29)
    assert service.is_ready(QUICK)
    assert service.stop() == 0
    told = [line for line in service.text.splitlines() if line.startswith("{")]  # others' words come another way
    balloon = '{"execute": "balloon", "arguments": {"value": 536870912}}'
    assert told == ['{"execute": "qmp_capabilities"}', balloon]


@pytest.mark.parametrize(
    ("script", "code", "state", "reason"),
    [
        ("guest-reset", REBOOT, "stopped", "rebooting"),
        ("guest-shutdown", 0, "stopped", "it powered off by itself"),
        ("guest-panic", 1, "failed", "the guest's kernel panicked"),
        ("; exit 3", 1, "failed", "qemu ended with code 3"),
        ("; kill -KILL $$", 1, "failed", "qemu was killed by signal 9"),
    ],
)
def test_why_it_ended(play: Play, script: str, code: int, state: str, reason: str) -> None:
    last = script.removeprefix("; ") if script.startswith(";") else f"{SHUTDOWN}{script} >monitor.out"
    service = play(f"{READY}until [ -f ../noted/ready_seconds ]; do sleep 0.01; done; sleep 0.1; {last}")
    assert service.is_ready(QUICK)
    assert service.ended(QUICK) == code
    assert (service.status["state"], service.status["reason"]) == (state, reason)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (f"{SHUTDOWN}guest-reset >monitor.out", "the guest rebooted before it was ready"),
        (f"{SHUTDOWN}guest-shutdown >monitor.out", "the guest ended before it was ready"),
        ("exit 1", "qemu ended with code 1"),
    ],
)
def test_one_that_ends_before_it_is_ready_has_failed(play: Play, script: str, reason: str) -> None:
    service = play(script)
    assert service.ended(QUICK) == 1
    assert service.status["reason"] == reason
    assert reason in service.text


HOSTILE = {
    "too long a line": "head -c 60000 /dev/zero | tr '\\0' x >port.out",
    "nothing but NULs": "head -c 60000 /dev/zero >port.out",
    "a command": "echo 'READY=1; touch ../owned' >port.out; echo '$(touch ../owned)' >port.out",
    "too many lines": "yes READY=0 | head -n 1030 >port.out; echo READY=1 >port.out",
    "half of it": "printf 'NOT READY=1\\nREADY=10\\nREADY=1' >port.out",
}


@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE)
def test_what_else_it_says_is_not_being_ready(play: Play, said: str, tmp_path: Path) -> None:
    service = play(f"{said}; echo said; {AWAIT}")
    service.until(lambda: "said\n" in service.text)
    assert not service.is_ready(0.5)
    assert service.stop() == 0
    assert not (tmp_path / "runtime" / "owned").exists()


def test_it_is_heard_after_all_that(play: Play) -> None:
    service = play(f"head -c 30000 /dev/zero >port.out; echo >port.out; {READY}{AWAIT}")
    assert service.is_ready(QUICK)


def test_a_monitor_that_talks_without_end_is_still_understood(play: Play) -> None:
    """And what it says is never more than a word to look for."""
    forged = f"{SHUTDOWN}'$(touch ../owned)\\' >monitor.out; "
    noise = "head -c 9000000 /dev/zero | tr '\\0' x >monitor.out; echo >monitor.out; "
    service = play(f"{forged}{noise}{READY}sleep 0.2; {SHUTDOWN}guest-reset >monitor.out; sleep 0.2")
    assert service.is_ready(QUICK)
    assert service.ended(QUICK) == REBOOT
    assert not (service.runtime / "owned").exists()


def test_a_pipe_that_is_full_holds_up_nobody(play: Play) -> None:
    service = play(
        "dd if=/dev/zero of=port.in oflag=nonblock bs=4096 count=64 2>/dev/null || :; echo full; exec sleep 60"
    )
    service.until(lambda: "full\n" in service.text)
    service.process.send_signal(signal.SIGTERM)
    os.kill(int((service.runtime / "noted" / "machine").read_text()), signal.SIGKILL)
    assert service.ended(QUICK) == 0  # it was asked to end


def test_one_that_does_not_end_is_ended(play: Play) -> None:
    service = play(f"{READY}exec sleep 60", stop_seconds=0.5)
    assert service.is_ready(QUICK)
    assert service.stop() == -signal.SIGKILL
    assert (service.status["state"], service.status["reason"]) == ("stopped", "")


# What serves its shares.


def test_a_helper_that_does_not_come_up(play: Play) -> None:
    service = play(READY + AWAIT, ("sh", "-c", "echo my last words >&2; exit 3"))
    assert service.ended(QUICK) == 1
    assert service.status["reason"] == "the process beside it ended with code 3: share it"
    assert "my last words\n" in service.text


def test_one_that_ends_takes_the_machine_with_it(play: Play, tmp_path: Path) -> None:
    service = play(READY + AWAIT, serving(tmp_path, "until [ -f ../noted/ready_seconds ]; do sleep 0.1; done"))
    assert service.is_ready(QUICK)
    assert service.ended(QUICK) == 1
    assert service.status["reason"] == "the process beside it ended with code 0: share it"


def test_one_that_ends_with_the_machine_does_no_harm(play: Play, tmp_path: Path) -> None:
    service = play(
        f"[ -S share0 ]; {READY}{AWAIT}touch over; sleep 0.3",
        serving(tmp_path, "ulimit -n; until [ -f over ]; do sleep 0.01; done"),
    )
    assert service.is_ready(QUICK)
    assert service.stop() == 0
    assert "1024\n" in service.text  # open files
    assert service.status["state"] == "stopped"
