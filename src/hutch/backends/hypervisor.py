"""The backend of virtual machines: the monitor that a workspace names, or the better one that this host has. Pure; the
host's facts come as Hardware."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

from hutch.backends import cloud_hypervisor, qemu
from hutch.backends.launch import Hardware, Launch, Surroundings
from hutch.errors import HutchError, Problem
from hutch.spec.model import Workspace

Hypervisor = Literal["qemu", "cloud-hypervisor"]

OLDEST = 52
"""The first cloud-hypervisor that does what is asked of it: `image_type` of disks, and a network device by descriptor
from another network namespace."""
NO_SERVICE = "cloud-hypervisor is not run as a service of systemd's, as workspaces of this host are"
INSTEAD = '"qemu" or "auto"'
VERSION = re.compile(r"cloud-hypervisor v?([0-9]{1,6})[.]", re.ASCII)


def check(prefix: str, workspace: Workspace) -> Iterable[Problem]:
    """What a machine cannot do under the monitor that is named for it; under QEMU it can do most."""
    named = workspace.hypervisor == "cloud-hypervisor"
    yield from cloud_hypervisor.check(prefix, workspace) if named else qemu.check(prefix, workspace)


def launch(name: str, workspace: Workspace, host: Surroundings) -> Launch:
    """Everything that makes the machine run."""
    assert host.hardware is not None
    if choose_hypervisor(workspace, host.hardware, by_systemd=host.by_systemd) == "qemu":
        return qemu.launch(name, workspace, host)
    if host.by_systemd:  # its start has been refused already: see `check_hypervisor`
        raise HutchError(f"{name}: {NO_SERVICE}", resolution=f"hypervisor = {INSTEAD}")
    return cloud_hypervisor.launch(name, workspace, host)


def choose_hypervisor(workspace: Workspace, hardware: Hardware, *, by_systemd: bool = False) -> Hypervisor:
    """What `hypervisor` means for this workspace on this host. "auto" is cloud-hypervisor where it can run this
    machine, QEMU otherwise. What is named is taken, whether it works or not: see `check_hypervisor`."""
    if workspace.hypervisor != "auto":
        return workspace.hypervisor
    obstacles = (*lacks(hardware, by_systemd), *cloud_hypervisor.check("", workspace))
    return "qemu" if obstacles else "cloud-hypervisor"


def check_hypervisor(
    prefix: str, workspace: Workspace, hardware: Hardware, *, by_systemd: bool = False
) -> Iterable[Problem]:
    """Why what a workspace names cannot run on this host. QEMU can wherever hutch does."""
    if workspace.hypervisor == "cloud-hypervisor":
        for message in lacks(hardware, by_systemd):
            yield Problem(message, f"{prefix}.hypervisor", hint=f"use {INSTEAD}")


def lacks(hardware: Hardware, by_systemd: bool) -> Iterable[str]:
    """What this host lacks for cloud-hypervisor, or has too much: only a process that stays could hear its events, and
    its guest's calls."""
    if by_systemd:
        yield NO_SERVICE
    if hardware.cloud_hypervisor is None:
        yield f"cloud-hypervisor {OLDEST} or newer is not installed"
    if hardware.accelerator != "kvm":
        yield "cloud-hypervisor needs KVM, and no guest runs under KVM on this host"


def parse_version(text: str) -> int | None:
    """The major version in what `cloud-hypervisor --version` prints; None when there is none in it."""
    found = VERSION.match(text)
    return int(found[1]) if found else None
