"""The initial RAM disk of a virtual machine: its content, and its bytes. The same content has the same bytes.

It holds busybox, kernel modules and `init.sh`, the guest's first program. Reads nothing but the units beside it: the
caller brings the files' contents.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from hutch.frozen import dataclass
from hutch.guest.boot import WITHOUT_LIBBPF

INIT = Path(__file__).with_name("init.sh")

MODULES = (
    ("qemu_fw_cfg", "*"),  # the credentials, which systemd wants before anything else, and the list of shares
    ("erofs", "*"),
    ("overlay", "*"),
    ("ext4", "*"),
    ("virtio_pci", "*"),
    ("virtio_blk", "*"),
    ("virtiofs", "virtio:d0000001Av*"),
    ("virtio_net", "virtio:d00000001v*"),  # else udev loads it, and the network waits for that
    ("virtio_console", "virtio:d00000003v*"),  # the port on which the guest says that it is ready
    ("virtio_balloon", "virtio:d00000005v*"),
    ("vmw_vsock_virtio_transport", "virtio:d00000013v*"),
    ("pvpanic_pci", "pci:v00001B36d00000011*"),
)
"""The modules that the guest takes from the initrd, and their devices, in the way of modules.alias; "*" for those that
no device asks for, which come first. What a kernel has built in, or does not have at all, is left out."""
PARTS_MODULES = (
    ("virtio_scsi", "*"),
    ("sd_mod", "*"),
    ("sr_mod", "*"),
    *(module for module in MODULES if module[0] not in ("qemu_fw_cfg", "virtio_blk")),
)
"""The modules of a machine that firmware boots from one disk with all its parts (see hutch.images.disk): its devices
are those that Incus gives."""

NULL = "/dev/null"
UNITS_DIRECTORY = Path(__file__).with_name("units")
UNITS = {
    # init makes the nodes of modules that are loaded when they are opened, so udev and all that waits for it can start
    # at once; hutch-devices does the rest.
    "kmod-static-nodes.service": NULL,
    "systemd-tmpfiles-setup-dev-early.service": NULL,
    "systemd-tmpfiles-setup-dev.service": NULL,
    # The devices that the start waits for come first, and all others when it is over.
    "systemd-udev-trigger.service.d/50-hutch.conf": "",
    "hutch-devices.service": "",
    "multi-user.target.wants/hutch-devices.service": "../hutch-devices.service",
    # Where the host can call its machines, ssh goes that way: see hutch.host.identity.ssh.
    "hutch-ssh.socket": "",
    "hutch-ssh@.service": "",
    "sockets.target.wants/hutch-ssh.socket": "../hutch-ssh.socket",
    # Under cloud-hypervisor, which has no port, a call from the host powers the machine off.
    "hutch-poweroff.socket": "",
    "hutch-poweroff.service": "",
    "sockets.target.wants/hutch-poweroff.socket": "../hutch-poweroff.socket",
}
UNITS = {name: target or (UNITS_DIRECTORY / name).read_text() for name, target in UNITS.items()}
"""Changes to the systemd of a virtual machine, in /run/systemd/system: the target of a symbolic link, or the text of a
file, from UNITS_DIRECTORY."""

DIRECTORIES = ("bin", "dev", "image", "layer", "lib", "new", "nodes", "proc", "run", "sys")
TRAILER = "TRAILER!!!"


@dataclass(frozen=True)
class Node:
    """A character device that loads its module when it is opened."""

    path: str
    major: int
    minor: int


@dataclass(frozen=True)
class Module:
    """A kernel module: its name, its path below the directory of the kernel's modules, and the devices that want it."""

    name: str
    path: str
    pattern: str


def module_name(path: str) -> str:
    """The name under which the kernel knows the module in a file: "kernel/net/x-y.ko.xz" is "x_y"."""
    return PurePosixPath(path).name.partition(".")[0].replace("-", "_")


