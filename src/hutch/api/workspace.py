"""One workspace that exists: start it, run commands in it, stop it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hutch.errors import HutchError

if TYPE_CHECKING:
    from hutch.api.engine import Hutch
    from hutch.spec.model import Workspace as Spec
    from hutch.supervise.enter import Login
    from hutch.supervise.observe import Observation


class Workspace:
    """One existing workspace."""

    def __init__(self, hutch: Hutch, name: str) -> None:
        self.hutch = hutch
        self.name = name

    def start(self) -> None:
        self.hutch.start([self.name])

    def stop(self) -> None:
        self.hutch.stop([self.name])

    def status(self) -> dict[str, Any]:
        return self.hutch.status(self.name)

    def run(self, argv: Sequence[str], *, root: bool = False, capture: int | None = None) -> int:
        """Run a command with the caller's own streams; returns its exit code, 128 + n when signal n ended it.

        `capture` is a descriptor that takes its output instead.
        """
        from hutch.backends.identity import guest_uid
        from hutch.supervise.enter import Login

        record, now = self.hutch.record(self.name), self.hutch.observe(self.name)
        booted = record.booted.workspace if record.booted else record.wanted
        if now.state != "running":
            raise HutchError(f"{self.name} is {now.state}", resolution=f"`hutch start {self.name}`")
        assert isinstance(booted.owner, int)
        login = (
            Login("root", 0, "/root", "/bin/bash", booted.env)
            if root
            else Login(booted.user, guest_uid(booted.owner), f"/home/{booted.user}", booted.shell, booted.env)
        )
        way = self._reach if booted.type == "vm" else self._enter
        return way(booted, now, login, list(argv), capture)

    def _enter(self, booted: Spec, now: Observation, login: Login, argv: list[str], capture: int | None) -> int:
        """Into a container by its namespaces."""
        from hutch.supervise.enter import enter

        if now.leader is None:
            raise HutchError(f"{self.name} has just ended", resolution=f"`hutch start {self.name}`")
        return enter(self.hutch.places.cgroup(self.name), now.leader, login, argv, capture=capture)

    def _reach(self, booted: Spec, now: Observation, login: Login, argv: list[str], capture: int | None) -> int:
        """Into a virtual machine, which has none to enter, by ssh."""
        from hutch.host import ssh, vsock
        from hutch.supervise.facts import observe_facts
        from hutch.supervise.remote import Target, run_remotely
        from hutch.supervise.remote_script import Command

        assert booted.ip is not None
        places, hypervisor = self.hutch.places, observe_facts(self.hutch.places, self.name).get("hypervisor", "")
        proxy = ssh.proxy_of(booted, hypervisor, has_vsock=vsock.can_open(vsock.DEVICE))
        if proxy and ssh.answers(booted.ip):
            proxy = ""
        target = Target(places, ssh.Peer(self.name, booted.ip, booted.user, proxy=proxy), now.leader)
        command = Command(login.home, login.environment(), argv)
        return run_remotely(target, command, root=login.uid == 0, capture=capture)
