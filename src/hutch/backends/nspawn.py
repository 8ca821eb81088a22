"""Containers: systemd-nspawn in a user namespace, on an idmapped image under an overlay.

nspawn cannot idmap an overlay itself (overlayfs is not idmappable, and it would copy the tree to chown it),
so the lower layer is an idmapped bind mount of the image and the overlay goes on top. All mounts are made
in the Launch's own mount namespace and end with it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from hutch.backends.identity import guest_uid, identify
from hutch.backends.launch import REBOOT, File, HotMount, Launch, Limits, Seccomp, Step, Surroundings
from hutch.backends.machined import forget_step
from hutch.backends.port import port_of
from hutch.backends.share import (
    OVERLAY,
    STORE,
    bind_step,
    mount_steps,
    protect_steps,
    release_steps,
    share_places,
    sources,
    store_step,
)
from hutch.backends.traits import Traits
from hutch.errors import Problem
from hutch.guest.credentials import HOST_KEY, NETWORK, NETWORK_FILE, render_credentials
from hutch.spec import names
from hutch.spec.model import Mount, WorkspaceSpec
from hutch.spec.programs import own_program

TRAITS = Traits(
    name="nspawn",
    program="systemd-nspawn",
    console="console-getty.service",
    live=frozenset({"vcpus", "memory", "disk", "mounts", "protect", "protect_default"}),
)
DIALECT = Path(__file__).with_name("nspawn.sh")
SCRATCH = 2 << 30  # bytes that an ephemeral root may grow by when `disk` does not say
TASKS = 16384
SECCOMP = Seccomp(
    # nspawn's own list leaves io_uring open, whose calls no filter sees, and answers for keys in a way that runtimes of
    # containers take for a failure.
    system_calls=("io_uring_setup", "io_uring_enter", "io_uring_register", "add_key", "request_key", "keyctl"),
    # Not the host's vsock; nor any that the kernel would load a module for, only because somebody inside asks.
    other_families_than=("AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET"),
)
WITHOUT_RESOURCES = "--drop-capability=CAP_SYS_RESOURCE"  # see bound_counts
SET_COUNTS = 'for count; do echo "${count#*=}" >"/proc/sys/user/${count%%=*}"; done'
NO_NAMESPACES = "echo 0 >/proc/sys/user/max_user_namespaces"
DEVICES = {"fuse": (10, 229), "net/tun": (10, 200)}  # what rootless containers need; the host's may be root's alone
NEST = "/run/hutch/nest"  # in the guest
LAYERS = ("lower", "scratch", "root")  # mount points below the runtime directory


def check(prefix: str, workspace: WorkspaceSpec) -> Iterable[Problem]:
    """Problems: the keys that a container cannot honour."""
    if workspace.owner in (0, "root"):
        yield Problem("root cannot own a workspace's home", f"{prefix}.owner", hint="name an ordinary user")
    if workspace.disk is not None and workspace.persist == "all":
        yield Problem("cannot limit a root that is kept", f"{prefix}.disk", hint='leave it out, or persist = "home"')


def launch(name: str, workspace: WorkspaceSpec, host: Surroundings) -> Launch:
    """Everything that makes the container run."""
    layout, runtime = host.layout, str(host.layout.runtime(name))
    identity = identify(
        name, workspace, host.network.subnet, host.keys, f"Name={names.GUEST_INTERFACE}", host.decisions
    )
    told = render_credentials(identity)
    credentials = {key: f"{runtime}/credentials/{key}" for key in told}
    credentials[NETWORK] = f"{runtime}/noted/network"  # for everybody inside; out here, the directory is root's alone
    files = [File(credentials[key], text, is_public=key == NETWORK) for key, text in told.items()]
    port = port_of(name, workspace, layout, host.network)
    files.append(File(f"{runtime}/port", port.render_batch()))
    inner = replace(workspace, mounts=())  # the mounts are hot, since they come and go
    shares, hot_mounts = share_places(inner, runtime), make_hot_mounts(name, workspace, host, runtime)
    return Launch(
        workspace=name,
        backend="nspawn",
        unit=layout.unit(name),
        network_namespace=str(layout.namespace_path),
        cgroup=layout.cgroup(name),
        runtime=runtime,
        dialect=DIALECT.read_text(encoding="utf-8"),
        directories=(
            f"{runtime}/credentials",
            *(f"{runtime}/{layer}" for layer in LAYERS),
            *shares,
            *(mount.place for mount in hot_mounts if not mount.is_file),
            *((f"{runtime}/{STORE}",) if workspace.nix_store else ()),
            *((f"{runtime}/devices",) if workspace.nesting else ()),
        ),
        files=tuple(files),
        prepare=(
            root_steps(name, workspace, host, runtime),  # the longest, so it begins first
            (sys_step(host),),
            (port.make(),),
            *((step,) for step in share_mounts(name, inner, host, shares)),
            *(mount.steps for mount in hot_mounts),
            *((device_steps(runtime),) if workspace.nesting else ()),
        ),
        connect=port.connect(f"{runtime}/port"),
        seccomp=SECCOMP,
        pre_exec=(bound_counts(nesting=workspace.nesting),),
        post_start=(reveal_step(host),) if workspace.nesting else (),
        hot_mounts=hot_mounts,
        resize=None if workspace.persist == "all" else resize_step(workspace, runtime),
        argv=nspawn_argv(name, inner, host, {**credentials, HOST_KEY: str(layout.host_key(name))}, shares),
        cleanup=(
            *port.cleanup(),
            *release_steps(name, workspace, host),
            *((forget_step(layout.machine(name)),) if host.has_machined else ()),
        ),
        limits=Limits(cpus=workspace.vcpus, memory=workspace.memory, tasks=TASKS),
        restart_codes=(REBOOT,),
    )


def sys_step(host: Surroundings) -> Step:
    """Mount a /sys that shows the router namespace's interfaces, with the cgroup2 hierarchy."""
    return Step(("sh", f"{host.package}/host/storage/sys.sh"), "mount /sys")