def choose_modules(modules_dep: str, wanted: Sequence[tuple[str, str]] = MODULES) -> tuple[Module, ...]:
    """Modules in the order in which they can be loaded, each after what it needs; `modules_dep` is depmod's list."""
    needs = {path: rest.split() for path, _, rest in (line.partition(":") for line in modules_dep.splitlines()) if path}
    paths = {module_name(path): path for path in needs}
    chosen: dict[tuple[str, str], Module] = {}
    for name, pattern in wanted:
        if name not in paths:
            continue
        # depmod lists what a module needs, directly or not, with the innermost last.
        for path in (*reversed(needs[paths[name]]), paths[name]):
            if (path, "*") not in chosen:
                chosen.setdefault((path, pattern), Module(module_name(path), path, pattern))
    return tuple(chosen.values())


def choose_nodes(modules_devname: str) -> tuple[Node, ...]:
    """The nodes in depmod's list of modules that are loaded when their node is opened."""
    found = []
    for line in modules_devname.splitlines():
        match = re.fullmatch(r"[^ #]+ ([a-z0-9/_-]+) c(\d+):(\d+)", line, re.ASCII)
        if match:
            found.append(Node(match[1], int(match[2]), int(match[3])))
    return tuple(found)


def render_modules(modules: Iterable[Module]) -> str:
    """The list that init.sh goes through."""
    return "".join(f"{module.name} {module.pattern}\n" for module in modules)


def render_initrd(
    init: bytes, busybox: bytes, modules: Sequence[Module], contents: Mapping[str, bytes], nodes: Sequence[Node]
) -> bytes:
    """The bytes of the archive; `contents` has the code of each module, uncompressed, by its path."""
    entries = [Entry(name, DIRECTORY) for name in DIRECTORIES]
    entries += [Entry("init", FILE | 0o111, init), Entry("bin/busybox", FILE | 0o111, busybox)]
    entries.append(Entry("lib/modules", FILE, render_modules(modules).encode()))
    files = {module.name: contents[module.path] for module in modules}
    entries += [Entry(f"lib/{name}.ko", FILE, strip_signature(content)) for name, content in files.items()]
    units = [
        Entry(f"run/systemd/system/{name}", *((LINK, text.encode()) if "\n" not in text else (FILE, text.encode())))
        for name, text in UNITS.items()
    ]
    library = Entry(f"{WITHOUT_LIBBPF[1:]}/libbpf.so.1", LINK, NULL.encode())
    devices = [Entry(f"nodes/{node.path}", DEVICE, b"", node.major, node.minor) for node in nodes]
    for entry in (*units, library, *devices):
        entries += [Entry(str(parent), DIRECTORY) for parent in reversed(PurePosixPath(entry.name).parents)]
        entries.append(entry)
    unique = {entry.name: entry for entry in entries if entry.name != "."}
    return _padded(b"".join(map(_render_entry, (*unique.values(), Entry(TRAILER, 0)))), 512)


def strip_signature(module: bytes) -> bytes:
    """A module without the signature at its end, whose check costs more than the rest of loading it where there is no
    KVM. Whoever can change the initrd has no use for changing a module in it."""
    if not module.endswith(SIGNED):
        return module
    length = int.from_bytes(module[-len(SIGNED) - 4 : -len(SIGNED)], "big")
    return module[: -len(SIGNED) - SIGNATURE_INFO - length]


SIGNED = b"~Module signature appended~\n"
SIGNATURE_INFO = 12  # bytes, the last four of which are the signature's length


# The archive's format, "newc": https://docs.kernel.org/driver-api/early-userspace/buffer-format.html

DIRECTORY, FILE, LINK, DEVICE = 0o040755, 0o100644, 0o120777, 0o020600


@dataclass(frozen=True)
class Entry:
    """One member of the archive, root's and without a time."""

    name: str
    mode: int
    content: bytes = b""
    major: int = 0
    minor: int = 0


def _render_entry(entry: Entry) -> bytes:
    path = entry.name.encode() + b"\0"
    links = 2 if entry.mode == DIRECTORY else 1
    fields = (0, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, entry.major, entry.minor, len(path), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    return _padded(header + path, 4) + _padded(entry.content, 4)


def _padded(data: bytes, size: int) -> bytes:
    return data + bytes(-len(data) % size)
