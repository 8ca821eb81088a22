"""Findings on what a host lacks, and what follows: facts in, findings out. Nothing here looks or repairs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from hutch.audit.chain import Damage
from hutch.errors import HutchError
from hutch.frozen import dataclass
from hutch.host.doctor.abilities import Abilities
from hutch.host.doctor.entry import Entrance
from hutch.host.doctor.packages import INSTALL, Manager, Requirement
from hutch.host.doctor.tools import TOO_OLD
from hutch.spec.ceiling import POLICY_FILE
from hutch.spec.member import GROUP
from hutch.spec.record import Freshness, waiting_words

State = Literal["ok", "unknown", "warning", "missing", "conflict"]

FEATURES = {
    "user namespaces": ("containers are not root on this host", "sysctl user.max_user_namespaces must not be 0"),
    "overlayfs": ("workspaces share an image and write above it", "a kernel with CONFIG_OVERLAY_FS"),
    "idmapped mounts": ("an image's and a home's owners are mapped", "a state directory on ext4, xfs or btrfs"),
    "nf_tables": ("the workspaces' traffic is filtered", "a kernel with nf_tables for inet and bridge, and its fib"),
    "cgroup v2": ("all of a workspace's processes are known, and end together", "Linux 5.14 or newer, with cgroup2"),
    "openat2": ("guests' files are worked on without following their links", "Linux 5.6 or newer"),
    "pidfd": ("a signal reaches the process that is meant", "Linux 5.3 or newer"),
}
LIMITS = {
    "memory": ("memory", "a container may use all memory, and a machine's helpers more than their share"),
    "pids": ("processes", "a fork bomb in a workspace takes the host's processes"),
    "cpu": ("processors", "a busy container takes time from everybody"),
}
YES: dict[Manager, str] = {"apt": "--yes", "dnf": "--assumeyes", "pacman": "--noconfirm"}
"""The option that tells a package manager not to ask."""
WATCHERS = 8192  # inotify instances that a host with containers should allow root
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
        *check_limits(found),
        check_quota(found),
        check_log(found),
        check_watchers(found),
    ]


def is_broken(findings: list[Finding]) -> bool:
    """Whether anything is missing that hutch cannot do without, or somebody stops workspaces now."""
    return any(finding.state in ("missing", "conflict") for finding in findings)


def check_packages(found: Abilities) -> Iterator[Finding]:
    if not found.missing:
        yield Finding("packages", "ok", "all programs are there")
    if found.old_virtiofsd:
        yield Finding("virtiofsd", "warning", TOO_OLD.format(found.old_virtiofsd), "install a newer one")
    for item in found.missing:
        what = f"nothing here {item.purpose}" if not item.optional else f"optional: nothing here {item.purpose}"
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
    if not found.has_kvm_device:
        return Finding(
            "KVM", "warning", "there is no /dev/kvm: machines are emulated, several times slower",
            "enable virtualisation in the firmware, or nesting where this host is a machine itself",
        )  # fmt: skip
    if found.kvm is not None:
        return Finding("KVM", "warning", f"machines are emulated, several times slower: {found.kvm}")
    return Finding(
        "KVM",
        "unknown",
        "not tried yet whether a guest runs under it",
        "the first machine's start tries it, or `sudo hutch doctor --fix` once an image for machines is there",
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
        return Finding("kernel log", "ok", "a workspace without memory writes a line there per ended process")
    return Finding(
        "kernel log", "ok", "a workspace without memory has all its processes listed there, as often as it likes",
        "`sysctl vm.oom_dump_tasks=0`, and in /etc/sysctl.d, keeps a hostile one from occupying the host with that",
    )  # fmt: skip


def check_watchers(found: Abilities) -> Finding:
    """The finding on inotify, of which a container has some ten instances as it starts, all counted for root."""
    if found.watchers is None or found.watchers >= WATCHERS:
        return Finding("inotify", "ok", "root has watchers of files enough, though those of containers are counted too")
    return Finding(
        "inotify", "warning",
        f"root may have {found.watchers} watchers of files, those of all containers among them: a dozen use them up",
        f"`sysctl fs.inotify.max_user_instances={WATCHERS}`, and in /etc/sysctl.d",
    )  # fmt: skip


def check_policy(broken: HutchError | None) -> Iterator[Finding]:
    """The finding on the ceiling of members, where it is `broken`."""
    if broken is not None:
        means = f"members of the group hutch may do nothing: {broken.details or broken.brief}"
        yield Finding(
            "policy", "conflict", means, f"correct {POLICY_FILE}, or remove it: the built-in ceiling holds then"
        )


def check_records(found: Mapping[str, Sequence[Damage]]) -> Iterator[Finding]:
    """The findings on records of what workspaces did, by name: on those that are damaged."""
    for name, damages in found.items():
        if damages:
            more = f", and {len(damages) - 1} more" if len(damages) > 1 else ""
            yield Finding(
                f"record of {name}", "warning", f"it is not as it was written: {damages[0]}{more}",
                f"`hutch report {name} --verify` tells all of it; lost lines can come from a backup alone",
            )  # fmt: skip


def check_published(found: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """The findings on programs of the host that listen on ports of workspaces, by name."""
    for name, told in found.items():
        means = "; ".join(told)
        yield Finding(
            f"ports of {name}", "warning", means, "another host_port in `publish`, or another for the program"
        )


def check_entrance(found: Entrance | None) -> Iterator[Finding]:
    """The finding on members, who have no say on a host without the group."""
    if found is None or not (found.has_group or found.is_there):
        return
    if found.wrong:
        means = f"the group {GROUP} needs root for workspaces of its own: {found.wrong}"
        yield Finding("members", "warning", means, "install hutch where root alone changes it, as its package does")
    elif found.is_there and found.way:
        means = f"the group {GROUP} has workspaces of its own without root, by {found.way}"
        if not found.has_group:
            means = (
                f"there is no group {GROUP} yet, which would have workspaces of its own: `groupadd --system {GROUP}`"
            )
        yield Finding("members", "ok", means)
    elif found.way:
        means = f"the group {GROUP} needs root for workspaces of its own"
        yield Finding("members", "warning", means, f"`sudo hutch doctor --fix` writes a rule for {found.way}")
    else:
        means = f"the group {GROUP} needs root for workspaces of its own: there is none of sudo, doas and pkexec"
        yield Finding("members", "warning", means, "install sudo")


def check_images(found: Mapping[str, Freshness]) -> Iterator[Finding]:
    """Findings from the last answers about the images of workspaces, by name; nothing is asked here."""
    told: dict[tuple[str, str], list[str]] = {}
    for name, fresh in found.items():
        for warning in fresh.warnings:
            told.setdefault(warning, []).append(name)
    for (text, way), names in told.items():
        what, _, means = text.partition(": ")
        yield Finding(f"{what} of {', '.join(names)}", "warning", means, way)
    asked = min((fresh.asked for fresh in found.values() if fresh.asked), default="")
    if asked and not told:
        yield Finding("images", "ok", waiting_words(0, asked))
    elif found and not asked:
        means = "it is not known whether security updates are waiting"
        yield Finding("images", "unknown", means, "`hutch image build` asks, but not for foreign trees and kept roots")
