"""Findings on what a host lacks, and what follows: facts in, findings out. Nothing here looks or repairs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import Literal

from hutch.frozen import dataclass
from hutch.host.doctor.abilities import Abilities
from hutch.host.doctor.packages import INSTALL, Manager, Requirement

State = Literal["ok", "unknown", "warning", "missing", "conflict"]

FEATURES = {
    "user namespaces": ("containers are not root on this host", "sysctl user.max_user_namespaces must not be 0"),
    "overlayfs": ("workspaces share an image and write above it", "a kernel with CONFIG_OVERLAY_FS"),
    "idmapped mounts": ("an image's and a home's owners are mapped", "a state directory on ext4, xfs or btrfs"),
    "nf_tables": ("the workspaces' traffic is filtered", "a kernel with nf_tables for inet and bridge, and its fib"),
    "cgroup v2": ("all of a workspace's processes are known, and end together", "a kernel with cgroup2"),
    "openat2": ("what guests wrote is worked on without following their links", "Linux 5.6 or newer"),
    "pidfd": ("a signal reaches the process that is meant", "Linux 5.3 or newer"),
}
LIMITS = {
    "memory": ("memory", "a container may use all memory, and a machine's helpers more than their share"),
    "pids": ("processes", "a fork bomb in a workspace takes the host's processes"),
    "cpu": ("processors", "a busy container takes time from everybody"),
}
YES: dict[Manager, str] = {"apt": "--yes", "dnf": "--assumeyes", "pacman": "--noconfirm"}
"""The option that tells a package manager not to ask."""
UNIFIED = "boot with cgroup v2 alone (systemd.unified_cgroup_hierarchy=1), so that controllers are not taken by v1"


@dataclass(frozen=True)
class Finding:
    """A finding: `means` is what follows for people, `do` what puts it right, "" where there is nothing to do."""

    name: str
    state: State
    means: str
    do: str = ""


def examine(found: Abilities) -> list[Finding]:
    """All findings, in the order in which they are shown."""
    return [
        *check_packages(found),
        *check_features(found),
        check_kvm(found),
        check_vsock(found),
        *check_limits(found),
        check_quota(found),
        check_log(found),
    ]


def is_broken(findings: list[Finding]) -> bool:
    """Whether anything is missing that hutch cannot do without, or somebody stops workspaces now."""
    return any(finding.state in ("missing", "conflict") for finding in findings)


def check_packages(found: Abilities) -> Iterator[Finding]:
    if not found.missing:
        yield Finding("packages", "ok", "all programs are there")
    for item in found.missing:
        what = f"nothing here {item.purpose}" if not item.optional else f"this host cannot do what {item.purpose}"
        name, do = item.proof[0].rpartition("/")[2], install(item, found.manager)
        yield Finding(name, "warning" if item.optional else "missing", what, do)


def installation(found: Abilities) -> tuple[str, ...]:
    """The command that installs what is missing and needed, () where nothing is, or nobody knows how."""
    if found.manager is None:
        return ()
    needed = [item for item in found.missing if not item.optional]
    packages = dict.fromkeys(name for item in needed for name in item.names(found.manager))
    return (*INSTALL[found.manager].split(), YES[found.manager], *packages) if packages else ()


def install(item: Requirement, manager: Manager | None) -> str:
    packages = item.names(manager) if manager is not None else ()
    if manager is None or not packages:
        return f"install {', '.join(item.proof)}"
    return f"`{INSTALL[manager]} {shlex.join(packages)}`"


def check_features(found: Abilities) -> Iterator[Finding]:
    for name, has in found.features.items():
        why, remedy = FEATURES[name]
        if has is None:
            yield Finding(name, "unknown", "not looked at: that takes root", "`sudo hutch doctor`")
        else:
            yield Finding(
                name, "ok" if has else "missing", why if has else f"not here: by it {why}", "" if has else remedy
            )


def check_kvm(found: Abilities) -> Finding:
    if found.kvm == "":
        return Finding("KVM", "ok", "a guest has run under it")
    if found.kvm is not None:
        return Finding("KVM", "warning", f"machines are emulated, several times slower: {found.kvm}")
    if not found.has_kvm_device:
        return Finding(
            "KVM", "warning", "there is no /dev/kvm: machines are emulated, several times slower",
            "enable virtualisation in the firmware, or nesting where this host is a machine itself",
        )  # fmt: skip
    return Finding(
        "KVM",
        "unknown",
        "not tried yet whether a guest runs under it",
        "the first machine's start tries it, or `sudo hutch doctor --fix` once an image for machines is there",
    )


def check_vsock(found: Abilities) -> Finding:
    if found.vsock:
        return Finding("vsock", "ok", "machines are reached even when their network is broken")
    return Finding(
        "vsock", "warning", "machines are reached by their network only", "modprobe vhost_vsock, if it is there"
    )


def check_limits(found: Abilities) -> Iterator[Finding]:
    for controller, (name, unlimited) in LIMITS.items():
        if found.controllers is None:
            yield Finding(f"limit of {name}", "unknown", "not looked at: that takes root", "`sudo hutch doctor`")
        elif controller in found.controllers:
            yield Finding(f"limit of {name}", "ok", "the kernel enforces it")
        else:
            yield Finding(f"limit of {name}", "warning", f"cannot be enforced here: {unlimited}", UNIFIED)


def check_quota(found: Abilities) -> Finding:
    """The finding on quotas of the state directory; a home elsewhere may be on another file system."""
    where, elsewhere = f"homes in {found.state}", "of those elsewhere `hutch status` tells"
    if not found.unlimited:
        return Finding("limit of homes", "ok", f"`disk` limits {where} too; {elsewhere}")
    return Finding("limit of homes", "warning", f"{where} may fill the disk; {elsewhere}", found.unlimited)


def check_log(found: Abilities) -> Finding:
    """The finding on the kernel's own log: the journal reads it, in nobody's cgroup."""
    if not found.lists_tasks:
        return Finding("kernel log", "ok", "a workspace without memory writes a line there for what is ended")
    return Finding(
        "kernel log", "ok", "a workspace without memory has all its processes listed there, as often as it likes",
        "`sysctl vm.oom_dump_tasks=0`, and in /etc/sysctl.d, keeps a hostile one from occupying the host with that",
    )  # fmt: skip
