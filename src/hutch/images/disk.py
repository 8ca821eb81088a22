"""The bootable disk of an image: what UEFI starts where no kernel can be handed in, as on an Incus server.

A GPT with three parts: an EFI system partition with systemd-boot, the kernel and an initrd; the same erofs as a machine
of this host boots from (see machine); and an ext4 for what is written, on a layer over it. The disk is the same for all
workspaces of the image; which one it is, the disc beside it tells (see guest/init.sh). The same image and kernel give
the same bytes.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from hutch.errors import HutchError
from hutch.guest.boot import parts_arguments
from hutch.guest.initrd import PARTS_MODULES
from hutch.host.doctor.tools import check_tools
from hutch.images.build import Workshop, last_lines, pack_tree
from hutch.images.cache import locked
from hutch.images.kernel import Kernel
from hutch.images.machine import make_initrd, observe_machine, version
from hutch.run import CommandFailed, run
from hutch.spec.names import Layout

DISK_MEGABYTES = 10 << 10
"""The size of the disk, most of which is empty: the size that Incus gives the root of a virtual machine."""
PARTS = ("disk", "boot", "image", "layer", "files")
BOOT_LOADER = "/usr/lib/systemd/boot/efi/systemd-bootx64.efi"


def check_host() -> None:
    """Raise HutchError when the host lacks what making a disk needs."""
    check_tools(
        ("systemd-nspawn", "mkfs.vfat", "mkfs.ext4", "mcopy", "sfdisk", "qemu-img", BOOT_LOADER),
        "this host cannot make the disks of virtual machines for other hosts yet",
    )


def make_disk(id: str, kernel: Kernel, layout: Layout, shop: Workshop) -> Path:
    """Make the disk, shop.tree/disk.qcow2, of an image whose machine has been made with this kernel. The caller holds
    the image's lock."""
    parts = shop.scratch / "parts"
    parts.mkdir(mode=0o755)
    with locked(layout, kernel.id):
        machine = observe_machine(layout, id, kernel)
        if machine is None:
            raise HutchError(f"the kernel of {id} has been replaced meanwhile", resolution="try again")
        run(["cp", "--reflink=auto", "--", str(machine.root), str(kernel.vmlinuz), str(parts)], timeout=600)
        (parts / "initrd").write_bytes(make_initrd(kernel, PARTS_MODULES))
    modified = os.stat(layout.image_root(id)).st_mtime_ns
    os.utime(parts, ns=(modified, modified))
    name = f"{id} {kernel.id} {version()}"
    identities = [str(uuid.uuid5(uuid.NAMESPACE_URL, f"{name} {part}")) for part in PARTS]
    try:
        pack_tree(shop, "disk.sh", parts, str(DISK_MEGABYTES), " ".join(parts_arguments()), *identities)
    except CommandFailed as error:
        raise HutchError(
            f"{id} could not be made a disk", details=last_lines(error.stderr), resolution=error.resolution
        ) from error
    return shop.tree / "disk.qcow2"
