"""The runner, which does for a service what systemd does where that is not process 1: with services that are a small
script of the test's own. What a guest makes of it: test_supervision and test_crash."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hutch.backends.launch import Step
from hutch.host.services.cgroup import Cgroup
from hutch.runtime.runner import LOG_BYTES
from hutch.runtime.runners import Runners
from tests.support.service import NAME, Service, make_launch, own_surroundings

DIALECT = "begin() {\n  make_ready\n  note shown yes\n  launch\n}\n"
READY = "systemd-notify --no-block --ready; "
STAY = "sleep 60 & wait; "
TOLD = "trap 'echo told to end; exit 0' TERM; "
DEAF = "trap '' TERM; "
Start = Callable[..., Service]


NEVER_SHOWN = "begin() {\n  make_ready\n  launch\n}\n"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Service] = []

    def begin(script: str, *, dialect: str = DIALECT, change: Callable[[str], str] = str, **more: Any) -> Service:
        layout = own_surroundings(tmp_path).layout
        counted = f"date +%s.%N >>{tmp_path}/starts; "
        started.append(Service(make_launch(layout, dialect, f"{counted}{script}", **more), layout, change))
        return started[-1]

    yield begin
    for service in started:
        service.close()


def starts(tmp_path: Path) -> list[float]:
    """When its script was started."""
    path = tmp_path / "starts"
    return [float(line) for line in path.read_text().split()] if path.exists() else []


def runs(command: str) -> bool:
    return bool(subprocess.run(["pgrep", "-f", command], capture_output=True, timeout=10).stdout)


def quickly(unit: str) -> str:
    """A unit that is started again at once."""
    return unit.replace("RestartSec=2\n", "RestartSec=0.05\n").replace(
        "RestartMaxDelaySec=60\n", "RestartMaxDelaySec=0.1\n"
    )


# The start.


def test_it_is_ready_and_ends_in_order(start: Start) -> None:
    service = start(f"{TOLD}{READY}{STAY}")
    assert service.is_ready()
    assert service.status.state == "running"
    assert service.is_alive
    assert service.stop() == "success exited 0"
    assert (service.status.state, service.status.reason) == ("stopped", "")
    assert "told to end\n" in service.text


def test_it_inherits_nothing(start: Start) -> None:
    service = start(f"ls /proc/$$/fd; readlink /proc/$$/fd/0; cat /proc/$$/oom_score_adj; {READY}{STAY}")
    assert service.is_ready()
    assert service.text.splitlines()[:5] == ["0", "1", "2", "/dev/null", "0"]
    own = Path(f"/proc/{service.runner}/oom_score_adj").read_text()
    assert own in ("-900\n", Path("/proc/self/oom_score_adj").read_text())  # or root may not


def test_nobody_else_is_heard(start: Start) -> None:
    lie = "import os, socket; socket.socket(1, 2).sendto(b'READY=1', os.environ['NOTIFY_SOCKET'])"
    service = start(f'python3 -c "{lie}"; echo said; {STAY}', start_seconds=2.0)
    service.until(lambda: "said\n" in service.text)
    assert not service.is_ready(0.5)
    assert service.status.state == "starting"


@pytest.mark.parametrize(
    ("script", "how"), [(STAY, "timeout killed TERM"), (DEAF + STAY * 9, "timeout killed KILL")], ids=["asked", "deaf"]
)
def test_one_that_is_never_ready(start: Start, script: str, how: str) -> None:
    begun = time.monotonic()
    service = start(script, start_seconds=1.0, stop_seconds=1.0)
    assert service.ended() == how
    assert time.monotonic() - begun < 10
    assert (service.status.state, service.status.reason) == ("failed", "not ready after 1 s")
    assert not service.is_ready(1)


def test_a_step_that_hangs_ends_at_the_deadline(start: Start, tmp_path: Path) -> None:
    far = Step(("sh", "-c", "sleep 4321; true"), "wait for the far end")
    service = start(READY + STAY, prepare=((far,),), start_seconds=1.0)
    assert service.ended() == "timeout killed TERM"
    assert service.status.reason == "cannot wait for the far end: it had not ended after 1 s"
    service.stop()
    assert not runs("sleep 4321")
    assert starts(tmp_path) == []


def test_a_step_that_fails_says_so(start: Start, tmp_path: Path) -> None:
    fails = Step(("sh", "-c", "echo two >&2; exit 7"), "try two")
    chains = ((Step(("echo", "one"), "try one"),), (fails,))
    service = start(READY + STAY, prepare=chains)
    assert service.ended() == "exit-code exited 1"
    assert service.status.reason == "cannot try two: two"
    assert "cannot try two: two\n" in service.text
    assert starts(tmp_path) == []


def test_what_is_shown_late_ends_at_the_deadline(start: Start) -> None:
    """It says that it is ready, and what follows that comes to no end."""
    service = start(READY + STAY, dialect=NEVER_SHOWN, start_seconds=2.0)
    assert service.ended() == "timeout killed TERM"
    assert (service.status.state, service.status.reason) == ("failed", "not ready after 2 s")


def test_one_that_ends_while_that_is_awaited(start: Start) -> None:
    service = start(f"{READY}sleep 0.5", dialect=NEVER_SHOWN)
    assert service.ended(5) == "protocol exited 0"
    assert (service.status.state, service.status.reason) == ("failed", "the guest ended before it was ready")


@pytest.mark.parametrize(("script", "dialect"), [(STAY, DIALECT), (READY + STAY, NEVER_SHOWN)])
def test_a_start_is_called_off(start: Start, tmp_path: Path, script: str, dialect: str) -> None:
    service = start(script, dialect=dialect)
    service.until(lambda: starts(tmp_path))
    begun = time.monotonic()
    assert service.stop() == "success killed TERM"
    assert time.monotonic() - begun < 5
    assert not service.is_ready(1)
    assert (service.status.state, service.status.reason) == ("stopped", "the start was called off")
    assert len(starts(tmp_path)) == 1


# The end, and another start.


@pytest.mark.parametrize(
    ("last", "how", "state", "reason"),
    [
        ("exit 133", "success exited 133", "stopped", "rebooting"),
        ("exit 7", "exit-code exited 7", "failed", "qemu ended with code 7"),
        ("kill -KILL $$", "signal killed KILL", "failed", "qemu was killed by SIGKILL"),
    ],
)
def test_it_is_started_again_later_and_later(
    start: Start, tmp_path: Path, last: str, how: str, state: str, reason: str
) -> None:
    is_known = own_surroundings(tmp_path).layout.runtime(NAME) / "noted" / "ready_seconds"
    service = start(f"{READY}until [ -f {is_known} ]; do sleep 0.01; done; sleep 0.3; {last}")
    assert service.is_ready()
    assert service.ended() == how
    assert (service.status.state, service.status.reason) == (state, reason)
    first = service.status.pid
    service.until(lambda: len(starts(tmp_path)) == 3, 30)
    one, two, three = starts(tmp_path)
    assert two - one >= 2
    assert three - two >= 3.9
    assert service.status.pid != first
    service.stop()
    assert len(starts(tmp_path)) == 3


def test_there_is_an_end_to_starts(start: Start, tmp_path: Path) -> None:
    service = start(f"{READY}sleep 0.1; exit 7", change=quickly)
    service.until(lambda: not service.runner and len(service.how) == 8)
    assert len(starts(tmp_path)) == 8
    assert "9 starts within 120 s are too many: it is not started again\n" in service.text
    assert service.status.state == "failed"
    with closing(Cgroup(service.layout.slice_cgroup(NAME))) as cgroup:
        assert not cgroup.has("cgroup.procs")  # the runner has gone, with all that it had


def test_one_that_ends_by_itself_is_let_be(start: Start, tmp_path: Path) -> None:
    service = start(f"{READY}sleep 0.3", change=quickly)
    assert service.is_ready()
    assert service.ended() == "success exited 0"
    service.until(lambda: not service.runner)
    assert (service.status.state, service.status.reason) == ("stopped", "it powered off by itself")
    assert len(starts(tmp_path)) == 1


def test_one_that_was_to_start_again_is_stopped(start: Start, tmp_path: Path) -> None:
    service = start(f"{READY}sleep 0.3; exit 7")
    assert service.ended() == "exit-code exited 7"
    begun = time.monotonic()
    service.stop()
    assert time.monotonic() - begun < 2
    assert not service.runner
    time.sleep(2.5)
    assert len(starts(tmp_path)) == 1


def test_one_that_does_not_end_is_ended_by_force(start: Start) -> None:
    service = start(f"setsid sleep 4322 & {DEAF}{READY}{STAY * 9}", stop_seconds=1.0)
    assert service.is_ready()
    begun = time.monotonic()
    assert service.stop() == "timeout killed KILL"
    assert time.monotonic() - begun < 5
    assert (service.status.state, service.status.reason) == ("stopped", "")
    assert not runs("sleep 4322")


def test_what_it_has_started_ends_with_it(start: Start) -> None:
    service = start(f"setsid sleep 4323 & {READY}sleep 0.3")
    assert service.is_ready()
    assert service.ended() == "success exited 0"
    assert not runs("sleep 4323")


def test_each_start_finds_its_cgroup_as_the_first_did(start: Start, tmp_path: Path) -> None:
    """A kernel that has killed a cgroup would kill what is started from there into a new one, as systemd does it."""
    make = "group=/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup); mkdir $group/guest $group/guest/of-$$; "
    mount = Step(("mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"), "mount cgroup2")
    service = start(f"{make}{READY}sleep 0.3; exit 7", change=quickly, prepare=((mount,),))
    service.until(lambda: len(service.how) > 2)
    assert {*service.how} == {"exit-code exited 7"}
    assert "File exists" not in service.text


# The log.


def test_what_is_logged_is_bounded(start: Start) -> None:
    """More than the log holds comes first, so its file has been replaced more than once."""
    service = start(f"yes 'a line of the flood' | head -c 4000000; echo its last words; {READY}{STAY}")
    assert service.is_ready()
    assert service.text.endswith("a line of the flood\nits last words\n")
    sizes = [path.stat().st_size for path in service.runtime.glob("machine.log*")]
    assert LOG_BYTES / 2 - 65536 <= sum(sizes) <= LOG_BYTES


# Runners that are killed, or do not react.


def test_with_its_runner_a_service_ends_in_order(start: Start, tmp_path: Path) -> None:
    service = start(f"{TOLD}{READY}{STAY}", change=quickly)
    assert service.is_ready()
    os.kill(service.runner, signal.SIGKILL)
    service.until(lambda: not service.is_alive)
    time.sleep(1)
    assert len(starts(tmp_path)) == 1  # and nobody starts it again
    assert (service.how, service.runner) == ([], 0)


OTHER_FILES = ("status.json", "launch.json", "machine.log", "notify")


@pytest.mark.parametrize("lost", ["runner.lock", *(pytest.param(file, marks=pytest.mark.slow) for file in OTHER_FILES)])
def test_a_runner_that_does_not_react_is_killed(start: Start, lost: str) -> None:
    """It is found by its place, whatever became of the files."""
    service = start(f"{DEAF}setsid sleep 4324 & {READY}{STAY * 9}")
    assert service.is_ready()
    (service.runtime / lost).unlink()
    os.kill(service.runner, signal.SIGSTOP)
    begun = time.monotonic()
    service.manager.stop([NAME], 0.0)
    assert time.monotonic() - begun < 15
    assert not runs("sleep 4324")
    with closing(Cgroup(service.layout.slice_cgroup(NAME))) as cgroup:
        assert not cgroup.has("cgroup.procs")


def test_one_that_was_never_told_to_begin_ends(start: Start, tmp_path: Path) -> None:
    """A command was killed, or failed, before all was in place."""
    service = start(READY + STAY)
    assert service.is_ready()
    assert service.stop() == "success killed TERM"
    again = Runners(service.layout)
    with pytest.warns(ResourceWarning):
        again.prepare(NAME)
    again.give_up()
    service.until(lambda: not os.path.exists(f"/proc/{service.runner}/fd") or not service.runner)
    with closing(Cgroup(service.layout.slice_cgroup(NAME))) as cgroup:
        service.until(lambda: not cgroup.has("cgroup.procs"))
    assert len(starts(tmp_path)) == 1


def test_the_next_start_waits_for_the_end_of_the_last(start: Start, tmp_path: Path) -> None:
    """A command was killed, and what it started runs on: the next one finds it, and ends it."""
    first = start(f"{TOLD}{READY}{STAY}")
    assert first.is_ready()
    before = first.status.pid
    second = start(f"{READY}{STAY}")
    assert second.is_ready()
    assert second.status.pid != before
    assert second.how == ["success exited 0"]
    assert len(starts(tmp_path)) == 2
