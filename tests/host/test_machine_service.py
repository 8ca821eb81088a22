"""The shell that is a machine's main process, with a program that plays the machine: what it makes of what comes
through the pipes, all of which is the attacker's. Real machines: tests/host/vm/test_machine_service.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hutch.backends import machine
from hutch.backends.launch import Helper, Step
from hutch.backends.machine import dialect, hear_command, listening, pipes_step
from tests.support.service import NAME, QUICK, Service, make_launch, own_surroundings

READY = "echo READY=1 >port.out; "
AWAIT = 'read -r command <port.in; echo "told to $command"; '
WHEN_READY = "until [ -f ../noted/ready_seconds ]; do sleep 0.01; done; sleep 0.3; "
SHUTDOWN = (
    'printf \'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "SHUTDOWN",'
    ' "data": {"guest": true, "reason": "%s"}}\\r\\n\' '
)
EVENT = (
    'printf \'{\\n  "timestamp": {\\n    "secs": 0,\\n    "nanos": 7\\n  },\\n'
    '  "source": "%s",\\n  "event": "%s",\\n  "properties": %s\\n}\\n\\n\' '
)


BACKENDS = Path(machine.__file__).parent


@dataclass(frozen=True)
class Monitor:
    """What a monitor says when its machine ends, and else; `link` is the one of its pipes that it says it to."""

    name: str
    link: str
    reset: str
    panic: str
    off: str
    noise: str
    pipes: tuple[str, ...]

    def says(self, words: str) -> str:
        return f"{words}>{self.link}; "


MONITORS = (
    Monitor(
        "qemu",
        "monitor.out",
        f"{SHUTDOWN} guest-reset",
        f"{SHUTDOWN} guest-panic",
        f"{SHUTDOWN} guest-shutdown",
        'echo \'{"event": "RTC_CHANGE", "data": {"reason": "guest-reset"}}\' ',
        ("monitor.in", "monitor.out"),
    ),
    Monitor(
        "cloud-hypervisor",
        "events",
        f"{EVENT} vm rebooting null",
        f'{EVENT} guest panic \'{{\n    "event": "panic"\n  }}\'',
        f"{EVENT} vm shutdown null",
        f'{EVENT} virtio-device reset \'{{\n    "id": "_net1"\n  }}\'',
        ("events",),
    ),
)


@dataclass
class Player:
    """Starts services of machines that are a shell script, run where the pipes are."""

    directory: Path
    monitor: Monitor
    started: list[Service]

    def __call__(self, script: str, helper: tuple[str, ...] = (), **more: Any) -> Service:
        host = own_surroundings(self.directory)
        place = f"{host.layout.runtime(NAME)}/vm"
        launch = make_launch(
            host.layout,
            dialect(BACKENDS / f"{self.monitor.name.replace('-', '_')}.sh"),
            f"cd {place}; {script}",
            backend=self.monitor.name,
            directories=(place,),
            prepare=((pipes_step(place, 0, "port.in", "port.out", *self.monitor.pipes),),),
            commands={
                "hear": hear_command(host, NAME, "port", f"{place}/port.out"),
                "ask": ("sh", "-c", f"echo poweroff >{place}/port.in"),  # where it is not in the dialect
            },
            helpers=(Helper(helper, "share it", f"{place}/share0", 1024),) if helper else (),
            **more,
        )
        self.started.append(Service(launch, host.layout))
        return self.started[-1]

    def serving(self, script: str) -> tuple[str, ...]:
        """A helper that listens where it is to, and then runs a script."""
        host = own_surroundings(self.directory)
        place = f"{host.layout.runtime(NAME)}/vm"
        return (*listening(host, (f"{place}/share0", 0, 3)), "sh", "-c", f"cd {place}; {script}")


@pytest.fixture(params=MONITORS, ids=lambda monitor: monitor.name)
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Player]:
    player = Player(tmp_path, request.param, [])
    yield player
    for service in player.started:
        service.close()


def test_ready_and_told_to_end(play: Player) -> None:
    service = play(f"echo on the console; {READY}{AWAIT}")
    assert service.is_ready()
    status = service.status
    assert status.state == "running"
    assert service.is_alive
    assert status.ready_seconds is not None and 0 < status.ready_seconds < QUICK
    assert service.stop() == "success exited 0"
    assert "on the console\n" in service.text
    assert "ready, says the guest over its port\n" in service.text
    assert "told to poweroff\n" in service.text
    status = service.status
    assert (status.state, status.reason) == ("stopped", "")
    assert not service.is_alive  # whoever still finds one of it ends that


def test_it_starts_with_as_little_memory_as_is_left_to_it(play: Player) -> None:
    told = play.directory / "told"
    leave = Step(("sh", "-c", f"echo 536870912 >{told}; exec sleep 60"), "leave it 512 MiB", may_fail=True)
    service = play(f"{READY}{AWAIT}", balloon=leave)
    assert service.is_ready()  # whether or not that has come to an end
    service.until(told.exists)
    assert service.stop() == "success exited 0"
    assert told.read_text() == "536870912\n"


@pytest.mark.parametrize(
    ("last", "how", "state", "reason"),
    [
        ("reset", "success exited 133", "stopped", "rebooting"),
        ("off", "success exited 0", "stopped", "it powered off by itself"),
        ("panic", "exit-code exited 1", "failed", "the guest's kernel panicked"),
        ("panic reset", "exit-code exited 1", "failed", "the guest's kernel panicked"),
        ("; exit 3", "exit-code exited 1", "failed", "{} ended with code 3"),
        ("; kill -KILL $$", "exit-code exited 1", "failed", "{} was killed by signal 9"),
    ],
)
def test_why_it_ended(play: Player, last: str, how: str, state: str, reason: str) -> None:
    words = [play.monitor.says(getattr(play.monitor, word)) for word in last.split() if not last.startswith(";")]
    service = play(f"{READY}{WHEN_READY}{''.join(words) or last.removeprefix('; ')}")
    assert service.is_ready()
    assert service.ended() == how
    status = service.status
    assert (status.state, status.reason) == (state, reason.format(play.monitor.name))


@pytest.mark.parametrize(
    ("last", "reason"),
    [
        ("reset", "the guest rebooted before it was ready"),
        ("off", "the guest ended before it was ready"),
        ("; exit 1", "{} ended with code 1"),
    ],
)
def test_one_that_ends_before_it_is_ready_has_failed(play: Player, last: str, reason: str) -> None:
    words = last.removeprefix("; ") if last.startswith(";") else play.monitor.says(getattr(play.monitor, last))
    service = play(words)
    assert service.ended() == "exit-code exited 1"
    assert service.status.reason == reason.format(play.monitor.name)
    assert not service.is_ready()
    assert reason.format(play.monitor.name) in service.text


def test_one_that_reboots_before_it_is_ready_starts_once_more(play: Player) -> None:
    """With what serves its shares, and with nothing left of the time before. That it may not do so for ever, the
    test above shows."""
    reset, off = (play.monitor.says(words) for words in (play.monitor.reset, play.monitor.off))
    first = f"[ -f first ] || {{ touch first; mkdir -p ../sockets; touch ../sockets/api; {reset}exit; }}"
    once, twice = (f"until ls served.* 2>/dev/null | sed -n {n}p | grep -q .; do sleep 0.01; done" for n in (1, 2))
    service = play(
        f"{once}; {first}; [ ! -e ../sockets/api ]; {twice}; {READY}{WHEN_READY}{off}",
        play.serving("touch served.$$; exec sleep 60"),
    )
    assert service.is_ready()
    assert service.ended() == "success exited 0"
    assert (service.status.state, service.status.reason) == ("stopped", "it powered off by itself")
    assert "the guest rebooted before it was ready: it starts once more\n" in service.text
    assert len(list((service.runtime / "vm").glob("served.*"))) == 2


HOSTILE = {
    "too long a line": "head -c 60000 /dev/zero | tr '\\0' x >port.out",
    "nothing but NULs": "head -c 60000 /dev/zero >port.out",
    "a command": "echo 'READY=1; touch ../owned' >port.out; echo '$(touch ../owned)' >port.out",
    # The end of hearing closes the port, which an open for writing alone would then wait for.
    "too many lines": "yes READY=0 | head -n 8192 >port.out; echo READY=1 1<>port.out",
    "half of it": "printf 'NOT READY=1\\nREADY=10\\nREADY=1' >port.out",
}


@pytest.mark.parametrize("said", HOSTILE.values(), ids=HOSTILE)
def test_what_else_it_says_is_not_being_ready(play: Player, said: str) -> None:
    service = play(f"{said}; echo said; {AWAIT}")
    service.until(lambda: "said\n" in service.text)
    assert not service.is_ready(0.5)
    assert service.stop() == "success exited 0"
    assert not (service.runtime / "owned").exists()


def test_it_is_heard_after_all_that(play: Player) -> None:
    service = play(f"head -c 30000 /dev/zero >port.out; echo >port.out; {READY}{AWAIT}")
    assert service.is_ready()


def test_a_monitor_that_talks_without_end_is_still_understood(play: Player) -> None:
    """And what it says is never more than a word to look for."""
    link = play.monitor.link
    forged = f"{SHUTDOWN}'$(touch ../owned)\\' >{link}; {EVENT}'$(touch ../owned)' '`touch ../owned`' '\\' >{link}; "
    noise = f"head -c 600000 /dev/zero | tr '\\0' x >{link}; echo >{link}; {play.monitor.says(play.monitor.noise)}"
    service = play(f"{forged}{noise}{READY}{WHEN_READY}{play.monitor.says(play.monitor.reset)}sleep 0.2")
    assert service.is_ready()
    assert service.ended() == "success exited 133"
    assert not (service.runtime / "owned").exists()


def test_a_pipe_that_is_full_holds_up_nobody(play: Player) -> None:
    service = play(
        "dd if=/dev/zero of=port.in oflag=nonblock bs=4096 count=64 2>/dev/null || :; echo full; exec sleep 60"
    )
    service.until(lambda: "full\n" in service.text)
    os.kill(service.runner, signal.SIGTERM)
    time.sleep(0.2)
    os.kill(int((service.runtime / "noted" / "machine").read_text()), signal.SIGKILL)
    assert service.ended() == "success exited 0"  # it was asked to end


def test_one_that_does_not_end_is_ended(play: Player) -> None:
    service = play(f"{READY}exec sleep 60", stop_seconds=0.5)
    assert service.is_ready()
    assert service.stop() == "timeout killed KILL"
    assert (service.status.state, service.status.reason) == ("stopped", "")


def test_a_machine_that_is_not_read_ends(play: Player) -> None:
    """A program of ours that has heard it waits for nothing more, and neither does what follows its monitor."""
    service = play(f"{READY}{WHEN_READY}exec >/dev/null 2>&1; {play.monitor.says(play.monitor.panic)}")
    assert service.is_ready()
    assert service.ended() == "exit-code exited 1"


# What serves its shares.


def test_a_helper_that_does_not_come_up(play: Player) -> None:
    service = play(READY + AWAIT, ("sh", "-c", "echo my last words >&2; exit 3"))
    assert service.ended() == "exit-code exited 1"
    assert service.status.reason == "the process beside it ended with code 3: share it"
    assert "my last words\n" in service.text


def test_one_that_ends_takes_the_machine_with_it(play: Player) -> None:
    service = play(READY + "exec sleep 60", play.serving("until [ -f ../noted/ready_seconds ]; do sleep 0.1; done"))
    assert service.is_ready()
    assert service.ended() == "exit-code exited 1"
    assert service.status.reason == "the process beside it ended with code 0: share it"


def test_one_that_ends_with_the_machine_does_no_harm(play: Player) -> None:
    service = play(
        f"[ -S share0 ]; {READY}{AWAIT}touch over; sleep 0.3",
        play.serving("ulimit -n; until [ -f over ]; do sleep 0.01; done"),
    )
    assert service.is_ready()
    assert service.stop() == "success exited 0"
    assert "1024\n" in service.text  # open files
    assert service.status.state == "stopped"


def test_what_a_helper_says_is_bounded(play: Player) -> None:
    script = "yes 'a line of the flood' | head -c 2000000 >&2; exit 3"
    service = play("exec sleep 60", ("sh", "-c", script))
    assert service.ended() == "exit-code exited 1"
    assert service.status.reason == "the process beside it ended with code 3: share it"
    service.until(lambda: "bytes more were said, and are left out\n" in service.text, 3)
    assert sum(path.stat().st_size for path in service.runtime.glob("machine.log*")) < 300 << 10
