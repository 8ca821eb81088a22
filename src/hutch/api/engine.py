"""One hutch: the workspaces that a file declares, and those that are there."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hutch.apply.restoring import with_restored_records
from hutch.errors import Problem, UsageError, ways_in
from hutch.runtime.observe import observe, observe_facts
from hutch.spec.model import has_effect
from hutch.spec.names import Layout, is_name
from hutch.spec.record import Observation, Record, has_processes, present, state_of
from hutch.state import read_network, read_record, read_records

if TYPE_CHECKING:
    from hutch.api.proving import Proof
    from hutch.apply.explaining import Section
    from hutch.apply.up import Confirm
    from hutch.egress.record import EgressEvent
    from hutch.host.identity.user_view import UserView
    from hutch.plan.actions import Plan, Verb
    from hutch.prove.model import ProbeResult
    from hutch.runtime.control import Listener
    from hutch.spec.model import Config, Network, WorkspaceSpec

Progress = Callable[[str, str, float], None]
"""A callback that gets (image, stage, fraction from 0 to 1) while an image is built."""


def silent(*words: object) -> None:
    """Do nothing: for callers that listen to nothing, draw no bar, and ask nobody."""


@ways_in
class Hutch:
    """One hutch on this host: the workspaces under one state directory.

    Every method that changes the host takes the lock for as long as it needs it and may be called again.
    """

    def __init__(self, layout: Layout | None = None, *, listen: Listener = silent, progress: Progress = silent) -> None:
        self.layout = layout or Layout.from_environment()
        self.listen = listen
        self.progress = progress

    # Declarations.

    def load(self, path: Path | None = None) -> Config:
        """Read and validate a hutch.toml. Raises ConfigError with all of its problems."""
        # Spares the start-up of `hutch ls`.
        from hutch.backends import check
        from hutch.host.hardware.capacity import check_host, observe_capacity
        from hutch.spec.loading import load
        from hutch.spec.lookup import find_file

        host = observe_capacity()

        def check_here(name: str, workspace: WorkspaceSpec, network: Network) -> Iterable[Problem]:
            yield from check(name, workspace, network)
            yield from check_host({name: workspace}, host.memory, host.cpus)

        return load(find_file(path), layout=self.layout, check=check_here)

    def plan(
        self,
        config: Config,
        names: Sequence[str] = (),
        *,
        start: bool = True,
        prune: bool = False,
        adopt: bool = False,
    ) -> Plan:
        """The plan that `up` would carry out, with its reasons. Changes nothing.

        Without `start` nothing is started. `prune` removes workspaces that this file brought up and declares no more;
        `adopt` takes over those that belong to another file.
        """
        # Spares the start-up of `hutch ls`.
        from hutch.apply.planning import make_plan

        return make_plan(self.layout, config, names, start=start, prune=prune, adopt=adopt)

    @with_restored_records
    def up(
        self,
        config: Config,
        names: Sequence[str] = (),
        *,
        start: bool = True,
        prune: bool = False,
        adopt: bool = False,
        confirm: Confirm = silent,
    ) -> Plan:
        """Plan and apply; returns the plan when every workspace is ready for ssh. The arguments are those of `plan`.

        `confirm` is asked before workspaces are stopped in which somebody is at work.
        """
        # Spares the start-up of `hutch ls`.
        from hutch.apply.planning import make_plan
        from hutch.apply.up import up

        make = partial(make_plan, self.layout, config, names, start=start, prune=prune, adopt=adopt)
        return up(self.layout, config, make, confirm=confirm, listen=self.listen, progress=self.progress)

    def ssh_problem(self) -> str:
        """The reason why plain `ssh workspace-NAME` does not work on this host, "" when it does."""
        # Spares the start-up of `hutch ls`.
        from hutch.host.identity.ssh import check_include

        return check_include()

    def declared(self, path: Path | None = None) -> tuple[str, dict[str, Any]]:
        """The file that `load` would take, "" for none, and the names and types in it as they stand, unvalidated."""
        # Spares the start-up of `hutch ssh`.
        from hutch.spec.lookup import glance, look_for_file

        found = look_for_file(path)
        return (os.path.realpath(found), glance(found)) if found else ("", {})

    def brought_up(self, path: Path | None = None) -> list[str]:
        """The existing workspaces that the file which `load` would take has brought up."""
        # Spares the start-up of `hutch ssh`.
        from hutch.spec.lookup import find_file

        file = os.path.realpath(find_file(path))
        return [name for name, record in self.records().items() if record.file == file]

    # Workspaces that are there.

    def records(self) -> dict[str, Record]:
        """The records of all existing workspaces by name; for a caller other than root, of those that it may see."""
        if os.geteuid() != 0:
            # Spares the start-up of `hutch ls` for root.
            from hutch.host.identity.user_view import visible_records

            return visible_records(self.layout)
        return present(read_records(self.layout))

    def kept(self) -> list[dict[str, str]]:
        """The homes that are kept of removed workspaces: `name`, `ip`, `home` and `file`. `up` of a file that declares
        one brings it back with them; `remove` with `purge` deletes them. Needs root."""
        records = (record for record in read_records(self.layout).values() if record.removed and not record.ejected)
        return [{"name": r.name, "ip": str(r.wanted.ip), "home": str(r.wanted.home), "file": r.file} for r in records]

    def record(self, name: str) -> Record:
        """One record; UsageError when there is no such workspace."""
        if not is_name(name):
            raise UsageError(f"{name!r} is not the name of a workspace")
        if os.geteuid() == 0:
            record = read_record(self.layout, name)
        else:
            view = self._user_view(name)
            record = view.record if view else None
        if record is not None and record.removed and record.ejected:
            raise UsageError(f"{name} was ejected and is not hutch's any more", resolution=f"see {record.ejected}")
        if record is None or record.removed:
            raise UsageError(f"there is no workspace {name}", resolution="`hutch ls` lists them; `hutch up` makes them")
        return record

    def _user_view(self, name: str) -> UserView | None:
        # Spares the start-up of `hutch ls` for root.
        from hutch.host.identity.user_view import read_user_view

        return read_user_view(self.layout, name)

    def observe(self, name: str) -> Observation:
        return observe(self.layout, name)

    @with_restored_records
    def start(self, names: Sequence[str]) -> None:
        """Start workspaces; returns when they are ready."""
        self._turn("start", names)

    @with_restored_records
    def stop(self, names: Sequence[str]) -> None:
        """Stop workspaces; their state stays."""
        self._turn("stop", names)

    @with_restored_records
    def restart(self, names: Sequence[str]) -> None:
        """Stop and start workspaces. A workspace that could not be started again is not stopped."""
        self._turn("restart", names)

    def _turn(self, verb: Verb, names: Sequence[str]) -> None:
        # Spares the start-up of `hutch ls`.
        from hutch.apply.turning import turn

        turn(self.layout, verb, names, self.record, self.listen)

    @with_restored_records
    def remove(self, names: str | Iterable[str], *, purge: bool = False, force: bool = False) -> None:
        """Stop and remove workspaces. Without `force`, removes none while unsaved git work or a live session is in the
        way of one."""
        # Spares the start-up of `hutch ls`.
        from hutch.apply.leaving import remove

        remove(self.layout, names, self.listen, purge=purge, force=force)

    @with_restored_records
    def uninstall(self, *, purge: bool = False, force: bool = False) -> tuple[str, ...]:
        """Stop all workspaces and take hutch off this host. Homes, keys, images and records stay, so that `up` brings
        the same workspaces back. With `purge` they go too; without `force`, not while unsaved git work or a live
        session is in the way."""
        # Spares the start-up of `hutch ls`.
        from hutch.apply.leaving import uninstall

        return uninstall(self.layout, self.listen, purge=purge, force=force)

    @with_restored_records
    def eject(self, name: str, to: Path | None = None, *, confirm: Callable[[str], None] = silent) -> Path:
        """Have a workspace go on as plain units and files, without hutch; returns the directory that has all of it:
        `to`, or one beside hutch's own. `confirm` is asked before anything is touched, and told what is to be."""
        # Spares the start-up of `hutch ls`.
        from hutch.apply.leaving import eject

        return eject(self.layout, name, to, self.listen, find=self.record, confirm=confirm)

    def explain(self, name: str) -> tuple[Section, ...]:
        """The commands, rules and files behind a workspace, as its next start would make them."""
        # Spares the start-up of `hutch ls`.
        from hutch.apply.explaining import explain

        return explain(self.layout, self.record(name))

    def egress(self, name: str) -> list[EgressEvent]:
        """The recorded questions and connections of a workspace, oldest first."""
        # Spares the start-up of `hutch ls`.
        from hutch.egress.journal import read

        self.record(name)
        return read(self.layout.egress, name)

    def follow_egress(self, name: str) -> Generator[list[EgressEvent], None, None]:
        """The recorded questions and connections, in one list, and then new ones as they come. Never ends by itself."""
        # Spares the start-up of `hutch ls`.
        from hutch.egress.journal import follow

        self.record(name)
        return follow(self.layout.egress, name)

    def suggest_egress(self, name: str) -> str:
        """A list for hutch.toml, made of the workspace's own and of what it asked for and reached beyond that."""
        # Spares the start-up of `hutch ls`.
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
        told: Callable[[tuple[ProbeResult, ...]], None] = silent,
    ) -> Proof:
        """Try the promises, from inside: in a workspace that runs, or in a throw-away one of each kind, made from the
        same as the first one of `config`. `target` is a public name and port, `only` the numbers of promises and names
        of probes that are asked for, all without; `told` hears the results of each workspace as soon as they are there.
        `types` are the kinds of throw-away workspaces."""
        # Spares the start-up of `hutch ls`.
        from hutch.api.proving import TYPES, ProofRequest, prove_on

        return prove_on(self, name, config, ProofRequest(target, tuple(only), tuple(types or TYPES), told))

    def status(self, name: str) -> dict[str, Any]:
        """One entry of `hutch status --json`."""
        return {**self.describe(self.record(name)), "warnings": self.damages().get(name, [])}

    def damages(self) -> dict[str, list[str]]:
        """The damage on the host, in words, by workspace: differences to the state that hutch left. Looks at the host,
        which `observe` does not, and which only root can."""
        if os.geteuid() != 0:
            return {}
        # Spares the start-up of `hutch ls`.
        from hutch.apply.inspecting import warnings_of

        record = read_network(self.layout)
        return warnings_of(self.layout, record.network if record else None, read_records(self.layout))

    def describe(self, record: Record) -> dict[str, Any]:
        """An entry of `hutch status --json` without warnings, for a caller that has the record."""
        now = observe(self.layout, record.name)
        return describe(record, now, self._facts(record, now))

    def _facts(self, record: Record, now: Observation) -> Mapping[str, str]:
        """The facts of a machine that runs. `ls` asks for them, and loads no backend."""
        runs = has_processes(now.state) and record.booted is not None
        if not runs or not has_effect("hypervisor", record.effective.type):
            return {}
        if os.geteuid() != 0:
            view = self._user_view(record.name)
            return view.facts if view else {}
        return observe_facts(self.layout, record.name)


def describe(record: Record, now: Observation, facts: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A workspace as `hutch status --json` shows it (docs: interface, machine-readable state). `facts` are those of a
    machine that runs."""
    facts, state, pending = facts or {}, state_of(record, now), "none"
    if state == "running" and record.booted != record.with_booted().booted:
        # Spares the start-up of `hutch ls`, for which nothing is pending as a rule.
        from hutch.plan.planner import pending_of

        pending = pending_of(record)
    return {
        "name": record.name,
        "type": record.wanted.type,
        "engine": record.wanted.engine,
        "state": state,
        "ip": record.wanted.ip,
        "mac": record.wanted.mac,
        "cid": record.wanted.cid if has_effect("cid", record.wanted.type) else None,
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
        "egress": list(egress) if isinstance(egress := record.wanted.egress, tuple) else egress,
        "learn": record.wanted.learn,
        "publish": [str(item) for item in record.wanted.publish],
        "mounts": [{"source": m.source, "target": m.target, "readonly": m.readonly} for m in record.wanted.mounts],
        "pending": pending,
        "reason": now.reason,
        "warnings": [],
        "file": record.file,
    }
