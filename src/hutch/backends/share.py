"""The host's directories and files that a guest is shown: the steps that make each ready, on every backend alike.

A share is an idmapped bind mount. On one that the guest can write, what is protected is mounted read-only over itself
before the guest sees it (host/storage/protecting). A private one is an overlay: below it the host's directory, above
it one of the workspace's own. A private file is no mount at all: the workspace has a copy in its home
(host/storage/private_files).
"""

from __future__ import annotations

import json
import zlib
from dataclasses import replace

from hutch.backends.launch import Launch, Step, Surroundings
from hutch.spec import names
from hutch.spec.model import Mount, WorkspaceSpec
from hutch.spec.names import Layout
from hutch.spec.programs import own_program
from hutch.spec.record import writable_paths

STORE = "nix"
"""The name of the host's Nix store among the shares."""
OVERLAY = "index=off,metacopy=off,redirect_dir=off,xino=off"
"""Options of an overlay: what was written stays valid when the layer below has changed between two starts. See "Changes
to underlying filesystems" in the kernel's filesystems/overlayfs."""
BELOW, OWN = "below", "own"
"""The names of a private share's layers, behind a dot that follows its place."""


def mounted(workspace: WorkspaceSpec, host: Surroundings) -> WorkspaceSpec:
    """The workspace with those of its mounts that are mounts inside: a private file is a copy in its home."""
    kept = tuple(mount for mount in workspace.mounts if not (mount.is_private and mount.source in host.files))
    return workspace if len(kept) == len(workspace.mounts) else replace(workspace, mounts=kept)


def sources(workspace: WorkspaceSpec) -> list[tuple[str, str, bool]]:
    """(directory or file on the host, where it is inside, whether it is read-only) of each share, home first."""
    assert workspace.home is not None
    mounts = [(mount.source, mount.target, mount.normalized().mode == "readonly") for mount in workspace.mounts]
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
    return Step((*bind_program(host), names.NIX_STORE, target, options), f"share {names.NIX_STORE}")


def shown(workspace: WorkspaceSpec) -> tuple[str, ...]:
    """The directories of the host's that a workspace is shown, the store included."""
    store = (names.NIX_STORE,) if workspace.nix_store else ()
    return (*(source for source, _, _ in sources(workspace)), *store)


def guard_steps(workspace: WorkspaceSpec, host: Surroundings) -> tuple[Step, ...]:
    """Steps that mount what it writes nosuid,nodev on the host, where that is not in hutch's state."""
    return tuple(
        Step((*bind_program(host), source, "=?", "nosuid,nodev", *opener(host)), f"guard {source}")
        for source in writable_paths(workspace)
        if not source.startswith(f"{host.layout.state}/")
    )


def opener(host: Surroundings) -> tuple[str, ...]:
    """The last word for bind.py: the user with whose rights a mount's source is opened, where that is not root."""
    return () if host.member is None else (str(host.member),)


def bind_program(host: Surroundings) -> tuple[str, ...]:
    return (host.python, "-I", "-S", f"{host.package}/host/storage/bind.py")


def bind_step(name: str, source: str, target: str, readonly: bool, mapping: str, host: Surroundings) -> Step:
    """Show `source` at `target`, with the uids of `mapping`, as mount(8) reads it: "type:on disk:mapped:count …"."""
    options = f"{'ro,' if readonly else ''}nosuid,nodev,X-mount.idmap={mapping}"
    if source == str(host.layout.home(name)):  # root's own directories all the way: there can be no link on it
        return Step(("mount", "--bind", "-o", options, source, target), f"share {source}")
    return Step((*bind_program(host), source, target, options, *opener(host)), f"share {source}")


def mount_steps(
    name: str, workspace: WorkspaceSpec, mount: Mount, place: str, mapping: str, host: Surroundings
) -> tuple[Step, ...]:
    """Steps that make one of the workspace's mounts ready at `place`, which is there: an empty directory, or for a file
    whatever the backend makes."""
    mode = mount.normalized().mode
    if mode == "private":
        return private_steps(name, workspace, mount, place, mapping, host)
    bind = bind_step(name, mount.source, place, mode == "readonly", mapping, host)
    return (bind, *protect_steps(name, workspace, mount, place, host))


