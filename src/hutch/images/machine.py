"""Boot files of virtual machines: images/<id>/machine-<version>/{vmlinux,initrd,root.erofs}, beside an image's tree.

Made for an image and a kernel, published by one rename under the image's lock, and removed with the image. Made anew
for a newer kernel, it takes the place of the other: machines that run keep the files that they have open. The files are
readable for everybody, but the directory above is root's alone: whoever starts a machine hands them in.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import uuid
from collections.abc import Collection, Sequence
from functools import cache, partial
from pathlib import Path

from hutch.errors import HutchError
from hutch.frozen import dataclass
from hutch.guest.initrd import INIT, MODULES, UNITS, choose_modules, choose_nodes, render_initrd
from hutch.host.doctor.tools import check_tools
from hutch.images import kernel as kernels
from hutch.images.build import SCRIPTS, Workshop, last_lines, pack_tree
from hutch.images.cache import ensure, locked, make_open
from hutch.images.kernel import LIST, Kernel, ensure_kernel, read_list, render_list, replace_directory
from hutch.images.progress import PUBLISHING, Meter, Progress, no_progress
from hutch.images.record import observe_images, whole_image
from hutch.run import CommandFailed, run
from hutch.spec.names import Layout
from hutch.trees.removing import remove_tree

MACHINE_VERSION = 2
"""The version of machines, raised when they must be made anew although neither their init nor their modules changed."""

PREFIX = "machine-"
PACKING = "packing the image"
FIRMWARES = ("/usr/share/qemu*/qboot.rom", "/usr/share/*/qboot.rom")
"""The smallest firmware there is; it enters an uncompressed kernel directly."""


@dataclass(frozen=True)
class Machine:
    """The files that a machine boots from. All but `firmware`, which is the host's, are in the image cache."""

    kernel: Path
    initrd: Path
    root: Path

    @property
    def firmware(self) -> Path:
        """The host's firmware, looked for at a machine's boot: no made machine depends on it. Raises HutchError."""
        return find_firmware()


@cache
def version() -> str:
    """The digest of all that hutch itself puts into every machine."""
    parts = [
        MACHINE_VERSION,
        kernels.KERNEL_VERSION,
        MODULES,
        UNITS,
        INIT.read_text(),
        (SCRIPTS / "pack.sh").read_text(),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def machine_directory(layout: Layout, image_id: str) -> Path:
    return layout.images / image_id / f"{PREFIX}{version()}"


def observe_machine(layout: Layout, image_id: str, kernel: Kernel | None = None) -> Machine | None:
    """The machine of an image; None when it has not been made (with this `kernel`, if one is given), or is not whole
    any more."""
    directory = machine_directory(layout, image_id)
    vmlinux, initrd, root = (directory / name for name in ("vmlinux", "initrd", "root.erofs"))
    if not (vmlinux.is_file() and initrd.is_file() and root.is_file()):
        return None
    if kernel is not None and not os.path.samefile(vmlinux, kernel.vmlinux):
        return None
    return Machine(vmlinux, initrd, root)


def ensure_machine(
    id: str, image: str, layout: Layout, *, progress: Progress = no_progress, kernel: Kernel | None = None
) -> Machine:
    """The machine of the image with this id, whose source is `image`: made unless it is there, with this `kernel` or
    else any. The image itself is in the cache already."""
    observe = partial(observe_machine, layout, id, kernel)
    if (found := observe()) is not None:
        return found
    check_host()
    meter = Meter(progress)
    kernel = kernel or ensure_kernel(image, layout, meter)
    return ensure(layout, id, meter, observe, partial(make, id, kernel, layout, meter))


def find_firmware() -> Path:
    """The host's qboot.rom. Raises HutchError where there is none."""
    found = [path for pattern in FIRMWARES for path in sorted(glob.glob(pattern))]
    if not found:
        raise HutchError(
            "this host has no firmware for virtual machines: qboot.rom",
            resolution="it comes with QEMU: on Debian and Ubuntu in qemu-system-data, on Fedora in "
            "qemu-system-x86-core, on Arch in qemu-system-x86-firmware",
        )
    return Path(found[0])


def check_host() -> None:
    """Raise HutchError when the host lacks what making a machine needs."""
    find_firmware()
    check_tools(
        ("mmdebstrap", "mkfs.erofs", "systemd-nspawn", "dpkg-deb", "depmod", "zstd"),
        "this host cannot prepare virtual machines yet",
    )


def make(id: str, kernel: Kernel, layout: Layout, meter: Meter, scratch: Path) -> None:
    """Make a machine and publish it. The caller holds the image's lock; the kernel's is taken after that one, always,
    and keeps all parts of it the same one's."""
    if whole_image(layout, id) is None:
        raise HutchError(f"the image {id} has been removed meanwhile", resolution="`hutch up` builds it")
    shop = Workshop(scratch, layout.build_cgroup(id), layout.builder_uid, meter)
    made = scratch / "machine"
    make_open(made)
    meter.advance(PACKING, 0.5)
    with locked(layout, kernel.id):
        pack(id, kernel, shop, layout.image_root(id))
        os.rename(shop.tree / "root.erofs", made / "root.erofs")
        os.link(kernel.vmlinux, made / "vmlinux")  # the link also says that the kernel is in use
        (made / "initrd").write_bytes(make_initrd(kernel, MODULES))
        packages, _ = read_list(kernel.vmlinux.parent) or ((), "")
    (made / "initrd").chmod(0o644)
    (made / LIST).write_text(render_list(packages, read_list(machine_directory(layout, id))))
    meter.advance(PUBLISHING, 0.98)
    run(["sync", "--file-system", str(made)], timeout=600)
    replace_directory(made, machine_directory(layout, id))
    meter.advance(PUBLISHING, 1.0)


def make_initrd(kernel: Kernel, wanted: Sequence[tuple[str, str]]) -> bytes:
    """The initrd with the modules of the kernel that are `wanted`, as in hutch.guest.initrd."""
    release = kernel.modules
    modules = choose_modules((release / "modules.dep").read_text(), wanted)
    contents = {module.path: (release / module.path).read_bytes() for module in modules}
    nodes = choose_nodes((release / "modules.devname").read_text())
    return render_initrd(INIT.read_bytes(), kernel.busybox.read_bytes(), modules, contents, nodes)


def pack(id: str, kernel: Kernel, shop: Workshop, root: Path) -> None:
    """Make shop.tree/root.erofs from an image's tree and a kernel's modules."""
    shop.tree.mkdir(mode=0o755)
    # A copy, not links: root of the user namespace that packs it could write to the cache through them.
    run(["cp", "--archive", "--reflink=auto", "--", str(kernel.tree), str(shop.tree / "kernel")], timeout=300)
    identity = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{id} {kernel.id} {version()}"))
    try:
        pack_tree(shop, "pack.sh", root, identity)
    except CommandFailed as error:
        raise HutchError(
            f"{id} could not be packed for virtual machines",
            details=last_lines(error.stderr),
            resolution=error.resolution,
        ) from error


def prune_machines(layout: Layout, keep: Collection[str] = ()) -> None:
    """Remove the machines of earlier versions of hutch, unless the image's id is in `keep`, and kernels that no machine
    boots any more. May be called again."""
    for image in observe_images(layout):
        if image.id in keep:
            continue
        with locked(layout, image.id):
            for entry in (layout.images / image.id).glob(f"{PREFIX}*"):
                if entry != machine_directory(layout, image.id):
                    remove_tree(entry)
    kernels.remove_unused_kernels(layout)
