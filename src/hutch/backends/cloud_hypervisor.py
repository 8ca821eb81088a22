"""Virtual machines: cloud-hypervisor, which needs KVM. Everything around it is as for QEMU: see backends/machine.

It has no fw_cfg in the builds that people install, and the words of its command line can be read by everybody on the
host. So what the guest is told travels as a second read-only disk, which is a tar archive: `shares`, and
`credentials/NAME` for each credential, the host key among them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from hutch.backends import machine
from hutch.backends.identity import identify
from hutch.backends.jail import jailed
from hutch.backends.launch import REBOOT, File, Hardware, Launch, Limits, Step, Surroundings
from hutch.backends.machine import (
    TASKS,
    dialect,
    disk_cleanup,
    disk_path,
    disk_steps,
    hear_command,
    left_of,
    memory_limit,
    memory_of,
    pipes_step,
    render_shares,
    sandbox,
    share_mounts,
    share_servers,
    tap_command,
)
from hutch.backends.machined import forget_step, register_step
from hutch.backends.port import port_of
from hutch.backends.share import release_steps, share_places, share_tags
from hutch.backends.traits import Traits
from hutch.errors import Problem
from hutch.guest.boot import kernel_arguments
from hutch.guest.credentials import HOST_KEY, NOTIFY_SOCKET, render_credentials
from hutch.spec.model import MACHINE_CPUS, MACHINE_MEMORY, WorkspaceSpec
from hutch.spec.programs import own_program

OLDEST = 52
"""The first cloud-hypervisor that does what is asked of it: `image_type` of disks, and a network device by descriptor
from another network namespace."""
VERSION = re.compile(r"cloud-hypervisor v?([0-9]{1,6})[.]", re.ASCII)


def lacks(hardware: Hardware | None) -> Iterable[str]:
    """Sentences: what this host lacks for cloud-hypervisor."""
    if hardware is None or hardware.cloud_hypervisor is None:
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
    layout, runtime = host.layout, str(host.layout.runtime(name))
    credentials = render_credentials(
        identify(name, workspace, host.network.subnet, host.keys, "Name=eth0", host.decisions)
    ) | {NOTIFY_SOCKET: f"vsock-stream:2:{READY_PORT}\n"}
    files = [File(f"{runtime}/archive/credentials/{key}", text) for key, text in credentials.items()]
    files.append(File(f"{runtime}/archive/shares", render_shares(workspace, host)))
    port = port_of(name, workspace, layout, host.network)
    files.append(File(f"{runtime}/port", port.render_batch()))
    shares = share_places(workspace, runtime)
    return Launch(
        workspace=name,
        backend="cloud-hypervisor",
        unit=layout.unit(name),
        network_namespace=str(layout.namespace_path),
        cgroup=layout.cgroup(name),
        runtime=runtime,
        dialect=dialect("cloud_hypervisor"),
        directories=(f"{runtime}/vm", f"{runtime}/archive/credentials", f"{runtime}/sockets", *shares),
        files=tuple(files),
        prepare=(
            (port.make(),),
            archive_steps(name, host),
            (sockets_step(f"{runtime}/sockets", host.uid_base),),
            *share_mounts(name, workspace, host, shares),
            *disk_steps(name, workspace, host),
            (pipes_step(f"{runtime}/vm", host.uid_base, "events"),),
        ),
        connect=port.connect(f"{runtime}/port"),
        helpers=share_servers(workspace, host, hardware.virtiofsd, runtime),
        argv=machine_argv(name, workspace, host, hardware),
        commands={
            "hear": hear_command(host, name, "socket", f"{runtime}/sockets", f"vm_{READY_PORT}"),
            "ask": calls_command(name, host, "end"),
        },
        sandbox=sandbox(with_vsock=False),
        post_start=(register_step(layout.machine(name), host.machine_id),) if host.has_machined else (),
        cleanup=(
            *port.cleanup(),
            *release_steps(name, workspace, host),
            *disk_cleanup(name, workspace, host),
            *((forget_step(layout.machine(name)),) if host.has_machined else ()),
        ),
        restart_codes=(REBOOT,),
        limits=Limits(memory=memory_limit(workspace, host, hardware), tasks=TASKS),
        memory=memory_of(workspace, host),
        balloon=balloon_step(name, workspace, host),
        facts={"hypervisor": "cloud-hypervisor", "accelerator": hardware.accelerator},
    )


def calls_command(name: str, host: Surroundings, *words: str) -> tuple[str, ...]:
    """The command that sends a request to a running machine."""
    program = own_program("hutch.backends.cloud_hypervisor_calls", host.python, host.package)
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
    assert hardware.cloud_hypervisor is not None
    runtime = str(host.layout.runtime(name))
    disk = disk_path(name, workspace, host)
    files = ["--ro-bind", hardware.cloud_hypervisor, "/cloud-hypervisor", "--proc", "/proc"]
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
