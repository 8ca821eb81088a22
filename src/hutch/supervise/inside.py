"""The way into a workspace that runs: a container is entered by its namespaces, a machine, which has none, by ssh."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from hutch.backends.identity import guest_uid
from hutch.errors import HutchError
from hutch.frozen import dataclass
from hutch.supervise.enter import Login, enter
from hutch.supervise.observe import Observation, observe
from hutch.supervise.streams import BY_FORCE

if TYPE_CHECKING:
    from hutch.spec.model import Workspace
    from hutch.spec.names import Places
    from hutch.state import Record


def run_inside(
    places: Places,
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
    name, now = record.name, observe(places, record.name)
    booted = record.booted.workspace if record.booted else record.wanted
    if now.state != "running":
        raise HutchError(f"{name} is {now.state}", resolution=f"`hutch start {name}`")
    way = reach_machine if booted.type == "vm" else enter_container
    login = login_of(booted, root=root)
    if env or cwd:
        login = replace(login, env=(*booted.env, *(env or {}).items()), cwd=cwd and os.path.join(login.home, cwd))
    return way(Inside(places, name, booted, now), login, list(argv), capture)


class Overrun:
    """Whether what ran inside was ended."""

    has_come = False


@contextmanager
def ended_after(seconds: float) -> Iterator[Overrun]:
    """For the main thread: what it runs inside meanwhile is ended by force after so long. A guest may do anything with
    a command of ours, and so never end it. A thread could not see to that: see `enter`."""
    overrun = Overrun()

    def end(number: int, frame: object) -> None:
        overrun.has_come = True
        os.kill(os.getpid(), BY_FORCE)

    by_force = signal.signal(BY_FORCE, signal.SIG_IGN)  # it may come too late to be for anybody
    alarm = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield overrun
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, alarm)
        signal.signal(BY_FORCE, by_force)


def login_of(booted: Workspace, *, root: bool) -> Login:
    """As whom a command runs: the login user, or root."""
    if root:
        return Login("root", 0, "/root", "/bin/bash", booted.env)
    assert isinstance(booted.owner, int)
    return Login(booted.user, guest_uid(booted.owner), f"/home/{booted.user}", booted.shell, booted.env)


@dataclass(frozen=True)
class Inside:
    """A workspace that runs: what it was booted from, and how it stands."""

    places: Places
    name: str
    booted: Workspace
    now: Observation


def enter_container(inside: Inside, login: Login, argv: list[str], capture: int | None) -> int:
    if inside.now.leader is None:
        raise HutchError(f"{inside.name} has just ended", resolution=f"`hutch start {inside.name}`")
    return enter(inside.places.cgroup(inside.name), inside.now.leader, login, argv, capture=capture)


def reach_machine(inside: Inside, login: Login, argv: list[str], capture: int | None) -> int:
    from hutch.host import ssh, vsock
    from hutch.supervise.facts import observe_facts
    from hutch.supervise.remote import Target, run_remotely
    from hutch.supervise.remote_script import Command

    places, name, booted = inside.places, inside.name, inside.booted
    assert booted.ip is not None
    hypervisor = observe_facts(places, name).get("hypervisor", "")
    proxy = ssh.proxy_of(booted, hypervisor, has_vsock=vsock.can_open(vsock.DEVICE))
    if proxy and ssh.answers(booted.ip):
        proxy = ""
    target = Target(places, ssh.Peer(name, booted.ip, booted.user, proxy=proxy), inside.now.leader)
    command = Command(login.home, login.environment(), argv, login.cwd)
    return run_remotely(target, command, root=login.uid == 0, capture=capture)