def bound_counts(*, nesting: bool) -> Step:
    """Bound what each user inside may have of inotify, fanotify and namespaces to half of what root may: the kernel
    counts it for root too, who made the user namespace. Without nesting, nobody inside makes user namespaces: in one of
    its own, everybody is root over parts of the kernel. Only CAP_SYS_RESOURCE in the guest's could take this back,
    which a container keeps for nesting only. It is set on nspawn's payload before that runs anything of the guest's."""
    inside = ("nsenter", "--user", "--target", "PID", "--", "sh", "-euc")
    if nesting:
        return Step((*inside, SET_COUNTS, "sh", "HALVES"), "bound what the kernel counts for root")
    return Step((*inside, f"{SET_COUNTS}; {NO_NAMESPACES}", "sh", "HALVES"), "let nobody inside make user namespaces")


def device_steps(runtime: str) -> tuple[Step, ...]:
    """Steps that make devices which everybody inside may open, whatever modes the host's own have."""
    devices = f"{runtime}/devices"
    nodes = (
        Step(
            ("mknod", "-m", "666", f"{devices}/{path.replace('/', '-')}", "c", str(major), str(minor)),
            f"make /dev/{path}",
        )
        for path, (major, minor) in DEVICES.items()
    )
    room = ("mount", "-t", "tmpfs", "-o", "mode=755,nosuid,noexec,size=64k", "tmpfs", devices)
    return (Step(room, "mount a tmpfs for devices"), *nodes)


def reveal_step(host: Surroundings) -> Step:
    """Show /proc and /sys whole: the kernel lets a user namespace mount them only where it sees them whole already, and
    nspawn covers parts of them."""
    program = (host.python, "-I", "-S", f"{host.package}/host/storage/hot_mount.py")
    return Step((*program, "reveal", NEST), "show nested namespaces /proc and /sys whole")


