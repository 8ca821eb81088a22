"""Kernels for virtual machines, one for each distribution: images/kernels/<id>/{vmlinux,vmlinuz,busybox,kernel.json},
and tree/ beside them.

A kernel is the distribution's own for virtual machines, fetched by apt, which verifies the signatures; none of the
packages' programs runs here. Like an image it is named after what it is made from, guarded by images/<id>.lock, made in
images/.build-<id> and published by one rename. Machines (see machine) link its files, so it may go when they are made,
and a newer one may take its place.
"""

from __future__ import annotations

import ctypes
import gzip
import hashlib
import json
import lzma
import os
import shlex
import shutil
import struct
import time
import zlib
from collections.abc import Collection
from pathlib import Path

from hutch.errors import HutchError
from hutch.files import read_or_none, sync_directory
from hutch.frozen import dataclass
from hutch.guest.initrd import MODULES, PARTS_MODULES, module_name
from hutch.images.build import SCRIPTS, keyring_options, last_lines, run_mmdebstrap
from hutch.images.cache import ensure, locked
from hutch.images.progress import Meter
from hutch.images.recipe import DISTRIBUTIONS
from hutch.images.record import KERNELS
from hutch.libc import call
from hutch.run import CommandFailed, run
from hutch.spec.names import Layout
from hutch.spec.record import iso
from hutch.trees.removing import remove_tree

KERNEL_VERSION = 3
"""The version of kernels, raised when they must be fetched anew although their packages have the same names."""

PACKAGES = {
    "debian:trixie": "linux-image-cloud-amd64",
    "debian:bookworm": "linux-image-cloud-amd64",
    "ubuntu:noble": "linux-image-virtual",
}
FOREIGN = "debian:trixie"
"""The distribution whose kernel boots the trees that hutch did not bootstrap."""

TOOLS = "busybox-static"
FETCHING = "fetching the kernel"
LIST = "kernel.json"
"""The name of the list in a kernel's directory: the files of its packages, whose names tell their versions, and the
time at which it was made."""
HOOK = SCRIPTS / "kernel.sh"
FETCH_SECONDS = 900.0
BATCH = 200  # files for one command
ZSTD, XZ, GZIP, LZ4 = b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"\x1f\x8b", b"\x02\x21\x4c\x18"
LZ4_BLOCK = 8 << 20  # bytes; the most in one block of its legacy format
SIZE_BYTES = 4
HEADER_END = 0x250
AT_FDCWD, RENAME_EXCHANGE = -100, 2


@dataclass(frozen=True)
class Kernel:
    """A kernel in the cache: `vmlinux` for a firmware that enters it at once, `vmlinuz` for UEFI. `tree` holds
    nothing but usr/lib/modules/<release>, all modules uncompressed: erofs compresses them again, and a guest without
    KVM is spared the slower of two decompressions."""

    id: str
    vmlinux: Path
    vmlinuz: Path
    busybox: Path
    tree: Path
    packages: tuple[str, ...]
    made: str

    @property
    def modules(self) -> Path:
        """The directory of the one release."""
        (release,) = (self.tree / "usr/lib/modules").iterdir()
        return release


def kernel_id(image: str) -> str:
    """The id of the kernel for an image as hutch.toml names it: "linux-debian-trixie-0123456789ab"."""
    source = image if image in PACKAGES else FOREIGN
    made_from = [KERNEL_VERSION, PACKAGES[source], TOOLS, source, DISTRIBUTIONS[source].sources("x86_64")]
    digest = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()
    return f"linux-{source.replace(':', '-')}-{digest[:12]}"


def observe_kernel(layout: Layout, image: str) -> Kernel | None:
    """The kernel for an image; None when it is not in the cache."""
    id = kernel_id(image)
    directory = layout.images / KERNELS / id
    made_from = read_list(directory)
    if made_from is None:
        return None
    vmlinux, vmlinuz, busybox, tree = (directory / name for name in ("vmlinux", "vmlinuz", "busybox", "tree"))
    return Kernel(id, vmlinux, vmlinuz, busybox, tree, *made_from)


def read_list(directory: Path) -> tuple[tuple[str, ...], str] | None:
    """The list of a kernel, or of a machine's: the files of the kernel's packages, and the time at which it was made.
    None where it is absent or damaged."""
    try:
        record = json.loads(read_or_none(directory / LIST) or b"null")
        return tuple(map(str, record["packages"])), str(record["made"])
    except (ValueError, KeyError, TypeError):
        return None


