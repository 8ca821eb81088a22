"""Pure: workspace -> Launch. One file for each engine; what a backend cannot do it says in `check`.

The registry: adding a backend touches its own file and one line here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from importlib import import_module
from typing import Protocol, cast

from hutch.backends.launch import Launch, Surroundings
from hutch.backends.share import guard_steps, shown
from hutch.errors import Problem
from hutch.spec import names
from hutch.spec.model import Network, Workspace


class Backend(Protocol):
    """What a backend's module offers."""

    def check(self, prefix: str, workspace: Workspace) -> Iterable[Problem]:
        """What it cannot do for a workspace whose table is called `prefix`, before anything is touched."""

    def launch(self, name: str, workspace: Workspace, host: Surroundings) -> Launch:
        """What makes the workspace run."""


BACKENDS = {("local", "container"): "nspawn", ("local", "vm"): "hypervisor"}
"""(engine, type) -> the module of its backend, which is imported only for workspaces of that kind."""
UNSUPPORTED = "not supported yet"


def backend_of(workspace: Workspace) -> Backend | None:
    module = BACKENDS.get((workspace.engine, workspace.type))
    return cast(Backend, import_module(f"hutch.backends.{module}")) if module else None


def check(name: str, workspace: Workspace, network: Network) -> Iterable[Problem]:
    """What this hutch cannot do for the workspace; keys are dotted as in the file."""
    prefix = f"workspaces.{name}"
    backend = backend_of(workspace)
    if backend is None:
        yield Problem(UNSUPPORTED, f"{prefix}.engine", hint='use "local"')
    yield from _check_common(prefix, workspace)
    if backend is not None:
        yield from backend.check(prefix, workspace)


def _check_common(prefix: str, workspace: Workspace) -> Iterable[Problem]:
    """Features that no backend has yet."""
    if workspace.image.startswith(("oci:", "nix:")):
        hint = "use a distribution, or rootfs:PATH"
        yield Problem(f"{workspace.image.split(':')[0]}: images are {UNSUPPORTED}", f"{prefix}.image", hint=hint)
    if workspace.gpu and workspace.type == "container":  # elsewhere it has no effect, as plan says
        yield Problem(UNSUPPORTED, f"{prefix}.gpu", hint="use false or leave it out")
    if workspace.nix_store:
        for index, mount in enumerate(workspace.mounts):
            if f"{mount.target}/".startswith(f"{names.NIX_STORE}/") or mount.target == "/nix":
                message = f"{mount.target} is in the way of {names.NIX_STORE}, which nix_store shares"
                yield Problem(message, f"{prefix}.mounts[{index}].target", hint="another target, or nix_store = false")
    if workspace.idle is not None:
        yield Problem(UNSUPPORTED, f"{prefix}.idle", hint="leave it out")


def launch(name: str, workspace: Workspace, surroundings: Surroundings) -> Launch:
    """What makes the workspace run."""
    backend = backend_of(workspace)
    assert backend is not None  # or `check` would have refused it
    found = backend.launch(name, workspace, surroundings)
    return replace(found, shares=shown(workspace), guards=guard_steps(workspace, surroundings))