def root_steps(name: str, workspace: WorkspaceSpec, host: Surroundings, runtime: str) -> tuple[Step, ...]:
    """A chain for a root: the image, mapped to the workspace's uids; a layer that is thrown away or kept; and both put
    together."""
    mapped = f"ro,X-mount.idmap=b:0:{host.uid_base}:{names.UID_COUNT}"
    image = Step(("mount", "--bind", "-o", mapped, host.image_root, f"{runtime}/lower"), "map the image")
    scratch = upper_place(name, workspace, host, runtime)
    if workspace.persist == "all":
        # The layer's setuid programs count on the host too, so nobody but root may get there.
        place = Step(("install", "-d", "-m", "700", scratch), "make the kept layer, root's alone")
        checks: tuple[Step, ...] = (links_step(f"{scratch}/upper"),)
    else:
        size = f"mode=755,nosuid,nodev,size={workspace.disk or SCRATCH}"
        place = Step(("mount", "-t", "tmpfs", "-o", size, "tmpfs", scratch), "mount the ephemeral layer")
        checks = ()
    owned = ("install", "-d", "-m", "755", "-o", str(host.uid_base), "-g", str(host.uid_base))
    upper = [f"{scratch}/upper", f"{scratch}/work"]
    if workspace.nix_store:
        upper += [f"{scratch}/{STORE}-upper", f"{scratch}/{STORE}-work"]
    made = Step((*owned, *upper), "make the upper layer")
    return (image, place, made, *checks, *overlay_steps(name, workspace, host, runtime))


def links_step(upper: str) -> Step:
    """See that no link stands where nspawn mounts something, in a layer that the guest writes: through one in place of
    /dev, nspawn makes its devices on the host. Images are looked at when they are built, see images/build."""
    script = 'for at in $2; do [ ! -L "$1/$at" ] || { echo "/$at inside is a symbolic link"; exit 1; }; done'
    argv = ("sh", "-euc", script, "sh", upper, " ".join(names.ROOT_DIRECTORIES))
    return Step(argv, "trust the kept root")


def resize_step(workspace: WorkspaceSpec, runtime: str) -> Step:
    """Make the layer that is thrown away as large as it is to be, while the guest writes in it."""
    size = workspace.disk or SCRATCH
    return Step(("mount", "-o", f"remount,size={size}", f"{runtime}/scratch"), f"make the root {size} bytes large")


def overlay_steps(name: str, workspace: WorkspaceSpec, host: Surroundings, runtime: str) -> tuple[Step, ...]:
    """Steps that mount the root, once its layers are there; and beside it the store, as the guest sees it."""
    scratch = upper_place(name, workspace, host, runtime)
    layers = f"lowerdir={runtime}/lower,upperdir={scratch}/upper,workdir={scratch}/work"
    mount = ("mount", "-t", "overlay", "overlay", "-o")
    root = Step((*mount, f"nodev,{layers}", f"{runtime}/root"), "put the layers together")
    if not workspace.nix_store:
        return (root,)
    # Mapped like an image, so that root's files are root's.
    shown = store_step(f"{runtime}/shares/{STORE}", host, f"b:0:{host.uid_base}:{names.UID_COUNT}")
    layers = f"lowerdir={runtime}/shares/{STORE},upperdir={scratch}/{STORE}-upper,workdir={scratch}/{STORE}-work"
    store = Step((*mount, f"nosuid,nodev,{layers},{OVERLAY}", f"{runtime}/{STORE}"), "mount the overlay of /nix/store")
    return root, shown, store


def upper_place(name: str, workspace: WorkspaceSpec, host: Surroundings, runtime: str) -> str:
    """The directory of the layer that the guest writes."""
    return str(host.layout.root(name)) if workspace.persist == "all" else f"{runtime}/scratch"


def share_mounts(name: str, workspace: WorkspaceSpec, host: Surroundings, shares: list[str]) -> tuple[Step, ...]:
    """Mount the home, first of `shares`: the owner's files are the login user's inside; whatever else the guest makes
    belongs to its own uid range on the host, so nothing it makes is root's. Foreign files show as nobody's."""
    assert isinstance(workspace.owner, int)
    mapping = render_owner_map(workspace.owner, host.owner_gid, host.uid_base)
    return tuple(
        bind_step(name, source, place, readonly, mapping, host)
        for (source, _, readonly), place in zip(sources(workspace), shares, strict=False)  # the store comes after them
    )


