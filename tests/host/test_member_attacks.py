"""A member tries to become root, or to get what is another's: by the entry point, by files, links and races, by what a
process inherits, and by two commands at once. bob and carol are in the group; carol attacks."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hutch.host.services.process import is_alive, start_time
from tests.host.members import ENTRY, HostsOwn, open_host
from tests.support.world import World

SECRET = "of root's alone"


@pytest.fixture(scope="module")
def host(world: World, images: Path) -> Iterator[HostsOwn]:
    with open_host(world, images) as host:
        host.declare_for("bob", "container", his="")
        host.hutch("up", "--no-start", as_user="bob", cwd=host.home("bob") / "project")
        yield host


@pytest.fixture
def carol(host: HostsOwn) -> Iterator[Path]:
    """Her project. All that she has brought up goes in the end, and what is bob's has not changed."""
    before = (host.state / "workspaces" / "his" / "workspace.json").read_bytes()
    yield host.project("carol")
    for name in set(host.names()) - {"his"}:
        host.hutch("rm", "--purge", "--force", name)
    for kept in json.loads(host.hutch("ls", "--kept", "--json").stdout):
        host.hutch("rm", "--purge", "--force", kept["name"])
    assert (host.state / "workspaces" / "his" / "workspace.json").read_bytes() == before
    subprocess.run(["rm", "-rf", host.home("carol") / "project", host.home("carol") / ".config"], check=True)


@pytest.fixture
def secret(host: HostsOwn) -> Iterator[Path]:
    """A directory of root's that is closed to everybody else, with a file that is open."""
    directory = host.world.directory / "closed"
    directory.mkdir(mode=0o700)
    (directory / "file").write_text(SECRET)
    yield directory
    subprocess.run(["rm", "-rf", directory], check=True, timeout=10)


