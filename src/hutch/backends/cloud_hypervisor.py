"""Virtual machines: cloud-hypervisor, which needs KVM. Everything around it is as for QEMU: see backends/machine.

It has no fw_cfg in the builds that people install, and the words of its command line can be read by everybody on the
host. So what the guest is told travels as a second read-only disk, which is a tar archive: `shares`, and
`credentials/NAME` for each credential, the host key among them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from hutch.backends import machine
from hutch.backends.jail import jailed
from hutch.backends.launch import File, Hardware, Launch, Step, Surroundings
from hutch.backends.machine import (
    Monitor,
    credentials_of,
    disk_path,
    hear_command,
    left_of,
    machine_launch,
    memory_of,
    render_shares,
    tap_command,
)
from hutch.backends.share import share_tags
from hutch.backends.traits import Host, Traits
from hutch.errors import Problem
from hutch.guest.boot import kernel_arguments
from hutch.guest.credentials import HOST_KEY, NOTIFY_SOCKET
from hutch.spec.model import MACHINE_CPUS, MACHINE_MEMORY, WorkspaceSpec
from hutch.spec.programs import own_program

OLDEST = 52
"""The first cloud-hypervisor that does what is asked of it: `image_type` of disks, and a network device by descriptor
from another network namespace."""
VERSION = re.compile(r"cloud-hypervisor v?([0-9]{1,6})[.]", re.ASCII)
CALLS = "hutch.backends.cloud_hypervisor_calls"


def find(host: Host) -> dict[str, str]:
    """Its program, where one that is new enough is installed."""
    program = host.program("cloud-hypervisor")
    version = parse_version(host.said(program, "--version")) if program else None
    return {"program": program} if program and version is not None and version >= OLDEST else {}


def lacks(hardware: Hardware | None) -> Iterable[str]:
    """Sentences: what this host lacks for cloud-hypervisor."""
    if hardware is None or not hardware.hypervisors.get("cloud-hypervisor"):
        yield f"cloud-hypervisor {OLDEST} or newer is not installed"
    if hardware is None or hardware.accelerator != "kvm":
        yield "cloud-hypervisor needs KVM, and no guest runs under KVM on this host"


TRAITS = Traits(
    name="cloud-hypervisor",
    rank=1,
    program="cloud-hypervisor",
    console=machine.CONSOLE_UNIT,
    is_machine=True,
    memory=MACHINE_MEMORY,
    needs_kvm=True,
    sizes={"processors": ("--cpus", r"boot=(\d+)"), "MiB": ("--memory", r"size=(\d+)M,.*")},
    modules=("backends/cloud_hypervisor_calls.py",),
    find=find,
    lacks=lacks,
)
EVENTS, TAP = 3, 4  # descriptors: the pipe that its events go to, and the device
READY_PORT = 901  # of the host: a call of the guest's to it reaches the socket vm_901 in the machine's directory
QUIET = ("debian:bookworm",)
"""Images whose systemd (before 254) cannot tell over a stream of vsock that it is ready."""


def check(prefix: str, workspace: WorkspaceSpec) -> Iterable[Problem]:
    """Problems: the keys that a machine under cloud-hypervisor cannot honour."""
    yield from machine.check(prefix, workspace)
    if workspace.image in QUIET:
        yield Problem(
            f"{workspace.image} cannot tell cloud-hypervisor that it is ready",
            f"{prefix}.hypervisor",
            hint='use "qemu" or "auto", or a newer image',
        )
    if workspace.vsock:
        hint = 'use "qemu" or "auto", or leave vsock out'
        yield Problem("cannot be had with cloud-hypervisor", f"{prefix}.vsock", "true", hint)


def launch(name: str, workspace: WorkspaceSpec, host: Surroundings) -> Launch:
    """Everything that makes the machine run."""
    hardware = host.hardware
    assert hardware is not None
    runtime = str(host.layout.runtime(name))
    credentials = credentials_of(name, workspace, host) | {NOTIFY_SOCKET: f"vsock-stream:2:{READY_PORT}\n"}
    files = [File(f"{runtime}/archive/credentials/{key}", text) for key, text in credentials.items()]
    files.append(File(f"{runtime}/archive/shares", render_shares(workspace, host)))
    monitor = Monitor(
        name=TRAITS.name,
        dialect=Path(__file__).with_suffix(".sh"),
        files=tuple(files),
        directories=(f"{runtime}/archive/credentials", f"{runtime}/sockets"),
        prepare=(archive_steps(name, host), (sockets_step(f"{runtime}/sockets", host.uid_base),)),
        pipes=("events",),
        argv=machine_argv(name, workspace, host, hardware),
        commands={
            "hear": hear_command(host, name, "socket", f"{runtime}/sockets", f"vm_{READY_PORT}"),
            "ask": calls_command(name, host, "end"),
        },
        balloon=balloon_step(name, workspace, host),
    )
    return machine_launch(name, workspace, host, monitor)


def calls_command(name: str, host: Surroundings, *words: str) -> tuple[str, ...]:
    """The command that sends a request to a running machine."""
    program = own_program(CALLS, host.python, host.package)
    return (*program, f"{host.layout.runtime(name)}/sockets", *words)


def balloon_step(name: str, workspace: WorkspaceSpec, host: Surroundings) -> Step | None:
    """A step that takes memory from a running machine by its balloon; None for a machine that is to be started."""
    size = left_of(workspace, host)
    if size is None:
        return None
    command = calls_command(name, host, "balloon", str(memory_of(workspace, host) - size))
    return Step(command, f"leave it {size >> 20} MiB of its memory", may_fail=True)


def archive_steps(name: str, host: Surroundings) -> tuple[Step, ...]:
    """Steps that make a disk of the shares and the credentials, which the machine can read and nobody else."""
    runtime, uid = str(host.layout.runtime(name)), str(host.uid_base)
    place, archive = f"{runtime}/archive", f"{runtime}/archive.tar"
    key = ("install", "-m", "400", str(host.layout.host_key(name)), f"{place}/credentials/{HOST_KEY}")
    # Nobody may read the archive meanwhile: the workspace's owner may pass through its runtime directory.
    tar = 'umask 077; rm -f -- "$1"; exec tar --create --format=ustar --file="$1" --directory="$2" shares credentials'
    pack = ("sh", "-euc", tar, "sh", archive, place)
    owned = ("install", "-m", "400", "-o", uid, "-g", uid, archive, f"{runtime}/vm/archive")
    return (Step(key, "hand in the host key"), Step(pack, "pack the credentials"), Step(owned, "hand in the archive"))


def sockets_step(place: str, uid: int) -> Step:
    """A fresh directory for the sockets that the machine makes: small, and nobody else's."""
    options = f"mode=700,uid={uid},gid={uid},size=64k,nr_inodes=16,nosuid,nodev,noexec"
    return Step(("mount", "-t", "tmpfs", "-o", options, "tmpfs", place), "make room for the machine's sockets")


