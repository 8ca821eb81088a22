"""One hutch: what the file declares, and the workspaces that are there."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hutch.api.describe import describe, pending_of
from hutch.apply.mending import mended
from hutch.errors import HutchError, Problem, UsageError, ways_in
from hutch.host.services.lock import lock
from hutch.runtime.observe import Observation, observe
from hutch.spec.names import Places, is_name
from hutch.state import NetworkRecord, Record, journaled, read_network, read_record, read_records

if TYPE_CHECKING:
    from hutch.api.proving import Proof
    from hutch.api.workspace import Workspace
    from hutch.apply.explaining import Section
    from hutch.egress.record import Record as Event
    from hutch.plan.actions import Plan
    from hutch.prove.model import Result
    from hutch.runtime.control import Listener
    from hutch.spec.model import Config, Network
    from hutch.spec.model import Workspace as Spec

Progress = Callable[[str, str, float], None]
"""Told (image, stage, fraction from 0 to 1) while an image is built."""


def silent(name: str, event: str, text: str) -> None:
    """A listener that does not care."""


def no_progress(image: str, stage: str, fraction: float) -> None:
    """For callers that draw no bar."""


Confirm = Callable[["Plan"], None]
"""Asked before a plan stops workspaces in which somebody is at work; it raises what is to stop that plan."""


def agreed(plan: Plan) -> None:
    """For callers that ask nobody."""


def unasked(what: str) -> None:
    """For callers that ask nobody."""


def unheard(results: tuple[Result, ...]) -> None:
    """For callers that wait for all results."""


@ways_in
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
        from hutch.host.hardware.capacity import check_host, observe_capacity
        from hutch.spec.loading import load
        from hutch.spec.lookup import find_file

        host = observe_capacity()

        def check_here(name: str, workspace: Spec, network: Network) -> Iterable[Problem]:
            yield from check(name, workspace, network)
            yield from check_host({name: workspace}, host.memory, host.cpus)

        return load(find_file(path), places=self.places, check=check_here)

    def plan(
        self,
        config: Config,
        names: Sequence[str] = (),
        *,
        start: bool = True,
        prune: bool = False,
        adopt: bool = False,
    ) -> Plan:
        """What `up` would do, and why. Changes nothing.

        Without `start` nothing is started. `prune` removes workspaces that this file brought up and declares no more;
        `adopt` takes over those that belong to another file.
        """
        from hutch.apply.planning import make_plan

        return make_plan(self.places, config, names, start=start, prune=prune, adopt=adopt)

    @mended
    def up(
        self,
        config: Config,
        names: Sequence[str] = (),
        *,
        start: bool = True,
        prune: bool = False,
        adopt: bool = False,
        confirm: Confirm = agreed,
    ) -> Plan:
        """Plan and apply; returns the plan when every workspace is ready for ssh. The arguments are those of `plan`.

        `confirm` is asked before workspaces are stopped in which somebody is at work.
        """
        from hutch.apply.converge import first_network
        from hutch.apply.execute import apply_plan
        from hutch.apply.inspecting import unbuilt_images
        from hutch.apply.planning import make_plan
        from hutch.apply.recovery import recover

        def make(unbuilt: Mapping[str, str] | None = None) -> Plan:
            return make_plan(self.places, config, names, start=start, prune=prune, adopt=adopt, unbuilt=unbuilt)

        allowed: set[str] = set()
        unbuilt: dict[str, str] = {}
        for _ in range(5):
            plan = make()
            if plan.disturbed - allowed:
                confirm(plan)
                allowed |= plan.disturbed
            unbuilt |= unbuilt_images(self.places, plan.wanted)
            self._ensure_images({name: wanted.workspace for name, wanted in plan.wanted.items()}, config)
            with lock(self.places), first_network(self.places):
                recover(self.places, self.listen)
                plan = make(unbuilt)
                # Until the lock was taken, an image may have been removed, the tree that it is made from may have
                # changed, or somebody may have come.
                if not unbuilt_images(self.places, plan.wanted) and plan.disturbed <= allowed:
                    apply_plan(self.places, plan, self.listen)
                    return plan
        raise HutchError(
            f"{config.file}: what its workspaces need, or who is in them, changed as soon as it was seen to",
            resolution="try again when nothing removes images or writes in the trees that they are made from",
        )

    def ssh_problem(self) -> str:
        """Why plain `ssh workspace-NAME` does not work on this host, "" when it does."""
        from hutch.host.identity.ssh import check_include

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

    def _ensure_images(self, workspaces: Mapping[str, Spec], config: Config) -> None:
        from hutch.apply.building import ensure_images

        ensure_images(self.places, workspaces, config.network, config.file, self.progress)

    # Workspaces that are there.

    def records(self) -> dict[str, Record]:
        """The records of all existing workspaces by name; for who is not root, of those that they may see."""
        if os.geteuid() != 0:
            from hutch.host.identity.shown import read_all_shown

            return read_all_shown(self.places)
        return {name: record for name, record in read_records(self.places).items() if not record.removed}

    def record(self, name: str) -> Record:
        """One record; UsageError when there is no such workspace."""
        if not is_name(name):
            raise UsageError(f"{name!r} is not the name of a workspace")
        record = self._known(name)
        if record is not None and record.removed and record.ejected:
            raise UsageError(f"{name} was ejected and is not hutch's any more", resolution=f"see {record.ejected}")
        if record is None or record.removed:
            raise UsageError(f"there is no workspace {name}", resolution="`hutch ls` lists them; `hutch up` makes them")
        return record

    def _known(self, name: str) -> Record | None:
        if os.geteuid() == 0:
            return read_record(self.places, name)
        from hutch.host.identity.shown import read_shown

        shown = read_shown(self.places, name)
        return shown.record if shown is not None else None

    def observe(self, name: str) -> Observation:
        return observe(self.places, name)

    def workspace(self, name: str) -> Workspace:
        """One workspace that is there; UsageError when it is not."""
        from hutch.api.workspace import Workspace

        self.record(name)
        return Workspace(name, self)

    @mended
    def start(self, names: Sequence[str]) -> None:
        """Start workspaces; returns when they are ready."""
        from hutch.apply.recovery import recover

        with lock(self.places):
            recover(self.places, self.listen)
            records = [self.record(name) for name in dict.fromkeys(names)]
            starting = [r for r in records if observe(self.places, r.name).state != "running"]
            if starting:
                self._check_startable(starting)
                with journaled(self.places, "start", tuple(r.name for r in starting), is_lasting=False):
                    self._start(starting)

    def _start(self, starting: Sequence[Record]) -> None:
        """Start what does not run, and can. The caller holds the lock, and has noted it down."""
        from hutch.apply.starting import start

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
        self._network()

    @mended
    def stop(self, names: Sequence[str]) -> None:
        """Stop workspaces; their state stays."""
        with lock(self.places):
            self._stop([self.record(name) for name in dict.fromkeys(names)])

    def _stop(self, records: Sequence[Record]) -> None:
        """The caller holds the lock."""
        from hutch.runtime.control import stop_all

        stop_all(self.places, [record.name for record in records])
        for record in records:
            self.listen(record.name, "stopped", "")

    @mended
    def restart(self, names: Sequence[str]) -> None:
        """Stop and start workspaces. What could not be started again is not stopped."""
        from hutch.apply.recovery import recover

        with lock(self.places):
            recover(self.places, self.listen)
            records = [self.record(name) for name in dict.fromkeys(names)]
            self._check_startable(records, ", so it was not stopped")
            with journaled(self.places, "restart", tuple(record.name for record in records), is_lasting=False):
                self._stop(records)
                self._start(records)

    @mended
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
        if record.removed and record.ejected:
            from hutch.apply.ejecting import is_there

            if is_there(record):
                raise HutchError(
                    f"{name} was ejected and is still there, with the address and the user ids that hutch keeps for it",
                    resolution=f"{record.ejected}/remove takes it away",
                )
        elif not force:
            found = obstacles(self.places, record)
            if found:
                raise HutchError(
                    f"{name} was not removed", details="\n".join(found), resolution="--force removes it all the same"
                )
        with lock(self.places):
            return remove(self.places, record, purge=purge)

    @mended
    def withdraw(self, *, purge: bool = False, force: bool = False) -> tuple[str, ...]:
        """Stop all workspaces and take hutch off this host. Homes, keys, images and records stay, so that `up` brings
        the same workspaces back. With `purge` they go too; without `force`, not while unsaved git work or a live
        session is in the way."""
        from hutch.apply.recovery import recover
        from hutch.apply.withdrawal import check_saved, delete_state, withdraw

        if not self.places.state.exists():
            return ()
        with lock(self.places):
            recover(self.places, self.listen)
        notes: list[str] = []
        if purge:
            if not force:
                check_saved(self.places)
            for name, record in read_records(self.places).items():
                if not record.ejected:  # which needs hutch no more
                    notes += self.remove(name, purge=True, force=True)
        with lock(self.places):
            notes += withdraw(self.places)
            if purge:
                delete_state(self.places)
        return tuple(notes)

    @mended
    def eject(self, name: str, to: Path | None = None, *, confirm: Callable[[str], None] = unasked) -> Path:
        """Have a workspace go on as plain units and files, without hutch; returns the directory that has all of it:
        `to`, or one beside hutch's own. `confirm` is asked before anything is touched, and told what is to be."""
        from hutch.apply.ejecting import check, eject
        from hutch.apply.recovery import recover
        from hutch.apply.unsaved import live_sessions
        from hutch.spec.ejected import Ejected

        target = Ejected.beside(self.places, self.record(name).name, to)
        check(self.places, self.record(name), target)
        at_work = live_sessions(self.places, self.record(name)) if self.observe(name).is_up else []
        confirm(", ".join((f"{name} goes to {target.state}, and hutch forgets it", *at_work)))
        with lock(self.places):
            recover(self.places, self.listen)
            record = self.record(name)
            self._check_startable([record], ", so it was not ejected")
            check(self.places, record, target)
            eject(self.places, record, target, self.listen)
        return target.state

    def explain(self, name: str) -> tuple[Section, ...]:
        """The commands, rules and files behind a workspace, as its next start would make them."""
        from hutch.apply.explaining import explain

        record = self.record(name)
        return explain(self.places, self._network().network, read_records(self.places), record)

    def egress(self, name: str) -> list[Event]:
        """What a workspace asked for and reached, as far as that is recorded, oldest first."""
        from hutch.egress.journal import read

        self.record(name)
        return read(self.places.egress, name)

    def follow_egress(self, name: str) -> Generator[list[Event], None, None]:
        """The same, in one, and then what is recorded from now on, as it comes. Never ends by itself."""
        from hutch.egress.journal import follow

        self.record(name)
        return follow(self.places.egress, name)

    def suggest_egress(self, name: str) -> str:
        """A list for hutch.toml, made of what the workspace has and what it asked for and reached beyond that."""
        from hutch.egress.suggest import suggest

        return suggest(self.egress(name), self.record(name).wanted)

    def prove(
        self,
        name: str | None = None,
        config: Config | None = None,
        *,
        target: tuple[str, int] = ("deb.debian.org", 80),
        only: Sequence[str] = (),
        types: Sequence[str] | None = None,
        told: Callable[[tuple[Result, ...]], None] = unheard,
    ) -> Proof:
        """Try what is promised, from inside: in a workspace that runs, or in a throw-away one of each kind, made from
        what the first one of `config` is made from. `target` is a public name and port, `only` the numbers of promises
        and names of probes that are asked for, all without; `told` hears the results of each workspace as soon as they
        are there. `types` are the kinds of throw-away workspaces."""
        from hutch.api.proving import TYPES, Order, prove_on

        return prove_on(self, name, config, Order(target, tuple(only), tuple(types or TYPES), told))

    def _network(self) -> NetworkRecord:
        """The network as set up. An `up` that was cut short may have left a workspace without one."""
        network = read_network(self.places)
        if network is None:
            raise HutchError("the network is not set up", resolution="`hutch up` does that")
        return network

    def status(self, name: str) -> dict[str, Any]:
        """One entry of `hutch status --json`."""
        found = self.describe(self.record(name))
        return {**found, "warnings": [*found["warnings"], *self.damages().get(name, ())]}

    def damages(self) -> dict[str, list[str]]:
        """What is not as hutch left it, in words, by workspace. Looks at the host, which `observe` does not, and which
        only root can."""
        if os.geteuid() != 0:
            return {}
        from hutch.apply.inspecting import warnings_of

        record = read_network(self.places)
        return warnings_of(self.places, record.network if record else None, read_records(self.places))

    def describe(self, record: Record) -> dict[str, Any]:
        """The same, for whoever has the record."""
        now = observe(self.places, record.name)
        return describe(record, now, self._facts(record, now))

    def _facts(self, record: Record, now: Observation) -> Mapping[str, str]:
        """What is told of the machine that runs."""
        if not now.is_up or record.booted is None or record.booted.workspace.type != "vm":
            return {}
        if os.geteuid() != 0:
            from hutch.host.identity.shown import read_shown

            shown = read_shown(self.places, record.name)
            return shown.facts if shown else {}
        from hutch.runtime.facts import observe_facts

        return observe_facts(self.places, record.name)
