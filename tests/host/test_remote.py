"""The way of `hutch exec` into virtual machines, tried with a container: all that test_exec asks of the other way, and
what only ssh can get wrong."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.host import test_exec as contract
from tests.host.instance import Completed, Instance, explain
from tests.host.opening import open_instances
from tests.support.world import World

REMOTE = (sys.executable, str(Path(__file__).with_name("remote_exec.py")))


class RemoteInstance(Instance):
    """A hutch whose `exec` takes the way into virtual machines."""

    def environment(self, extra: Mapping[str, str] | None = None, as_user: str = "root") -> dict[str, str]:
        path = os.pathsep.join(path for path in sys.path if path)
        return {**super().environment(extra, as_user), "PYTHONPATH": path}

    def hutch(self, *arguments: str, **options: Any) -> Completed:
        if arguments[0] != "exec":
            return super().hutch(*arguments, **options)
        check, env = options.pop("check", True), self.environment(options.pop("env", None))
        settings: dict[str, Any] = {
            "input": "",
            "timeout": 60,
            "encoding": "utf-8",
            "errors": "surrogateescape",
            "env": env,
        }
        settings |= {{"stdin": "input"}.get(key, key): value for key, value in options.items()}
        result: Completed = subprocess.run([*REMOTE, *arguments], capture_output=True, cwd=self.directory, **settings)
        assert "Traceback (most recent call last)" not in result.stderr, result.stderr
        if check:
            assert result.returncode == 0, explain(arguments, result)
        return result

    def spawn(self, *arguments: str, **options: Any) -> subprocess.Popen[Any]:
        if arguments[0] != "exec":
            return super().spawn(*arguments, **options)
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        settings = {"cwd": self.directory, "env": self.environment(), **streams, **options}
        return subprocess.Popen([*REMOTE, *arguments], **settings)


@pytest.fixture(scope="module")
def web(world: World, images: Path) -> Iterator[Instance]:
    """A container, whatever the boundary under test: here it is any host with an sshd and hutch's key."""
    with open_instances(world) as make:
        instance: Instance = make(images)
        instance.__class__ = RemoteInstance
        instance.declare("container", web='env = { GREETING = "hello world", PATH = "/opt/bin:/usr/bin:/bin" }')
        instance.up()
        yield instance


# What holds of the one way holds of the other: the same tests, with this module's `web`.
test_arguments_arrive_as_they_are = contract.test_arguments_arrive_as_they_are
test_exit_codes_are_passed_on = contract.test_exit_codes_are_passed_on
test_a_command_that_is_not_there_is_127 = contract.test_a_command_that_is_not_there_is_127
test_messages_come_back_as_soon_as_by_ssh = contract.test_messages_come_back_as_soon_as_by_ssh
test_standard_error_stays_apart = contract.test_standard_error_stays_apart
test_it_runs_as_the_user_in_its_home = contract.test_it_runs_as_the_user_in_its_home
test_signals_reach_the_command = contract.test_signals_reach_the_command
test_a_command_killed_by_a_signal_says_so = contract.test_a_command_killed_by_a_signal_says_so_by_its_code
test_nothing_of_the_hosts_comes_along = contract.test_nothing_of_the_hosts_environment_or_descriptors_comes_along
test_nothing_of_the_callers_comes_along = contract.test_nothing_of_the_callers_comes_along
test_exec_needs_a_running_workspace = contract.test_exec_needs_a_running_workspace
test_many_run_at_once = contract.test_many_enter_at_once

PYTHON_SHOW = "import os, sys; print([os.fsencode(word).hex() for word in sys.argv[1:]])"
HARD = [
    *contract.AWKWARD,
    "".join(map(chr, range(1, 128))),
    os.fsdecode(bytes(range(1, 256))),
    os.fsdecode(b"\xff\xfe\x81\x88"),
    "\n",
    "line\n\n",
    ".",
    "\\0101",
    "%s",
    "x" * 100_000,
]


def both(web: Instance, *argv: str, **options: Any) -> tuple[Completed, Completed]:
    """The same command by either way."""
    return Instance.hutch(web, "exec", "web", "--", *argv, **options), web.inside("web", *argv, **options)


def test_every_byte_of_an_argument_arrives(web: Instance) -> None:
    shown = web.inside("web", "/usr/bin/python3", "-c", PYTHON_SHOW, *HARD).stdout
    assert shown == f"{[os.fsencode(word).hex() for word in HARD]}\n"


