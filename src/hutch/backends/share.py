"""A host directory shown to a guest: the one bind mount that every backend begins with."""

from __future__ import annotations

from hutch.backends.launch import Step, Surroundings
from hutch.spec import names
from hutch.spec.model import WorkspaceSpec

HOST = ("nsenter", "--mount=/proc/1/ns/mnt", "--")
STORE = "nix"
"""The name of the host's Nix store among the shares."""
OVERLAY = "index=off,metacopy=off,redirect_dir=off,xino=off"
"""Options of the overlay on the store: the guest's changes stay valid when the store has changed between two starts.
See "Changes to underlying filesystems" in the kernel's filesystems/overlayfs."""


def sources(workspace: WorkspaceSpec) -> list[tuple[str, str, bool]]:
    """(directory on the host, where it is inside, whether it is read-only) of each share, home first."""
    assert workspace.home is not None
    mounts = [(mount.source, mount.target, mount.readonly) for mount in workspace.mounts]
    return [(workspace.home, f"/home/{workspace.user}", False), *mounts]


def share_places(workspace: WorkspaceSpec, runtime: str) -> list[str]:
    """The path of each share on the host, in the order of `sources`; the store, if it is shared, comes last."""
    places = [f"{runtime}/shares/{index}" for index in range(len(workspace.mounts) + 1)]
    return [*places, f"{runtime}/shares/{STORE}"] if workspace.nix_store else places


def share_tags(workspace: WorkspaceSpec) -> list[str]:
    """The tags by which a machine knows the shares, in the order of `share_places`."""
    tags = [f"share{index}" for index in range(len(workspace.mounts) + 1)]
    return [*tags, STORE] if workspace.nix_store else tags


def store_step(target: str, host: Surroundings, mapping: str = "") -> Step:
    """Show the host's Nix store at `target`, read-only. Without a mapping its files keep their owners: everybody may
    read them."""
    options = f"ro,nosuid,nodev{',X-mount.idmap=' if mapping else ''}{mapping}"
    bind = (host.python, "-I", "-S", f"{host.package}/host/storage/bind.py")
    return Step((*bind, names.NIX_STORE, target, options), f"share {names.NIX_STORE}")


def shown(workspace: WorkspaceSpec) -> tuple[str, ...]:
    """The directories of the host's that a workspace is shown, the store included."""
    store = (names.NIX_STORE,) if workspace.nix_store else ()
    return (*(source for source, _, _ in sources(workspace)), *store)


def guard_steps(workspace: WorkspaceSpec, host: Surroundings) -> tuple[Step, ...]:
    """Steps that mount its writable directories nosuid,nodev on the host, where they are not in hutch's state."""
    bind = (*HOST, host.python, "-I", "-S", f"{host.package}/host/storage/bind.py")
    writable = (source for source, _, readonly in sources(workspace) if not readonly)
    return tuple(
        Step((*bind, source, "=?", "nosuid,nodev"), f"guard {source}")
        for source in writable
        if not source.startswith(f"{host.layout.state}/")
    )


def bind_step(name: str, source: str, target: str, readonly: bool, mapping: str, host: Surroundings) -> Step:
    """Show `source` at `target`, with the uids of `mapping`, as mount(8) reads it: "type:on disk:mapped:count …"."""
    options = f"{'ro,' if readonly else ''}nosuid,nodev,X-mount.idmap={mapping}"
    if source == str(host.layout.home(name)):  # root's own directories all the way: there can be no link on it
        return Step(("mount", "--bind", "-o", options, source, target), f"share {source}")
    bind = (host.python, "-I", "-S", f"{host.package}/host/storage/bind.py")
    return Step((*bind, source, target, options), f"share {source}")
