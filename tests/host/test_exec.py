"""`hutch exec`, `ssh`, `cp` and `console`: nothing between a command and the workspace."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.messages import echo
from hutch.spec.names import Layout
from hutch.state import read_records
from tests.host.instance import HUTCH, Instance
from tests.host.opening import open_instance
from tests.support.world import World

pytestmark = pytest.mark.vm(slow=True)  # test_login has the gist of it, in a machine that it has anyway


@pytest.fixture(scope="module")
def web(world: World, images: Path, workspace_type: str) -> Iterator[Instance]:
    with open_instance(world, images) as instance:
        instance.declare(workspace_type, web="")
        instance.up()
        yield instance


AWKWARD = [
    "",
    " ",
    "a b",
    "new\nline",
    "quo'te",
    'dou"ble',
    "$HOME",
    "`id`",
    "back\\slash",
    "*",
    "--help",
    "-x",
    "ü€",
    "a;b&c|d",
]


def test_arguments_arrive_as_they_are(web: Instance) -> None:
    show = "import sys, json; print(json.dumps(sys.argv[1:]))"
    assert json.loads(web.inside("web", "python3", "-c", show, *AWKWARD).stdout) == AWKWARD


@pytest.mark.parametrize("code", [0, 1, 2, 3, 42, 126, 127, 128, 130, 200, 255])
def test_exit_codes_are_passed_on(web: Instance, code: int) -> None:
    assert web.inside("web", "sh", "-c", f"exit {code}", check=False).returncode == code


@pytest.mark.parametrize("code", [0, 7, 255])
def test_ssh_passes_exit_codes_on(web: Instance, code: int) -> None:
    assert web.hutch("ssh", "web", "--", "exit", str(code), check=False).returncode == code


def test_a_command_that_is_not_there_is_127(web: Instance) -> None:
    result = web.inside("web", "no-such-command", check=False)
    assert result.returncode == 127
    assert "no-such-command" in result.stderr


def test_ten_megabytes_through_standard_input_and_back(web: Instance) -> None:
    data = os.urandom(10 * 2**20)
    command = [*HUTCH, "exec", "web", "--", "cat"]
    result = subprocess.run(
        command, input=data, capture_output=True, timeout=60, env=web.environment(), cwd=web.directory
    )
    assert result.returncode == 0
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_messages_come_back_as_soon_as_by_ssh(web: Instance, count: int, workspace_type: str) -> None:
    """As many as a protocol on standard streams sends in half a day."""
    count = count if workspace_type == "container" else min(count, 100_000)  # emulated, it has a tenth of the speed
    ours, theirs = (
        echo([*HUTCH, *words, "cat"], count, env=web.environment(), cwd=web.directory)
        for words in (("exec", "web", "--"), ("ssh", "web", "--"))
    )
    assert (ours.lost, theirs.lost) == (0, 0)
    assert ours.late(0.99) <= theirs.late(0.99) + 0.05


def test_standard_error_stays_apart(web: Instance) -> None:
    result = web.inside("web", "sh", "-c", "echo out; echo err >&2")
    assert (result.stdout, result.stderr) == ("out\n", "err\n")


def test_it_runs_as_the_user_in_its_home(web: Instance) -> None:
    assert web.inside("web", "sh", "-c", "id -un; pwd; echo $HOME $USER").stdout == "dev\n/home/dev\n/home/dev dev\n"
    assert web.inside("web", "id", "-un", root=True).stdout == "root\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 33), (signal.SIGTERM, 34)])
def test_signals_reach_the_command(web: Instance, number: signal.Signals, code: int) -> None:
    """The command catches the signal and ends by a code of its own, which comes back."""
    catch = (
        f"import signal, sys; signal.signal({int(number)}, lambda *_: sys.exit({code})); print('ready', flush=True);"
    )
    process = web.spawn(
        "exec", "web", "--", "python3", "-c", catch + "signal.pause()", stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(15) == code
    assert web.inside("web", "pgrep", "-f", "signal.pause", root=True, check=False).returncode != 0


def test_a_command_killed_by_a_signal_says_so_by_its_code(web: Instance) -> None:
    assert web.inside("web", "sh", "-c", "kill -9 $$", check=False).returncode in (137, -9)


def test_nothing_of_the_hosts_environment_or_descriptors_comes_along(web: Instance) -> None:
    result = web.hutch("exec", "web", "--", "sh", "-c", "env; ls /proc/self/fd", env={"HOST_SECRET": "secret"})
    assert "HOST_SECRET" not in result.stdout
    descriptors = [int(line) for line in result.stdout.splitlines() if line.isdecimal()]
    assert descriptors == [0, 1, 2, 3]  # ls has the directory itself open


def test_exec_needs_a_running_workspace(web: Instance) -> None:
    result = web.inside("absent", "true", check=False)
    assert result.returncode in (1, 2)
    assert "absent" in result.stderr


def test_copies_go_both_ways(web: Instance, tmp_path: Path) -> None:
    tree = tmp_path / "a tree"
    (tree / "sub dir").mkdir(parents=True)
    (tree / "sub dir" / "file name").write_bytes(bytes(range(256)))
    (tree / "tool").write_text("#!/bin/sh\necho tool\n")
    (tree / "tool").chmod(0o755)
    single = tmp_path / "one file"
    single.write_text("one\n")

    web.hutch("cp", str(single), "web:one file")
    assert web.inside("web", "cat", "/home/dev/one file").stdout == "one\n"
    web.hutch("cp", str(tree), "web:/home/dev/")
    assert web.inside("web", "/home/dev/a tree/tool").stdout == "tool\n"
    assert web.inside("web", "stat", "-c", "%U", "/home/dev/a tree/sub dir/file name").stdout == "dev\n"

    back = tmp_path / "back"
    back.mkdir()
    web.hutch("cp", "web:a tree", str(back))
    assert (back / "a tree" / "sub dir" / "file name").read_bytes() == bytes(range(256))
    assert (back / "a tree" / "tool").stat().st_mode & 0o111
    web.hutch("cp", "web:/home/dev/one file", str(back / "two file"))
    assert (back / "two file").read_text() == "one\n"


def test_copy_says_what_is_missing(web: Instance, tmp_path: Path) -> None:
    result = web.hutch("cp", "web:/no/such/file", str(tmp_path), check=False)
    assert result.returncode != 0
    assert "/no/such/file" in result.stderr
    both_local = web.hutch("cp", "a", "b", check=False)
    assert both_local.returncode == 2


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, instance: Instance, *arguments: str) -> None:
        self.primary, secondary = pty.openpty()
        self.process = instance.spawn(
            *arguments, stdin=secondary, stdout=secondary, stderr=secondary, start_new_session=True
        )
        os.close(secondary)
        self.seen = b""

    def read_until(self, wanted: bytes, patience: float = 15.0) -> None:
        deadline = time.monotonic() + patience
        while wanted not in self.seen:
            ready, _, _ = select.select([self.primary], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, self.seen
            self.seen += os.read(self.primary, 4096)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(10)
        os.close(self.primary)


def test_the_console_shows_the_machine_and_lets_go(web: Instance) -> None:
    terminal = Terminal(web, "console", "web")
    try:
        terminal.read_until(b"^]")  # it says how to leave
        web.inside("web", "sh", "-c", "echo hello console > /dev/console", root=True)
        terminal.read_until(b"hello console")
        os.write(terminal.primary, b"\x1d")
        assert terminal.process.wait(10) == 0
    finally:
        terminal.close()
    assert web.status("web")["state"] == "running"


def test_its_machine_id_is_the_recorded_one(web: Instance) -> None:
    record = read_records(Layout(web.state, web.run))["web"]
    assert web.inside("web", "cat", "/etc/machine-id").stdout == f"{record.machine_id}\n"


@pytest.mark.parametrize("end", [b"\x1d", b"exit 3\n"], ids=["detached", "left"])
@pytest.mark.container
def test_a_containers_console_is_a_root_shell(web: Instance, end: bytes) -> None:
    """Beside what is printed on the console, which takes no input."""
    terminal = Terminal(web, "console", "web")
    try:
        terminal.read_until(b"^]")
        os.write(terminal.primary, b"test -t 0 && echo as ''$(id -un)\n")
        terminal.read_until(b"as root")
        web.inside("web", "sh", "-c", "echo printed beside it > /dev/console", root=True)
        terminal.read_until(b"printed beside it\r\n")
        os.write(terminal.primary, end)
        assert terminal.process.wait(10) == 0
    finally:
        terminal.close()
    assert web.status("web")["state"] == "running"


def test_a_terminal_inside_is_a_terminal(web: Instance) -> None:
    terminal = Terminal(web, "ssh", "web")
    try:
        os.write(terminal.primary, b"tty; echo rea''dy\n")
        terminal.read_until(b"ready")
        assert b"/dev/pts/" in terminal.seen
        os.write(terminal.primary, b"exit 5\n")
        assert terminal.process.wait(10) == 5
    finally:
        terminal.close()


@pytest.mark.parametrize("arguments", [(), ("--root",)], ids=["user", "root"])
def test_a_terminal_inside_has_a_name(web: Instance, arguments: tuple[str, ...], workspace_type: str) -> None:
    """What opens it anew, as ssh and gpg do to ask for a password, can. In a machine it is sshd's, and stays the user's
    where doas makes the command root's."""
    script = "echo said >$(tty); stat -c '%U %G' $(tty); id -un"
    terminal = Terminal(web, "exec", *arguments, "web", "--", "sh", "-c", script)
    try:
        assert terminal.process.wait(10) == 0
        user = "root" if arguments else "dev"
        owner = "dev" if workspace_type == "vm" else user
        terminal.read_until(f"said\r\n{owner} tty\r\n{user}".encode())
    finally:
        terminal.close()


