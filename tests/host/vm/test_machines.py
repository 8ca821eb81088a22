"""What is particular to virtual machines: whom they run as, how they end, that a word turns one into a container."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from hutch.host.hardware.accelerator import read_memory, write_memory
from hutch.runtime.observe import read_launch
from hutch.runtime.status import Status, read_status
from hutch.spec.model import MACHINE_CPUS
from hutch.spec.names import Layout
from hutch.spec.programs import own_program
from tests.host.egress import eventually
from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.host.processes import processes, status_of
from tests.support.world import World

LEFT = 300 << 20
UNPRIVILEGED = {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}


@pytest.fixture(scope="module")
def lab(world: World, images: Path) -> Iterator[Instance]:
    """A machine that runs, and may be ended."""
    with open_instance(world, images) as instance:
        instance.vcpus = ""  # as many as by default
        instance.declare("vm", lab="")
        instance.up()
        yield instance


@pytest.fixture
def running(lab: Instance) -> Instance:
    """The same, brought up again if the test before has ended it."""
    if lab.status("lab")["state"] != "running":
        lab.up()
    return lab


def pids(instance: Instance, program: str) -> list[int]:
    """The processes of the machine's that run a program; its own processes are not the host's."""
    group = f"/{cgroup_of(instance)}/machine"
    found = []
    for process in processes():
        text = Path(f"/proc/{process.pid}/cgroup").read_text()
        if group in text and os.path.basename(process.command[0]).startswith(program):
            found.append(process.pid)
    return found


def layout_of(instance: Instance) -> Layout:
    return Layout(instance.state, instance.run)


def cgroup_of(instance: Instance) -> str:
    """The service's."""
    return layout_of(instance).cgroup("lab")


def said(instance: Instance) -> Status:
    """What its service says; without a command, since that may soon be something else."""
    found = read_status(str(layout_of(instance).status("lab")))
    assert found is not None
    return found