@pytest.mark.parametrize("name", ["a=b", "-", "-x", "--help", "", "no such"])
def test_the_name_of_a_command_is_only_that(web: Instance, name: str) -> None:
    entered, reached = both(web, name, check=False)
    assert reached.returncode == 127
    assert entered.returncode in (126, 127)
    if name and not name.startswith("no"):
        script = f"mkdir -p /opt/bin; printf '#!/bin/sh\necho \"$@\"\n' >'/opt/bin/{name}'; chmod 755 '/opt/bin/{name}'"
        web.inside("web", "sh", "-c", script, root=True)
        assert web.inside("web", name, "--", "=", "").stdout == "-- = \n"


def test_the_environment_is_the_same_either_way(web: Instance) -> None:
    entered, reached = both(web, "env", "-0")
    assert sorted(reached.stdout.split("\0")) == sorted(entered.stdout.split("\0"))
    assert "GREETING=hello world\0" in reached.stdout


@pytest.mark.parametrize("size", [0, 1, 10 * 2**20])
def test_every_byte_of_the_input_arrives_and_its_end(web: Instance, size: int) -> None:
    data = os.urandom(size)
    command = [*REMOTE, "exec", "web", "--", "cat"]
    result = subprocess.run(
        command, input=data, capture_output=True, timeout=60, env=web.environment(), cwd=web.directory
    )
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == data


