"""The one list of hutch's requirements on the host's distribution, under each package manager's names.

`script/setup` runs it before anything of hutch is installed, so it uses the standard library only and imports
nothing of hutch:

    python3 packages.py MANAGER [--set NAME]... [--missing] [--optional]

prints package names, one a line. It answers questions and never installs anything.
"""

from __future__ import annotations

import argparse
import glob
import importlib.util
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast, get_args

Manager = Literal["apt", "dnf", "pacman"]
# The requirements of people who use hutch; of a checkout besides; of the tests; of the benchmark.
Set = Literal["runtime", "checkout", "develop", "bench"]

INSTALL: dict[Manager, str] = {"apt": "apt-get install", "dnf": "dnf install", "pacman": "pacman -S"}
"""The command that installs packages, without the option that tells it not to ask."""
ROOTS_PATH = "/usr/local/sbin:/usr/sbin:/sbin"  # root's commands, which a user's PATH may lack


@dataclass(frozen=True)
class Requirement:
    """A thing that hutch needs: its purpose, its package names, and the proof that it is there.

    Every one of `proof` must be there: a command's name, an absolute path (a glob will do), or
    "module:NAME" for a Python module. Empty names mean that the distribution does not package it.
    """

    purpose: str
    proof: tuple[str, ...]
    apt: tuple[str, ...]
    dnf: tuple[str, ...]
    pacman: tuple[str, ...]
    set: Set = "runtime"
    optional: bool = False

    def names(self, manager: Manager) -> tuple[str, ...]:
        """The packages to install with `manager`."""
        return {"apt": self.apt, "dnf": self.dnf, "pacman": self.pacman}[manager]


TABLE = """
[runtime]
runs containers: systemd-nspawn; apt systemd-container; pacman systemd
says that a virtual machine is ready: systemd-notify; apt systemd
builds Debian and Ubuntu images: mmdebstrap; pacman
verifies what Debian's mirrors send: /usr/share/keyrings/debian-archive-keyring.*; apt debian-archive-keyring;
    dnf debian-keyring
verifies what Ubuntu's mirrors send: /usr/share/keyrings/ubuntu-archive-keyring.*; apt ubuntu-keyring;
    dnf ubu-keyring; optional
answers the workspaces' DNS questions: dnsmasq; apt dnsmasq-base; dnf dnsmasq; pacman dnsmasq
filters and translates the workspaces' traffic: nft; apt nftables
makes the bridge, its ports and the router's network namespace: ip bridge; apt iproute2; dnf iproute
reaches the workspaces and makes their keys: ssh ssh-keygen; apt openssh-client; dnf openssh-clients; pacman openssh
runs virtual machines: qemu-system-x86_64; apt qemu-system-x86; dnf qemu-system-x86-core
shares directories with virtual machines: /usr/lib*/virtiofsd; apt virtiofsd
keeps virtual machines, and the egress proxy, away from the host's files: bwrap; apt bubblewrap
makes images for virtual machines: mkfs.erofs; apt erofs-utils
takes the packages of kernels apart: dpkg-deb zstd; apt dpkg zstd
makes disks for virtual machines: mkfs.ext4; apt e2fsprogs
makes mounts and enters namespaces: mount umount findmnt unshare nsenter setpriv prlimit flock; apt util-linux mount;
    dnf util-linux util-linux-core; pacman util-linux
loads kernel modules: modprobe; apt kmod
reads and sets kernel parameters: sysctl; apt procps; dnf procps-ng; pacman procps-ng
runs workspaces on an Incus server: incus; apt incus-client; dnf incus-client; pacman incus; optional
brings the work of a clone to the host: git; optional
packs images for an Incus server: mksquashfs; apt squashfs-tools; optional
[checkout]
makes the virtual environment: module:ensurepip; apt python3-venv; dnf python3; pacman python
[develop]
shows what a command does to the host: strace
copies to workspaces as people do: rsync
runs the demo as people do: sudo
brings members in where there is no sudo: doas; apt opendoas; dnf opendoas; pacman opendoas
brings members in by polkit: pkexec dbus-daemon /usr/lib/polkit-1/polkitd; apt pkexec polkitd dbus-daemon; dnf polkit
    dbus-daemon; pacman polkit dbus
finds mistakes in shell: shellcheck; dnf ShellCheck
makes a Nix store for workspaces to share, and evaluates the NixOS module: nix-store nix-instantiate jq;
    apt nix-bin jq; dnf nix jq; pacman nix jq; optional
tries aliases and completion in other shells than bash: zsh fish; optional
runs a cluster of Incus servers, and what hutch is measured against: /usr/lib*/incus/incusd;
    apt incus-base incus-client; dnf incus incus-client; pacman incus; optional
what an Incus server needs to import an image and to map users: unsquashfs setfattr newuidmap;
    apt squashfs-tools attr uidmap; dnf squashfs-tools attr shadow-utils; pacman squashfs-tools attr shadow; optional
makes disks that UEFI boots from: mkfs.vfat mcopy sfdisk qemu-img /usr/lib/systemd/boot/efi/systemd-bootx64.efi;
    apt dosfstools mtools fdisk qemu-utils systemd-boot-efi;
    dnf dosfstools mtools util-linux qemu-img systemd-boot-unsigned;
    pacman dosfstools mtools util-linux qemu-img systemd; optional
boots them: /usr/share/OVMF/OVMF_CODE*.fd; apt ovmf; dnf edk2-ovmf; pacman edk2-ovmf; optional
reads manual pages as people see them: groff; apt groff-base; pacman groff; optional
[bench]
makes the initrd of the virtual machine that hutch is measured against: busybox cpio zstd xz;
    apt busybox-static cpio zstd xz-utils; dnf busybox cpio zstd xz; pacman busybox cpio zstd xz
sees that a command writes no file: inotifywait; apt inotify-tools
"""
"""[SET], and below it PURPOSE: PROOF; MANAGER PACKAGES; and "optional". Packages that are not named are called as the
proof is, with apt; elsewhere as with apt. Arch has mmdebstrap in the AUR only; Debian's package `dnsmasq` would start a
service."""


