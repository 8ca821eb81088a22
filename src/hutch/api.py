"""The library that the command line uses: load, plan, up, and single workspaces.

Heavy parts are imported by the calls that need them, so that `hutch ls` stays fast. Nothing here prints;
what happens is told to a listener.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hutch.errors import HutchError, Problem, UsageError
from hutch.spec.names import Places, is_name
from hutch.state import NetworkRecord, Record, lock, read_network, read_record, read_records
from hutch.supervise.observe import Observation, observe

if TYPE_CHECKING:
    from hutch.apply.explaining import Section
    from hutch.images.cache import Image
    from hutch.plan.actions import Plan
    from hutch.spec.model import Config, Network
    from hutch.spec.model import Workspace as Spec
    from hutch.supervise.control import Listener
    from hutch.supervise.enter import Login

Progress = Callable[[str, str, float], None]
"""Told (image, stage, fraction from 0 to 1) while an image is built."""


def silent(name: str, event: str, text: str) -> None:
    """A listener that does not care."""


def no_progress(image: str, stage: str, fraction: float) -> None:
    """For callers that draw no bar."""


class Hutch:
    """One hutch on this host: the workspaces under one state directory.

    Every method that changes the host takes the lock for as long as it needs it and may be called again.
    """

    def __init__(
        self, places: Places | None = None, *, listen: Listener = silent, progress: Progress = no_progress
    ) -> None:
        self.places = places or Places.from_environment()
        self.listen = listen
        self.progress = progress

    # Declarations.

    def load(self, path: Path | None = None) -> Config:
        """Read and validate a hutch.toml. Raises ConfigError with all of its problems."""
        from hutch.backends import check
        from hutch.host.capacity import check_host, observe_capacity
        from hutch.spec.loading import load
        from hutch.spec.lookup import find_file

        host = observe_capacity()

        def check_here(name: str, workspace: Spec, network: Network) -> Iterable[Problem]:
            yield from check(name, workspace, network)
            yield from check_host({name: workspace}, host.memory, host.cpus)

        return load(find_file(path), places=self.places, check=check_here)

    def plan(self, config: Config, names: Sequence[str] = (), *, start: bool = True, prune: bool = False) -> Plan:
        """What `up` would do, and why. Changes nothing."""
        from hutch.apply.planning import make_plan

        return make_plan(self.places, config, names, start=start, prune=prune)

    def up(self, config: Config, names: Sequence[str] = (), *, start: bool = True, prune: bool = False) -> Plan:
        """Plan and apply; returns when every workspace is ready for ssh."""
        from hutch.apply.building import is_built
        from hutch.apply.converge import first_network
        from hutch.apply.execute import apply_plan
        from hutch.apply.recovery import recover

        for _ in range(5):
            plan = self.plan(config, names, start=start, prune=prune)
            self._ensure_images({name: wanted.workspace for name, wanted in plan.wanted.items()}, config)
            with lock(self.places), first_network(self.places):
                recover(self.places, self.listen)
                plan = self.plan(config, names, start=start, prune=prune)
                # Until the lock was taken, an image may have been removed, or the tree that it is made from changed.
                if all(is_built(self.places, wanted) for wanted in plan.wanted.values()):
                    apply_plan(self.places, plan, self.listen)
                    return plan
        raise HutchError(
            f"{config.file}: the images of its workspaces went or changed as soon as they were built",
            resolution="try again when nothing removes images or writes in the trees that they are made from",
        )

    def ssh_problem(self) -> str:
        """Why plain `ssh workspace-NAME` does not work on this host, "" when it does."""
        from hutch.host.ssh import check_include

        return check_include()

    def declared(self, path: Path | None = None) -> tuple[str, dict[str, Any]]:
        """The file that `load` would take, "" for none, and the names and types in it as they stand, unvalidated."""
        from hutch.spec.lookup import glance, look_for_file

        found = look_for_file(path)
        return (os.path.realpath(found), glance(found)) if found else ("", {})

    def brought_up(self, path: Path | None = None) -> list[str]:
        """The existing workspaces that the file which `load` would take has brought up."""
        from hutch.spec.lookup import find_file

        file = os.path.realpath(find_file(path))
        return [name for name, record in self.records().items() if record.file == file]

    # Images.

    def _ensure_images(self, workspaces: Mapping[str, Spec], config: Config) -> None:
        from hutch.apply.building import ensure_images

        ensure_images(self.places, workspaces, config.network, config.file, self.progress)

    def build_images(self, config: Config, names: Sequence[str] = ()) -> list[str]:
        """Build the images of the named workspaces, or of all; returns their ids."""
        from hutch.apply.building import recipe_of

        chosen = {name: config.workspaces[name] for name in config.select(names)}
        self._ensure_images(chosen, config)
        return sorted({recipe_of(self.places, workspace).id for workspace in chosen.values()})

    # Workspaces that are there.

    def records(self) -> dict[str, Record]:
        """The records of all existing workspaces by name."""
        return {name: record for name, record in read_records(self.places).items() if not record.removed}

    def record(self, name: str) -> Record:
        """One record; UsageError when there is no such workspace."""
        if not is_name(name):
            raise UsageError(f"{name!r} is not the name of a workspace")
        record = read_record(self.places, name)
        if record is None or record.removed:
            raise UsageError(f"there is no workspace {name}", resolution="`hutch ls` lists them; `hutch up` makes them")
        return record

    def observe(self, name: str) -> Observation:
        return observe(self.places, name)

    def workspace(self, name: str) -> Workspace:
        self.record(name)
        return Workspace(self, name)

    def start(self, names: Sequence[str]) -> None:
        """Start workspaces; returns when they are ready."""
        from hutch.apply.recovery import recover

        with lock(self.places):
            recover(self.places, self.listen)
            records = [self.record(name) for name in dict.fromkeys(names)]
            self._start([r for r in records if observe(self.places, r.name).state != "running"])

    def _start(self, starting: Sequence[Record]) -> None:
        """Start what does not run. The caller holds the lock."""
        from hutch.apply.starting import start

        if starting:
            self._check_startable(starting)
            network, records = self._network(), read_records(self.places)
            names = [record.name for record in starting]
            start(self.places, network.network, network.file, records, names, self.listen)

    def _check_startable(self, starting: Sequence[Record], consequence: str = "") -> None:
        """Refuse, before anything is stopped or started, what could not be started as it is."""
        from hutch.apply.starting import check_shares

        if any(record.wanted.type == "vm" for record in starting):
            from hutch.apply.machines import check_machines

            check_machines((record.file, record.name, record.wanted) for record in starting)
        for record in starting:
            if pending_of(record) == "recreate":
                raise HutchError(
                    f"{record.name}: its root must be made anew for what has changed since it was started{consequence}",
                    resolution=f"`hutch stop {record.name}`, then `hutch up {record.name}`",
                )
            if not self.places.image_root(record.image).is_dir():
                raise HutchError(
                    f"{record.name}: its image {record.image} is not in the cache{consequence}",
                    resolution="`hutch up` builds it again",
                )
            if record.wanted.type == "vm":
                from hutch.apply.hardware import machine_of

                machine_of(self.places, record.image)
        check_shares((record.file, record.name, record.wanted) for record in starting)

    def stop(self, names: Sequence[str]) -> None:
        """Stop workspaces; their state stays."""
        with lock(self.places):
            self._stop([self.record(name) for name in dict.fromkeys(names)])

    def _stop(self, records: Sequence[Record]) -> None:
        """The caller holds the lock."""
        from hutch.supervise.control import stop_all

        stop_all(self.places, [record.name for record in records])
        for record in records:
            self.listen(record.name, "stopped", "")

    def restart(self, names: Sequence[str]) -> None:
        """Stop and start workspaces. What could not be started again is not stopped."""
        from hutch.apply.recovery import recover

        with lock(self.places):
            recover(self.places, self.listen)
            records = [self.record(name) for name in dict.fromkeys(names)]
            self._check_startable(records, ", so it was not stopped")
            self._stop(records)
            self._start(records)

    def remove(self, name: str, *, purge: bool = False, force: bool = False) -> tuple[str, ...]:
        """Stop and remove. Without `force`, refuses while unsaved git work or a live session is in the way."""
        from hutch.apply.recovery import recover
        from hutch.apply.removal import remove
        from hutch.apply.unsaved import obstacles

        with lock(self.places):
            recover(self.places, self.listen)
        record = read_record(self.places, name) if is_name(name) else None
        if record is None or (record.removed and not purge):
            raise UsageError(f"there is no workspace {name}", resolution="`hutch ls` lists them")
        if not force:
            found = obstacles(self.places, record)
            if found:
                raise HutchError(
                    f"{name} was not removed", details="\n".join(found), resolution="--force removes it all the same"
                )
        with lock(self.places):
            return remove(self.places, record, purge=purge)

    def explain(self, name: str) -> tuple[Section, ...]:
        """The commands, rules and files behind a workspace, as its next start would make them."""
        from hutch.apply.explaining import explain

        record = self.record(name)
        return explain(self.places, self._network().network, read_records(self.places), record)

    def _network(self) -> NetworkRecord:
        """The network as set up. An `up` that was cut short may have left a workspace without one."""
        network = read_network(self.places)
        if network is None:
            raise HutchError("the network is not set up", resolution="`hutch up` does that")
        return network

    def status(self, name: str) -> dict[str, Any]:
        """One entry of `hutch status --json`."""
        return self.describe(self.record(name))

    def describe(self, record: Record) -> dict[str, Any]:
        """The same, for whoever has the record."""
        now = observe(self.places, record.name)
        return describe(record, now, self._facts(record, now))

    def _facts(self, record: Record, now: Observation) -> Mapping[str, str]:
        """What is told of the machine that runs."""
        if not now.is_up or record.booted is None or record.booted.workspace.type != "vm":
            return {}
        from hutch.supervise.facts import observe_facts

        return observe_facts(self.places, record.name)

    def remove_images(self, ids: Sequence[str]) -> None:
        """Remove images; HutchError, before anything is removed, when a workspace uses one."""
        from hutch.images.cache import remove_image

        with lock(self.places):
            used = {image.id: users for image, users in self.images().items() if users}
            known = {image.id for image in self.images()}
            wrong = [f"{id} is used by {', '.join(used[id])}" for id in ids if id in used]
            wrong += [f"there is no image {id}" for id in ids if id not in known]
            if wrong:
                raise HutchError("no image was removed", details="\n".join(wrong))
            for id in dict.fromkeys(ids):
                remove_image(id, self.places)

    def prune_images(self) -> list[str]:
        """Remove every image that no workspace uses; returns their ids."""
        from hutch.images.machine import prune_machines

        found = self.images()
        unused = [image.id for image, users in found.items() if not users]
        self.remove_images(unused)
        prune_machines(self.places, keep=[image.id for image, users in found.items() if users])
        return unused

    def images(self) -> Mapping[Image, tuple[str, ...]]:
        """The images in the cache, each with the workspaces that use it."""
        from hutch.images.cache import observe_images

        records = self.records()
        return {
            image: tuple(name for name, record in records.items() if uses(record, image.id))
            for image in observe_images(self.places)
        }


def uses(record: Record, image: str) -> bool:
    """Whether a workspace was booted from an image or will be."""
    return record.image == image or (record.booted is not None and record.booted.image == image)


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


def describe(record: Record, now: Observation, facts: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A workspace as `hutch status --json` shows it (docs: interface, machine-readable state). `facts` are those of a
    machine that runs."""
    facts = facts or {}
    return {
        "name": record.name,
        "type": record.wanted.type,
        "engine": record.wanted.engine,
        "state": now.state,
        "ip": record.wanted.ip,
        "mac": record.wanted.mac,
        "cid": record.wanted.cid if record.wanted.type == "vm" else None,
        "image": record.wanted.image,
        "image_id": record.image,
        "home": record.wanted.home,
        "user": record.wanted.user,
        "hypervisor": facts.get("hypervisor"),
        "accelerator": facts.get("accelerator"),
        "pid": now.pid,
        "since": now.since,
        "ready_seconds": now.ready_seconds,
        "start_kind": "cold" if now.ready_seconds is not None else None,
        "autostart": record.wanted.autostart,
        "pending": pending_of(record) if now.state == "running" else "none",
        "reason": now.reason,
        "warnings": list(now.warnings),
        "file": record.file,
    }


def pending_of(record: Record) -> str:
    from hutch.plan.actions import Wanted
    from hutch.plan.planner import pending

    if record.booted is None or (record.booted.workspace == record.wanted and record.booted.image == record.image):
        return "none"
    return pending(Wanted(record.booted.workspace, record.booted.image), Wanted(record.wanted, record.image))


# What `import hutch` offers beside the class.


def load(path: str | os.PathLike[str] | None = None) -> Config:
    """Read and validate a hutch.toml; without a path, the one that the command line would take."""
    return Hutch().load(Path(path) if path is not None else None)


def plan(config: Config, names: Sequence[str] = ()) -> Plan:
    """What `up` would do, and why."""
    return Hutch().plan(config, names)


def up(config: Config, names: Sequence[str] = (), *, listen: Listener = silent) -> Plan:
    """Plan and apply; returns when every workspace is ready for ssh."""
    return Hutch(listen=listen).up(config, names)
