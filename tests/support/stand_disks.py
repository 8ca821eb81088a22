"""The disks of the stand (see stand), each made from what its name is a digest of, and kept in the cache: a Debian
host, the interpreter and the packages that run the tests, an image for workspaces. The checkout is written each time.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hutch.guest.initrd import choose_modules, render_initrd
from hutch.host.doctor.packages import REQUIREMENTS
from hutch.images.kernel import Kernel
from hutch.images.machine import find_firmware
from package.control import DEFAULT, DISTRIBUTIONS
from tests.support.packages import build_package

CHECKOUT = Path(__file__).parents[2]
FILES = CHECKOUT / "tests" / "systemd" / "stand"
PYTHON = (3, 13)  # trixie's
MODULES = [(name, "*") for name in ("qemu_fw_cfg", "virtio_pci", "virtio_blk", "virtio_console", "ext4", "erofs")]
OLD = 2 * 24 * 3600.0  # seconds; what nobody has used for so long is an older checkout's, and goes

# What hutch needs to run workspaces there. Images come from outside.
NOT_THERE = {"mmdebstrap", "dpkg", "zstd", "debian-archive-keyring"}
NEEDED = [name for item in REQUIREMENTS if item.set == "runtime" and not item.optional for name in item.names("apt")]
PACKAGES = {
    *("systemd", "systemd-sysv", "udev", "dbus", "systemd-resolved", "libnss-resolve", "libnss-myhostname"),
    *("openssh-client", "iputils-ping", "curl", "less", "login", "python3", "strace", "man-db"),
    *DISTRIBUTIONS[DEFAULT].packages(),
    *NEEDED,
} - NOT_THERE
OTHERS = {
    *("docker.io", "docker-cli", "iptables", "ufw", "firewalld", "network-manager", "busybox-static"),
    *("libvirt-daemon", "libvirt-daemon-config-network", "libvirt-clients"),
}
"""Who else has a say in a host's network: they take minutes to install, and smoke tests are not about them."""


@dataclass(frozen=True)
class Boot:
    """What the stand boots from."""

    kernel: Path
    initrd: Path
    firmware: Path


def ensure_boot(cache: Path, kernel: Kernel) -> Boot:
    init = (FILES / "init.sh").read_bytes()

    def make(target: Path) -> None:
        modules = choose_modules((kernel.modules / "modules.dep").read_text(), MODULES)
        contents = {module.path: (kernel.modules / module.path).read_bytes() for module in modules}
        target.write_bytes(render_initrd(init, kernel.busybox.read_bytes(), modules, contents, ()))

    initrd = ensure(cache, "initrd", [kernel.id, str(kernel.modules), init.decode(), MODULES], make)
    return Boot(kernel.vmlinux, initrd, find_firmware())


def ensure_host(cache: Path, kernel: Kernel, *, alone: bool) -> Path:
    """An ordinary Debian host, from the distribution's packages; `alone`, without those that tests of coexistence are
    about."""
    packages = sorted(PACKAGES if alone else PACKAGES | OTHERS)
    adapt, unit = FILES / "adapt.sh", FILES / "hutch-stand.service"

    def make(target: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="hutch-stand-", dir="/var/tmp") as scratch:
            os.chmod(scratch, 0o755)
            tree = Path(scratch) / "tree"
            command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=directory"]
            call([*command, f"--include={','.join(packages)}", "trixie", str(tree)], timeout=1800)
            modules = tree / "usr/lib/modules"
            modules.mkdir()
            call(["cp", "--archive", str(kernel.modules), str(modules)], timeout=120)
            shutil.copy(unit, tree / "etc/systemd/system")
            call(["sh", str(adapt), str(tree)], timeout=300)
            make_ext4(tree, target, "8G")

    return ensure(cache, "host", [kernel.id, str(kernel.modules), packages, adapt.read_text(), unit.read_text()], make)


def ensure_image(cache: Path, image: Path, machine: str) -> Path:
    """An image of hutch's, as the directory of images that it is in, with what machines of it boot from, which lies in
    the directory `machine` of it. Its uids are as they are there."""

    def make(target: Path) -> None:
        # Beside the images, for links; not among them, where tests look at all that there is.
        with tempfile.TemporaryDirectory(prefix="hutch-stand-", dir=image.parent.parent) as scratch:
            call(["cp", "--archive", "--link", str(image), scratch], timeout=300)
            make_ext4(Path(scratch), target, "2G")

    return ensure(cache, "images", [str(image), machine], make)


def ensure_python(cache: Path) -> tuple[Path | None, Path]:
    """The interpreter, unless it is the distribution's, which the stand has too; and the virtual environment."""
    base, version = Path(sys.base_prefix).resolve(), sys.version
    python = None
    if base != Path("/usr"):
        left_out = r"(^|/)(site-packages|test|idlelib|tkinter)/.*|.*\.a$"
        python = ensure(cache, "python", [str(base), version], lambda path: make_erofs(base, path, left_out))
    elif sys.version_info[:2] != PYTHON:
        raise RuntimeError(f"the stand's Python is {PYTHON}, so {sys.version_info[:2]} of /usr cannot run there")
    environment = Path(sys.prefix)
    lock = (CHECKOUT / "uv.lock").read_text()
    return python, ensure(
        cache, "venv", [str(environment), version, lock], lambda path: make_erofs(environment, path, "")
    )


def make_checkout(target: Path) -> None:
    make_erofs(CHECKOUT, target, r"^\.venv/.*|(^|/)\.(git|cache|[a-z]+_cache|hypothesis)(/.*)?$")


def make_packages(target: Path, scratch: Path) -> None:
    """Two versions of the Debian package."""
    for revision in ("1", "2"):
        build_package(scratch, revision)
    make_erofs(scratch, target, "")


# How they are made.


def ensure(cache: Path, kind: str, made_from: Sequence[object], make: Callable[[Path], None]) -> Path:
    """The file of that kind made from these inputs, made unless it is there."""
    digest = hashlib.sha256(json.dumps([kind, *made_from], default=list).encode()).hexdigest()[:12]
    path = cache / f"{kind}-{digest}"
    if not path.exists():
        print(f"making the stand's {kind}", flush=True)
        scratch = cache / f".{path.name}-{os.urandom(4).hex()}"
        try:
            make(scratch)
            os.rename(scratch, path)
        finally:
            scratch.unlink(missing_ok=True)
    os.utime(path)
    forget_old(cache.glob(f"{kind}-*"), Path.unlink)
    return path


def forget_old(paths: Iterable[Path], remove: Callable[[Path], object]) -> None:
    """Remove what nobody has used for a while. Who uses something sets its time of change."""
    for path in paths:
        with suppress(FileNotFoundError):  # another run does the same
            if time.time() - path.stat().st_mtime > OLD:
                remove(path)


def make_ext4(tree: Path, target: Path, size: str) -> None:
    options = ["-q", "-F", "-E", "lazy_itable_init=1,root_owner=0:0", "-d", str(tree)]
    call([str(shutil.which("mkfs.ext4") or "/usr/sbin/mkfs.ext4"), *options, str(target), size], timeout=600)


def make_erofs(tree: Path, target: Path, left_out: str) -> None:
    regex = [f"--exclude-regex={left_out}"] if left_out else []
    call(["mkfs.erofs", "--quiet", *regex, str(target), str(tree)], timeout=600)


def call(command: Sequence[str], timeout: float) -> None:
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: code {result.returncode}\n{result.stderr[-4000:]}")