def up(host: HostsOwn, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return host.enter("carol", "up", *words, cwd=cwd)


def refused(result: subprocess.CompletedProcess[str], *texts: str) -> None:
    """It was refused for these reasons, and says nothing of what is closed."""
    assert result.returncode in (1, 2), result.stderr
    assert "sudo:" not in result.stderr
    assert SECRET not in result.stdout + result.stderr
    for text in texts:
        assert text in result.stderr


# What is another's.


def test_another_s_workspace_is_refused(host: HostsOwn, carol: Path) -> None:
    for verb in ("start", "stop", "restart", "down", "rm --purge --force", "undelete", "allow", "deny"):
        host_name = ["x.example"] if verb in ("allow", "deny") else []
        refused(host.enter("carol", *verb.split(), "his", *host_name), "his is somebody else's workspace")
    assert "his" in host.names()


@pytest.mark.parametrize("words", [[], ["--adopt", "--prune", "--force", "--yes"]], ids=str)
def test_another_s_workspace_is_not_taken_over(host: HostsOwn, carol: Path, words: list[str]) -> None:
    host.declare_for("carol", "container", his="", mine="")
    result = up(host, carol, *words)
    refused(result, "his is somebody else's workspace")
    assert str(host.home("bob")) not in result.stderr
    assert host.names() == ["his"]


@pytest.mark.slow
def test_another_s_kept_home_is_not_taken_over(host: HostsOwn, carol: Path) -> None:
    host.declare_for("bob", "container", "old", gone="")
    host.hutch("up", "--no-start", as_user="bob", cwd=host.home("bob") / "old")
    host.hutch("rm", "gone", as_user="bob")
    host.declare_for("carol", "container", gone="")
    refused(up(host, carol, "--adopt"), "gone is somebody else's workspace")
    refused(host.enter("carol", "undelete", "gone"), "gone is somebody else's workspace")
    refused(host.enter("carol", "rm", "--purge", "--force", "gone"), "gone is somebody else's workspace")
    assert json.loads(host.hutch("ls", "--kept", "--json", as_user="carol").stdout) == []


def test_another_s_file_brings_up_nothing(host: HostsOwn, carol: Path, secret: Path) -> None:
    theirs = host.home("bob") / "project" / "hutch.toml"
    refused(up(host, carol, "-f", str(theirs)))
    own = secret / "hutch.toml"
    own.write_text(f"{SECRET} = [")
    for path in (own, Path("/etc/shadow"), Path("/proc/1/environ"), secret / "absent", Path("/dev/zero"), secret):
        refused(up(host, carol, "-f", str(path)))
    own.write_text('[workspaces.of-roots-alone]\ntype = "container"\n')
    listed = host.enter("carol", "ls", "--all", "-f", str(own))
    assert "of-roots-alone" not in listed.stdout + listed.stderr
    host.as_user("carol", "ln", "-s", str(own), str(carol / "hutch.toml"))
    refused(up(host, carol))
    assert "of-roots-alone" not in host.enter("carol", "ls", "--all", cwd=carol).stdout
    assert host.names() == ["his"]


@pytest.mark.slow
def test_names_are_names(host: HostsOwn, carol: Path) -> None:
    for name in ("../his", "-x", "", "his\n", "x" * 200, "\x1b[2J"):
        result = host.enter("carol", "rm", "--purge", "--force", "--", name)
        refused(result)
        assert "\x1b" not in result.stderr


# The file.


def test_every_key_that_is_not_a_member_s_is_refused_at_once(host: HostsOwn, carol: Path, secret: Path) -> None:
    keys = f"""
        owner = "bob"
        home = "{secret}"
        engine = "incus"
        ip = "192.168.83.9"
        memory = "900GiB"
        egress = "all"
        publish = ["0.0.0.0:80:80"]
        mounts = [{{ source = "{secret}", target = "/a" }}, {{ source = "{host.home("bob")}", target = "/b" }}]
        nesting = true
        gpu = true
        nix_store = true
    """
    before = sorted(host.state.rglob("*.json"))
    host.declare_for("carol", "container", mine=keys, other=f'image = "rootfs:{secret}"')
    with (carol / "hutch.toml").open("a") as file:
        file.write('[network]\nbridge = "other0"\nsubnet = "10.9.0.0/16"\n[engines.incus]\nremote = "x"\n')
    result = up(host, carol)
    refused(result)
    wanted = (
        "owner home engine ip memory egress publish mounts nesting gpu nix_store image bridge subnet engines".split()
    )
    assert [key for key in wanted if not re.search(rf":\d+: ([a-z]+\.)*{key}\b", result.stderr)] == []
    assert sorted(host.state.rglob("*.json")) == before


@pytest.mark.slow
def test_a_policy_of_one_s_own_counts_for_nothing(host: HostsOwn, carol: Path) -> None:
    policy = '[members]\nmemory = "900GiB"\nnesting = true\n'
    for place in (carol, host.project("carol", directory=".config/hutch")):
        host.as_user("carol", "tee", str(place / "policy.toml"), stdin=policy)
    host.declare_for("carol", "container", mine="nesting = true")
    refused(up(host, carol), "nesting")


@pytest.mark.parametrize("how", ["kit", "key"])
def test_files_that_a_file_names_are_read_with_the_member_s_rights(
    host: HostsOwn, carol: Path, secret: Path, how: str
) -> None:
    (secret / "key.pub").write_text(host.world.accounts["bob"].public_key.read_text())
    (secret / "kit.toml").write_text('packages = ["of-roots-alone"]')
    kits = host.project("carol", directory=".config/hutch/kits")
    host.as_user("carol", "ln", "-s", str(secret / "kit.toml"), str(kits / "stolen.toml"))
    own = {"kit": 'use = ["stolen"]', "key": f'authorized_keys = ["{secret}/key.pub"]'}
    host.declare_for("carol", "container", mine=own[how])
    result = up(host, carol)
    refused(result, f"{secret}/{how}")
    assert "of-roots-alone" not in result.stderr


# Directories.


def links(host: HostsOwn, carol: Path, secret: Path) -> dict[str, Path]:
    """What carol may try to share, each a way to what is not hers."""
    host.as_user("carol", "ln", "-s", str(secret), str(carol / "link"))
    host.as_user("carol", "ln", "-s", str(secret.parent), str(carol / "above"))
    host.as_user("carol", "mkdir", str(carol / "roots"))
    os.chown(carol / "roots", 0, 0)
    hard = carol / "hard"
    os.link(secret / "file", hard)  # as where the kernel does not protect them
    return {
        "link": carol / "link",
        "above": carol / "above" / secret.name,
        "roots": carol / "roots",
        "hard": hard,
        "others": host.home("bob") / "project",
        "proc": Path("/proc/1/root"),
        "etc": Path("/etc"),
    }


def test_shares_lead_nowhere_but_to_what_is_one_s_own(host: HostsOwn, carol: Path, secret: Path) -> None:
    modes = itertools.cycle(("writable", "readonly", "private"))
    for path, mode in zip(links(host, carol, secret).values(), modes, strict=False):
        mount = f'mounts = [{{ source = "{path}", target = "/home/dev/x", mode = "{mode}", create = true }}]'
        host.declare_for("carol", "container", mine=mount)
        refused(up(host, carol, "--no-start"), "workspaces.mine.mounts[0].source")
    assert host.names() == ["his"]


@pytest.mark.slow
def test_a_directory_is_made_with_the_member_s_rights(host: HostsOwn, carol: Path) -> None:
    host.declare_for(
        "carol", "container", mine=f'mounts = [{{ source = "{carol}/new/dir", target = "/x", create = true }}]'
    )
    result = up(host, carol, "--no-start")
    assert result.returncode == 0, result.stderr
    assert (carol / "new" / "dir").stat().st_uid == host.world.accounts["carol"].uid
    host.as_user("carol", "chmod", "500", str(carol))
    host.declare_for(
        "carol", "container", "other", more=f'mounts = [{{ source = "{carol}/y", target = "/x", create = true }}]'
    )
    refused(up(host, host.home("carol") / "other", "--no-start"), f"{carol}/y cannot be made: Permission denied")
    host.as_user("carol", "chmod", "700", str(carol))


@pytest.mark.vm(slow=True)
@pytest.mark.parametrize(
    "mode", ["writable", *(pytest.param(mode, marks=pytest.mark.slow) for mode in ("private", "readonly"))]
)
def test_what_was_looked_at_is_what_is_mounted(
    host: HostsOwn, carol: Path, secret: Path, workspace_type: str, mode: str
) -> None:
    """After the check, which `up` makes, the directory is another one: one of root's, and a link."""
    above, shared = carol / "above", carol / "above" / "shared"
    host.as_user("carol", "mkdir", "-p", str(shared))
    (secret / "shared").mkdir()
    secret.chmod(0o755)
    mount = f'mounts = [{{ source = "{shared}", target = "/x", mode = "{mode}" }}]'
    host.declare_for("carol", workspace_type, mine=mount)
    assert up(host, carol, "--no-start").returncode == 0
    host.as_user("carol", "mv", str(above), f"{above}.away")
    secret.rename(above)  # as if she could
    try:
        refused(host.enter("carol", "start", "mine"), "belongs to uid 0, not to uid 1002")
        assert host.enter("bob", "stop", "his").returncode == 0
        assert not os.statvfs(shared).f_flag & os.ST_NOSUID  # no guard of hers stands on what is another's
    finally:
        above.rename(secret)
    host.as_user("carol", "ln", "-s", str(secret), str(above))
    refused(host.enter("carol", "start", "mine"), "is a symbolic link")
    above.unlink()


FLIP = """
import ctypes, os, random, sys, time
own, link = map(os.fsencode, sys.argv[1:])
exchange = ctypes.CDLL(None, use_errno=True).renameat2
while True:
    for seconds in (0.3, 0.03):
        time.sleep(random.uniform(0, seconds))
        assert exchange(-100, own, -100, link, 2) == 0, ctypes.get_errno()
"""
"""Has a directory and a link change places, so that there is always something; mostly the directory. What is shared
lies in it: that is a mount point, which nothing can take the place of."""


@pytest.mark.slow
def test_a_race_on_a_directory_is_lost(host: HostsOwn, carol: Path, secret: Path) -> None:
    """Where `up` goes through, what is shared is her own."""
    above, link = carol / "above", carol / "link"
    host.as_user("carol", "mkdir", "-p", str(above / "shared"))
    host.as_user("carol", "tee", str(above / "shared" / "hers"))
    host.as_user("carol", "ln", "-s", str(secret), str(link))
    (secret / "shared").mkdir()
    secret.chmod(0o755)  # that it is closed is not what keeps her out
    mount = f'mounts = [{{ source = "{above}/shared", target = "/x" }}]'
    host.declare_for("carol", "container", mine=mount)
    ends: set[bool] = set()
    flip = host.world.accounts["carol"].command(sys.executable, "-c", FLIP, str(above), str(link))
    with subprocess.Popen(flip, cwd="/") as process:
        try:
            begun = time.monotonic()
            while time.monotonic() < begun + 8 or (ends != {True, False} and time.monotonic() < begun + 90):
                ended = up(host, carol)
                ends.add(ended.returncode == 0)
                if ended.returncode == 0:
                    assert host.inside("mine", "ls", "/x", root=True).stdout == "hers\n"
                    host.hutch("stop", "mine")
                else:
                    refused(ended)
            assert process.poll() is None
        finally:
            process.kill()
    if above.is_symlink():
        above.unlink()
        link.rename(above)
    while subprocess.run(["umount", above / "shared"], capture_output=True, timeout=10).returncode == 0:
        pass  # what protects a directory stays where it was moved away meanwhile
    assert ends == {True, False}


# What a process inherits.


@pytest.fixture
def traps(host: HostsOwn, carol: Path) -> tuple[dict[str, str], Path]:
    """An environment and a directory full of programs and modules that would leave a mark, and the mark."""
    mark, trap = carol / "mark", carol / "trap"
    program = f"#!/bin/sh\nid -u >> {mark}\n"
    module = f"import os\nopen({str(mark)!r}, 'a').write(str(os.geteuid()))\n"
    host.as_user("carol", "mkdir", str(trap))
    for name in ("ip", "nft", "mount", "python3", "sh", "systemctl", "nsenter", "visudo"):
        host.as_user("carol", "tee", str(trap / name), stdin=program)
        host.as_user("carol", "chmod", "755", str(trap / name))
    for name in ("sitecustomize.py", "usercustomize.py", "hutch.py", "click.py", "json.py", "encodings.py"):
        host.as_user("carol", "tee", str(trap / name), stdin=module)
    environment = {
        "SUDO_UID": "1002",
        "PATH": f"{trap}:/usr/bin:/bin",
        "PYTHONPATH": str(trap),
        "PYTHONHOME": str(trap),
        "PYTHONSTARTUP": str(trap / "hutch.py"),
        "PYTHONUSERBASE": str(trap),
        "PYTHONINSPECT": "1",
        "HUTCH_STATE_DIR": str(trap / "state"),
        "HUTCH_RUN_DIR": str(trap / "run"),
        "HUTCH_FILE": str(trap / "hutch.toml"),
        "XDG_STATE_HOME": str(trap),
        "INCUS_CONF": str(trap),
        "HOME": str(trap),
        "ENV": str(trap / "sh"),
        "BASH_ENV": str(trap / "sh"),
        "TMPDIR": str(trap),
        "http_proxy": "http://127.0.0.1:1",
        "_HUTCH_COMPLETE": "bash_source",
        "TERM": "\x1b]0;x\x07",
        "LC_ALL": "../../x",
    }
    return environment, mark


def test_neither_environment_nor_directory_gets_into_root_s_process(
    host: HostsOwn, carol: Path, traps: tuple[dict[str, str], Path]
) -> None:
    environment, mark = traps
    host.declare_for("carol", "container", mine="")
    result = host.as_root("-f", str(carol / "hutch.toml"), "up", env=environment, cwd=carol / "trap")
    assert result.returncode == 0, result.stderr
    assert not mark.exists()
    assert not (carol / "trap" / "state").exists()
    assert host.status("mine")["state"] == "running"


@pytest.mark.slow
def test_the_current_directory_is_the_member_s_to_use_only(host: HostsOwn, carol: Path, secret: Path) -> None:
    host.declare_for("carol", "container", mine="")
    (secret / "hutch.toml").write_text((carol / "hutch.toml").read_text())
    closed = host.as_root("up", env={"SUDO_UID": "1002"}, cwd=secret)
    refused(closed, "the current directory is gone, or closed to you")
    gone = host.as_root(
        "up", env={"SUDO_UID": "1002"}, prefix=("sh", "-c", 'cd "$0"; rmdir "$0"; exec "$@"', str(made(carol)))
    )
    refused(gone, "the current directory is gone, or closed to you")
    assert host.names() == ["his"]
    assert host.as_root("-f", "hutch.toml", "up", "--no-start", env={"SUDO_UID": "1002"}, cwd=carol).returncode == 0


def made(directory: Path) -> Path:
    (directory / "gone").mkdir()
    return directory / "gone"


LEAVE = """
import os, resource, signal, sys
os.umask(0o777 if sys.argv[1] == "closed" else 0)
for number in range(1, 32):
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))
for limit, soft in ((resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_FSIZE, 1 << 16), (resource.RLIMIT_CPU, 3600)):
    resource.setrlimit(limit, (soft, resource.getrlimit(limit)[1]))  # root of a container could not raise the other
os.setpriority(os.PRIO_PROCESS, 0, 19)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.8)  # before it begins, and later on
for number in range(0 if sys.argv[1] == "closed" else 99, 2):  # what goes wrong is told by the third
    os.close(number)
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.parametrize("streams", ["closed", pytest.param("open", marks=pytest.mark.slow)])
def test_nothing_that_a_process_inherits_harms_root_s(host: HostsOwn, carol: Path, streams: str) -> None:
    host.declare_for("carol", "container", mine="")
    start = (sys.executable, "-c", LEAVE, streams)
    result = host.as_root("-f", str(carol / "hutch.toml"), "up", env={"SUDO_UID": "1002"}, prefix=start)
    assert result.returncode == 0, result.stderr
    assert host.status("mine")["state"] == "running"
    pid = host.status("mine")["pid"]
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert "Max file size             unlimited" in limits
    assert "Max cpu time              unlimited" in limits
    assert os.getpriority(os.PRIO_PROCESS, pid) == 0
    (record,) = (host.state / "workspaces" / "mine").glob("workspace.json")
    assert record.stat().st_mode & 0o777 == 0o600
    state = host.state / "workspaces"
    assert [path for path in state.rglob("*") if path.is_file() and path.stat().st_mode & 0o022] == []


@pytest.mark.slow
def test_root_s_process_gets_no_signal_of_the_member_s(host: HostsOwn, carol: Path) -> None:
    host.declare_for("carol", "container", mine="")
    up(host, carol)
    command = host.world.accounts["carol"].command("sudo", "-n", "--", str(ENTRY), "restart", "mine")
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=host.environment({}, "carol"), cwd="/", **streams) as process:  # type: ignore[call-overload]
        tried: set[int] = set()
        while process.poll() is None:
            for pid in processes_of(ENTRY) - tried:
                for signal in ("STOP", "KILL"):
                    sent = host.as_user("carol", "sh", "-c", f"kill -{signal} {pid}", check=False)
                    assert sent.returncode != 0
                look = host.as_user("carol", "sh", "-c", f"cat /proc/{pid}/environ /proc/{pid}/maps", check=False)
                assert look.stdout == ""
                tried.add(pid)
            time.sleep(0.01)
        assert tried
        assert process.returncode == 0


def processes_of(program: Path) -> set[int]:
    """The processes of root's that run a program."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0")
            if os.fsencode(program) in argv[:3] and b"sudo" not in argv[0]:
                found.add(int(entry.name))
        except OSError:
            continue
    return found


def test_a_stream_that_takes_nothing_holds_up_nobody(host: HostsOwn, carol: Path) -> None:
    """A pipe that is full, and that nobody reads: what is written to it waits, without hutch's lock; and nothing of it
    is lost."""
    host.declare_for("carol", "container", mine="")
    reading, writing = os.pipe()
    filled = fill(writing)
    command = host.world.accounts["carol"].command("sudo", "-n", "--", str(ENTRY), "-v", "up", "--no-start")
    streams = {"stdin": subprocess.DEVNULL, "stdout": writing, "stderr": writing}
    with subprocess.Popen(command, env=host.environment({}, "carol"), cwd=carol, **streams) as process:  # type: ignore[call-overload]
        os.close(writing)
        try:
            within(60, lambda: "mine" in host.names())
            assert host.enter("bob", "stop", "his").returncode == 0
            assert process.poll() is None  # it has more to say
        finally:
            with open(reading, "rb") as file:
                said = file.read()
        assert process.wait(60) == 0
    assert b"done in" in said[filled:]


def fill(writing: int) -> int:
    """Fill a pipe, and return by how much."""
    filled = 0
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            filled += os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    return filled


def within(seconds: float, is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_report_is_whole_however_slowly_it_is_read(host: HostsOwn, carol: Path) -> None:
    """By one who begins later than anybody would wait."""
    host.declare_for("carol", "container", mine="")
    assert up(host, carol, "--no-start").returncode == 0
    reading, writing = os.pipe()
    filled = fill(writing)
    report = ("report", "mine", "--format", "html")
    command = host.world.accounts["carol"].command("sudo", "-n", "--", str(ENTRY), *report)
    with subprocess.Popen(command, env=host.environment({}, "carol"), cwd="/", stdout=writing) as process:
        os.close(writing)
        time.sleep(8)
        assert process.poll() is None
        with open(reading, "rb") as file:
            said = file.read()
        assert process.wait(60) == 0
    assert said[filled:].rstrip().endswith(b"</html>")


def test_root_s_process_writes_nowhere_where_its_caller_could_not(host: HostsOwn, carol: Path, secret: Path) -> None:
    """A descriptor that only names a pipe of root's (O_PATH) is not a way to write into it."""
    secret.chmod(0o755)
    pipe = secret / "pipe"
    os.mkfifo(pipe, 0o600)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    script = "import os, sys\npipe = os.open(sys.argv[1], os.O_PATH)\nfor number in (1, 2): os.dup2(pipe, number)\n"
    start = (sys.executable, "-c", f"{script}os.execvp(sys.argv[2], sys.argv[2:])", str(pipe))
    try:
        host.as_user("carol", *start, "sudo", "-n", "--", str(ENTRY), "stop", "his", check=False)
        assert host.as_root("stop", "his", env={"SUDO_UID": "1002"}, prefix=start).returncode == 2  # and it says why
        assert os.read(reading, 100) == b""
    finally:
        os.close(reading)


@pytest.mark.slow
def test_keys_of_a_terminal_do_not_stop_root_s_process(host: HostsOwn, carol: Path) -> None:
    host.declare_for("carol", "container", mine="")
    command = host.world.accounts["carol"].command("sudo", "-n", "--", str(ENTRY), "up", "--no-start")
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(carol)
        os.execvpe(command[0], command, host.environment({}, "carol"))
    try:

        def is_there() -> bool:
            os.write(terminal, b"\x1a\x13")  # stop, and hold the output
            return "mine" in host.names()

        within(60, is_there)
        assert host.enter("bob", "stop", "his").returncode == 0
        os.write(terminal, b"\x11")
        while True:
            with contextlib.suppress(OSError):  # it has ended
                os.read(terminal, 4096)
                continue
            break
    finally:
        os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# Many at once.


def at_work() -> int:
    """How many commands root works at outside of the cgroup of who started them. One may end and another begin while
    this looks; those that are there at its end were there together."""

    def is_entry(pid: str) -> bool:  # as python -I, not as an argument of sudo's
        return str(ENTRY).encode() in Path("/proc", pid, "cmdline").read_bytes().split(b"\0")[:3]

    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            started = start_time(int(pid))
            if is_entry(pid) and "0::/\n" in Path("/proc", pid, "cgroup").read_text():
                parent = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[1]
                found += [] if is_entry(parent) else [(int(pid), started)]
    return sum(is_alive(*each) for each in found)


def test_root_works_at_few_commands_of_a_member_at_a_time(host: HostsOwn, carol: Path) -> None:
    host.declare_for("carol", "container", mine="")
    assert up(host, carol, "--no-start").returncode == 0
    command = host.world.accounts["carol"].command("sudo", "-n", "--", str(ENTRY), "stop", "mine")
    env, devnull = host.environment({}, "carol"), subprocess.DEVNULL
    most = 0
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(1) as own:
        running = [
            stack.enter_context(
                subprocess.Popen(
                    command, env=env, cwd="/", stdin=devnull, stdout=devnull, stderr=subprocess.PIPE, text=True
                )
            )
            for _ in range(50)
        ]
        while not at_work():
            assert any(process.poll() is None for process in running)
        stopping = own.submit(host.hutch, "stop", "his", timeout=60)
        while any(process.poll() is None for process in running):
            most = max(most, at_work())
            time.sleep(0.05)
        assert stopping.result().returncode == 0
        said = [process.communicate(timeout=10)[1] for process in running]
    assert 1 <= most <= 4
    assert {process.returncode for process in running} <= {0, 1}
    assert all("at work on 4 commands of yours already" in text for text in said if "mine" not in text and text)


# Two at once.


def test_of_two_members_who_want_a_name_one_gets_it(host: HostsOwn, carol: Path) -> None:
    for name in ("bob", "carol"):
        host.declare_for(name, "container", "both", both="")
    running = [
        subprocess.Popen(
            host.world.accounts[name].command("sudo", "-n", "--", str(ENTRY), "up", "--no-start"),
            env=host.environment({}, name),
            cwd=host.home(name) / "both",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("bob", "carol")
    ]
    said = [process.communicate(timeout=120)[1] for process in running]
    codes = [process.returncode for process in running]
    assert sorted(codes) == [0, 2], said
    assert "both is somebody else's workspace" in said[codes.index(2)]
    winner = ("bob", "carol")[codes.index(0)]
    record = json.loads((host.state / "workspaces" / "both" / "workspace.json").read_text())["body"]
    assert (record["member"], record["wanted"]["owner"]) == (host.world.accounts[winner].uid,) * 2
