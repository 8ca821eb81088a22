"""What all virtual machines share, whichever monitor runs them: their Launch, size, shares, disk, and problems.

A share is an idmapped bind mount on which the owner's files belong to the workspace's own uid; a virtiofsd serves it as
that uid. What the host has for machines is host/hardware/capacity's.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hutch.backends.identity import guest_uid, identify
from hutch.backends.jail import jailed
from hutch.backends.launch import REBOOT, File, Hardware, Helper, Launch, Limits, Step, Surroundings
from hutch.backends.machined import forget_step, register_step
from hutch.backends.port import port_of
from hutch.backends.share import (
    STORE,
    bind_step,
    mount_steps,
    release_steps,
    share_places,
    share_tags,
    sources,
    store_step,
)
from hutch.errors import Problem
from hutch.frozen import dataclass
from hutch.guest.credentials import render_credentials
from hutch.spec import names
from hutch.spec.model import MACHINE_MEMORY, MOST_MACHINE_CPUS, WorkspaceSpec
from hutch.spec.programs import own_program

COMMON = Path(__file__).with_suffix(".sh")
CONSOLE_UNIT = "serial-getty@ttyS0.service"
FILE = "file"  # the name of a shared file in the directory that is served
DISK = 8 << 30  # bytes of a kept root that the file says nothing of; it is sparse
TASKS = 4096
OPEN_FILES = 1 << 18
"""The open files of one virtiofsd, which keeps each file open that its guest remembers; with fewer, a guest that looks
at a large tree is told that too many are open."""
REMEMBERED = OPEN_FILES << 11  # bytes of the kernel and of virtiofsd for so many
LEAST_MEMORY = 256 << 20  # with less, a guest's systemd and sshd do not come up


def check(prefix: str, workspace: WorkspaceSpec) -> Iterable[Problem]:
    """The problems of a workspace whose table is called `prefix`."""
    if workspace.owner in (0, "root"):
        yield Problem("root cannot own a workspace's home", f"{prefix}.owner", hint="name an ordinary user")
    if workspace.memory is not None and workspace.memory < LEAST_MEMORY:
        yield Problem("is too little for a VM", f"{prefix}.memory", hint=f"at least {LEAST_MEMORY >> 20}MiB")
    if workspace.vcpus is not None and workspace.vcpus > MOST_MACHINE_CPUS:
        yield Problem("is more than a VM can have", f"{prefix}.vcpus", hint=f"1 to {MOST_MACHINE_CPUS}")


@dataclass(frozen=True)
class Monitor:
    """What one hypervisor brings to the Launch of a machine. `name` is that of its traits; `dialect` are the functions
    of a shell that machine.sh asks for. `files` and `directories` are there before the chains of `prepare` run; `pipes`
    are made below the machine's directory, "log" beside them. `argv`, `commands` and `balloon` are a Launch's."""

    name: str
    dialect: Path
    files: tuple[File, ...]
    prepare: tuple[tuple[Step, ...], ...]
    pipes: tuple[str, ...]
    argv: tuple[str, ...]
    commands: dict[str, tuple[str, ...]]
    directories: tuple[str, ...] = ()
    balloon: Step | None = None
    has_vsock: bool = False


def machine_launch(name: str, workspace: WorkspaceSpec, host: Surroundings, monitor: Monitor) -> Launch:
    """The Launch of a machine: everything that makes it run."""
    hardware = host.hardware
    assert hardware is not None
    layout, runtime = host.layout, str(host.layout.runtime(name))
    port = port_of(name, workspace, layout, host.network)
    shares = share_places(workspace, runtime)
    return Launch(
        workspace=name,
        backend=monitor.name,
        unit=layout.unit(name),
        network_namespace=str(layout.namespace_path),
        cgroup=layout.cgroup(name),
        runtime=runtime,
        dialect=dialect(monitor.dialect),
        directories=(f"{runtime}/vm", *monitor.directories, *shares),
        files=(*monitor.files, File(f"{runtime}/port", port.render_batch())),
        prepare=(
            (port.make(),),
            *monitor.prepare,
            *share_mounts(name, workspace, host, shares),
            *disk_steps(name, workspace, host),
            (pipes_step(f"{runtime}/vm", host.uid_base, *monitor.pipes),),
        ),
        connect=port.connect(f"{runtime}/port"),
        helpers=share_servers(workspace, host, hardware.virtiofsd, runtime),
        argv=monitor.argv,
        commands=monitor.commands,
        sandbox=sandbox(with_vsock=monitor.has_vsock),
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
        balloon=monitor.balloon,
        facts={"hypervisor": monitor.name, "accelerator": hardware.accelerator},
    )


def credentials_of(name: str, workspace: WorkspaceSpec, host: Surroundings) -> dict[str, str]:
    """What the guest is told of itself, beside its host key."""
    return render_credentials(identify(name, workspace, host.network.subnet, host.keys, "Name=eth0", host.decisions))


def memory_of(workspace: WorkspaceSpec, host: Surroundings) -> int:
    """Bytes that the machine is made with. One that runs has what it was started with, less what its balloon takes."""
    return host.ceiling or workspace.memory or MACHINE_MEMORY


def left_of(workspace: WorkspaceSpec, host: Surroundings) -> int | None:
    """Bytes that the balloon leaves to a machine which runs; None for one that is to be started."""
    return (workspace.memory or MACHINE_MEMORY) if host.ceiling else None


def memory_limit(workspace: WorkspaceSpec, host: Surroundings, hardware: Hardware) -> int:
    """Bytes for the machine and what runs it: its own, QEMU's (emulation translates a gigabyte of code at most), and as
    much as each virtiofsd needs to remember what a guest has looked at."""
    emulation = 0 if hardware.accelerator == "kvm" else 1 << 30
    return memory_of(workspace, host) + emulation + (512 << 20) + REMEMBERED * len(share_tags(workspace))


def sandbox(*, with_vsock: bool) -> tuple[str, ...]:
    """Settings of a machine's unit that bind its processes beside the jails that they are in."""
    devices = ("/dev/kvm", "/dev/net/tun", *(("/dev/vhost-vsock",) if with_vsock else ()))
    families = ("AF_UNIX", "AF_NETLINK", "AF_INET", *(("AF_VSOCK",) if with_vsock else ()))
    return (
        "DevicePolicy=closed",
        *(f"DeviceAllow={device} rw" for device in devices),
        "SystemCallArchitectures=native",
        "NoNewPrivileges=yes",
        "LockPersonality=yes",
        "RestrictRealtime=yes",
        f"RestrictAddressFamilies={' '.join(families)}",
        "ProtectClock=yes",
        "ProtectKernelLogs=yes",
        "ProtectKernelModules=yes",
    )