def make_hot_mounts(name: str, workspace: WorkspaceSpec, host: Surroundings, runtime: str) -> tuple[HotMount, ...]:
    """The workspace's mounts, parents first, each at a place of its own for as long as it is what it is."""
    assert isinstance(workspace.owner, int)
    mapping = render_owner_map(workspace.owner, host.owner_gid, host.uid_base)
    program = (host.python, "-I", "-S", f"{host.package}/host/storage/hot_mount.py")
    hot_mounts = []
    for mount in sorted(workspace.mounts, key=lambda mount: mount.target.count("/")):
        place = f"{runtime}/shares/{share_id(name, workspace, mount, host)}"
        bind, *more = mount_steps(name, workspace, mount, place, mapping, host)
        attach = Step((*program, "attach", place, mount.target), f"show {mount.target}")
        detach = Step((*program, "detach"), f"take away {mount.target}")
        is_file = mount.source in host.files
        hot_mounts.append(HotMount(mount.target, place, bind, attach, detach, tuple(more), is_file))
    return tuple(hot_mounts)


def share_id(name: str, workspace: WorkspaceSpec, mount: Mount, host: Surroundings) -> str:
    """The name of a hot mount's place: what is shown otherwise has another one."""
    told = f"{mount.source}\0{mount.target}\0{mount.normalized().readonly}"
    if mount.is_private:
        told += "\0private"
    if mount.source in host.files:
        told += "\0file"
    if protect_steps(name, workspace, mount, "", host):
        told += "\0".join(("", str(workspace.protect_default), *workspace.protect))
    return f"{zlib.crc32(told.encode()):08x}"


def render_owner_map(uid: int, gid: int, base: int) -> str:
    """The idmap of a share, as mount(8) reads it: "type:on disk:mapped:count …".

    The owner's uid and gid become the login user's; the workspace's own range stays as it is.
    """
    inside = guest_uid(uid)
    extents = []
    for kind, outside in (("u", uid), ("g", gid)):
        extents += [
            f"{kind}:{outside}:{base + inside}:1",
            f"{kind}:{base}:{base}:{inside}",
            f"{kind}:{base + inside + 1}:{base + inside + 1}:{names.UID_COUNT - inside - 1}",
        ]
    return " ".join(extents)


def sandboxed(python: str, package: str, argv: Sequence[str]) -> tuple[str, ...]:
    """A command line of nspawn's, with the seccomp filter and the steps of a container's: see runtime/sandbox."""
    wanted = json.dumps({"seccomp": asdict(SECCOMP), "pre_exec": [asdict(bound_counts(nesting=False))]})
    program = own_program("hutch.runtime.sandbox", python, package)
    return (*program, wanted, argv[0], WITHOUT_RESOURCES, *argv[1:])


def nspawn_argv(
    name: str, workspace: WorkspaceSpec, host: Surroundings, credentials: dict[str, str], shares: list[str]
) -> tuple[str, ...]:
    return (
        "systemd-nspawn",
        "--settings=no",  # an image may carry a .nspawn file
        f"--register={'yes' if host.has_machined else 'no'}",
        "--keep-unit",
        "--quiet",
        f"--directory={host.layout.runtime(name)}/root",
        f"--machine={host.layout.machine(name)}",
        f"--hostname={name}",
        f"--uuid={host.machine_id}",
        f"--private-users={host.uid_base}:{names.UID_COUNT}",
        "--private-users-ownership=off",
        f"--network-interface={names.interface('vi', name)}:{names.GUEST_INTERFACE}",
        "--notify-ready=yes",
        "--console=read-only",
        "--link-journal=no",
        "--resolv-conf=off",
        "--timezone=off",
        # Nested runtimes are told of keys that there are none (see SECCOMP), which nspawn's answer would not say.
        "--system-call-filter=@keyring" if workspace.nesting else WITHOUT_RESOURCES,
        *(
            f"--bind={host.layout.runtime(name)}/devices/{path.replace('/', '-')}:/dev/{path}"
            for path in (DEVICES if workspace.nesting else ())
        ),
        *(f"--load-credential={key}:{path}" for key, path in credentials.items() if key != NETWORK),
        f"--bind-ro={credentials[NETWORK]}:{NETWORK_FILE}",
        *(
            f"--bind{'-ro' if readonly else ''}={share}:{target}"
            for share, (_, target, readonly) in zip(shares, sources(workspace), strict=False)
        ),
        *((f"--bind={host.layout.runtime(name)}/{STORE}:{names.NIX_STORE}",) if workspace.nix_store else ()),
        "--boot",
        "systemd.show_status=auto",  # silent until something fails or takes long
    )
