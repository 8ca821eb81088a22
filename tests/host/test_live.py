"""Changes that need no restart: in force at once, in what runs, and still there after the guest has rebooted."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.host.instance import SSH_OPTIONS, Instance
from tests.host.processes import ended

PATIENCE = 20.0


@pytest.fixture
def running(shared: Instance, name: str, workspace_type: str) -> Callable[[str], str]:
    """Declares the workspace with keys, brings it up, and sees that no running guest was stopped for it. What `up` said
    comes back."""

    def become(keys: str) -> str:
        shared.declare(workspace_type, **{name: keys})
        before = boot_of(shared, name) if name in shared.names() else None
        if before:
            assert shared.plan()[name]["action"] == "live"
        said = shared.up().stderr
        assert before in (None, boot_of(shared, name)), "it was restarted"
        assert shared.status(name)["pending"] == "none"
        assert shared.hutch("plan", "--check").returncode == 0
        return said

    return become


def boot_of(shared: Instance, name: str) -> tuple[int, float]:
    found = shared.status(name)
    return found["pid"], found["since"]


def reboot(shared: Instance, name: str) -> None:
    """From inside, and until it is ready again."""
    before = shared.status(name)["pid"]
    end = os.pidfd_open(before)
    shared.inside(name, "systemctl", "reboot", root=True, check=False)
    ended(end)
    deadline = time.monotonic() + 180
    while shared.status(name)["state"] != "running":
        assert time.monotonic() < deadline
    assert shared.status(name)["pid"] != before


@pytest.mark.vm(slow=True)
def test_environment_and_keys(
    running: Callable[[str], str], shared: Instance, name: str, workspace_type: str, tmp_path: Path
) -> None:
    key = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True, timeout=10)
    words = """ORDER = "a # b \\"c\\" \\\\d", OTHER = "x\'y" """

    def log_in(command: str = "true") -> subprocess.CompletedProcess[str]:
        mine = ["-F", "/dev/null", *SSH_OPTIONS, "-o", f"UserKnownHostsFile={shared.state}/known_hosts", "-i", str(key)]
        line = ["ssh", *mine, f"dev@workspace-{name}", command]
        return subprocess.run(line, capture_output=True, text=True, timeout=30, env=shared.environment())

    running('env = { COLOUR = "red" }')
    assert log_in().returncode != 0
    session = subprocess.Popen(
        ["ssh", *SSH_OPTIONS, f"workspace-{name}", "cat; echo $COLOUR"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=shared.environment(),
    )
    running(f'authorized_keys = ["{key}.pub"]\nenv = {{ COLOUR = "blue", {words} }}')
    assert log_in("echo $COLOUR; printenv ORDER OTHER").stdout == 'blue\na # b "c" \\d\nx\'y\n'
    assert shared.inside(name, "printenv", "COLOUR").stdout == "blue\n"
    said, _ = session.communicate("still here\n", timeout=30)
    assert said == "still here\nred\n"  # whoever was at work goes on as before
    reboot(shared, name)
    assert log_in("echo $COLOUR").stdout == "blue\n"
    shared.declare(workspace_type, **{name: ""})
    shared.up()
    assert log_in().returncode != 0
    assert shared.inside(name, "printenv", "COLOUR", check=False).returncode == 1


def test_limits_of_a_container(running: Callable[[str], str], shared: Instance, name: str, workspace_type: str) -> None:
    running("")
    said = running('memory = "512MiB"\nvcpus = 1\ndisk = "100MiB"')
    warnings = shared.status(name)["warnings"]
    limits = {"memory": ("memory.max", str(512 << 20)), "vcpus": ("cpu.max", "100000 100000")}
    for key, (file, value) in limits.items():
        found = limit_of(shared, name, file)
        assert found == value or any("cannot limit" in text and key in text for text in warnings), (found, said)
    assert size_of_root(shared, name) == 100 << 20
    running("")
    assert shared.status(name)["warnings"] == []
    assert limit_of(shared, name, "memory.max") in ("max", "")
    assert size_of_root(shared, name) == 2 << 30


def limit_of(shared: Instance, name: str, file: str) -> str:
    """The text of a control file of the workspace's cgroup; "" on a host without it."""
    pid = shared.status(name)["pid"]
    (group,) = [x.split(":", 2)[2] for x in Path(f"/proc/{pid}/cgroup").read_text().splitlines() if x[:3] == "0::"]
    for top in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
        path = Path(top, group.strip("/")).parent / file
        if path.exists():
            return path.read_text().strip()
    return ""


