"""Throw-away containers in which a look is taken into what a guest wrote: pure, like the backends beside it.

Each is made from the workspace's image, without a network, with what it looks at read-only; and is to be run in a mount
namespace of its own, in which /mnt serves it as a place to work.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace

from hutch.backends.identity import guest_uid
from hutch.backends.launch import Step, Surroundings
from hutch.backends.nspawn import LAYERS, render_owner_map, root_steps, sandboxed, sys_step
from hutch.backends.share import OVERLAY, bind_step, private_layer, render_layer_map, sources
from hutch.spec import names
from hutch.spec.model import Mount, WorkspaceSpec

LOOK_SCRATCH = 64 << 20  # bytes that each place may hold where an inspection can write
WORK, SHOWN = "/mnt", "home"  # the place to work, and the mount point there of what is looked at
ROOT_PLACE = "/mnt"  # the place of a root inside
LAYER_PLACE, HOST_PLACE = "/mnt/layer", "/mnt/host"  # the places inside of a private mount's two layers


def inspection(
    name: str, workspace: WorkspaceSpec, host: Surroundings, command: tuple[str, ...], shares: Sequence[Mount] = ()
) -> list[str]:
    """A command line that runs `command` in a throw-away container of the workspace's image, without a network: as the
    login user, with its home read-only; or with `shares` in its place, some of its mounts."""
    assert isinstance(workspace.owner, int)
    looked = [(mount.source, mount.target) for mount in shares] or [sources(workspace)[0][:2]]
    mapping = render_owner_map(workspace.owner, host.owner_gid, host.uid_base)
    places = [f"{WORK}/{SHOWN}{index or ''}" for index in range(len(looked))]
    shows = [
        (bind_step(name, source, place, True, mapping, host), place, target)
        for (source, target), place in zip(looked, places, strict=True)
    ]
    return _throw_away(name, workspace, host, shows, _as_user(workspace, command))


def root_inspection(
    name: str, workspace: WorkspaceSpec, host: Surroundings, command: tuple[str, ...], *, runs: bool
) -> list[str]:
    """The same for a workspace's root, which lies read-only at /mnt inside; as root of the container, since parts of it
    are closed to others. That of one that runs is shown as it is: this is run in a copy of its mount namespace then. A
    kept one of a stopped workspace is put together without a layer to write to.
    """
    shown = f"{WORK}/{SHOWN}"
    options = "ro,nosuid,nodev"
    if runs:
        show = Step(("mount", "--bind", "-o", options, f"{host.layout.runtime(name)}/root", shown), "show the root")
    else:
        layers = f"{options},lowerdir={host.layout.root(name)}/upper:{WORK}/lower"
        show = Step(("mount", "-t", "overlay", "overlay", "-o", layers, shown), "show the kept root")
    return _throw_away(name, workspace, host, [(show, shown, ROOT_PLACE)], command)


def layer_inspection(
    name: str, workspace: WorkspaceSpec, host: Surroundings, command: tuple[str, ...], mount: Mount
) -> list[str]:
    """The same for a private mount, as the login user. Beside it stand what its own layer has, at LAYER_PLACE, and what
    the host has, at HOST_PLACE."""
    assert isinstance(workspace.owner, int)
    mapping = render_owner_map(workspace.owner, host.owner_gid, host.uid_base)
    below, own, shown = (f"{WORK}/{place}" for place in ("below", "own", SHOWN))
    layer = f"{private_layer(host.layout, name, mount)}/upper"
    options = f"ro,nosuid,nodev,X-mount.idmap={render_layer_map(mapping, host)}"
    layers = f"ro,nosuid,nodev,lowerdir={own}:{below},{OVERLAY}"
    shows = [
        (bind_step(name, mount.source, below, True, mapping, host), below, HOST_PLACE),
        (Step(("mount", "--bind", "-o", options, layer, own), "show its own layer"), own, LAYER_PLACE),
        (Step(("mount", "-t", "overlay", "overlay", "-o", layers, shown), f"show {mount.target}"), shown, mount.target),
    ]
    return _throw_away(name, workspace, host, shows, _as_user(workspace, command))


def _as_user(workspace: WorkspaceSpec, command: tuple[str, ...]) -> tuple[str, ...]:
    assert isinstance(workspace.owner, int)
    uid = str(guest_uid(workspace.owner))
    return ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--", *command)


def _throw_away(
    name: str,
    workspace: WorkspaceSpec,
    host: Surroundings,
    shows: Sequence[tuple[Step, str, str]],
    command: tuple[str, ...],
) -> list[str]:
    """A command line of a throw-away container. `shows` are a step that mounts something in WORK, the mount point there
    and the place inside; the last of these is the current directory of the command."""
    throw_away = replace(workspace, persist="home", disk=LOOK_SCRATCH, nix_store=False)
    points = (*(f"{WORK}/{layer}" for layer in LAYERS), *(place for _, place, _ in shows))
    steps = (
        Step(("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", WORK), "mount a tmpfs at /mnt"),
        Step(("mkdir", *points), "make mount points"),
        sys_step(host),
        *root_steps(name, throw_away, host, WORK),
        *(show for show, _, _ in shows),
    )
    target = shows[-1][2]
    nspawn = (
        *("systemd-nspawn", "--settings=no", "--register=no", "--keep-unit", "--quiet", "--as-pid2"),
        *("--console=pipe", "--link-journal=no", "--resolv-conf=off", "--timezone=off", "--private-network"),
        *(f"--directory={WORK}/root", f"--machine={name}-look"),
        *(f"--bind-ro={place}:{inside}" for _, place, inside in shows),
        *(f"--tmpfs={place}:mode=1777,size={LOOK_SCRATCH}" for place in ("/tmp", "/dev/shm")),
        *(f"--private-users={host.uid_base}:{names.UID_COUNT}", "--private-users-ownership=off"),
        *(f"--chdir={target}", f"--setenv=HOME={target}"),
        *command,
    )
    nspawn = sandboxed(host.python, host.package, nspawn)
    script = "\n".join([*(shlex.join(step.argv) for step in steps), f"exec {shlex.join(nspawn)}"])
    return ["sh", "-euc", script]
