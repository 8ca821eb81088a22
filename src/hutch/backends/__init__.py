"""Pure: workspace -> Launch, or an Instance where a server runs it. One file for each backend: its traits, its problems
(`check`), and its `launch` or `render`.

Adding a backend touches its own file and one line of the registry, spec/kinds. Nobody else asks for a type or a
hypervisor.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from hutch.backends.traits import Traits
from hutch.errors import Problem
from hutch.spec import kinds, names
from hutch.spec.model import Network, Weight, WorkspaceSpec, declared_weight, has_effect

if TYPE_CHECKING:
    from hutch.backends.launch import Hardware, Launch, Surroundings


class Backend(Protocol):
    """The interface of every backend's module."""

    TRAITS: Traits

    def check(self, prefix: str, workspace: WorkspaceSpec) -> Iterable[Problem]:
        """The problems of a workspace whose table is called `prefix`, before anything is touched."""


class HostBackend(Backend, Protocol):
    """The interface of a backend by which this host runs a workspace. A server's is called by its engine alone."""

    def launch(self, name: str, workspace: WorkspaceSpec, host: Surroundings) -> Launch:
        """The Launch that makes the workspace run."""


UNSUPPORTED = "not supported yet"
FOREIGN = Traits("")
"""The traits of a workspace that no backend here runs: this host has nothing to do for it."""


def backends_of(workspace: WorkspaceSpec) -> list[Backend]:
    """The backends that the workspace leaves to choose from, the highest rank first: all of its kind, or the one that
    it names."""
    is_named = has_effect("hypervisor", workspace.type) and workspace.hypervisor != "auto"
    found = backends_named(workspace.engine, workspace.type, workspace.hypervisor if is_named else None)
    return sorted(found, key=lambda backend: backend.TRAITS.rank, reverse=True)


def backends_named(engine: str, type: str, name: str | None = None) -> list[Backend]:
    """The backends of a kind, or the one of a name among them."""
    modules = (module for *kind, of, module in kinds.BACKENDS if kind == [engine, type] and name in (None, of))
    return [cast(Backend, import_module(module)) for module in modules]


def choose(workspace: WorkspaceSpec, hardware: Hardware | None = None) -> Backend | None:
    """The first backend that can run the workspace on this host, or on one that lacks nothing where its hardware is not
    given. Where none can, it is the last: what speaks against that one is told."""
    found = backends_of(workspace)
    for backend in found[:-1]:
        lacks = backend.TRAITS.lacks(hardware) if hardware is not None else ()
        if not [*lacks, *backend.check("", workspace)]:
            return backend
    return found[-1] if found else None


def traits_of(workspace: WorkspaceSpec) -> Traits:
    """The traits that hold for the workspace whichever backend runs it, see Traits."""
    backend = choose(workspace)
    return backend.TRAITS if backend is not None else FOREIGN


def traits_named(workspace: WorkspaceSpec, name: str) -> Traits:
    """The traits of the backend that has started the workspace, by its name."""
    found = (backend.TRAITS for backend in backends_of(workspace))
    return next((traits for traits in found if traits.name == name), traits_of(workspace))


def is_machine(workspace: WorkspaceSpec) -> bool:
    return traits_of(workspace).is_machine


def initial_memory(workspace: WorkspaceSpec) -> int | None:
    """The bytes that a workspace is started with and that stay its maximum; None where `memory` is but a limit."""
    default = traits_of(workspace).memory
    return (workspace.memory or default) if default is not None else None


def weight_of(key: str, workspace: WorkspaceSpec) -> Weight:
    """The weight of a change of a key for the workspace: a key without effect is live."""
    is_live = not has_effect(key, workspace.type) or key in traits_of(workspace).live
    return "live" if is_live else declared_weight(key)


def check(name: str, workspace: WorkspaceSpec, network: Network) -> Iterable[Problem]:
    """Problems: the keys that this hutch cannot honour for the workspace, dotted as in the file."""
    prefix = f"workspaces.{name}"
    backend = choose(workspace)
    if backend is None:
        message = f'{UNSUPPORTED} with engine = "{workspace.engine}"'
        yield Problem(message, f"{prefix}.type", hint='use "container", or engine = "local"')
    yield from _check_common(prefix, workspace)
    if backend is not None:
        yield from backend.check(prefix, workspace)


def _check_common(prefix: str, workspace: WorkspaceSpec) -> Iterable[Problem]:
    """Problems: features that no backend has yet, and those that few have."""
    if workspace.image.startswith(("oci:", "nix:")):
        hint = "use a distribution, or rootfs:PATH"
        yield Problem(f"{workspace.image.split(':')[0]}: images are {UNSUPPORTED}", f"{prefix}.image", hint=hint)
    if workspace.gpu and has_effect("gpu", workspace.type):  # elsewhere plan says that it has none
        yield Problem(UNSUPPORTED, f"{prefix}.gpu", hint="use false or leave it out")
    if workspace.nix_store:
        for index, mount in enumerate(workspace.mounts):
            if f"{mount.target}/".startswith(f"{names.NIX_STORE}/") or mount.target == "/nix":
                message = f"{mount.target} is in the way of {names.NIX_STORE}, which nix_store shares"
                yield Problem(message, f"{prefix}.mounts[{index}].target", hint="another target, or nix_store = false")
    if workspace.idle is not None and not traits_of(workspace).can_suspend:
        yield Problem(UNSUPPORTED, f"{prefix}.idle", hint="leave it out")


def check_named(name: str, workspace: WorkspaceSpec, hardware: Hardware | None) -> Iterable[Problem]:
    """Problems: what the host lacks for the backend that a workspace names. Without a name another one runs it."""
    backend, *others = backends_of(workspace)
    if not others:
        for message in backend.TRAITS.lacks(hardware):
            yield Problem(message, f"workspaces.{name}.hypervisor", hint=f"use {alternatives(workspace)}")


def alternatives(workspace: WorkspaceSpec) -> str:
    """The other values that `hypervisor` may have, in words."""
    others = (backend.TRAITS.name for backend in backends_of(replace(workspace, hypervisor="auto")))
    return " or ".join(f'"{word}"' for word in (*others, "auto") if word != workspace.hypervisor)


def launch_of(name: str, workspace: WorkspaceSpec, surroundings: Surroundings) -> Launch:
    """The Launch that makes a workspace of this host run."""
    # Spares the start-up of `hutch ls`, which reads records and has no use for it.
    from hutch.backends.share import guard_steps, mounted, shown, watch_step

    backend = cast(HostBackend, choose(workspace, surroundings.hardware))
    workspace = mounted(workspace, surroundings)
    found = backend.launch(name, workspace, surroundings)
    guards, watch = guard_steps(workspace, surroundings), watch_step(found, surroundings)
    return replace(found, shares=shown(workspace), guards=guards, watch=watch)