def size_of_root(shared: Instance, name: str) -> int:
    return int(shared.inside(name, "df", "--output=size", "-B1", "/").stdout.split()[1])


def test_a_root_cannot_shrink_below_what_is_in_it(
    running: Callable[[str], str], shared: Instance, name: str, workspace_type: str
) -> None:
    running("")
    shared.inside(name, "dd", "if=/dev/zero", "of=/big", "bs=1M", "count=70", root=True)
    shared.declare(workspace_type, **{name: 'disk = "64MiB"\nenv = { A = "b" }'})
    refused = shared.hutch("up", check=False)
    assert refused.returncode == 1
    assert f"{name}: disk: the root cannot become so small while more of it is in use" in refused.stderr
    assert shared.status(name)["pending"] == "live"
    assert "pending live" in shared.hutch("ls").stdout
    assert shared.inside(name, "printenv", "A").stdout == "b\n"  # what can be, is
    assert [reason["key"] for reason in shared.plan()[name]["reasons"]] == ["disk"]
    shared.inside(name, "rm", "/big", root=True)
    running('disk = "64MiB"\nenv = { A = "b" }')
    assert size_of_root(shared, name) == 64 << 20


@pytest.fixture
def source(shared: Instance) -> Iterator[Path]:
    """Directories of the host's, of the one who owns the workspace."""
    place = shared.directory / "sources"
    for directory in (place, place / "one", place / "two"):
        directory.mkdir()
        os.chown(directory, 1000, 1000)
        (directory / "name").write_text(f"{directory.name}\n")
    yield place
    shared.remove_all()
    subprocess.run(["rm", "-rf", place], check=True, timeout=10)


def test_mounts_come_and_go(
    running: Callable[[str], str], shared: Instance, name: str, workspace_type: str, source: Path
) -> None:
    def mounted(*mounts: str) -> None:
        running(f"mounts = [{', '.join(mounts)}]")

    def read(path: str) -> str:
        return shared.inside(name, "cat", path, check=False).stdout

    one = f'{{ source = "{source}/one", target = "/srv/deep/one" }}'
    two = f'{{ source = "{source}/two", target = "/srv/deep", readonly = true }}'
    home = f'{{ source = "{source}/two", target = "/home/dev/two" }}'
    mounted()
    mounted(one)
    assert read("/srv/deep/one/name") == "one\n"
    shared.inside(name, "sh", "-c", "echo mine > /srv/deep/one/mine")
    assert (source / "one" / "mine").stat().st_uid == 1000
    shared.inside(name, "sh", "-c", "cp /bin/true /srv/deep/one/root && chmod 4755 /srv/deep/one/root", root=True)
    assert (source / "one" / "root").stat().st_uid not in (0, 1000)
    (source / "two" / "one").mkdir()
    mounted(one, two, home)  # a parent comes, and covers what it must not
    assert (read("/srv/deep/one/name"), read("/srv/deep/name"), read("/home/dev/two/name")) == (
        "one\n",
        "two\n",
        "two\n",
    )
    assert shared.inside(name, "touch", "/srv/deep/x", root=True, check=False).returncode != 0
    assert "nosuid,nodev" in shared.inside(name, "grep", " /srv/deep/one ", "/proc/mounts").stdout
    for place, options in (("/srv/deep", "rw"), ("/srv/deep/one", "suid"), ("/srv/deep/one", "dev")):
        stronger = ["mount", "-o", f"remount,bind,{options}", place]
        assert shared.inside(name, *stronger, root=True, check=False).returncode != 0, options
    reboot(shared, name)
    assert (read("/srv/deep/one/name"), read("/srv/deep/name"), read("/home/dev/two/name")) == (
        "one\n",
        "two\n",
        "two\n",
    )


