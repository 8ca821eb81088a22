"""What a virtual machine cannot do, as far as its table in the file tells. What the host has is host/capacity's."""

from __future__ import annotations

from collections.abc import Iterable

from hutch.errors import Problem
from hutch.spec.model import Workspace

LEAST_MEMORY = 256 << 20  # with less, a guest's systemd and sshd do not come up
MOST_CPUS = 255  # what a processor's number has room for, without hardware that microvm does not have


def check(prefix: str, workspace: Workspace) -> Iterable[Problem]:
    """The problems of a workspace whose table is called `prefix`."""
    if workspace.owner in (0, "root"):
        yield Problem("root cannot own a workspace's home", f"{prefix}.owner", hint="name an ordinary user")
    if workspace.memory is not None and workspace.memory < LEAST_MEMORY:
        yield Problem("is too little for a VM", f"{prefix}.memory", hint=f"at least {LEAST_MEMORY >> 20}MiB")
    if workspace.vcpus is not None and workspace.vcpus > MOST_CPUS:
        yield Problem("is more than a VM can have", f"{prefix}.vcpus", hint=f"1 to {MOST_CPUS}")
