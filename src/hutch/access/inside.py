"""The way into a running workspace: a container is entered by its namespaces; a machine, which has none, and a
workspace that another host runs are reached by ssh."""

from __future__ import annotations

import fcntl
import os
import select
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hutch.access.login import Login
from hutch.access.streams import BY_FORCE
from hutch.backends import is_machine
from hutch.backends.identity import guest_uid
from hutch.errors import HutchError
from hutch.files import kept_open
from hutch.frozen import dataclass
from hutch.guest.credentials import session_environment
from hutch.runtime.observe import are_shown, observe, observe_cid
from hutch.spec.record import Observation

if TYPE_CHECKING:
    from hutch.access.remote import RemoteTarget
    from hutch.host.identity.ssh import Peer
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
    peer: Peer | None = None,
) -> int:
    """Run a command with the caller's own streams; returns its exit code, 128 + n when signal n ended it.

    `capture` is a descriptor that takes its output instead. `env` adds to the environment of a login session; `cwd` is
    relative to home. `peer` is given for a workspace that another host runs: its proxy tells who does not run.
    HutchError when the workspace does not run.
    """
    booted = record.effective
    login = login_of(booted, root=root)
    if env or cwd:
        login = replace(login, env=(*login.env, *(env or {}).items()), cwd=cwd and os.path.join(login.home, cwd))
    if peer is not None:
        return _run_by_ssh(target_of(layout, record, peer), login, list(argv), capture)
    way = reach_by_ssh if is_machine(booted) or os.geteuid() != 0 else enter_container
    return way(_look(layout, record), login, list(argv), capture)


def told_inside(
    layout: Layout, record: Record, argv: Sequence[str], *, seconds: float, env: Mapping[str, str] | None = None
) -> int | None:
    """Run a command as root, and drop its output; returns its exit code, None when it did not end in time. What not
    everybody on the host may know is told by `env`: arguments are for all to list.

    A guest's root can keep a command of ours, and whoever waits for it, from ever ending: by tracing it, by a file
    system that does not answer. So that is done by a child, which is left behind then, and has none of our descriptors:
    locks above all. What it leaves behind is in the workspace's cgroup.
    """
    with kept_open(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)) as nowhere:
        return _run_by_child(layout, record, argv, seconds, nowhere, env)


def heard_inside(
    layout: Layout, record: Record, argv: Sequence[str], *, seconds: float, most: int
) -> tuple[int | None, bytes]:
    """The same with what it wrote to both its streams: the first `most` bytes of that, and no more is taken of it."""
    with kept_open(os.memfd_create("answer", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)) as answer:
        os.truncate(answer, most)
        fcntl.fcntl(answer, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        code = _run_by_child(layout, record, argv, seconds, answer, None)
        return code, os.pread(answer, most, 0).rstrip(b"\0")


def _run_by_child(
    layout: Layout,
    record: Record,
    argv: Sequence[str],
    seconds: float,
    output: int,
    env: Mapping[str, str] | None,
) -> int | None:
    """Run a command as root in a child that has no descriptor of ours but the one for its output."""
    child = os.fork()
    if child == 0:
        code = 255
        try:
            os.dup2(output, 3)
            os.closerange(4, 1 << 20)
            os.setsid()
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(nowhere, stream)
            code = run_inside(layout, record, argv, root=True, capture=3, env=env)
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
        return Login("root", 0, "/root", "/bin/bash", session_environment(booted.env))
    uid = guest_uid(booted.uid)
    return Login(booted.user, uid, f"/home/{booted.user}", booted.shell, session_environment(booted.env))


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
    # Spares the start-up of `hutch run` for those who come by ssh.
    from hutch.access.enter import enter

    return enter(inside.now.cgroup, inside.now.leader, login, argv, capture=capture)


def reach_by_ssh(inside: Inside, login: Login, argv: list[str], capture: int | None) -> int:
    """Run a command by ssh in a workspace of this host."""
    return _run_by_ssh(_own_target(inside), login, argv, capture)


def _run_by_ssh(target: RemoteTarget, login: Login, argv: list[str], capture: int | None) -> int:
    from hutch.access.remote import run_remotely  # `exec` in a container starts without ssh
    from hutch.access.remote_script import Command

    command = Command(login.home, login.environment(), argv, login.cwd)
    return run_remotely(target, command, root=login.uid == 0, capture=capture)


def target_of(layout: Layout, record: Record, peer: Peer | None) -> RemoteTarget:
    """A running workspace, of either type, as ssh reaches it; `peer` is as in run_inside."""
    from hutch.access.remote import RemoteTarget  # `exec` in a container starts without ssh

    if peer is not None:
        return RemoteTarget(layout, peer, by_own_key=os.geteuid() != 0)
    return _own_target(_look(layout, record))


def _look(layout: Layout, record: Record) -> Inside:
    name, now = record.name, observe(layout, record.name)
    if now.state != "running":
        raise HutchError(f"{name} is {now.state}", resolution=f"`hutch start {name}`")
    return Inside(layout, name, record.effective, now)


def _own_target(inside: Inside) -> RemoteTarget:
    """A workspace of this host: for root with hutch's own key; for another user by the user's ssh, as hutch has
    configured it, with keys that the workspace knows."""
    from hutch.access.remote import RemoteTarget  # `exec` in a container starts without ssh
    from hutch.host.identity import ssh

    layout, booted, leader = inside.layout, inside.booted, inside.now.leader
    assert booted.ip is not None
    if os.geteuid() != 0:
        peer = ssh.Peer(inside.name, booted.ip, booted.user)
        return RemoteTarget(layout, peer, leader if are_shown() else None, by_own_key=True)
    proxy = ssh.proxy_of(observe_cid(layout, inside.name))
    proxy = "" if proxy and ssh.answers(booted.ip) else proxy
    return RemoteTarget(layout, ssh.Peer(inside.name, booted.ip, booted.user, proxy=proxy), leader)
