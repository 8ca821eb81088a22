"""The way into a running workspace: a container is entered by its namespaces, a machine, which has none, by ssh."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hutch.access.enter import Login, enter
from hutch.access.streams import BY_FORCE
from hutch.backends import is_machine, traits_named
from hutch.backends.identity import guest_uid
from hutch.errors import HutchError
from hutch.files import kept_open
from hutch.frozen import dataclass
from hutch.runtime.observe import are_shown, observe, observe_facts
from hutch.spec.record import Observation

if TYPE_CHECKING:
    from hutch.spec.model import WorkspaceSpec
    from hutch.spec.names import Layout
    from hutch.spec.record import Record

GRACE = 2.0  # seconds that it may take to end what is to be ended


def run_inside(
    layout: Layout,
    record: Record,
    argv: Sequence[str],
    *,
    root: bool = False,
    capture: int | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str = "",
) -> int:
    """Run a command with the caller's own streams; returns its exit code, 128 + n when signal n ended it.

    `capture` is a descriptor that takes its output instead. `env` adds to the environment of a login session; `cwd` is
    relative to home. HutchError when the workspace does not run.
    """
    name, now = record.name, observe(layout, record.name)
    booted = record.effective
    if now.state != "running":
        raise HutchError(f"{name} is {now.state}", resolution=f"`hutch start {name}`")
    way = reach_by_ssh if is_machine(booted) or os.geteuid() != 0 else enter_container
    login = login_of(booted, root=root)
    if env or cwd:
        login = replace(login, env=(*booted.env, *(env or {}).items()), cwd=cwd and os.path.join(login.home, cwd))
    return way(Inside(layout, name, booted, now), login, list(argv), capture)


def told_inside(layout: Layout, record: Record, argv: Sequence[str], *, seconds: float) -> int | None:
    """Run a command as root, and drop its output; returns its exit code, None when it did not end in time.

    A guest's root can keep a command of ours, and whoever waits for it, from ever ending: by tracing it, by a file
    system that does not answer. So that is done by a child, which is left behind then, and has none of our descriptors:
    locks above all. What it leaves behind is in the workspace's cgroup.
    """
    child = os.fork()
    if child == 0:
        code = 255
        try:
            os.closerange(3, 1 << 20)
            os.setsid()
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(nowhere, stream)
            code = run_inside(layout, record, argv, root=True, capture=nowhere)
        finally:
            os._exit(code)
    with kept_open(os.pidfd_open(child)) as pidfd:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        for number, patience in ((0, seconds), (BY_FORCE, GRACE), (signal.SIGKILL, GRACE)):
            if number:
                signal.pidfd_send_signal(pidfd, number)
            if poll.poll(patience * 1000):
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                return None if number else code
    return None


def login_of(booted: WorkspaceSpec, *, root: bool) -> Login:
    """The login that a command runs with: the login user's, or root's."""
    if root:
        return Login("root", 0, "/root", "/bin/bash", booted.env)
    assert isinstance(booted.owner, int)
    return Login(booted.user, guest_uid(booted.owner), f"/home/{booted.user}", booted.shell, booted.env)


@dataclass(frozen=True)
class Inside:
    """A running workspace: the spec that it was booted from, and its state."""

    layout: Layout
    name: str
    booted: WorkspaceSpec
    now: Observation


def enter_container(inside: Inside, login: Login, argv: list[str], capture: int | None) -> int:
    if inside.now.leader is None:
        raise HutchError(f"{inside.name} has just ended", resolution=f"`hutch start {inside.name}`")
    return enter(inside.now.cgroup, inside.now.leader, login, argv, capture=capture)


def reach_by_ssh(inside: Inside, login: Login, argv: list[str], capture: int | None) -> int:
    """Run a command by ssh, as root with hutch's own key; as another user by the user's ssh, as hutch has configured
    it, with keys that the workspace knows."""
    from hutch.access.remote import RemoteTarget, run_remotely  # `exec` in a container starts without ssh
    from hutch.access.remote_script import Command
    from hutch.host.hardware import vsock
    from hutch.host.identity import ssh

    layout, booted, leader = inside.layout, inside.booted, inside.now.leader
    assert booted.ip is not None
    is_own, proxy = os.geteuid() != 0, ""
    if is_own:
        leader = leader if are_shown() else None
    else:
        traits = traits_named(booted, observe_facts(layout, inside.name).get("hypervisor", ""))
        proxy = ssh.proxy_of(booted, traits, has_vsock=vsock.can_open(vsock.DEVICE))
        proxy = "" if proxy and ssh.answers(booted.ip) else proxy
    target = RemoteTarget(layout, ssh.Peer(inside.name, booted.ip, booted.user, proxy=proxy), leader, by_own_key=is_own)
    command = Command(login.home, login.environment(), argv, login.cwd)
    return run_remotely(target, command, root=login.uid == 0, capture=capture)