@pytest.mark.parametrize("trap", ["mkfifo ptmx", "ln -s /dev/null ptmx", "touch ptmx", "true"])
def test_a_guest_that_sets_a_trap_for_terminals(web: Instance, trap: str, workspace_type: str) -> None:
    if workspace_type == "vm":
        pytest.skip("the host opens nothing in a machine")
    web.inside("web", "sh", "-c", f"mount -t tmpfs none /dev/pts && cd /dev/pts && {trap}", root=True)
    terminal = Terminal(web, "exec", "web", "--", "sh", "-c", "test -t 0 && echo it works")
    try:
        terminal.read_until(b"it works")
        assert terminal.process.wait(10) == 0
    finally:
        terminal.close()
        web.inside("web", "umount", "/dev/pts", root=True)


def test_nothing_of_the_callers_comes_along(web: Instance, tmp_path: Path) -> None:
    """Descriptors that the caller happens to have open stay outside, whatever they are."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    descriptor = os.open(secret, os.O_RDONLY)
    shown = web.spawn(
        *("exec", "web", "--", "sh", "-c", f"ls /proc/self/fd; cat <&{descriptor}"),
        pass_fds=(descriptor,),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
    )
    os.close(descriptor)
    output = shown.communicate(timeout=30)[0].decode()
    assert output.splitlines()[:3] == ["0", "1", "2"]
    assert str(descriptor) not in output.splitlines()
    assert "secret" not in output


@pytest.mark.parametrize("root", [False, True])
def test_the_guests_own_limits_bind_a_command(web: Instance, root: bool) -> None:
    wanted = ("Seccomp:", "Seccomp_filters:", "CapBnd:")
    shown = [
        sorted(line for line in web.inside("web", "cat", f"/proc/{who}/status", root=root).stdout.splitlines())
        for who in ("1", "self")
    ]
    first, own = ([line for line in lines if line.startswith(wanted)] for lines in shown)
    assert len(first) == len(wanted)
    assert own == first


@pytest.mark.container
@pytest.mark.parametrize("root", [False, True])
def test_no_keyring_of_the_hosts_can_be_asked(web: Instance, root: bool) -> None:
    # keyctl(2): nspawn's filter refuses it with EPERM.
    keyctl = "import ctypes, os; print(ctypes.CDLL(None, use_errno=True).syscall(250 if os.uname().machine == 'x86_64'"
    keyctl += " else 219, 0, -3, 0), ctypes.get_errno())"
    assert web.inside("web", "python3", "-c", keyctl, root=root).stdout.split() == ["-1", "1"]


def test_many_enter_at_once(web: Instance) -> None:
    commands = [web.spawn("exec", "web", "--", "sh", "-c", f"exit {code}") for code in range(8)]
    assert [command.wait(60) for command in commands] == list(range(8))
