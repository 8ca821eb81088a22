"""The kinds of workspaces, and what runs each: the registry of backends. A new one is its file and a line here."""

from __future__ import annotations

BACKENDS: tuple[tuple[str, str, str, str], ...] = (
    ("local", "container", "nspawn", "hutch.backends.nspawn"),
    ("local", "vm", "qemu", "hutch.backends.qemu"),
    ("local", "vm", "cloud-hypervisor", "hutch.backends.cloud_hypervisor"),
    ("incus", "container", "incus", "hutch.backends.incus"),
)
"""(engine, type, name, module). A module is imported only for workspaces of its kind. The names of this host's machines
are what `hypervisor` may say."""


def hypervisors() -> tuple[str, ...]:
    """The names that the key `hypervisor` takes beside "auto"."""
    return tuple(name for engine, type, name, _ in BACKENDS if (engine, type) == ("local", "vm"))
