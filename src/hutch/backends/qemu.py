"""Virtual machines: QEMU's microvm, with KVM or without, and one virtiofsd for each share.

QEMU and every virtiofsd run as the workspace's own uid in a mount namespace with nothing but their own files, without
capabilities and without a network: the one device that QEMU has was opened for it. A share is an idmapped bind mount on
which the owner's files belong to that uid, so nothing that a guest makes is anybody's but the owner's.
"""

from __future__ import annotations

from collections.abc import Iterable

from hutch.backends import machine_check
from hutch.backends.identity import guest_uid, identify
from hutch.backends.jail import jailed
from hutch.backends.launch import File, Hardware, Helper, Launch, Limits, Step, Surroundings
from hutch.backends.port import Port
from hutch.backends.share import STORE, bind_step, share_places, share_tags, sources, store_step
from hutch.errors import Problem
from hutch.guest.boot import kernel_arguments
from hutch.guest.credentials import HOST_KEY, render_credentials
from hutch.spec import names
from hutch.spec.model import Workspace

CPUS, MEMORY = 2, 1 << 30  # of a machine, where the file does not say
TASKS = 4096
TAP, VSOCK = 5, 6  # the descriptors after those of the links
EMULATED = "qemu64,+rdrand,+rdtscp,-svm"
"""The processor that is emulated the fastest: every feature more is looked for, and used where it costs."""
DISK_OPTIONS = "discard=unmap,detect-zeroes=unmap,werror=report,rerror=report"
"""A full disk of the host's is the guest's to hear of: otherwise QEMU would stop it, and nobody would know why."""
LINKS = ("port", "monitor")


def check(prefix: str, workspace: Workspace) -> Iterable[Problem]:
    """What a machine cannot do."""
    yield from machine_check.check(prefix, workspace)


def launch(name: str, workspace: Workspace, host: Surroundings) -> Launch:
    """Everything that makes the machine run."""
    hardware = host.hardware
    assert hardware is not None and workspace.mac is not None and workspace.ip is not None
    places, runtime = host.places, str(host.places.runtime(name))
    credentials = render_credentials(identify(name, workspace, host, "Type=ether"))
    files = [File(f"{runtime}/vm/{key}", text, host.uid_base) for key, text in credentials.items()]
    files.append(File(f"{runtime}/vm/shares", render_shares(workspace), host.uid_base))
    port = Port(
        outer=names.port(name, "vm"),
        inner="",
        mac=workspace.mac,
        ip=workspace.ip,
        bridge=host.network.bridge,
        table=places.table,
    )
    files.append(File(f"{runtime}/port", port.render_batch()))
    shares = share_places(workspace, runtime)
    key = f"{runtime}/vm/{HOST_KEY}"
    owned = ("install", "-m", "400", "-o", str(host.uid_base), "-g", str(host.uid_base))
    return Launch(
        workspace=name,
        backend="qemu",
        network_namespace=str(places.namespace_path),
        cgroup=places.cgroup(name),
        directories=(f"{runtime}/vm", *shares),
        files=tuple(files),
        prepare=(
            (port.make(),),
            (Step((*owned, str(places.host_key(name)), key), "hand in the host key"),),
            *((step,) for step in share_mounts(name, workspace, host, shares)),
            *disk_steps(name, workspace, host),
        ),
        connect=port.connect(f"{runtime}/port"),
        helpers=tuple(
            share_server(share, workspace, host, hardware.virtiofsd, f"{runtime}/vm/{tag}", is_store=tag == STORE)
            for tag, share in zip(share_tags(workspace), shares, strict=True)
        ),
        argv=qemu_argv(name, workspace, host, hardware, (*credentials, HOST_KEY)),
        links=LINKS,
        library=hardware.library,
        cleanup=(*port.cleanup(), *disk_cleanup(name, workspace, host)),
        limits=Limits(memory=memory_limit(workspace, hardware), tasks=TASKS),
        runtime=runtime,
        facts={"hypervisor": "qemu", "accelerator": hardware.accelerator},
        start_seconds=60.0 if hardware.accelerator == "kvm" else 180.0,
        stop_seconds=15.0 if hardware.accelerator == "kvm" else 30.0,
    )


