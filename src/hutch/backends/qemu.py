"""Virtual machines: QEMU's microvm, with KVM or without, and one virtiofsd for each share.

QEMU and every virtiofsd run as the workspace's own uid in a mount namespace with nothing but their own files, without
capabilities and without a network: the one device that QEMU has was opened for it. A share is an idmapped bind mount on
which the owner's files belong to that uid, so nothing that a guest makes is anybody's but the owner's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
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
    listening,
    machine_launch,
    memory_of,
    render_shares,
    tap_command,
)
from hutch.backends.share import share_tags
from hutch.backends.traits import Host, Traits
from hutch.errors import Problem
from hutch.guest.boot import MICROVM, kernel_arguments
from hutch.guest.credentials import HOST_KEY, NOTIFY_SOCKET
from hutch.spec.model import MACHINE_CPUS, MACHINE_MEMORY, WorkspaceSpec
from hutch.spec.programs import own_program

PROGRAM = "qemu-system-x86_64"


def find(host: Host) -> dict[str, str]:
    """Its program, and where qemu.qmp is imported from. Where it is not installed, what starts it says so."""
    return {"program": host.program(PROGRAM) or PROGRAM, "library": host.library("qemu.qmp")}


TRAITS = Traits(
    name="qemu",
    program=PROGRAM,
    console=machine.CONSOLE_UNIT,
    is_machine=True,
    memory=MACHINE_MEMORY,
    sizes={"processors": ("-smp", r"(\d+)"), "MiB": ("-m", r"(\d+)M")},
    find=find,
)
CONSOLE, CONTROL, TAP, VSOCK = 3, 4, 5, 6  # descriptors
EMULATED = "qemu64,+rdrand,+rdtscp,+arat,-svm"
"""The processor that is emulated the fastest: every feature more is looked for, and used where it costs. Without ARAT,
a kernel takes the processor's timer to stop when the processor rests, and ticks 250 times a second instead."""
DISK_OPTIONS = "discard=unmap,detect-zeroes=unmap,werror=report,rerror=report"
"""Options that tell the guest of a full disk of the host's: otherwise QEMU would stop it, and nobody would know why."""
PIPES = ("port.in", "port.out", "monitor.in", "monitor.out")


def check(prefix: str, workspace: WorkspaceSpec) -> Iterable[Problem]:
    """Problems: the keys that a machine under QEMU cannot honour."""
    yield from machine.check(prefix, workspace)


def launch(name: str, workspace: WorkspaceSpec, host: Surroundings) -> Launch:
    """Everything that makes the machine run."""
    hardware = host.hardware
    assert hardware is not None
    layout, runtime = host.layout, str(host.layout.runtime(name))
    credentials = credentials_of(name, workspace, host)
    files = [File(f"{runtime}/vm/{key}", text, host.uid_base) for key, text in credentials.items()]
    files.append(File(f"{runtime}/vm/shares", render_shares(workspace, host), host.uid_base))
    told, sources = (*credentials, HOST_KEY), ["port", f"{runtime}/vm/port.out"]
    if has_vsock(workspace, hardware):
        told = (*told, NOTIFY_SOCKET)
        sources += ["vsock", str(layout.cid(name)), f"{runtime}/vm/{NOTIFY_SOCKET}", str(host.uid_base)]
    owned = ("install", "-m", "400", "-o", str(host.uid_base), "-g", str(host.uid_base))
    key = (*owned, str(layout.host_key(name)), f"{runtime}/vm/{HOST_KEY}")
    monitor = Monitor(
        name=TRAITS.name,
        dialect=Path(__file__).with_suffix(".sh"),
        files=tuple(files),
        prepare=((Step(key, "hand in the host key"),),),
        pipes=PIPES,
        argv=qemu_argv(name, workspace, host, hardware, told),
        commands={"hear": hear_command(host, name, *sources)},
        balloon=balloon_step(name, workspace, host),
        has_vsock=has_vsock(workspace, hardware),
    )
    has_kvm = hardware.accelerator == "kvm"
    return replace(
        machine_launch(name, workspace, host, monitor),
        start_seconds=(60.0 if has_kvm else 180.0) * hardware.slowness,
        stop_seconds=15.0 if has_kvm else 30.0,  # on any host: a guest may just ignore it
    )


def balloon_step(name: str, workspace: WorkspaceSpec, host: Surroundings) -> Step | None:
    """A step that takes memory from a running machine by its balloon; None for a machine that is to be started."""
    size = left_of(workspace, host)
    if size is None or host.hardware is None:
        return None
    program = own_program("hutch.backends.qemu_monitor", host.python, host.package, needs_others=True)
    told = (f"{host.layout.runtime(name)}/control", host.hardware.hypervisors[TRAITS.name]["library"], str(size))
    return Step((*program, *told), f"leave it {size >> 20} MiB of its memory", may_fail=True)


def has_vsock(workspace: WorkspaceSpec, hardware: Hardware) -> bool:
    """Whether the machine gets a device of vsock: asked for, and there."""
    return workspace.vsock and workspace.cid is not None and hardware.has_vsock