def dialect(own: Path) -> str:
    """Shell functions for machines, and those of a monitor's own."""
    return "".join(part.read_text(encoding="utf-8") for part in (COMMON, own))


def pipes_step(directory: str, uid: int, *links: str) -> Step:
    """A step that makes the pipes between a shell and a machine: new, and the machine's own. The machine's output goes
    to the one called log."""
    script = 'uid=$1; shift; rm -f -- "$@"; mkfifo -m 600 -- "$@"; chown "$uid:$uid" -- "$@"'
    paths = (f"{directory}/{pipe}" for pipe in ("log", *links))
    return Step(("sh", "-euc", script, "sh", str(uid), *paths), "make the pipes that it talks through")


def listening(host: Surroundings, *sockets: tuple[str, int, int]) -> tuple[str, ...]:
    """The beginning of a command line, whose command inherits sockets that listen, given as (path, uid that may
    connect, descriptor)."""
    program = (host.python, "-I", "-S", f"{host.package}/host/services/listen.py")
    return (*program, *(str(word) for socket in sockets for word in socket), "--")


def hear_command(host: Surroundings, name: str, *sources: str) -> tuple[str, ...]:
    """The command that waits for the guest to say that it is ready, see runtime/hear."""
    noted = f"{host.layout.runtime(name)}/noted/hearing"
    return (*own_program("hutch.runtime.hear", host.python, host.package), noted, *sources)


# The guest's files.