# The guest's files.


def render_shares(workspace: Workspace) -> str:
    """What the guest's init mounts: a line for each share, home first. No target holds a newline. "overlay" is a share
    that cannot be written, under a layer that can."""
    lines = [
        f"share{index} {'ro' if readonly else 'rw'} {target}\n"
        for index, (_, target, readonly) in enumerate(sources(workspace))
    ]
    if workspace.nix_store:
        lines.append(f"{STORE} overlay {names.NIX_STORE}\n")
    return "".join(lines)


def share_mounts(name: str, workspace: Workspace, host: Surroundings, shares: list[str]) -> tuple[Step, ...]:
    """Home and mounts, in the order of `shares`, as the workspace's own uid sees them; and the Nix store as it is."""
    mapping = f"u:{workspace.owner}:{host.uid_base}:1 g:{host.owner_gid}:{host.uid_base}:1"
    steps = [
        bind_step(name, source, place, readonly, mapping, host)
        for (source, _, readonly), place in zip(sources(workspace), shares, strict=False)  # the store comes after them
    ]
    if workspace.nix_store:
        steps.append(store_step(shares[-1], host))
    return tuple(steps)


def share_server(
    share: str, workspace: Workspace, host: Surroundings, virtiofsd: str, socket: str, *, is_store: bool
) -> Helper:
    """One virtiofsd. Every uid of the guest's is the workspace's own on the host, which the guest in turn sees as its
    login user's. The Nix store is nobody's to write, and root's files there are root's inside."""
    assert isinstance(workspace.owner, int)
    outside, inside = host.uid_base, guest_uid(workspace.owner)
    command = [virtiofsd, "--fd=3", "--shared-dir=/share", "--sandbox=none", "--seccomp=kill", "--log-level=error"]
    for kind in ("uid", "gid"):
        command.append(f"--translate-{kind}=squash-guest:0:{outside}:4294967295")
        command.append(f"--translate-{kind}=host:{outside}:{inside}:1")
    if is_store:
        command.append("--readonly")
    bind = "--ro-bind" if is_store else "--bind"
    jail = jailed(("--proc", "/proc", bind, share, "/share"), outside, tuple(command))
    return Helper(jail, f"share {share}", socket, outside)


def disk_steps(name: str, workspace: Workspace, host: Surroundings) -> tuple[tuple[Step, ...], ...]:
    """Chains for the disk that the guest's root is kept on, if there is one: sparse, made when it is new, and grown.
    What is on it is the guest's, so nothing of the host's ever reads it."""
    disk = disk_path(name, workspace, host)
    if disk is None:
        return ()
    program = (host.python, "-I", "-S", f"{host.package}/host/disk.py")
    fresh = ("--fresh",) if workspace.persist != "all" else ()
    size = workspace.disk or DISK
    return ((Step((*program, *fresh, disk, str(size), str(host.uid_base)), "provide the disk"),),)


DISK = 8 << 30  # bytes of a kept root that the file says nothing of; it is sparse


def disk_path(name: str, workspace: Workspace, host: Surroundings) -> str | None:
    """Where the disk is that the root's changes are written to; None for memory."""
    if workspace.persist == "all":
        return f"{host.places.root(name)}/disk"
    return f"{host.places.workspace(name)}/disk" if workspace.disk else None


def disk_cleanup(name: str, workspace: Workspace, host: Surroundings) -> tuple[Step, ...]:
    """A disk that is made anew at every start goes with the machine."""
    disk = disk_path(name, workspace, host)
    if disk is None or workspace.persist == "all":
        return ()
    return (Step(("rm", "-f", "--", disk), "remove the disk", may_fail=True),)


# The processes.