def protect_steps(
    name: str, workspace: WorkspaceSpec, mount: Mount, place: str, host: Surroundings
) -> tuple[Step, ...]:
    """A step that makes what is protected in a directory read-only, where it is shown to be written."""
    if not mount.is_writable or mount.source in host.files or not (workspace.protect_default or workspace.protect):
        return ()
    program = own_program("hutch.host.storage.protecting", host.python, host.package)
    owner = (str(workspace.uid), str(host.owner_gid), str(host.layout.placeholders), name)
    default = "default" if workspace.protect_default else "none"
    return (Step((*program, place, mount.source, *owner, default, *workspace.protect), f"protect {mount.source}"),)


def watch_step(found: Launch, host: Surroundings) -> Step | None:
    """The step that mounts again what protects the Launch's shares, None for one without any."""
    program = own_program("hutch.host.storage.protecting", host.python, host.package)
    steps = (step for chain in found.prepare for step in chain)
    told = [step.argv[len(program) :] for step in steps if step.argv[: len(program)] == program]
    if not told:
        return None
    watch = own_program("hutch.host.storage.protection_watch", host.python, host.package)
    return Step((*watch, json.dumps(told)), "keep what is protected so")


def release_steps(name: str, workspace: WorkspaceSpec, host: Surroundings) -> tuple[Step, ...]:
    """A step that takes away what was put where protected paths are absent."""
    if not any(protect_steps(name, workspace, mount, "", host) for mount in workspace.mounts):
        return ()
    program = own_program("hutch.host.storage.placeholders", host.python, host.package)
    return (Step((*program, str(host.layout.placeholders), name), "remove placeholders", may_fail=True),)


def private_steps(
    name: str, workspace: WorkspaceSpec, mount: Mount, place: str, mapping: str, host: Surroundings
) -> tuple[Step, ...]:
    """Steps for an overlay at `place`. Its own layer is kept with the home, and mapped alike: it stays when the type
    changes. The kernel makes marks there as root, so root's files are root's, in a directory that is root's alone."""
    kept = private_layer(host.layout, name, mount)
    below, own = f"{place}.{BELOW}", f"{place}.{OWN}"
    given = ("-o", str(workspace.uid), "-g", str(host.owner_gid))
    layers = f"lowerdir={below},upperdir={own}/upper,workdir={own}/work"
    what = f"share {mount.source}"
    return (
        Step(("install", "-d", "-m", "700", str(host.layout.private(name)), kept, f"{kept}/work"), what),
        Step(("install", "-d", "-m", "700", *given, f"{kept}/upper"), what),
        Step(("mkdir", "-p", below, own), what),
        Step(
            (*bind_program(host), mount.source, below, f"ro,nosuid,nodev,X-mount.idmap={mapping}", *opener(host)), what
        ),
        Step(
            ("mount", "--bind", "-o", f"nosuid,nodev,X-mount.idmap={render_layer_map(mapping, host)}", kept, own), what
        ),
        Step(("mount", "-t", "overlay", "overlay", "-o", f"nosuid,nodev,{layers},{OVERLAY}", place), what),
        Step(("umount", "--lazy", below, own), what),  # the overlay keeps what it needs of them
    )


def render_layer_map(mapping: str, host: Surroundings) -> str:
    """The uids of a private mount's own layer: those of `mapping`, and root's, in whose name the kernel marks what is
    not there any more."""
    return f"{mapping} {'u:0:0:1' if host.owner_gid == 0 else 'b:0:0:1'}"


def private_layer(layout: Layout, name: str, mount: Mount) -> str:
    """The place of a private mount's own layer: another directory of the host's has another one."""
    told = f"{mount.source}\0{mount.target}"
    return f"{layout.private(name)}/{zlib.crc32(told.encode()):08x}"


def private_layers(layout: Layout, name: str, workspace: WorkspaceSpec) -> list[str]:
    """The directories of root's own with what is written in private mounts, in `upper`."""
    return [private_layer(layout, name, mount) for mount in workspace.mounts if mount.is_private]
