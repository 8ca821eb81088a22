"""Where the host has vsock, and where systemd is its process 1. Few hosts that run these tests have either, so a
machine is that host: it is shown this checkout and the image, and runs a machine of its own, by a KVM that is emulated.
Hosts with systemd have no need of vsock to hear a machine, so it is hidden at first.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hutch.guest.credentials import NOTIFY_SOCKET as CREDENTIAL
from hutch.host.doctor.packages import REQUIREMENTS
from hutch.host.doctor.tools import QEMU, find_program
from hutch.host.hardware.capacity import observe_capacity
from hutch.images.machine import machine_directory
from hutch.spec.names import Layout
from tests.host.instance import DEFAULTS, SSH_OPTIONS, Completed, Instance
from tests.host.opening import open_instances
from tests.support.world import World

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.uname().machine != "x86_64", reason="machines run on x86_64 only"),
    pytest.mark.skipif(observe_capacity().memory < 8 << 30, reason="less than 8 GiB of memory"),
]

CHECKOUT = Path(__file__).parents[3]
PROJECT = "/srv/project"
PACKAGES = [name for item in REQUIREMENTS if item.set == "runtime" and not item.optional for name in item.names("apt")]
HOST_OF_ITS_OWN = f"packages = {json.dumps(sorted(PACKAGES))}\n"
INNER = f"""\
[network]
subnet = "10.99.0.0/24"
uplink = "10.98.0.0/30"
[defaults]
{DEFAULTS}
[workspaces.inner]
type = "vm"
owner = "dev"
memory = "512MiB"
vsock = true
cid = 4711
"""
PREPARE = """
set -eu
project=$1 image=/var/lib/hutch/images/$2 machine=/var/lib/hutch/images/$2/$3
mkdir -p /var/lib/hutch
mount -t tmpfs -o mode=755 tmpfs /var/lib/hutch # what the root lies on cannot be shared with another machine
mkdir -m 700 /var/lib/hutch/images
mkdir "$image" "$image/root" "$machine"
mount --bind /srv/machine "$machine"
printf %s "$4" >"$image/image.json"
umask 022
mkdir "$project"
cat >"$project/hutch.toml"
"""
NOTIFY_SOCKET = f"/run/hutch/workspaces/inner/vm/{CREDENTIAL}"
SYSTEMD, HIDDEN = "/run/systemd/system", "/run/systemd/hidden"  # by the first of them it is known to be process 1
UNIT = "hutch@inner.service"
LOG = "/run/hutch/workspaces/inner/machine.log"
KNOWN_HOSTS = "/var/lib/hutch/known_hosts"
LIE = """
import socket, sys
with open(sys.argv[1]) as file:
    port = int(file.read().split(":")[2])
with socket.socket(socket.AF_VSOCK) as call:
    call.settimeout(60)
    try:
        call.connect((1, port))  # this host itself
        call.sendall(b"READY=1")
        sys.exit(0 if call.recv(1) == b"" else "it answered")
    except (BrokenPipeError, ConnectionResetError):
        pass  # it hung up before it was told anything
"""
HOLD = """
import fcntl, pathlib, struct, sys, time
device = open("/dev/vhost-vsock", "rb+", buffering=0)
fcntl.ioctl(device, 0x4008AF60, struct.pack("=Q", int(sys.argv[1])))
held = pathlib.Path(sys.argv[2])
held.touch()
while held.exists():
    time.sleep(0.2)
"""
WRAPPER = """#!/bin/sh
for word; do
  shift
  case $word in *,-svm) word=${{word%,-svm}},+svm,+npt ;; esac
  set -- "$@" "$word"
done
exec {real} "$@"
"""
CLOUD_HYPERVISOR = shutil.which("cloud-hypervisor")
SECONDS = 900.0  # for anything in a machine that runs in one that is emulated


@dataclass
class Stand:
    """A host with vsock."""

    outer: Instance

    def run(self, *argv: str, check: bool = True, stdin: str = "") -> Completed:
        """Run a command there, as root."""
        return self.outer.inside("stand", *argv, root=True, check=check, stdin=stdin, timeout=SECONDS)

    def shell(self, script: str, *, check: bool = True, stdin: str = "") -> Completed:
        return self.run("sh", "-c", f"cd {PROJECT}\n{script}", check=check, stdin=stdin)

    def command(self, *argv: str) -> list[str]:
        """A command of this checkout's hutch."""
        return ["env", f"--chdir={PROJECT}", "PYTHONDONTWRITEBYTECODE=1", sys.executable, "-m", "hutch", *argv]

    def hutch(self, *argv: str, check: bool = True) -> Completed:
        return self.run(*self.command(*argv), check=check)

    def ssh(self, command: str, *, check: bool = True) -> Completed:
        """Plain ssh to the machine inside."""
        return self.run("ssh", *SSH_OPTIONS, "workspace-inner", command, check=check)

    def status(self) -> dict[str, Any]:
        (found,) = json.loads(self.hutch("status", "inner", "--json").stdout)
        assert isinstance(found, dict)
        return found