def render_list(packages: Collection[str], before: tuple[tuple[str, ...], str] | None = None) -> str:
    """The list of what is made just now; of the same packages as `before`, it is no newer than that."""
    made = before[1] if before and before[0] == tuple(packages) else iso(time.time())
    return json.dumps({"packages": list(packages), "made": made})


def ensure_kernel(image: str, layout: Layout, meter: Meter, *, anew: bool = False) -> Kernel:
    """The kernel for an image, fetched unless it is there. With `anew` the distribution is asked for a newer one. While
    somebody else fetches it, waits for theirs."""
    if not anew and (found := observe_kernel(layout, image)) is not None:
        return found
    id = kernel_id(image)
    target, done = layout.images / KERNELS / id, False

    def make(scratch: Path) -> None:
        nonlocal done
        meter.advance(FETCHING, 0.05)
        known = observe_kernel(layout, image)
        if fetch(image, scratch, layout.build_cgroup(id), meter, known.packages if known else ()):
            target.parent.mkdir(mode=0o700, exist_ok=True)
            run(["sync", "--file-system", str(scratch)], timeout=600)
            replace_directory(scratch / "kernel", target)
        done = True

    return ensure(layout, id, meter, lambda: observe_kernel(layout, image) if done or not anew else None, make)


def replace_directory(made: Path, target: Path) -> None:
    """Publish a directory. One in its place changes places with it, in one step, and is removed by whoever removes
    `made`; its open files outlive that."""
    if target.exists():
        call("renameat2", AT_FDCWD, os.fsencode(made), AT_FDCWD, os.fsencode(target), RENAME_EXCHANGE)
    else:
        os.rename(made, target)
    sync_directory(target.parent)


def remove_unused_kernels(layout: Layout) -> tuple[str, ...]:
    """Remove the kernels that no machine of an image in the cache boots; returns their ids. May be called again."""
    removed = []
    directory = layout.images / KERNELS
    for entry in sorted(directory.iterdir()) if directory.is_dir() else ():
        try:
            with locked(layout, entry.name, wait=False):
                vmlinux = entry / "vmlinux"
                if vmlinux.exists() and vmlinux.stat().st_nlink > 1:  # the other links are the machines'
                    continue
                remove_tree(entry)
        except BlockingIOError:
            continue
        removed.append(entry.name)
    return tuple(removed)


# Fetching.


def fetch(image: str, scratch: Path, group: str, meter: Meter, known: Collection[str] = ()) -> bool:
    """Fill scratch/kernel; False when the distribution has no other packages for it than those that are `known`."""
    source = image if image in PACKAGES else FOREIGN
    shutil.copy(HOOK, scratch)  # its own directory is hidden, if it is below /tmp
    (scratch / "known").write_text("".join(f"{name}\n" for name in known))
    try:
        run_mmdebstrap(fetch_command(source), scratch, group, meter, FETCH_SECONDS)
    except CommandFailed as error:
        raise HutchError(
            f"the kernel of {source} could not be fetched",
            details=last_lines(error.stderr),
            resolution="check the host's network; a proxy is taken from http_proxy",
        ) from error
    packages = (scratch / "packages/list").read_text().split()
    if packages == list(known):
        return False
    unpacked, extra = scratch / "unpacked", scratch / "extra"
    for directory, pattern in ((unpacked, "*.deb"), (extra, "extra/*.deb")):
        for package in sorted((scratch / "packages").glob(pattern)):
            run(["dpkg-deb", "--extract", str(package), str(directory)], timeout=300)
    take_modules(extra, unpacked, [name for name, _ in (*MODULES, *PARTS_MODULES)])
    arrange(unpacked, scratch / "kernel")
    (scratch / "kernel" / LIST).write_text(render_list(packages))
    return True


def take_modules(source: Path, target: Path, names: Collection[str]) -> None:
    """Move the modules of these names from one tree of unpacked packages to another. They need no further ones."""
    for path in source.rglob("*.ko*"):
        if module_name(path.name) in names:
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.rename(path, place)