def awaited(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for something that happens by itself, and that only `hutch status` tells."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_status_names_what_runs_it(running: Instance) -> None:
    status = running.status("lab")
    assert (status["type"], status["hypervisor"]) == ("vm", "qemu")
    assert status["accelerator"] in ("kvm", "tcg")
    assert status["ready_seconds"] > 0


def test_all_its_processors_run_and_none_before_the_devices_are_set_up(running: Instance) -> None:
    """Without KVM, a processor that runs while another sets up a device may lose an interrupt for good."""
    said = running.hutch("exec", "lab", "--", "sh", "-c", "nproc; doas dmesg").stdout
    count, _, log = said.partition("\n")
    assert int(count) == MACHINE_CPUS
    if running.status("lab")["accelerator"] == "tcg":
        devices, started = log.rindex(": enabling device ("), log.index("smpboot: Booting Node 0 Processor 1 ")
        assert devices < started


@pytest.mark.slow
def test_one_processor_is_enough(running: Instance) -> None:
    """There is none then that could be started later."""
    running.declare("vm", lab="", one="vcpus = 1")
    running.up()
    assert running.hutch("exec", "one", "--", "nproc").stdout == "1\n"
    running.hutch("rm", "one")
    running.declare("vm", lab="")


def test_its_processors_rest(running: Instance) -> None:
    """They have their next event told, and nothing wakes them until then."""
    told = running.hutch("exec", "lab", "--", "doas", "grep", "hres_active", "/proc/timer_list").stdout
    assert [line.rpartition(":")[2].strip() for line in told.splitlines()] == ["1"] * MACHINE_CPUS


def test_what_keeps_process_1_from_a_library_keeps_nobody_else(running: Instance) -> None:
    """Without KVM, process 1 is told to look for libraries where libbpf is none; `ip` needs that one."""
    inside = (
        "ip -brief link && systemctl show-environment && doas cat /proc/$(pidof sshd | cut -d' ' -f1)/environ && env"
    )
    assert "LD_LIBRARY_PATH" not in running.hutch("exec", "lab", "--", "sh", "-euc", inside).stdout


@pytest.mark.parametrize("program", ["qemu-system-", "virtiofsd"])
def test_posture(running: Instance, program: str) -> None:
    """A uid of its own, no capability, no way to any, a filter of system calls, and namespaces with its own files."""
    ours = {kind: os.stat(f"/proc/self/ns/{kind}").st_ino for kind in ("mnt", "net", "pid", "ipc", "uts")}
    (pid,) = pids(running, program)
    status = status_of(pid)
    uids = {int(uid) for uid in status["Uid"].split()}
    assert len(uids) == 1
    assert uids.pop() >= 0x7000_0000
    assert {int(status[kind], 16) for kind in UNPRIVILEGED} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert status["Groups"] == ""
    for kind, inode in ours.items():
        assert os.stat(f"/proc/{pid}/ns/{kind}").st_ino != inode, kind
    mounts = [line.split()[4] for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    expected = {"/", "/usr", "/dev/null", "/dev/urandom"}
    machine = {"/kernel", "/initrd", "/root.erofs", "/vm", "/dev/kvm"}
    expected |= machine if program.startswith("qemu") else {"/share", "/proc"}
    assert {point for point in mounts if not point.startswith("/proc/")} <= expected
    assert not Path(f"/proc/{pid}/root/etc").exists()
    assert not Path(f"/proc/{pid}/root/var").exists()
    interfaces = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]
    assert f"/{cgroup_of(running)}/machine" in Path(f"/proc/{pid}/cgroup").read_text().splitlines()[-1]
    environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert [item for item in environment if item and not item.startswith(b"PWD=")] == []


def test_nobody_else_has_its_uid(running: Instance) -> None:
    """Neither another process, nor a file of another's that root inside would own."""
    (pid,) = pids(running, "qemu-system-")
    uid = status_of(pid)["Uid"].split()[0]
    group = f"/{cgroup_of(running)}/"
    others = []
    for process in processes():
        try:
            text, same = Path(f"/proc/{process.pid}/cgroup").read_text(), uid in status_of(process.pid)["Uid"].split()
        except OSError:
            continue  # it has ended
        others += [process.command] if same and group not in text else []
    assert not others


PIPES = {"qemu-system-": ("log", "monitor.in", "monitor.out", "port.in", "port.out"), "virtiofsd": ("log",)}


@pytest.mark.parametrize("program", PIPES)
def test_it_has_nothing_open_but_its_own(running: Instance, program: str) -> None:
    (pid,) = pids(running, program)
    own = {"/root.erofs", "/dev/net/tun", "/dev/kvm", "/dev/null", "/share", "/", "/proc"}
    own |= {path for pipe in PIPES[program] for path in pipe_names(running, pipe)}
    strange = [path for path in opened_by(pid) if path.startswith("/") and path not in own]
    assert [path for path in strange if not path.startswith(("/memfd:", "/dev/pts/", "/share/", "/proc/"))] == []


def test_one_tap_and_nothing_else_of_the_network(running: Instance) -> None:
    (pid,) = pids(running, "qemu-system-")
    opened = opened_by(pid)
    assert opened.count("/dev/net/tun") == 1
    assert not [path for path in opened if path.startswith(str(running.state))]


def test_no_file_that_it_writes_grows_beyond_its_memory(running: Instance) -> None:
    """It has no disk; the kernel takes its memory for a file."""
    (pid,) = pids(running, "qemu-system-")
    limits = Path(f"/proc/{pid}/limits").read_text()
    (size,) = re.findall(r"^Max file size +(\d+) +(?:\d+) +bytes", limits, re.MULTILINE)
    memory = max(link.stat().st_size for link in Path(f"/proc/{pid}/fd").iterdir() if "/memfd:" in os.readlink(link))
    assert int(size) == memory


@pytest.mark.parametrize("program", PIPES)
def test_the_log_is_a_pipe_that_it_cannot_read(running: Instance, program: str) -> None:
    """What it says passes the relay, which bounds it; what others said, it does not see."""
    names = pipe_names(running, "log")
    assert Path(names[0]).is_fifo()
    (pid,) = pids(running, program)
    ends = [entry for entry in Path(f"/proc/{pid}/fd").iterdir() if os.readlink(entry) in names]
    flags = [(Path(f"/proc/{pid}/fdinfo") / end.name).read_text() for end in ends]
    assert ends
    assert {int(text.split("flags:")[1].split()[0], 8) & os.O_ACCMODE for text in flags} == {os.O_WRONLY}


def pipe_names(running: Instance, name: str) -> tuple[str, str]:
    """On the host, and where QEMU has its own root."""
    return f"{running.run}/workspaces/lab/vm/{name}", f"/vm/{name}"


def opened_by(pid: int) -> list[str]:
    return [os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()]


def test_what_root_inside_makes_in_home_is_the_owners(running: Instance) -> None:
    running.inside("lab", "sh", "-c", "cp /bin/true ~dev/suid && chmod 4755 ~dev/suid", root=True)
    made = (running.state / "workspaces" / "lab" / "home" / "suid").stat()
    assert made.st_uid == running.world.accounts["alice"].uid
    assert running.inside("lab", "mknod", "/home/dev/disk", "b", "8", "0", root=True, check=False).returncode != 0


@pytest.mark.parametrize(
    ("keys", "key"),
    [('memory = "64TiB"', "memory"), ("vcpus = 0", "vcpus"), ("cid = 2", "cid"), ('memory = "64MiB"', "memory")],
)
def test_bad_input_is_told_before_anything_starts(running: Instance, keys: str, key: str) -> None:
    before = running.status("lab")
    running.declare("vm", lab="", other=keys)
    told = running.hutch("up", check=False)
    assert told.returncode == 2
    assert f"workspaces.other.{key}" in told.stderr
    assert running.status("lab") == before
    running.declare("vm", lab="")


def test_it_is_there_and_goes_when_it_is_told_to(running: Instance) -> None:
    launch = read_launch(layout_of(running).launch("lab"))
    assert launch is not None
    status = running.status("lab")
    assert (status["state"], status["hypervisor"], status["pid"]) == ("running", "qemu", said(running).pid)
    assert status["accelerator"] in ("kvm", "tcg")
    assert 0 < status["ready_seconds"] < launch.start_seconds
    assert running.ssh("lab", "uname -n").stdout == "lab\n"
    assert running.inside("lab", "id", "-un").stdout == "dev\n"
    check_console(running)
    check_memory(running)
    check_unheard(running)
    began = time.monotonic()
    running.hutch("stop", "lab")
    assert time.monotonic() - began < launch.stop_seconds
    assert (said(running).state, said(running).reason) == ("stopped", "")
    assert running.status("lab")["state"] == "stopped"
    running.hutch("stop", "lab")  # nothing is left to do


def check_console(lab: Instance) -> None:
    """Whoever attaches sees it and types there; the log has it in any case."""
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(layout_of(lab).console("lab")))
        link.settimeout(30)
        lab.inside("lab", "sh", "-c", "echo to the console >/dev/ttyS0", root=True)
        seen = b""
        while b"to the console" not in seen:
            seen += link.recv(4096)
        reader = 'read -r line </dev/ttyS0; echo "<$line>" >/dev/ttyS0'
        lab.inside("lab", "systemd-run", "--quiet", "sh", "-c", reader, root=True)
        deadline = time.monotonic() + 60
        while b"<heard>" not in (seen := seen + received(link)):
            assert time.monotonic() < deadline, seen
            link.sendall(b"heard\n")  # what is typed before somebody reads is lost
    log = layout_of(lab).log("lab")
    assert eventually(lambda: b"to the console" in log.read_bytes(), 60)