def needed_directories() -> list[Path]:
    """This checkout, and where its interpreter is unless that is the distribution's: the image has that one too."""
    python = Path(sys.base_prefix).resolve()
    return [CHECKOUT] if python == Path("/usr") else [CHECKOUT, python]


@contextmanager
def nested_kvm(directory: Path) -> Iterator[None]:
    """For a while, machines here have processors that can run machines: QEMU emulates AMD's. It is found where
    commands of the host's own are looked for first; the mount is in this test's own namespace."""
    place, real = Path("/usr/local/sbin"), find_program(QEMU)
    directory.mkdir()
    directory.chmod(0o755)
    wrapper = directory / QEMU
    wrapper.write_text(WRAPPER.format(real=real))
    wrapper.chmod(0o755)
    subprocess.run(["mount", "--bind", directory, place], check=True, timeout=10)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", place], check=True, timeout=10)


@pytest.fixture(scope="module")
def stand(world: World, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with nested_kvm(tmp_path_factory.getbasetemp() / "sbin"), open_instances(world) as make:
        image, machine = ensure_image(make(images), images)
        shared = {machine: "/srv/machine", **{path: str(path) for path in needed_directories()}}
        if CLOUD_HYPERVISOR:
            shared[Path(CLOUD_HYPERVISOR).resolve().parent] = "/srv/cloud-hypervisor"
        mounts = (f'{{ source = "{path}", target = "{at}", readonly = true }}' for path, at in shared.items())
        outer = make(images, HOST_OF_ITS_OWN)
        outer.declare("vm", stand=f'memory = "4GiB"\nmounts = [{", ".join(mounts)}]')
        outer.hutch("up", timeout=900)
        found = Stand(outer)
        about = (image / "image.json").read_text()
        found.run("sh", "-c", PREPARE, "sh", PROJECT, image.name, machine.name, about, stdin=INNER)
        yield found


def ensure_image(instance: Instance, images: Path) -> tuple[Path, Path]:
    """The directories of the image for the inner machine, and of what machines of it boot from."""
    instance.declare("vm", inner="")
    (id,) = instance.hutch("image", "build", timeout=900).stdout.split()
    layout = Layout(images.resolve().parent, instance.run)
    return layout.images / id, machine_directory(layout, id)


@pytest.fixture(scope="module")
def inner(stand: Stand) -> Stand:
    """With its machine, which has come up while somebody else said that it was up."""
    stand.run("modprobe", "vsock_loopback")
    stand.run("mv", SYSTEMD, HIDDEN)
    # What any account can do where the device is everybody's, which is not to keep the machine from starting.
    hold = stand.outer.spawn("exec", "--root", "stand", "--", sys.executable, "-c", HOLD, "4711", "/run/held")
    wait_until(lambda: stand.run("test", "-e", "/run/held", check=False).returncode == 0)
    with hold, stand.outer.spawn("exec", "--root", "stand", "--", *stand.command("up")) as up:
        wait_until(lambda: stand.run("grep", "-q", "vsock-stream:2:", NOTIFY_SOCKET, check=False).returncode == 0)
        stand.run(sys.executable, "-c", LIE, NOTIFY_SOCKET)
        assert stand.status()["state"] == "starting"
        code = up.wait(SECONDS)
        stand.run("rm", "/run/held")
        assert code == 0
    return stand


def test_a_machine_says_by_vsock_that_it_is_ready(inner: Stand) -> None:
    status = inner.status()
    assert (status["state"], status["hypervisor"], status["accelerator"]) == ("running", "qemu", "kvm")
    log = inner.run("cat", LOG).stdout
    assert "ready, says the guest over vsock" in log
    assert f"the vsock context id 4711 is somebody else's: this start has {status['cid']}\n" in log
    assert status["cid"] not in (None, 4711)


def test_what_its_file_asks_for_is_said_of_the_promise(inner: Stand) -> None:
    """The host listens, and the machine gets there."""
    said = json.loads(inner.hutch("prove", "inner", "--only", "vsock-listeners", "--json", check=False).stdout)
    (found,) = [item for item in said if item["probe"] == "vsock-listeners"]
    assert (found["result"], "as its file asks for" in json.dumps(found)) == ("held", True)


def test_it_is_reached_without_a_network(inner: Stand) -> None:
    inner.hutch("exec", "--root", "inner", "--", "ip", "link", "set", "eth0", "down", check=False)  # it came that way
    said = inner.hutch("exec", "inner", "--", "cat", "/sys/class/net/eth0/operstate")
    assert said.stdout == "down\n"
    inner.hutch("exec", "--root", "inner", "--", "ip", "link", "set", "eth0", "up")
    wait_until(lambda: inner.ssh("true", check=False).returncode == 0)  # which goes by the network alone


def test_that_way_too_its_host_key_is_checked(inner: Stand) -> None:
    other = "ssh-keygen -q -t ed25519 -N '' -f /tmp/other && cut -d' ' -f1,2 /tmp/other.pub"
    inner.shell(f'cp {KNOWN_HOSTS} /tmp/known && key=$({other}) && sed -i "s|ssh-ed25519 .*|$key|" {KNOWN_HOSTS}')
    try:
        for refused in (inner.ssh("true", check=False), inner.hutch("exec", "inner", "--", "true", check=False)):
            assert refused.returncode != 0
            assert "Host key verification failed" in refused.stderr
    finally:
        inner.shell(f"cat /tmp/known >{KNOWN_HOSTS}")
    assert inner.ssh("true").returncode == 0


@pytest.fixture(scope="module")
def service(stand: Stand) -> Stand:
    """With its machine, which systemd runs, and waits for: its own patience is for a KVM that is not emulated."""
    drop_in = f"/etc/systemd/system/{UNIT}.d"
    stand.shell(f"mkdir -p {drop_in} && printf '[Service]\\nTimeoutStopSec=600\\n' >{drop_in}/slow.conf")
    stand.shell(f"[ ! -d {HIDDEN} ] || {{ {' '.join(stand.command('stop', 'inner'))} && mv {HIDDEN} {SYSTEMD}; }}")
    stand.hutch("up")
    return stand


def shown(stand: Stand, *names: str) -> list[str]:
    said = stand.run("systemctl", "show", *(f"--property={name}" for name in names), UNIT).stdout
    found = dict(line.partition("=")[::2] for line in said.splitlines())
    return [found[name] for name in names]


def test_systemd_runs_a_machine(service: Stand) -> None:
    status = service.status()
    assert (status["state"], status["hypervisor"]) == ("running", "qemu")
    assert shown(service, "ActiveState", "MainPID") == ["active", str(status["pid"])]
    said = service.run("journalctl", "--no-pager", "--all", "-u", UNIT).stdout
    assert "ready, says the guest over vsock" in said
    assert service.hutch("exec", "inner", "--", "uname", "-n").stdout == "inner\n"
    assert service.ssh("uname -n").stdout == "inner\n"
    listed = service.run("machinectl", "list", "--no-legend").stdout.split()
    assert listed[:2] == ["workspace-inner", "vm"]
    assert "hutch-ws_inner.slice" in service.run("cat", f"/proc/{status['pid']}/cgroup").stdout
    tree = service.run("systemd-cgls", "--no-pager", "--full", f"--unit={UNIT}").stdout
    assert "qemu-system" in tree and "virtiofsd" in tree and "python" not in tree


def test_its_memory_changes_while_it_runs(service: Stand) -> None:
    before = shown(service, "MainPID")
    service.shell(f"sed -i s/512MiB/400MiB/ hutch.toml && {shlex.join(service.command('up'))}")
    total = "until [ $(awk '/^MemTotal/ { print $2 }' /proc/meminfo) -le 409600 ]; do sleep 0.5; done"
    service.hutch("exec", "inner", "--", "timeout", "120", "sh", "-c", total)
    assert shown(service, "MainPID") == before


def test_a_reboot_inside_is_another_start_of_its_service(service: Stand) -> None:
    before = shown(service, "MainPID")
    service.hutch("exec", "--root", "inner", "--", "systemctl", "reboot", check=False)
    wait_until(lambda: shown(service, "MainPID") != before and shown(service, "ActiveState") == ["active"])
    assert service.ssh("uname -n").stdout == "inner\n"


def test_systemd_ends_it_in_order(service: Stand) -> None:
    service.run("systemctl", "stop", UNIT)
    assert shown(service, "ActiveState", "Result", "ExecMainStatus") == ["inactive", "success", "0"]
    assert service.status()["state"] == "stopped"
    assert "Power down" in service.run("journalctl", "--no-pager", "-u", UNIT).stdout
    assert service.run("machinectl", "list", "--no-legend").stdout == ""
    assert service.shell("pgrep qemu-system; pgrep virtiofsd", check=False).stdout == ""


@pytest.mark.skipif(CLOUD_HYPERVISOR is None, reason="cloud-hypervisor is not in PATH")
@pytest.mark.parametrize("has_systemd", [True, False], ids=["with systemd", "without systemd"])
def test_cloud_hypervisor_is_chosen_and_boots(stand: Stand, has_systemd: bool) -> None:
    assert CLOUD_HYPERVISOR is not None
    program = f"/srv/cloud-hypervisor/{Path(CLOUD_HYPERVISOR).resolve().name}"
    stand.run("ln", "-sfn", program, "/usr/local/bin/cloud-hypervisor")
    stand.hutch("stop", "inner", check=False)
    is_there, elsewhere = (SYSTEMD, HIDDEN) if has_systemd else (HIDDEN, SYSTEMD)
    stand.shell(f"[ -d {is_there} ] || mv {elsewhere} {is_there}")
    stand.hutch("up")
    stand.hutch("start", "inner")
    status = stand.status()
    assert (status["state"], status["hypervisor"], status["accelerator"]) == ("running", "cloud-hypervisor", "kvm")
    assert "ready, says the guest over vsock" in stand.hutch("logs", "inner").stdout
    assert stand.ssh("uname -n").stdout == "inner\n"
    stand.hutch("stop", "inner")
    assert stand.status()["state"] == "stopped"


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(1)