def arrange(unpacked: Path, kernel: Path) -> None:
    """Make a kernel's directory out of its unpacked packages. Not all distributions have moved all to /usr."""
    modules = first(unpacked / "usr/lib/modules", unpacked / "lib/modules")
    (release,) = modules.iterdir()
    libraries = kernel / "tree/usr/lib"
    libraries.mkdir(parents=True)
    for path in (kernel, kernel / "tree", kernel / "tree/usr", libraries):
        path.chmod(0o755)
    os.rename(unpacked / f"boot/vmlinuz-{release.name}", kernel / "vmlinuz")
    (kernel / "vmlinuz").chmod(0o644)
    extract_vmlinux(kernel / "vmlinuz", kernel / "vmlinux")
    os.rename(first(unpacked / "usr/bin/busybox", unpacked / "bin/busybox"), kernel / "busybox")
    decompress_modules(release)
    os.rename(modules, libraries / "modules")
    (kernel / "tree/lib").symlink_to("usr/lib")  # depmod looks there
    run(["depmod", "--basedir", str(kernel / "tree"), release.name], timeout=300)
    (kernel / "tree/lib").unlink()


def first(*paths: Path) -> Path:
    """The first of some paths that exists."""
    return next(path for path in paths if path.exists())


def fetch_command(source: str) -> list[str]:
    """The command of mmdebstrap, which sets apt up for a distribution whatever the host's is, with a script to run in
    place of a bootstrap."""
    distribution = DISTRIBUTIONS[source]
    hook = shlex.join(["sh", f"/tmp/{HOOK.name}", "/tmp/packages", PACKAGES[source], TOOLS])
    return [
        *("mmdebstrap", "--verbose", "--mode=root", "--variant=custom", "--format=null", "--architectures=amd64"),
        *keyring_options(distribution),
        f"--customize-hook={hook}",
        distribution.suite,
        "/dev/null",
        *distribution.sources("x86_64"),
    ]


def decompress_modules(release: Path) -> None:
    """Replace every compressed module below a directory by its content."""
    zstd = sorted(str(path) for path in release.rglob("*.ko.zst"))
    for first in range(0, len(zstd), BATCH):
        run(["zstd", "--quiet", "--decompress", "--rm", "--", *zstd[first : first + BATCH]], timeout=300)
    for suffix, open_file in (("xz", lzma.open), ("gz", gzip.open)):
        for path in sorted(release.rglob(f"*.ko.{suffix}")):
            with open_file(path, "rb") as file:
                content = file.read()
            plain = path.with_suffix("")
            plain.write_bytes(content)
            plain.chmod(0o644)
            path.unlink()


def extract_vmlinux(image: Path, target: Path) -> None:
    """Write the uncompressed kernel in a bzImage, which a firmware can enter at once."""
    payload = find_payload(image.read_bytes())
    if payload.startswith(ZSTD):
        packed = target.with_suffix(".zst")
        packed.write_bytes(payload[:-SIZE_BYTES])
        run(["zstd", "--quiet", "--decompress", "--rm", "-o", str(target), "--", str(packed)], timeout=300)
    elif payload.startswith(XZ):
        target.write_bytes(lzma.LZMADecompressor().decompress(payload))
    elif payload.startswith(GZIP):
        target.write_bytes(zlib.decompressobj(wbits=31).decompress(payload))
    elif payload.startswith(LZ4):
        target.write_bytes(decompress_lz4(payload[len(LZ4) : -SIZE_BYTES]))
    else:
        raise HutchError("the distribution's kernel is compressed in an unknown way", details=payload[:8].hex(" "))
    target.chmod(0o644)


def decompress_lz4(packed: bytes) -> bytes:
    """The content of the blocks of LZ4's legacy format, each after its size. mkfs.erofs needs the same library."""
    decompress = ctypes.CDLL("liblz4.so.1").LZ4_decompress_safe
    block, found, place = ctypes.create_string_buffer(LZ4_BLOCK), bytearray(), 0
    while place < len(packed):
        start = place + SIZE_BYTES
        place = start + int.from_bytes(packed[place:start], "little")
        length = decompress(packed[start:place], block, place - start, LZ4_BLOCK) if place <= len(packed) else -1
        if length < 0:
            raise HutchError("the distribution's kernel is damaged")
        found += memoryview(block)[:length]
    return bytes(found)


def find_payload(image: bytes) -> bytes:
    """The compressed kernel in a bzImage, followed by its size unless gzip made it.
    https://docs.kernel.org/arch/x86/boot.html"""
    if len(image) < HEADER_END or image[0x202:0x206] != b"HdrS":
        raise HutchError("the distribution's kernel is not in the format of x86 kernels")
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = ((image[0x1F1] or 4) + 1) * 512 + offset
    return image[start : start + length]