def qemu_argv(
    name: str, workspace: Workspace, host: Surroundings, hardware: Hardware, credentials: tuple[str, ...]
) -> tuple[str, ...]:
    runtime = str(host.places.runtime(name))
    disk = disk_path(name, workspace, host)
    files = ["--ro-bind", hardware.kernel, "/kernel", "--ro-bind", hardware.initrd, "/initrd"]
    files += ["--ro-bind", hardware.root, "/root.erofs", "--ro-bind", f"{runtime}/vm", "/vm"]
    if disk:
        files += ["--bind", disk, "/disk"]
    if hardware.accelerator == "kvm":
        files += ["--dev-bind", "/dev/kvm", "/dev/kvm"]
    groups = str(hardware.kvm_gid) if hardware.accelerator == "kvm" and hardware.kvm_gid is not None else ""
    command = (
        hardware.qemu,
        *machine_options(workspace, hardware),
        *device_options(workspace, disk is not None, hardware.has_vsock),
        *(word for key in credentials for word in ("-fw_cfg", f"name=opt/io.systemd.credentials/{key},file=/vm/{key}")),
        *("-fw_cfg", "name=opt/hutch/shares,file=/vm/shares"),
        *("-append", " ".join(kernel_arguments(tsc_khz=hardware.tsc_khz, has_disk=disk is not None))),
    )
    jail = jailed(tuple(files), host.uid_base, command, groups)
    tap = (host.python, "-I", "-S", f"{host.package}/host/tap.py", names.port(name, "vm"), str(TAP))
    vsock = ("--open", "/dev/vhost-vsock", str(VSOCK)) if hardware.has_vsock else ()
    return (*tap, *vsock, "--", *jail)


def machine_options(workspace: Workspace, hardware: Hardware) -> tuple[str, ...]:
    """The machine itself: no device that is not asked for, no file of the user's, and no way out of its sandbox."""
    memory = (workspace.memory or MEMORY) >> 20
    accelerator = hardware.accelerator
    return (
        *("-M", f"microvm,accel={accelerator},pcie=on,rtc=on,memory-backend=memory"),
        *("-object", f"memory-backend-memfd,id=memory,size={memory}M,share=on"),
        *(
            "-m",
            f"{memory}M",
            "-smp",
            str(workspace.vcpus or CPUS),
            "-cpu",
            "host" if accelerator == "kvm" else EMULATED,
        ),
        *("-nodefaults", "-no-user-config", "-display", "none", "-action", "reboot=shutdown"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *(("-bios", hardware.firmware) if hardware.firmware else ()),
        *("-kernel", "/kernel", "-initrd", "/initrd"),
    )


def memory_limit(workspace: Workspace, hardware: Hardware) -> int:
    """Bytes for the machine and what runs it: its own, QEMU's (emulation translates a gigabyte of code at most), and as
    much as a virtiofsd needs to remember what a guest has looked at."""
    emulation = 0 if hardware.accelerator == "kvm" else 1 << 30
    return (workspace.memory or MEMORY) + emulation + (512 << 20) + (256 << 20) * (len(workspace.mounts) + 1)


def device_options(workspace: Workspace, has_disk: bool, has_vsock: bool) -> tuple[str, ...]:
    """Disks, network, shares, console, and the two links."""
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
    devices += ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
    devices += ["-chardev", "socket,id=port,fd=3", "-device", "virtio-serial-pci,max_ports=2"]
    devices += ["-device", "virtserialport,chardev=port,nr=1,name=hutch.port"]
    devices += ["-chardev", "socket,id=monitor,fd=4", "-mon", "chardev=monitor,mode=control"]
    devices += ["-device", "virtio-balloon-pci,free-page-reporting=on", "-device", "pvpanic-pci"]
    if has_vsock:  # ssh reaches the machine by it, whatever becomes of its network
        devices += ["-device", f"vhost-vsock-pci,guest-cid={workspace.cid},vhostfd={VSOCK}"]
    return tuple(devices)
