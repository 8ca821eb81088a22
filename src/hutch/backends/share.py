"""A host directory shown to a guest: the one bind mount that every backend begins with."""

from __future__ import annotations

from hutch.backends.launch import Step, Surroundings
from hutch.spec.model import Workspace


def sources(workspace: Workspace) -> list[tuple[str, str, bool]]:
    """(directory on the host, where it is inside, whether it is read-only) of each share, home first."""
    assert workspace.home is not None
    mounts = [(mount.source, mount.target, mount.readonly) for mount in workspace.mounts]
    return [(workspace.home, f"/home/{workspace.user}", False), *mounts]


def bind_step(name: str, source: str, target: str, readonly: bool, mapping: str, host: Surroundings) -> Step:
    """Show `source` at `target`, with the uids of `mapping`, as mount(8) reads it: "type:on disk:mapped:count …"."""
    options = f"{'ro,' if readonly else ''}nosuid,nodev,X-mount.idmap={mapping}"
    if source == str(host.places.home(name)):  # root's own directories all the way: there can be no link on it
        return Step(("mount", "--bind", "-o", options, source, target), f"share {source}")
    bind = (host.python, "-I", "-S", f"{host.package}/host/bind.py")
    return Step((*bind, source, target, options), f"share {source}")