def _read(table: str) -> Iterator[Requirement]:
    for section in table.replace("\n    ", " ").split("[")[1:]:
        set, _, lines = section.partition("]")
        for line in lines.strip().splitlines():
            purpose, _, words = line.partition(": ")
            proof, *more = (tuple(part.split()) for part in words.split(";"))
            named = {word: names for word, *names in more}
            apt = named.get("apt", proof)
            dnf, pacman = (tuple(named.get(manager, apt)) for manager in ("dnf", "pacman"))
            yield Requirement(purpose, proof, tuple(apt), dnf, pacman, cast("Set", set), "optional" in named)


REQUIREMENTS = tuple(_read(TABLE))


def _is_there(proof: str) -> bool:
    """Whether the caller has a thing, by its proof; host/doctor/tools knows what hutch itself finds."""
    if proof.startswith("module:"):
        return importlib.util.find_spec(proof.removeprefix("module:")) is not None
    if proof.startswith("/"):
        return bool(glob.glob(proof))
    return shutil.which(proof, path=f"{os.environ.get('PATH', '')}:{ROOTS_PATH}") is not None


def main() -> None:
    """Print package names for script/setup."""
    parser = argparse.ArgumentParser(description="Print the packages that hutch needs from a distribution.")
    parser.add_argument("manager", choices=get_args(Manager))
    parser.add_argument("--set", action="append", choices=get_args(Set), dest="sets", help="default: runtime")
    parser.add_argument("--missing", action="store_true", help="only those missing on this host")
    parser.add_argument("--optional", action="store_true", help="only optional packages (default: the rest)")
    parser.add_argument("--unpackaged", action="store_true", help="proofs that no package of MANAGER brings")
    options = parser.parse_args()
    for item in REQUIREMENTS:
        if item.set not in (options.sets or ["runtime"]) or item.optional != options.optional:
            continue
        if options.missing and all(map(_is_there, item.proof)):
            continue
        names = item.names(options.manager)
        wanted = item.proof if options.unpackaged and not names else () if options.unpackaged else names
        if wanted:
            print("\n".join(wanted))


if __name__ == "__main__":
    main()
