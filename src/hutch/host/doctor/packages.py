"""The one list of what hutch needs from the host's distribution, under each package manager's names.

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
from dataclasses import dataclass
from typing import Literal, get_args

Manager = Literal["apt", "dnf", "pacman"]
# What people use; what a checkout of hutch needs besides; what its tests need; what its benchmark needs.
Set = Literal["runtime", "checkout", "develop", "bench"]

INSTALL: dict[Manager, str] = {"apt": "apt-get install", "dnf": "dnf install", "pacman": "pacman -S"}
"""The command that installs what it is given, without what tells it not to ask."""
ROOTS_PATH = "/usr/local/sbin:/usr/sbin:/sbin"  # root's commands, which a user's PATH may lack


@dataclass(frozen=True)
class Requirement:
    """Something that hutch needs, what it is called, and how to tell that it is there.

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


REQUIREMENTS: tuple[Requirement, ...] = (
    Requirement(
        "runs containers",
        proof=("systemd-nspawn",),
        apt=("systemd-container",),
        dnf=("systemd-container",),
        pacman=("systemd",),
    ),
    Requirement(
        "builds Debian and Ubuntu images",
        proof=("mmdebstrap",),
        apt=("mmdebstrap",),
        dnf=("mmdebstrap",),
        pacman=(),  # only in the AUR
    ),
    Requirement(
        "verifies what Debian's mirrors send",
        proof=("/usr/share/keyrings/debian-archive-keyring.*",),
        apt=("debian-archive-keyring",),
        dnf=("debian-keyring",),
        pacman=("debian-archive-keyring",),
    ),
    Requirement(
        "verifies what Ubuntu's mirrors send",
        proof=("/usr/share/keyrings/ubuntu-archive-keyring.*",),
        apt=("ubuntu-keyring",),
        dnf=("ubu-keyring",),
        pacman=("ubuntu-keyring",),
        optional=True,
    ),
    Requirement(
        "answers the workspaces' DNS questions",
        proof=("dnsmasq",),
        apt=("dnsmasq-base",),  # without the service that `dnsmasq` would start
        dnf=("dnsmasq",),
        pacman=("dnsmasq",),
    ),
    Requirement(
        "filters and translates the workspaces' traffic",
        proof=("nft",),
        apt=("nftables",),
        dnf=("nftables",),
        pacman=("nftables",),
    ),
    Requirement(
        "makes the bridge, its ports and the router's network namespace",
        proof=("ip", "bridge"),
        apt=("iproute2",),
        dnf=("iproute",),
        pacman=("iproute2",),
    ),
    Requirement(
        "reaches the workspaces and makes their keys",
        proof=("ssh", "ssh-keygen"),
        apt=("openssh-client",),
        dnf=("openssh-clients",),
        pacman=("openssh",),
    ),
    Requirement(
        "runs virtual machines",
        proof=("qemu-system-x86_64",),
        apt=("qemu-system-x86",),
        dnf=("qemu-system-x86-core",),
        pacman=("qemu-system-x86",),
    ),
    Requirement(
        "shares directories with virtual machines",
        proof=("/usr/lib*/virtiofsd",),
        apt=("virtiofsd",),
        dnf=("virtiofsd",),
        pacman=("virtiofsd",),
    ),
    Requirement(
        "keeps virtual machines, and the warden of egress lists, away from the host's files",
        proof=("bwrap",),
        apt=("bubblewrap",),
        dnf=("bubblewrap",),
        pacman=("bubblewrap",),
    ),
    Requirement(
        "makes images for virtual machines",
        proof=("mkfs.erofs",),
        apt=("erofs-utils",),
        dnf=("erofs-utils",),
        pacman=("erofs-utils",),
    ),
    Requirement(
        "takes the packages of kernels apart",
        proof=("dpkg-deb", "zstd"),
        apt=("dpkg", "zstd"),
        dnf=("dpkg", "zstd"),
        pacman=("dpkg", "zstd"),
    ),
    Requirement(
        "makes disks for virtual machines",
        proof=("mkfs.ext4",),
        apt=("e2fsprogs",),
        dnf=("e2fsprogs",),
        pacman=("e2fsprogs",),
    ),
    Requirement(
        "makes mounts and enters namespaces",
        proof=("mount", "umount", "unshare", "nsenter", "setpriv"),
        apt=("util-linux", "mount"),
        dnf=("util-linux", "util-linux-core"),
        pacman=("util-linux",),
    ),
    Requirement(
        "loads kernel modules",
        proof=("modprobe",),
        apt=("kmod",),
        dnf=("kmod",),
        pacman=("kmod",),
    ),
    Requirement(
        "reads and sets kernel parameters",
        proof=("sysctl",),
        apt=("procps",),
        dnf=("procps-ng",),
        pacman=("procps-ng",),
    ),
    Requirement(
        "makes the virtual environment",
        proof=("module:ensurepip",),
        apt=("python3-venv",),
        dnf=("python3",),
        pacman=("python",),
        set="checkout",
    ),
    Requirement(
        "shows what a command does to the host",
        proof=("strace",),
        apt=("strace",),
        dnf=("strace",),
        pacman=("strace",),
        set="develop",
    ),
    Requirement(
        "makes a Nix store for workspaces to share, and evaluates the NixOS module",
        proof=("nix-store", "nix-instantiate", "jq"),
        apt=("nix-bin", "jq"),
        dnf=("nix", "jq"),
        pacman=("nix", "jq"),
        set="develop",
        optional=True,
    ),
    Requirement(
        "tries aliases and completion in other shells than bash",
        proof=("zsh", "fish"),
        apt=("zsh", "fish"),
        dnf=("zsh", "fish"),
        pacman=("zsh", "fish"),
        set="develop",
        optional=True,
    ),
    Requirement(
        "reads manual pages as people see them",
        proof=("groff",),
        apt=("groff-base",),
        dnf=("groff-base",),
        pacman=("groff",),
        set="develop",
        optional=True,
    ),
    Requirement(
        "what hutch is measured against",
        proof=("incus", "/usr/lib*/incus/incusd"),
        apt=("incus-base", "incus-client"),
        dnf=("incus", "incus-client"),
        pacman=("incus",),
        set="bench",
    ),
    Requirement(
        "what Incus needs to import an image and to map users",
        proof=("unsquashfs", "setfattr", "newuidmap"),
        apt=("squashfs-tools", "attr", "uidmap"),
        dnf=("squashfs-tools", "attr", "shadow-utils"),
        pacman=("squashfs-tools", "attr", "shadow"),
        set="bench",
    ),
    Requirement(
        "makes the initrd of the virtual machine that hutch is measured against",
        proof=("busybox", "cpio", "zstd", "xz"),
        apt=("busybox-static", "cpio", "zstd", "xz-utils"),
        dnf=("busybox", "cpio", "zstd", "xz"),
        pacman=("busybox", "cpio", "zstd", "xz"),
        set="bench",
    ),
    Requirement(
        "sees that a command writes no file",
        proof=("inotifywait",),
        apt=("inotify-tools",),
        dnf=("inotify-tools",),
        pacman=("inotify-tools",),
        set="bench",
    ),
)


def _is_there(proof: str) -> bool:
    """Whether whoever asks has it; what hutch itself finds, host/doctor/tools knows."""
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
    parser.add_argument("--missing", action="store_true", help="only what this host does not have yet")
    parser.add_argument("--optional", action="store_true", help="only what hutch can do without (default: the rest)")
    parser.add_argument("--unpackaged", action="store_true", help="proofs of what MANAGER has no package for")
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
