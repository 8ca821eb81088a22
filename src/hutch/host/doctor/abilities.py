"""The abilities of this host, as facts. Looks, and changes nothing that outlives the look: trials run in namespaces of
their own. Facts that only root may ask for are None for others.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from hutch.errors import HutchError
from hutch.files import kept_open
from hutch.frozen import dataclass
from hutch.host.doctor.packages import REQUIREMENTS, Manager, Requirement
from hutch.host.doctor.tools import find_manager, find_program, old_virtiofsd
from hutch.host.hardware.accelerator import recall_accelerator
from hutch.host.services.cgroup import find_mount, open_root
from hutch.host.storage.mountinfo import observe_mountinfo
from hutch.host.storage.quota import why_unlimited
from hutch.run import run
from hutch.spec.names import UID_FIRST, Layout
from hutch.trees.cursor import has_openat2

KVM = "/dev/kvm"
RULES = """
table inet hutch_doctor {
  chain c {
    type filter hook prerouting priority 0
    fib daddr type local accept
  }
}
table bridge hutch_doctor {
  chain c {
    type filter hook forward priority 0
    ether type ip accept
  }
}
"""


@dataclass(frozen=True)
class Abilities:
    """The abilities of this host. `missing` are requirements that are not met, and `manager` is the host's package
    manager. `features` are parts of the kernel, None where it takes root to know. `unlimited` says why no quota can
    limit a home in `state`; `kvm` why no machine runs under KVM: "" for one that has, None where none has been tried.
    `lists_tasks` is that the kernel logs all processes of a cgroup that has no memory left; `watchers` how many inotify
    instances root may have, None where the kernel does not say; `old_virtiofsd` its path and version
    where it is too old."""

    is_root: bool
    missing: tuple[Requirement, ...]
    manager: Manager | None
    features: Mapping[str, bool | None]
    controllers: frozenset[str] | None
    state: str
    unlimited: str
    kvm: str | None
    has_kvm_device: bool
    lists_tasks: bool
    watchers: int | None
    old_virtiofsd: str


def observe_abilities(layout: Layout) -> Abilities:
    is_root = os.geteuid() == 0
    state = existing(str(layout.state))
    return Abilities(
        is_root=is_root,
        missing=tuple(item for item in REQUIREMENTS if item.set == "runtime" and not is_met(item)),
        manager=find_manager(),
        features=observe_features(state, is_root=is_root),
        controllers=observe_controllers(),
        state=state,
        unlimited=why_unlimited(state),
        kvm=observe_kvm(layout),
        has_kvm_device=os.path.exists(KVM),
        lists_tasks=read("/proc/sys/vm/oom_dump_tasks") != "0",
        watchers=int(read("/proc/sys/fs/inotify/max_user_instances") or 0) or None,
        old_virtiofsd=old_virtiofsd(),
    )


def is_met(item: Requirement) -> bool:
    """Whether a requirement's programs are where hutch looks for them."""
    return all(find_program(proof) is not None for proof in item.proof)


def existing(path: str) -> str:
    """The directory itself, or the closest one above it that exists."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return os.path.realpath(path)


def read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def observe_features(state: str, *, is_root: bool) -> dict[str, bool | None]:
    kinds = read("/proc/filesystems").split()
    return {
        "user namespaces": read("/proc/sys/user/max_user_namespaces") not in ("", "0"),
        "overlayfs": "overlay" in kinds or has_module("overlay"),
        "idmapped mounts": can_map(state) if is_root else None,
        "nf_tables": can_filter() if is_root else None,
        "cgroup v2": "cgroup2" in kinds,
        "openat2": has_openat2(),
        "pidfd": has_pidfd(),
    }


def has_module(name: str) -> bool:
    """Whether the kernel's module could be loaded."""
    return succeeds(["modprobe", "--dry-run", "--quiet", name])


def can_map(directory: str) -> bool:
    """Whether the file system of a directory can be mounted with other uids."""
    mapping = f"X-mount.idmap=b:0:{UID_FIRST}:1"
    return succeeds(["unshare", "--mount", "mount", "--bind", "-o", mapping, directory, directory])


def can_filter() -> bool:
    """Whether the kernel takes rules of the kinds that hutch loads, tried in a network namespace that ends at once."""
    return succeeds(["unshare", "--net", "nft", "--file", "-"], RULES)


def succeeds(argv: list[str], stdin: str | None = None) -> bool:
    try:
        return run(argv, stdin=stdin, check=False).returncode == 0
    except HutchError:
        return False


def has_pidfd() -> bool:
    try:
        descriptor = os.pidfd_open(os.getpid())
    except OSError:
        return False
    os.close(descriptor)
    return True


def observe_controllers() -> frozenset[str] | None:
    """The cgroup controllers of this host; None where they cannot be seen."""
    mount = find_mount(observe_mountinfo())
    if mount is not None:
        return frozenset(read(f"{mount}/cgroup.controllers").split())
    try:
        root = open_root()
    except OSError:
        return None
    with kept_open(root), open(os.open("cgroup.controllers", os.O_RDONLY, dir_fd=root), encoding="ascii") as file:
        return frozenset(file.read().split())


def observe_kvm(layout: Layout) -> str | None:
    try:
        found = recall_accelerator(layout)
    except (HutchError, OSError):
        return None  # only root may read the remembered answers
    return None if found is None else "" if found.name == "kvm" else found.why