def test_a_mount_that_is_taken_away(
    running: Callable[[str], str], shared: Instance, name: str, workspace_type: str, source: Path
) -> None:
    one, two = (f'{{ source = "{source}/{side}", target = "/{side}"' for side in ("one", "two"))
    running(f"mounts = [{one} }}, {two} }}]")
    (source / "one" / "deep").mkdir()
    moves = """
    mkdir /elsewhere /part && mount --bind /one /elsewhere && mount --bind /one/deep /part
    mkdir "$(printf '/tmp/h\\rx')" && mount --bind /one "$(printf '/tmp/h\\rx')"
    """
    shared.inside(name, "sh", "-euc", moves, root=True)
    before = shared.inside(name, "grep", "-c", " /two ", "/proc/self/mountinfo").stdout
    running(f"mounts = [{two}, readonly = true }}]")
    assert shared.inside(name, "cat", "/two/name").stdout == "two\n"
    assert shared.inside(name, "touch", "/two/x", root=True, check=False).returncode != 0
    assert shared.inside(name, "ls", "-A", "/one", "/elsewhere").stdout == "/elsewhere:\n\n/one:\n"
    assert str(source / "one") not in shared.inside(name, "cat", "/proc/1/mountinfo", root=True).stdout
    assert shared.inside(name, "grep", "-c", " /two ", "/proc/self/mountinfo").stdout == before
    running("mounts = []")
    assert str(source) not in shared.inside(name, "cat", "/proc/self/mountinfo").stdout
    guards = Path("/proc/self/mountinfo").read_text()
    assert all(f" {source}/{side} " in guards for side in ("one", "two"))  # root inside may still be in them
    shared.hutch("restart", name)
    assert str(source) not in Path("/proc/self/mountinfo").read_text()


def test_a_mount_that_cannot_be_is_told_beforehand(
    running: Callable[[str], str], shared: Instance, name: str, workspace_type: str
) -> None:
    running("")
    shared.declare(workspace_type, **{name: 'mounts = [{ source = "/absent", target = "/src" }]'})
    for command in ("plan", "up"):
        refused = shared.hutch(command, check=False)
        assert (refused.returncode, "/absent" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    "trap",
    [
        "ln -s /etc /trap",
        "touch /trap",
        "ln -s /proc/1/root/../../../.. /trap",
        "mkdir -p /run/deep && mount -t tmpfs -o size=4k,nr_inodes=1 none /run/deep && ln -s /run/deep/x/y /trap",
    ],
    ids=["link", "file", "magic", "full"],
)
def test_a_guest_that_sets_traps(
    running: Callable[[str], str], shared: Instance, name: str, workspace_type: str, source: Path, trap: str
) -> None:
    """Where the mount is to be lies in the guest's hands. It may fail, and touches nothing of the host's."""
    running("")
    shared.inside(name, "sh", "-c", trap, root=True)
    before = Path("/proc/self/mountinfo").read_text()
    shared.declare(workspace_type, **{name: f'mounts = [{{ source = "{source}/one", target = "/trap" }}]'})
    result = shared.hutch("up", check=False)
    if not result.returncode:  # it went where the guest led it, in the guest
        assert shared.inside(name, "cat", "/trap/name").stdout == "one\n"
    else:
        assert f"{name}: mounts: cannot show /trap: " in result.stderr
        assert shared.status(name)["pending"] == "live"
    guards = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if line not in before]
    assert all(str(source) in line and "nosuid,nodev" in line for line in guards)
    shared.hutch("restart", name, check=False)
    shared.declare(workspace_type, **{name: ""})
    shared.up()
    shared.ssh(name)


def test_a_guest_that_never_answers(
    running: Callable[[str], str], shared: Instance, name: str, workspace_type: str
) -> None:
    """What its root has made of the guest's own tools cannot hold `up` up."""
    running("")
    script = "printf '#!/bin/sh\\ntrap : TERM HUP INT; while :; do yes; done' > /usr/bin/systemd-tmpfiles"
    shared.inside(name, "sh", "-c", script, root=True)
    shared.declare(workspace_type, **{name: 'env = { A = "b" }\npublish = ["18082:80"]'})
    refused = shared.hutch("up", check=False, timeout=60)
    assert refused.returncode == 1
    assert f"{name}: env: the guest does not take it within 15 s" in refused.stderr
    assert [reason["key"] for reason in shared.plan()[name]["reasons"]] == ["env"]
    shared.hutch("restart", name)
    assert shared.inside(name, "printenv", "A").stdout == "b\n"