def machine_argv(name: str, workspace: WorkspaceSpec, host: Surroundings, hardware: Hardware) -> tuple[str, ...]:
    """The main process's command: the machine in its jail, with the one network device that was opened for it."""
    runtime = str(host.layout.runtime(name))
    disk = disk_path(name, workspace, host)
    program = hardware.program_of(TRAITS.name)
    files = ["--ro-bind", program, "/cloud-hypervisor", "--proc", "/proc"]
    files += ["--ro-bind", hardware.kernel, "/kernel", "--ro-bind", hardware.initrd, "/initrd"]
    files += ["--ro-bind", hardware.root, "/root.erofs", "--ro-bind", f"{runtime}/vm", "/vm"]
    files += ["--bind", f"{runtime}/sockets", "/sockets", "--dev-bind", "/dev/kvm", "/dev/kvm"]
    if disk:
        files += ["--bind", disk, "/disk"]
    groups = str(hardware.kvm_gid) if hardware.kvm_gid is not None else ""
    command = machine_command(name, workspace, host, hardware, disk is not None)
    jail = jailed(tuple(files), host.uid_base, command, groups)
    return (*tap_command(name, workspace, host, TAP), *jail)


def machine_command(
    name: str, workspace: WorkspaceSpec, host: Surroundings, hardware: Hardware, has_disk: bool
) -> tuple[str, ...]:
    """The command line of cloud-hypervisor. Every disk's format is given: one that is guessed from its contents is the
    guest's to choose. See docs/ of cloud-hypervisor, and `cloud-hypervisor --help`."""
    archive = "/dev/vdc" if has_disk else "/dev/vdb"
    arguments = kernel_arguments(name, host.machine_id, tsc_khz=hardware.tsc_khz, has_disk=has_disk)
    disks = ["path=/root.erofs,readonly=on,image_type=raw"]
    if has_disk:
        disks.append("path=/disk,image_type=raw")
    disks.append("path=/vm/archive,readonly=on,image_type=raw")
    shares = [f"tag={tag},socket=/vm/{tag}" for tag in share_tags(workspace)]
    return (
        "/cloud-hypervisor",
        *("--seccomp", "true", "--event-monitor", f"fd={EVENTS}", "--api-socket", "path=/sockets/api"),
        *(
            "--kernel",
            "/kernel",
            "--initramfs",
            "/initrd",
            "--cmdline",
            " ".join((*arguments, f"hutch.archive={archive}")),
        ),
        *("--cpus", f"boot={workspace.vcpus or MACHINE_CPUS}"),
        *("--memory", f"size={memory_of(workspace, host) >> 20}M,shared=on"),
        *("--balloon", "size=0,free_page_reporting=on"),
        *("--disk", *disks),
        *("--net", f"fd=[{TAP}],mac={workspace.mac}"),
        *("--fs", *shares),
        *("--vsock", f"cid={workspace.cid},socket=/sockets/vm"),
        *("--serial", "tty", "--console", "off", "--pvpanic"),
    )


def parse_version(text: str) -> int | None:
    """The major version in the output of `cloud-hypervisor --version`; None when there is none in it."""
    found = VERSION.match(text)
    return int(found[1]) if found else None
