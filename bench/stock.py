"""The stock contender: a Debian guest as its installer leaves one, on an ext4 disk, in QEMU's q35 machine.

It is built once (outside: it needs the network), booted and shut down once, and from then on only read:
what a start writes goes to a file that QEMU throws away. It gets the processor that the machine by hand gets too
(`-cpu max`; QEMU's default one starts it a sixth sooner). What else the comparison leaves open is decided in its
favour: no firmware and boot loader, a static address, a clock that starts with QEMU and ends at sshd's banner.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from bench.byhand import ByHand, Guest
from bench.debian import bootstrap
from bench.measure import run, say

PACKAGES = "openssh-server,linux-image-amd64,initramfs-tools"
ADDRESS, MAC, DEVICE = "192.168.95.51", "02:11:22:33:44:77", "vm-stock"
DISK_SIZE = "4G"
INTERFACE = "enp0s3"  # where the network card is put below
NETWORK = f"""auto lo
iface lo inet loopback
allow-hotplug {INTERFACE}
iface {INTERFACE} inet static
    address {ADDRESS}/24
    gateway 192.168.95.1
"""
_FILES = ("disk", "kernel", "initrd", "key")


def build(folder: Path) -> None:
    """Make the guest in `folder`, unless it is there already."""
    if all((folder / name).exists() for name in _FILES):
        return
    folder.mkdir(parents=True, exist_ok=True)
    say("building the stock guest (not measured) …")
    scratch = folder / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        tree = bootstrap(scratch, "important", PACKAGES)
        key = scratch / "key"
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "bench", "-f", str(key)])
        _configure(tree, Path(f"{key}.pub").read_text())
        for name, pattern in (("kernel", "vmlinuz-*"), ("initrd", "initrd.img-*")):
            shutil.copy(next((tree / "boot").glob(pattern)), scratch / name)
        disk = str(scratch / "disk")
        run(["mkfs.ext4", "-q", "-L", "root", "-d", str(tree), disk, DISK_SIZE])
        for name in _FILES:
            os.replace(scratch / name, folder / name)
        (folder / "settled").unlink(missing_ok=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _configure(tree: Path, public_key: str) -> None:
    """What a person answers to the installer: a name, an address, a disk, a key."""
    (tree / "etc/hostname").write_text("stock\n")
    (tree / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 stock\n")
    (tree / "etc/fstab").write_text("/dev/vda / ext4 errors=remount-ro 0 1\n")
    (tree / "etc/network/interfaces").write_text(NETWORK)
    keys = tree / "root/.ssh"
    keys.mkdir(mode=0o700, exist_ok=True)
    (keys / "authorized_keys").write_text(public_key)


class Stock:
    """Starts the guest that `build` made in `folder`."""

    def __init__(self, folder: Path, yard: ByHand) -> None:
        self.folder = folder
        self.yard = yard
        yard.add_tap(DEVICE, ADDRESS, MAC)
        self._settle()

    def start_to_ready(self, number: int) -> float:
        """Seconds from QEMU's start to sshd's banner."""
        with self._running(f"stock-{number}", "snapshot=on") as guest:
            return guest.wait_until_ready()

    def _settle(self) -> None:
        """The first boot of its life, which makes what later ones find made."""
        settled = self.folder / "settled"
        if settled.exists():
            return
        with self._running("stock-first", "snapshot=off") as guest:
            guest.wait_until_ready()
            guest.ssh(self.folder / "key", "root", "systemctl is-system-running --wait || true; systemctl poweroff")
            guest.wait_until_ended()
        settled.touch()

    @contextlib.contextmanager
    def _running(self, label: str, drive: str) -> Iterator[Guest]:
        files = self.folder
        qemu = [
            *("qemu-system-x86_64", "-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "2", "-m", "1G"),
            *("-nodefaults", "-no-user-config", "-nographic", "-no-reboot", "-serial", "stdio"),
            *("-kernel", str(files / "kernel"), "-initrd", str(files / "initrd")),
            *("-append", "root=/dev/vda ro quiet console=ttyS0"),
            *("-drive", f"if=none,id=disk,file={files / 'disk'},format=raw,{drive}"),
            *("-device", "virtio-blk-pci,drive=disk,addr=2"),
            *("-netdev", "tap,id=net,fd=3,vhost=off", "-device", f"virtio-net-pci,netdev=net,mac={MAC},addr=3"),
            *("-device", "virtio-rng-pci,addr=4"),
        ]
        with self.yard.running(label, ADDRESS, self.yard.with_tap(label, DEVICE, qemu)) as guest:
            yield guest