def render_shares(workspace: WorkspaceSpec, host: Surroundings) -> str:
    """The list of mounts for the guest's init: a line for each share, home first. No target holds a newline. "overlay"
    is a share that cannot be written, under a layer that can; of "ro-file" and "rw-file" the one file is shown."""
    lines = [
        f"share{index} {'ro' if readonly else 'rw'}{'-file' if source in host.files else ''} {target}\n"
        for index, (source, target, readonly) in enumerate(sources(workspace))
    ]
    if workspace.nix_store:
        lines.append(f"{STORE} overlay {names.NIX_STORE}\n")
    return "".join(lines)


def share_mounts(
    name: str, workspace: WorkspaceSpec, host: Surroundings, shares: list[str]
) -> tuple[tuple[Step, ...], ...]:
    """Chains: home and mounts, in the order of `shares`, as the workspace's own uid sees them; the store as it is. A
    virtiofsd serves directories only, so a file is bound into one of its own."""
    assert workspace.home is not None
    mapping = f"u:{workspace.owner}:{host.uid_base}:1 g:{host.owner_gid}:{host.uid_base}:1"
    home, *others = shares
    chains: list[tuple[Step, ...]] = [(bind_step(name, workspace.home, home, False, mapping, host),)]
    for mount, share in zip(workspace.mounts, others, strict=False):  # the store comes after them
        place = f"{share}/{FILE}" if mount.source in host.files else share
        chains.append(mount_steps(name, workspace, mount, place, mapping, host))
    if workspace.nix_store:
        chains.append((store_step(shares[-1], host),))
    return tuple(chains)


def share_server(
    share: str, workspace: WorkspaceSpec, host: Surroundings, virtiofsd: str, socket: str, *, is_store: bool
) -> Helper:
    """A virtiofsd for one share. Every uid of the guest's is the workspace's own on the host, which the guest in turn
    sees as its login user's. The Nix store is nobody's to write, and root's files there are root's inside."""
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
    return Helper((*listening(host, (socket, outside, 3)), *jail), f"share {share}", socket, OPEN_FILES)


def share_servers(workspace: WorkspaceSpec, host: Surroundings, virtiofsd: str, runtime: str) -> tuple[Helper, ...]:
    """A virtiofsd for each share, listening where the machine looks for it: below `runtime`/vm, by its tag."""
    return tuple(
        share_server(share, workspace, host, virtiofsd, f"{runtime}/vm/{tag}", is_store=tag == STORE)
        for tag, share in zip(share_tags(workspace), share_places(workspace, runtime), strict=True)
    )


def tap_command(name: str, workspace: WorkspaceSpec, host: Surroundings, descriptor: int) -> tuple[str, ...]:
    """The beginning of a machine's command line, which inherits its network device, and whose files have a bound."""
    program = (host.python, "-I", "-S", f"{host.package}/host/hardware/tap.py", names.port(name, "vm"), str(descriptor))
    return (*program, "--largest", str(memory_of(workspace, host)), disk_path(name, workspace, host) or "", "--")


def disk_steps(name: str, workspace: WorkspaceSpec, host: Surroundings) -> tuple[tuple[Step, ...], ...]:
    """Chains for the disk that the guest's root is kept on, if there is one: sparse, made when it is new, and grown.
    What is on it is the guest's, so nothing of the host's ever reads it."""
    disk = disk_path(name, workspace, host)
    if disk is None:
        return ()
    program = (host.python, "-I", "-S", f"{host.package}/host/storage/disk.py")
    fresh = ("--fresh",) if workspace.persist != "all" else ()
    size = workspace.disk or DISK
    return ((Step((*program, *fresh, disk, str(size), str(host.uid_base)), "provide the disk"),),)


def disk_path(name: str, workspace: WorkspaceSpec, host: Surroundings) -> str | None:
    """The path of the disk that the root's changes are written to; None where they stay in memory."""
    if workspace.persist == "all":
        return f"{host.layout.root(name)}/disk"
    return f"{host.layout.workspace(name)}/disk" if workspace.disk else None


def disk_cleanup(name: str, workspace: WorkspaceSpec, host: Surroundings) -> tuple[Step, ...]:
    """Steps that remove a disk that is made anew at every start."""
    disk = disk_path(name, workspace, host)
    if disk is None or workspace.persist == "all":
        return ()
    return (Step(("rm", "-f", "--", disk), "remove the disk", may_fail=True),)