# The processes.


def qemu_argv(
    name: str, workspace: WorkspaceSpec, host: Surroundings, hardware: Hardware, credentials: tuple[str, ...]
) -> tuple[str, ...]:
    runtime = str(host.layout.runtime(name))
    disk = disk_path(name, workspace, host)
    files = ["--ro-bind", hardware.kernel, "/kernel", "--ro-bind", hardware.initrd, "/initrd"]
    files += ["--ro-bind", hardware.root, "/root.erofs", "--ro-bind", f"{runtime}/vm", "/vm"]
    if disk:
        files += ["--bind", disk, "/disk"]
    if hardware.accelerator == "kvm":
        files += ["--dev-bind", "/dev/kvm", "/dev/kvm"]
    groups = str(hardware.kvm_gid) if hardware.accelerator == "kvm" and hardware.kvm_gid is not None else ""
    command = (
        hardware.program_of(TRAITS.name),
        *machine_options(workspace, hardware, memory_of(workspace, host) >> 20),
        *device_options(workspace, disk is not None, has_vsock(workspace, hardware)),
        *(word for key in credentials for word in ("-fw_cfg", f"name=opt/io.systemd.credentials/{key},file=/vm/{key}")),
        *("-fw_cfg", "name=opt/hutch/shares,file=/vm/shares"),
        *(
            "-append",
            " ".join(kernel_arguments(name, host.machine_id, tsc_khz=hardware.tsc_khz, has_disk=disk is not None)),
        ),
    )
    jail = jailed(tuple(files), host.uid_base, command, groups)
    claim: tuple[str, ...] = ()
    if has_vsock(workspace, hardware):
        program = (host.python, "-I", "-S", f"{host.package}/host/hardware/context_id.py")
        claim = (*program, str(workspace.cid), str(host.layout.cid(name)), str(VSOCK), "--")
    sockets = ((f"{runtime}/console", 0, CONSOLE), (f"{runtime}/control", 0, CONTROL))
    return (*listening(host, *sockets), *claim, *tap_command(name, workspace, host, TAP), *jail)


def machine_options(workspace: WorkspaceSpec, hardware: Hardware, memory: int) -> tuple[str, ...]:
    """Options for the machine itself, with `memory` in MiB: no device that is not asked for, no file of the user's, and
    no way out of its sandbox."""
    accelerator = hardware.accelerator
    return (
        *("-M", f"{MICROVM},accel={accelerator},memory-backend=memory"),
        *("-object", f"memory-backend-memfd,id=memory,size={memory}M,share=on"),
        *("-m", f"{memory}M", "-smp", str(workspace.vcpus or MACHINE_CPUS)),
        *("-cpu", "host" if accelerator == "kvm" else EMULATED),
        *("-nodefaults", "-no-user-config", "-display", "none", "-action", "reboot=shutdown"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *(("-bios", hardware.firmware) if hardware.firmware else ()),
        *("-kernel", "/kernel", "-initrd", "/initrd"),
    )


def device_options(workspace: WorkspaceSpec, has_disk: bool, with_vsock: bool) -> tuple[str, ...]:
    """Options for disks, network, shares, console, port, and monitors."""
    devices = [
        *("-drive", "if=none,id=root,file=/root.erofs,format=raw,readonly=on"),
        *("-device", "virtio-blk-pci,drive=root"),
    ]
    if has_disk:
        devices += ["-drive", f"if=none,id=disk,file=/disk,format=raw,{DISK_OPTIONS}"]
        devices += ["-device", "virtio-blk-pci,drive=disk"]
    devices += ["-netdev", f"tap,id=net,fd={TAP},vhost=off"]
    devices += ["-device", f"virtio-net-pci,netdev=net,mac={workspace.mac}"]
    for tag in share_tags(workspace):
        devices += ["-chardev", f"socket,id={tag},path=/vm/{tag}"]
        devices += ["-device", f"vhost-user-fs-pci,chardev={tag},tag={tag}"]
    waiting = "server=on,wait=off"
    console = f"socket,id=console,fd={CONSOLE},{waiting},logfile=/vm/log,logappend=on"
    devices += ["-chardev", console, "-serial", "chardev:console"]
    devices += ["-chardev", "pipe,id=port,path=/vm/port", "-device", "virtio-serial-pci,max_ports=2"]
    devices += ["-device", "virtserialport,chardev=port,nr=1,name=hutch.port"]
    # A shell reads the first monitor to the end; the second takes commands, one at a time.
    devices += ["-chardev", "pipe,id=monitor,path=/vm/monitor", "-mon", "chardev=monitor,mode=control"]
    devices += ["-chardev", f"socket,id=control,fd={CONTROL},{waiting}", "-mon", "chardev=control,mode=control"]
    devices += ["-device", "virtio-balloon-pci,free-page-reporting=on", "-device", "pvpanic-pci"]
    if with_vsock:  # `hutch exec` reaches the machine by it, whatever becomes of its network
        devices += ["-device", f"vhost-vsock-pci,guest-cid={workspace.cid},vhostfd={VSOCK}"]
    return tuple(devices)
