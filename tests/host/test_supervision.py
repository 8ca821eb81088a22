"""What a guest, a hanging command or a killed one can do to what runs a workspace, and to the commands that talk to it.
What the runner does by itself: test_runner."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hutch.backends.launch import Launch, Step, encode_launch
from hutch.host.services.cgroup import Cgroup, open_root
from hutch.runtime import control
from hutch.runtime.observe import read_launch
from hutch.spec.names import Layout
from tests.host.instance import HUTCH, Instance
from tests.host.opening import open_instance
from tests.host.processes import Process, main_of, runner_of
from tests.host.residue import cgroups_of
from tests.support.world import World


@pytest.fixture(scope="module")
def web(world: World, images: Path, workspace_type: str) -> Iterator[Instance]:
    with open_instance(world, images) as instance:
        instance.declare(workspace_type, web="")
        instance.up()
        yield instance


@pytest.fixture
def running(web: Instance) -> Instance:
    web.up()
    return web


def layout_of(instance: Instance) -> Layout:
    return Layout(instance.state, instance.run)


# Terminals.

TIOCGPTN = 0x80045430


class Terminal:
    """A terminal of the test's own, the controlling one of a command with some of its streams redirected."""

    def __init__(self, instance: Instance, *argv: str, redirect: dict[int, str]) -> None:
        self.seen = b""
        self.pid, self.primary = pty.fork()
        if self.pid == 0:
            try:
                os.chdir(instance.directory)
                for number, path in redirect.items():
                    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), number)
                os.execve(HUTCH[0], [*HUTCH, "exec", "web", "--", *argv], instance.environment())
            finally:
                os._exit(1)

    def number(self) -> int:
        found: int = struct.unpack("i", fcntl.ioctl(self.primary, TIOCGPTN, b"\0" * 4))[0]
        return found

    def read_until(self, wanted: bytes, patience: float = 20.0) -> None:
        deadline = time.monotonic() + patience
        while wanted not in self.seen:
            ready = select.select([self.primary], [], [], max(0.0, deadline - time.monotonic()))[0]
            assert ready, self.seen[-2000:]
            self.seen += os.read(self.primary, 65536)

    def wait(self, patience: float = 20.0) -> int:
        """Its exit code, while what it says is read."""
        deadline = time.monotonic() + patience
        while not (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            assert time.monotonic() < deadline, self.seen[-2000:]
            self.take(0.05)
        self.take(0)
        os.close(self.primary)
        return os.waitstatus_to_exitcode(ended[1])

    def take(self, patience: float) -> None:
        while select.select([self.primary], [], [], patience)[0]:
            try:
                self.seen += os.read(self.primary, 65536)
            except OSError:  # nobody has its other end any more
                time.sleep(patience)
                return


ARE_TERMINALS = "for n in 0 1 2; do test -t $n && echo $n is one >> /tmp/answer; done; echo end >> /tmp/answer"


@pytest.mark.parametrize(
    ("redirected", "expected"),
    [
        ((), "0 is one\n1 is one\n2 is one\nend\n"),
        ((2,), "0 is one\n1 is one\nend\n"),
        ((1,), "end\n"),
        ((0,), "end\n"),
    ],
    ids=["none", "errors", "output", "input"],
)
def test_the_callers_terminal_stays_outside(
    running: Instance, tmp_path: Path, redirected: tuple[int, ...], expected: str
) -> None:
    """The guest has a terminal of its own or none; never the caller's, whose device the host shows by its number."""
    (tmp_path / "file").write_text("")
    script = (
        f"rm -f /tmp/answer; {ARE_TERMINALS}; stat -Lc %d:%i:%t:%T /proc/self/fd/[012] > /tmp/devices; exec sleep 30"
    )
    terminal = Terminal(running, "sh", "-c", script, redirect={number: str(tmp_path / "file") for number in redirected})
    theirs = os.stat(f"/dev/pts/{terminal.number()}")
    deadline = time.monotonic() + 20
    while not running.inside("web", "pgrep", "-x", "sleep", check=False).stdout:
        assert time.monotonic() < deadline
    assert running.inside("web", "cat", "/tmp/answer").stdout == expected
    devices = running.inside("web", "cat", "/tmp/devices").stdout.split()
    assert len(devices) == 3
    assert not any(line.startswith(f"{theirs.st_dev}:{theirs.st_ino}:") for line in devices)
    running.inside("web", "pkill", "-x", "sleep", check=False)
    assert terminal.wait() in (143, 128 + 15)


def test_what_is_typed_reaches_a_redirected_command(running: Instance, tmp_path: Path) -> None:
    output = tmp_path / "output"
    terminal = Terminal(running, "cat", redirect={1: str(output)})
    os.write(terminal.primary, b"typed\n\x04")
    assert terminal.wait() == 0
    assert output.read_bytes() == b"typed\n"


def test_a_big_paste_while_the_command_writes(running: Instance) -> None:
    """Neither direction waits for the other. The command does not read before it has written all."""
    program = (
        "import sys, tty; tty.setraw(0); sys.stdout.write('start' + 'x' * 300000); sys.stdout.flush();"
        "left = 100000\nwhile left: left -= len(sys.stdin.buffer.raw.read(left))\n"
        "sys.stdout.write('all read'); sys.stdout.flush()"
    )
    terminal = Terminal(running, "python3", "-c", program, redirect={})
    terminal.read_until(b"start")
    os.set_blocking(terminal.primary, False)
    paste, deadline = b"p" * 100_000, time.monotonic() + 30
    while paste:
        assert time.monotonic() < deadline, len(paste)
        readable, writable, _ = select.select([terminal.primary], [terminal.primary], [], 1)
        if writable:
            paste = paste[os.write(terminal.primary, paste[:4096]) :]
        if readable:
            terminal.seen += os.read(terminal.primary, 65536)
    terminal.read_until(b"all read")
    assert terminal.seen.count(b"x") == 300_000
    assert terminal.wait() == 0


# Deadlines.


STARTING = """
import json, sys
from pathlib import Path
from hutch.backends.launch import decode_launch
from hutch.runtime import control
from hutch.spec.names import Layout
launch = decode_launch(sys.stdin.buffer.read())
reconcile = lambda connect: connect()
layout = Layout(Path(sys.argv[1]), Path(sys.argv[2]))
print(json.dumps(control.start_all(layout, ["web"], lambda name: launch, lambda *_: None, reconcile)))
"""


def launch_of(instance: Instance) -> Launch:
    launch = read_launch(layout_of(instance).launch("web"))
    assert launch is not None
    return launch


def start_changed(instance: Instance, **changes: Any) -> tuple[dict[str, str], float]:
    """Start `web` by its own launch with some changes; how that failed, and how long it took."""
    # What runs in place of nspawn has no PID 1 that steps could be for.
    launch = replace(launch_of(instance), **{"pre_exec": (), **changes})
    instance.hutch("stop", "web")
    begun = time.monotonic()
    result = subprocess.run(
        [HUTCH[0], "-c", STARTING, instance.state, instance.run],
        input=encode_launch(launch),
        capture_output=True,
        timeout=60,
        env=instance.environment(),
    )
    assert result.returncode == 0, result.stderr.decode()
    return json.loads(result.stdout), time.monotonic() - begun


def step(*argv: str) -> Step:
    return Step(argv, "wait for the far end")


def test_a_step_that_hangs_ends_at_the_deadline(running: Instance) -> None:
    failures, seconds = start_changed(running, prepare=((step("sh", "-c", "sleep 4321; true"),),), start_seconds=2.0)
    assert "cannot wait for the far end" in failures["web"]
    assert "2 s" in failures["web"]
    assert seconds < 6
    assert not subprocess.run(["pgrep", "-f", "sleep 4321"], capture_output=True, check=False).stdout
    running.up()


def test_what_cannot_be_connected_runs_nothing_of_its_own(running: Instance) -> None:
    """nspawn has begun by then; what it makes PID 1 of is still held."""
    launch = launch_of(running)
    argv = tuple(word for word in launch.argv if word != "--boot" and not word.startswith("systemd."))
    held = {"pre_exec": launch.pre_exec, "argv": (*argv, "touch", "/home/dev/has-run")}
    trace = running.state / "workspaces" / "web" / "home" / "has-run"
    failures, _ = start_changed(running, **held, connect=((step("sh", "-c", "sleep 1; exit 7"),),))
    assert "cannot wait for the far end" in failures["web"]
    assert not trace.exists()
    running.up()
    failures, _ = start_changed(running, **held)
    assert "ended before it was ready" in failures["web"]
    assert trace.exists()
    running.up()


def test_a_reboot_before_it_is_ready_is_a_failure(running: Instance) -> None:
    failures, seconds = start_changed(running, argv=("sh", "-c", "exit 133"), restart_codes=(133,))
    assert "rebooted before it was ready" in failures["web"]
    assert seconds < 5
    running.up()


def test_reboots_leave_nothing_of_the_root_behind(running: Instance) -> None:
    """Its mounts are in a namespace of its own at each boot, which is as the first was."""
    counts, runner = [], runner_of(running, "web").pid
    for _ in range(2):
        before = running.status("web")["pid"]
        mountinfo = Path(f"/proc/{before}/mountinfo").read_text()
        counts.append(sum(str(running.run) in line or " /sys" in line for line in mountinfo.splitlines()))
        assert str(running.run) not in mounts_of(runner)
        running.inside("web", "systemctl", "reboot", root=True, check=False)
        deadline = time.monotonic() + 30
        while (status := running.status("web"))["state"] != "running" or status["pid"] == before:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert runner_of(running, "web").pid == runner
        running.ssh("web")
    assert counts[0] == counts[1]


def mounts_of(pid: int) -> str:
    """Where what is mounted for one process alone lies."""
    shared = Path("/proc/self/mountinfo").read_text().splitlines()
    return "\n".join(line for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines() if line not in shared)


# Floods.


def test_a_flood_of_log_costs_no_memory_and_ends_by_a_signal(running: Instance) -> None:
    """The guest's own journalctl may say anything, and no signal need end it."""
    fake = "#!/bin/sh\ntrap '' INT TERM HUP PIPE\nwhile :; do head -c 10000000 /dev/zero | tr '\\0' x; done\n"
    script = "cat > /usr/local/sbin/journalctl; chmod 755 /usr/local/sbin/journalctl"
    running.inside("web", "sh", "-c", script, root=True, stdin=fake)
    endless = running.hutch("logs", "-n", "5", "web", check=False)
    assert endless.returncode == 128 + signal.SIGTERM
    assert "the rest after 1048576 bytes was left out" in endless.stderr
    assert 1 << 20 <= len(endless.stdout) < 4 << 20  # with the console's own log before it
    logs = running.spawn("logs", "--follow", "web", stdout=subprocess.PIPE)
    try:
        assert logs.stdout is not None
        taken, deadline = 0, time.monotonic() + 20
        while taken < 50_000_000:
            assert time.monotonic() < deadline
            taken += len(os.read(logs.stdout.fileno(), 1 << 20))
        assert max(peak_memory(pid) for pid in family(logs.pid)) < 120_000
        logs.terminate()
        logs.stdout.close()
        assert logs.wait(10) != 0
    finally:
        logs.kill()
        running.inside("web", "rm", "-f", "/usr/local/sbin/journalctl", root=True)


def family(pid: int) -> list[int]:
    """A process and all that descend from it. Those of the fake come and go, so some may have ended since."""
    children = about(pid, f"task/{pid}/children").split()
    return [pid, *(child for each in children for child in family(int(each)))]


def peak_memory(pid: int) -> int:
    """In kilobytes; one that has ended has none."""
    found = about(pid, "status").partition("VmHWM:")[2].split()
    return int(found[0]) if found else 0


def about(pid: int, file: str) -> str:
    try:
        return Path(f"/proc/{pid}/{file}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


# Killed commands, and what they leave.


@pytest.mark.parametrize("count", [2, *(pytest.param(count, marks=pytest.mark.slow) for count in (0, 1, 3))])
def test_up_after_a_command_was_killed_while_it_starts_a_runner(running: Instance, count: int) -> None:
    """SIGKILL as soon as the service has begun, and a little later; the next command finds it at work."""
    running.hutch("stop", "web")
    launch = layout_of(running).launch("web")
    launch.unlink()
    command = running.spawn("up")
    deadline = time.monotonic() + 20
    while not launch.exists():
        assert time.monotonic() < deadline
    time.sleep(count * 0.015)
    command.kill()
    command.wait()
    running.up()
    assert running.status("web")["state"] == "running"
    running.ssh("web")


@pytest.mark.parametrize("content", ["", '{"network_namespace": ', "[]", "{}"])
def test_a_damaged_launch_is_cleaned_up_by_names(running: Instance, content: str) -> None:
    layout_of(running).launch("web").write_text(content)
    assert running.status("web")["state"] == "running"
    victims = [runner_of(running, "web"), main_of(running, "web")]
    for victim in victims:  # so nobody else cleans up
        os.kill(victim.pid, signal.SIGKILL)
    running.up()
    assert running.status("web")["state"] == "running"
    running.ssh("web")


@pytest.mark.parametrize("deaf", [runner_of, main_of])
def test_what_does_not_react_is_killed(running: Instance, deaf: Callable[[Instance, str], Process]) -> None:
    os.kill(deaf(running, "web").pid, signal.SIGSTOP)
    begun = time.monotonic()
    control.stop_all(layout_of(running), ["web"], patience=0.0)
    assert time.monotonic() - begun < 15
    assert [path for top in cgroups_of(running) for path in Path(top).rglob("*.service")] == []
    running.up()
    running.ssh("web")


# Cgroups.

DEEP = """
import os
name, depth = "d" * 200, 0
os.chdir("/sys/fs/cgroup")
try:
    while depth < 100:
        os.mkdir(name)
        os.chdir(name)
        depth += 1
except OSError:
    pass
print(depth)
"""


def test_a_guests_cgroups_are_bounded_and_go(running: Instance) -> None:
    assert 0 < int(running.inside("web", "python3", "-c", DEEP, root=True).stdout) < 15
    running.hutch("stop", "web")
    running.up()
    running.ssh("web")


def test_cgroups_that_are_too_deep_for_a_path_are_removed() -> None:
    cgroup = Cgroup("hutch-test-deep/one")
    cgroup.make("machine")
    root = open_root()
    here = os.open("hutch-test-deep/one/machine", os.O_RDONLY | os.O_DIRECTORY, dir_fd=root)
    for _ in range(40):
        os.mkdir("d" * 200, dir_fd=here)
        there = os.open("d" * 200, os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = there
    os.close(here)
    assert cgroup.kill()
    cgroup.remove()
    assert not os.access("hutch-test-deep", os.F_OK, dir_fd=root)
    os.close(root)
    cgroup.close()