TRACER = """
import ctypes, glob
libc = ctypes.CDLL(None)
print("ready", flush=True)
seen = set()
while True:
    for path in glob.glob("/proc/[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in open(path) if ":" in line)
        except OSError:
            continue
        pid = int(fields["Pid"])
        if pid != 1 and int(fields["PPid"]) == 0 and pid not in seen and libc.ptrace(0x4206, pid, 0, 0) == 0:
            seen.add(pid)  # PTRACE_SEIZE, and never a wait: what is killed stays a zombie
"""


@pytest.mark.slow
def test_a_guest_that_traces_what_comes(
    running: Callable[[str], str], shared: Instance, name: str, workspace_type: str
) -> None:
    """A command that it holds on to cannot hold the lock of the host."""
    running("")
    start = ["systemd-run", "--quiet", "--unit=tracer", "python3", "-c", TRACER]
    shared.inside(name, *start, root=True)
    shared.declare(workspace_type, **{name: 'env = { A = "b" }'})
    deadline = time.monotonic() + 60
    refused = shared.hutch("up", check=False, timeout=60)
    assert (refused.returncode, time.monotonic() < deadline) == (1, True)
    assert f"{name}: env: the guest does not take it" in refused.stderr
    shared.hutch("restart", name, timeout=30)
    assert shared.inside(name, "printenv", "A").stdout == "b\n"


def test_arguments_tell_no_secrets(running: Callable[[str], str], shared: Instance, name: str) -> None:
    """What everybody on the host may list: here seen from inside, where it is the same."""
    running("")
    script = r"#!/bin/sh\ncat /proc/[0-9]*/cmdline >/run/seen\nexec /usr/bin/false"
    shared.inside(name, "sh", "-c", f"printf '{script}' > /usr/bin/systemd-tmpfiles", root=True)
    shared.file.write_text(f'{shared.file.read_text()}env = {{ TOKEN = "of hers" }}\n')
    assert "the guest does not take it" in shared.hutch("up", check=False).stderr
    seen = shared.inside(name, "cat", "/run/seen", root=True).stdout
    assert "systemd-tmpfiles" in seen
    assert "/etc/environment" not in seen


def test_a_guest_that_refuses(running: Callable[[str], str], shared: Instance, name: str, workspace_type: str) -> None:
    """A key counts only once it is in force: one that was revoked must not be taken for gone."""
    running("")
    shared.inside(name, "sh", "-c", "cp /bin/false /usr/bin/systemd-tmpfiles", root=True)
    shared.declare(workspace_type, **{name: 'env = { A = "b" }'})
    refused = shared.hutch("up", check=False)
    assert refused.returncode == 1
    assert f"{name}: env: the guest does not take it (exit code 1)" in refused.stderr
    assert shared.status(name)["pending"] == "live"
    assert "did not come to its end" not in shared.hutch("up", check=False).stderr


@pytest.mark.vm(slow=True)
def test_memory_of_a_machine(running: Callable[[str], str], shared: Instance, name: str, workspace_type: str) -> None:
    """By its balloon; a container's is a limit, which is in force as far as the host can."""
    running('memory = "1GiB"')
    running('memory = "640MiB"')
    if workspace_type == "container":
        return
    await_memory(shared, name, lambda total: total < 700 << 20)
    reboot(shared, name)
    await_memory(shared, name, lambda total: total < 700 << 20)
    running('memory = "1GiB"')
    await_memory(shared, name, lambda total: total > 900 << 20)
    shared.declare(workspace_type, **{name: 'memory = "1100MiB"'})
    assert shared.plan()[name]["action"] == "restart"


def await_memory(shared: Instance, name: str, suffices: Callable[[int], bool]) -> None:
    """A guest gives memory back in its own time."""
    deadline = time.monotonic() + PATIENCE
    while True:
        line = shared.inside(name, "grep", "MemTotal", "/proc/meminfo").stdout
        total = int(line.split()[1]) << 10
        if suffices(total):
            return
        assert time.monotonic() < deadline, line