def test_output_goes_on_where_a_file_of_the_callers_stands(web: Instance, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+") as file:
        file.write("before\n")
        file.flush()
        for word in ("one", "two"):
            assert web.spawn("exec", "web", "--", "echo", word, stdout=file).wait(30) == 0
    assert (tmp_path / "file").read_text() == "before\none\ntwo\n"


def test_whoever_asks_and_answers_in_zero_bytes_is_not_kept_waiting(web: Instance) -> None:
    """The end of the command is told in-band, but not where somebody may wait for the last byte."""
    script = "while IFS= read -r line; do printf '%s\\000' \"$line\"; done"
    process = web.spawn("exec", "web", "--", "sh", "-c", script, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with process:
        assert process.stdin is not None and process.stdout is not None
        for _ in range(3):
            process.stdin.write(b"a word\n")
            process.stdin.flush()
            assert process.stdout.read(7) == b"a word\0"
        process.stdin.close()
        assert process.wait(15) == 0


def test_a_reader_that_leaves_ends_the_command(web: Instance) -> None:
    reading, writing = os.pipe()
    process = web.spawn("exec", "web", "--", "yes", stdout=writing)
    os.close(writing)
    assert os.read(reading, 4) == b"y\ny\n"
    os.close(reading)
    assert process.wait(15) == 128 + signal.SIGPIPE
    assert web.inside("web", "pgrep", "-x", "yes", check=False).returncode == 1


def test_the_exit_code_arrives_though_nobody_hears_the_errors(web: Instance) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = web.spawn("exec", "web", "--", "sh", "-c", "echo error >&2; sleep 0.2; exit 9", stderr=writing)
    os.close(writing)
    assert process.wait(15) == 9


@pytest.mark.parametrize("leave", ["sleep 60 &", "yes &", "yes >&2 &"])
def test_what_a_command_leaves_behind_is_not_waited_for(web: Instance, leave: str) -> None:
    start = time.monotonic()
    result = web.inside("web", "sh", "-c", f"echo first; {leave} echo last; exit 4", check=False)
    assert result.returncode == 4
    assert {"first", "last"} <= set(result.stdout.splitlines())
    assert time.monotonic() - start < 20
    web.inside("web", "pkill", "-x", leave.split()[0], check=False)


class Running:
    """A command that says which signals come, until it is told to end by SIGUSR2."""

    CODE = """
import os, signal, sys
def show(number, frame):
    os.write(1, f"{signal.Signals(number).name}\\n".encode())
    if number == signal.SIGUSR2:
        sys.exit(7)
for name in sys.argv[1:]:
    signal.signal(signal.Signals[name], show)
os.write(1, b"ready\\n")
while True:
    signal.pause()
"""

    def __init__(self, web: Instance, *names: str, root: bool = False) -> None:
        options = ["--root"] if root else []
        command = ("/usr/bin/python3", "-c", self.CODE, *names)
        self.process = web.spawn("exec", *options, "web", "--", *command, stdout=subprocess.PIPE, text=True)
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.process.stdout is not None
        return str(self.process.stdout.readline()).strip()


@pytest.mark.parametrize("root", [False, True])
def test_each_signal_arrives_as_itself_and_in_order(web: Instance, root: bool) -> None:
    names = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP", "SIGCONT", "SIGUSR1", "SIGUSR2"]
    running = Running(web, *names, root=root)
    with running.process:
        for name in names:
            running.process.send_signal(signal.Signals[name])
            assert running.line() == name
        assert running.process.wait(15) == 7


def test_a_command_that_stops_stops_its_caller(web: Instance) -> None:
    process = web.spawn("exec", "web", "--", "sleep", "4321")
    wait_for(lambda: state_of(web) == "S")
    for _ in range(2):
        process.send_signal(signal.SIGTSTP)
        assert os.waitpid(process.pid, os.WUNTRACED)[1] >> 8 == signal.SIGSTOP
        wait_for(lambda: state_of(web) == "T")  # it is told by the second session, at about the same time
        process.send_signal(signal.SIGCONT)
        wait_for(lambda: state_of(web) == "S")
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 128 + signal.SIGTERM


def state_of(web: Instance) -> str:
    """How the command stands that has 4321 among its arguments."""
    shown = web.inside("web", "sh", "-c", "ps -o stat= -p $(pgrep -f '[s]leep 4321')", check=False)
    assert isinstance(shown.stdout, str)
    return shown.stdout[:1]


def wait_for(condition: Callable[[], bool], patience: float = 15.0) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_command_is_told_when_its_caller_is_gone(web: Instance, number: int, root: bool) -> None:
    """One that had been stopped is, too. Shells tell of a child that was hung up, where nobody listens any more."""
    mark = f"/tmp/told-{int(number)}-{root}"
    script = f"exec 2>/dev/null; trap 'echo told >{mark}; exit' HUP; echo ready; while :; do sleep 0.1; done"
    options = ["--root"] if root else []
    process = web.spawn("exec", *options, "web", "--", "sh", "-c", script, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        process.kill()
    wait_for(lambda: web.inside("web", "cat", mark, check=False).stdout == "told\n")
    wait_for(lambda: not leftovers(web))


def enter(web: Instance, *argv: str, check: bool = True) -> Completed:
    """As root, by the way into containers."""
    return Instance.hutch(web, "exec", "--root", "web", "--", *argv, check=check)


def leftovers(web: Instance) -> list[str]:
    """Sockets that stay, and processes of ours that a session left inside or out."""
    sockets = [path.name for path in (web.run / "workspaces" / "web").glob("exec-*")]
    clients = subprocess.run(["pgrep", "-a", "-x", "ssh"], capture_output=True, text=True).stdout.splitlines()
    inside = enter(web, "pgrep", "-af", ":hello;", check=False)
    return sockets + clients + inside.stdout.splitlines()


def test_a_signal_before_the_command_runs_ends_it_all(web: Instance) -> None:
    for delay in (0.05, 0.1, 0.15, 0.2, 0.25):
        process = web.spawn("exec", "web", "--", "sleep", "4322", stderr=subprocess.PIPE, text=True)
        time.sleep(delay)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=15)[1]
        # The first may come while the interpreter starts, which says so by itself, at times with a code of 1.
        by_python = said.startswith(("Fatal Python error: init_", "KeyboardInterrupt")) or (
            "\nKeyboardInterrupt\n" in said and "\nRuntimeError: Error calling __set_name__ on " in said
        )
        assert process.returncode in (128 + signal.SIGINT, -signal.SIGINT) or by_python, said
    assert web.inside("web", "pgrep", "-f", "[s]leep 4322", check=False).returncode == 1
    wait_for(lambda: not leftovers(web))


def test_a_shell_that_talks_and_sets_things_is_not_noticed(web: Instance) -> None:
    """The login user's shell reads its files first."""
    noise = "echo noise; echo noise >&2; export NOISE=1; cd /"
    web.inside("web", "sh", "-c", f"cp .bashrc saved; (echo '{noise}'; cat saved) >.bashrc")
    try:
        result = web.inside("web", "sh", "-c", "pwd; echo $NOISE; echo err >&2")
        assert (result.stdout, result.stderr) == ("/home/dev\n\n", "err\n")
    finally:
        web.inside("web", "sh", "-c", "mv saved .bashrc")


def test_a_workspace_that_cannot_be_reached_says_so(web: Instance) -> None:
    web.inside("web", "systemctl", "stop", "ssh", root=True, check=False)
    try:
        result = web.inside("web", "true", check=False)
    finally:
        enter(web, "systemctl", "start", "ssh")
    assert result.returncode == 1
    assert "web cannot be reached by ssh" in result.stderr
    assert "Connection refused" in result.stderr


def test_a_connection_that_is_lost_says_so(web: Instance) -> None:
    process = web.spawn("exec", "web", "--", "sleep", "4323", stderr=subprocess.PIPE, text=True)
    wait_for(lambda: web.inside("web", "pgrep", "-f", "[s]leep 4323", check=False).returncode == 0)
    enter(web, "pkill", "-9", "sshd", check=False)
    enter(web, "systemctl", "restart", "ssh")
    assert process.wait(15) == 1
    with process:
        assert process.stderr is not None
        assert "the connection to web was lost before the command ended" in process.stderr.read()
    wait_for(lambda: enter(web, "pgrep", "-f", "[s]leep 4323", check=False).returncode == 1)


# What else runs commands that way.


def test_the_journal_comes_by_it(web: Instance) -> None:
    enter(web, "logger", "a line of the guest's")
    wait_for(lambda: "a line of the guest's" in remote(web, "logs", "web").stdout)
    following = spawn_remote(web, "logs", "--follow", "web", stdout=subprocess.PIPE, text=True)
    with following:
        assert following.stdout is not None
        while "a line of the guest's" not in following.stdout.readline():
            pass
        enter(web, "logger", "another")
        while "another" not in following.stdout.readline():
            pass
        following.send_signal(signal.SIGINT)
        assert following.wait(15) == 128 + signal.SIGINT
    wait_for(lambda: not leftovers(web))
    assert enter(web, "pgrep", "-x", "journalctl", check=False).returncode == 1


def test_the_machines_log_is_shown_though_nobody_answers(web: Instance) -> None:
    enter(web, "sh", "-c", "echo to the console >/dev/console; systemctl stop ssh")
    try:
        result = remote(web, "logs", "web")
    finally:
        enter(web, "systemctl", "start", "ssh")
    assert "to the console" in result.stdout
    assert (result.returncode, "cannot be reached" in result.stderr) == (1, True)


def remote(web: Instance, *arguments: str) -> Completed:
    """Another command than exec."""
    settings: dict[str, Any] = {"cwd": web.directory, "env": web.environment(), "timeout": 60}
    return subprocess.run([*REMOTE, *arguments], capture_output=True, text=True, **settings)


def spawn_remote(web: Instance, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([*REMOTE, *arguments], cwd=web.directory, env=web.environment(), **options)


# A terminal.


class RemoteTerminal(contract.Terminal):
    """The same, with a size."""

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.primary, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.process.send_signal(signal.SIGWINCH)

    def say(self, text: str) -> None:
        os.write(self.primary, text.encode())


@pytest.mark.parametrize("root", [False, True])
def test_on_a_terminal_the_command_has_one(web: Instance, root: bool) -> None:
    options = ["--root"] if root else []
    terminal = RemoteTerminal(web, "exec", *options, "web", "--", "bash", "--norc")
    try:
        terminal.say("tty; echo rea''dy\n")
        terminal.read_until(b"ready")
        assert b"/dev/pts/" in terminal.seen
        terminal.resize(33, 77)
        terminal.say("sleep 0.3; stty size; echo siz''ed\n")
        terminal.read_until(b"sized")
        assert b"33 77" in terminal.seen
        terminal.say("sleep 50; echo interr''upted $?\n")
        time.sleep(0.5)
        terminal.say("\x03")
        terminal.say("echo al''ive\n")
        terminal.read_until(b"alive")
        assert b"interrupted" not in terminal.seen
        terminal.say("exit 5\n")
        assert terminal.process.wait(15) == 5
    finally:
        terminal.close()
    assert b"hello;" not in terminal.seen and b":ready:" not in terminal.seen and b":end:" not in terminal.seen


@pytest.mark.parametrize("root", [False, True])
def test_a_signal_reaches_a_command_on_a_terminal(web: Instance, root: bool) -> None:
    code = (
        "import signal, sys; signal.signal(15, lambda *_: sys.exit(6)); print('rea' + 'dy', flush=True); signal.pause()"
    )
    options = ["--root"] if root else []
    terminal = RemoteTerminal(web, "exec", *options, "web", "--", "/usr/bin/python3", "-c", code, *HARD[:-1])
    try:
        terminal.read_until(b"ready")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.process.wait(15) == 6
    finally:
        terminal.close()


def test_a_command_on_a_terminal_is_told_when_its_caller_is_gone(web: Instance) -> None:
    script = "trap 'echo told >/tmp/told-terminal; exit' HUP; echo rea''dy; while :; do sleep 0.1; done"
    terminal = RemoteTerminal(web, "exec", "web", "--", "sh", "-c", script)
    try:
        terminal.read_until(b"ready")
    finally:
        terminal.close()
    wait_for(lambda: web.inside("web", "cat", "/tmp/told-terminal", check=False).stdout == "told\n")
    wait_for(lambda: not leftovers(web))


def test_nothing_is_left_behind(web: Instance) -> None:
    wait_for(lambda: not leftovers(web))