def received(link: socket.socket) -> bytes:
    """What comes within a second."""
    link.settimeout(1)
    try:
        return link.recv(4096)
    except TimeoutError:
        return b""


def check_memory(lab: Instance) -> None:
    """What a command has to say to a machine's monitor while it runs."""
    total = "awk '/^MemTotal/ { print $2 * 1024 }' /proc/meminfo"
    assert int(lab.inside("lab", "sh", "-c", total).stdout) > LEFT
    leave_memory(lab, LEFT)
    lab.inside("lab", "sh", "-c", f"until [ $({total}) -le {LEFT} ]; do sleep 0.1; done", timeout=30)
    leave_memory(lab, 1 << 30)


def leave_memory(lab: Instance, size: int) -> None:
    spec = find_spec("qemu.qmp")
    assert spec is not None and spec.origin is not None
    program = own_program("hutch.backends.qemu_monitor", sys.executable, needs_others=True)
    library = str(Path(spec.origin).parents[2])
    argv = (*program, str(layout_of(lab).runtime("lab") / "control"), library, str(size))
    result = subprocess.run(argv, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    assert (result.returncode, result.stderr) == (0, "")


def check_unheard(lab: Instance) -> None:
    """Once it is ready, nobody listens at its port; what a guest says there all the same stops nothing."""
    flood = "timeout 2 head -c 1000000 /dev/zero >/dev/vport1p1 || :"
    lab.inside("lab", "sh", "-c", flood.replace("vport1p1", "$(cd /dev && echo vport*p1)"), root=True)


@pytest.mark.slow
def test_reboot_inside_restarts_it(running: Instance) -> None:
    running.inside("lab", "touch", "/root/gone", root=True)
    before = running.status("lab")["since"]
    running.inside("lab", "systemctl", "reboot", root=True, check=False)
    awaited(lambda: running.status("lab")["since"] != before)
    awaited(lambda: running.status("lab")["state"] == "running", 90)
    assert running.inside("lab", "ls", "/root", root=True).stdout == ""


@pytest.mark.slow
def test_a_timer_that_its_kernel_measured_wrongly_is_noticed(running: Instance) -> None:
    """Against a counter that is told to be slower than it is, as when a busy host held the machine."""
    if running.status("lab")["accelerator"] == "kvm":
        pytest.skip("with KVM, nothing is measured")
    layout = Layout(running.state, running.run)
    memory = read_memory(layout)
    wrong = {**memory.clock, "khz": memory.clock["khz"] * 4}
    write_memory(layout, replace(memory, clock=wrong))
    try:
        failed = running.hutch("restart", "lab", check=False)
    finally:
        write_memory(layout, memory)
    assert "the guest rebooted before it was ready" in failed.stderr
    said = running.hutch("logs", "lab").stdout
    assert said.count("hutch: the host was too busy while the kernel measured its timer\n") == 4
    assert said.count("the guest rebooted before it was ready: it starts once more\n") == 3


@pytest.mark.slow
def test_power_off_inside_stops_it(running: Instance) -> None:
    running.inside("lab", "systemctl", "poweroff", root=True, check=False)
    awaited(lambda: running.status("lab")["state"] == "stopped")


@pytest.mark.slow  # tests/host/test_machine_service has it with a program that plays the machine
def test_a_panic_is_told(running: Instance) -> None:
    running.ssh("lab", "(sleep 0.2; echo c | doas tee /proc/sysrq-trigger) >/dev/null 2>&1 & exit")
    awaited(lambda: running.status("lab")["state"] == "failed")
    assert "panicked" in running.status("lab")["reason"]


REASONS = {
    "qemu-system-": "qemu was killed by signal 9",
    "virtiofsd": "the process beside it was killed by signal 9: share ",
    "main": "qemu was killed by SIGKILL",
}


@pytest.mark.slow
@pytest.mark.parametrize("victim", REASONS)
def test_killed(running: Instance, victim: str) -> None:
    found = [running.status("lab")["pid"]] if victim == "main" else pids(running, victim)
    running.ssh("lab", "echo precious >~/precious; sync")
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    awaited(lambda: said(running).state == "failed")
    assert REASONS[victim] in said(running).reason
    awaited(lambda: running.status("lab")["state"] == "running", 120)  # it is started again
    assert running.ssh("lab", "cat ~/precious").stdout == "precious\n"
    assert running.plan()["lab"]["action"] == "no change"


@pytest.mark.slow
def test_a_word_turns_it_into_a_container_and_back(running: Instance) -> None:
    """Home, key, address, hardware address and name stay; ssh has nothing to say."""
    kept = ("ip", "mac", "name", "home")
    before = {key: running.status("lab")[key] for key in kept}
    running.ssh("lab", "echo mine >~/mine")
    roots = "test -e ~/roots || doas sh -c 'umask 077; echo roots >~dev/roots'; doas cat ~/roots"
    for kind in ("container", "vm"):
        running.declare(kind, lab="")
        assert running.plan()["lab"]["action"] == "recreate"
        running.up()
        assert running.status("lab")["type"] == kind
        assert {key: running.status("lab")[key] for key in kept} == before
        said = running.ssh("lab", "cat ~/mine; stat -c %U ~/mine; doas id -un", as_user="alice")
        assert (said.stdout, said.stderr) == ("mine\ndev\nroot\n", "")
        assert running.ssh("lab", roots).stdout == "roots\n"  # made by root of the container, read in the machine


@pytest.mark.slow
def test_a_kept_root_lies_on_a_disk_that_grows(running: Instance) -> None:
    running.declare("vm", lab='persist = "all"\ndisk = "1GiB"')
    running.up()
    running.inside("lab", "sh", "-c", "echo kept >/root/kept; sync", root=True)
    disk = running.state / "workspaces" / "lab" / "root" / "disk"
    assert disk.stat().st_size == 1 << 30
    assert disk.stat().st_blocks * 512 < 200 << 20  # sparse
    assert disk.stat().st_mode & 0o077 == 0
    running.declare("vm", lab='persist = "all"\ndisk = "2GiB"')
    assert running.plan()["lab"]["action"] == "restart"
    running.up()
    assert running.inside("lab", "cat", "/root/kept", root=True).stdout == "kept\n"
    awaited(lambda: int(running.inside("lab", "df", "--output=size", "-k", "/", root=True).stdout.split()[1]) > 1 << 20)


def test_a_hypervisor_that_cannot_run_here_leaves_nothing_behind(world: World, images: Path) -> None:
    """An image is there already, so that nothing but the machine itself is new. Another word in the file is enough."""
    if shutil.which("cloud-hypervisor"):
        pytest.skip("cloud-hypervisor is installed here")
    with open_instance(world, images) as instance:
        instance.declare("vm", lab='hypervisor = "cloud-hypervisor"')
        result = instance.hutch("up", check=False)
        assert result.returncode == 2, result.stderr
        assert "nothing was changed" in result.stderr
        layout = Layout(instance.state, instance.run)
        assert (instance.names(), layout.namespace_path.exists(), layout.network_record.exists()) == ([], False, False)
        instance.declare("container", lab="")
        assert instance.hutch("plan", "--json").returncode == 0
