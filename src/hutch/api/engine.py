"""One hutch: the workspaces that a file declares, and those that are there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hutch.api.describing import describe
from hutch.api.recorded import Recorded
from hutch.apply.restoring import with_restored_records
from hutch.engines import observe_all
from hutch.errors import UsageError, ways_in
from hutch.runtime.observe import observe_cid, observe_facts
from hutch.spec import member
from hutch.spec.model import has_effect
from hutch.spec.names import Layout, is_name
from hutch.spec.record import UserView, freshness_of, has_processes, present
from hutch.state import read_ages, read_record, read_records

if TYPE_CHECKING:
    from hutch.api.proving import Proof
    from hutch.apply.explaining import Section
    from hutch.apply.up import Confirm
    from hutch.egress.approvals import Refusal
    from hutch.plan.actions import Plan, Verb
    from hutch.prove.model import ProbeResult
    from hutch.runtime.control import Listener
    from hutch.spec.model import Config
    from hutch.spec.record import Decision, Freshness, Observation, Record

Progress = Callable[[str, str, float], None]
"""A callback that gets (image, stage, fraction from 0 to 1) while an image is built."""


def silent(*words: object) -> None:
    """Do nothing: for callers that listen to nothing, draw no bar, and ask nobody."""


@ways_in
class Hutch(Recorded):
    """One hutch on this host: the workspaces under one state directory.

    Every method that changes the host takes the lock for as long as it needs it and may be called again.
    """

    def __init__(self, layout: Layout | None = None, *, listen: Listener = silent, progress: Progress = silent) -> None:
        self.layout = layout or Layout.from_environment()
        self.listen = listen
        self.progress = progress

    # Declarations.

    def load(self, path: Path | None = None, *, accepted: str | None = None) -> Config:
        """Read and validate a hutch.toml. Raises ConfigError with all of its problems; for root UsageError, if it lies
        where a workspace can write. Raises Untrusted for one in a checkout, unless the caller has accepted its content,
        or `accepted` is the SHA-256 of that in hex."""
        # Spares the start-up of `hutch ls`.
        from hutch.api.checking import host_check
        from hutch.apply.ownership import load_found

        return load_found(self.layout, path, host_check(), accepted=accepted)

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
        force: bool = False,
        confirm: Confirm = silent,
    ) -> Plan:
        """Plan and apply; returns the plan when every workspace is ready for ssh. The arguments are those of `plan`.

        `confirm` is asked before workspaces are stopped in which somebody is at work. With `force`, git work outside of
        homes may be lost with the roots of workspaces; without, nothing is changed then.
        """
        # Spares the start-up of `hutch ls`.
        from hutch.apply.planning import make_plan
        from hutch.apply.up import up

        make = partial(
            make_plan, self.layout, config, names, start=start, prune=prune, adopt=adopt, checked={}, looked={}
        )
        return up(self.layout, config, make, confirm=confirm, listen=self.listen, progress=self.progress, force=force)

    def ssh_problem(self) -> str:
        """The reason why plain `ssh workspace-NAME` does not work on this host, "" when it does."""
        # Spares the start-up of `hutch ls`.
        from hutch.host.identity.ssh import check_include

        return check_include()

    def declared(self, path: Path | None = None) -> tuple[str, dict[str, Any]]:
        """The file that `load` would take, "" for none, and the names and types in it as they stand, unvalidated."""
        # Spares the start-up of `hutch ssh`.
        from hutch.spec.lookup import glance, look_for_file, resolved
        from hutch.spec.rights import where_called

        with where_called():
            found = look_for_file(path)
            return (resolved(found), glance(found)) if found else ("", {})

    def brought_up(self, path: Path | None = None) -> list[str]:
        """The existing workspaces that the file which `load` would take has brought up."""
        # Spares the start-up of `hutch ssh`.
        from hutch.spec.lookup import find_file, resolved
        from hutch.spec.rights import where_called

        with where_called():
            file = resolved(find_file(path))
        return [name for name, record in self.records().items() if record.file == file]

    # Workspaces that are there.

    def records(self) -> dict[str, Record]:
        """The records of all existing workspaces by name; for a caller other than root, of those that it may see."""
        return {name: view.record for name, view in self._views().items()}

    def _views(self) -> dict[str, UserView]:
        """The views of all existing workspaces that the caller may see, by name."""
        if os.geteuid() != 0:
            # Spares the start-up of `hutch ls` for root.
            from hutch.host.identity.user_view import visible_views

            return visible_views(self.layout)
        found, who = present(read_records(self.layout)), member.acting
        return {name: UserView(record) for name, record in found.items() if who is None or record.is_of(who.uid)}

    def hidden(self) -> set[str]:
        """The names of the workspaces that a caller other than root may not see."""
        # Spares the start-up of `hutch ls` for root.
        from hutch.host.identity.user_view import hidden_names

        return hidden_names(self.layout)

    def kept(self) -> list[dict[str, Any]]:
        """The homes that are kept of removed workspaces: `name`, `type`, `ip`, `home` and `file`; when it was `removed`
        (ISO 8601, in UTC) and its `size` in bytes, each None where nobody knows. `undelete` brings one back, and so
        does `up` of a file that declares it; `remove` with `purge` deletes them. Needs root."""
        # Spares the start-up of `hutch ls`.
        from hutch.apply.holdings import kept_homes

        return kept_homes(self.layout)

    @with_restored_records
    def undelete(self, name: str, path: Path | None = None) -> None:
        """Bring back a removed workspace whose home is kept, stopped: as it was declared last, with its host key, its
        owner and its address. Where no workspace is left, the network is that of the file `path`, by default of the one
        that declared it."""
        # Spares the start-up of `hutch ls`.
        from hutch.apply.undeleting import undelete

        undelete(self.layout, name, self.listen, lambda declared: self.load(path or declared).network)

    def record(self, name: str) -> Record:
        """One record; UsageError when there is no such workspace."""
        return self._view(name).record

    def _view(self, name: str) -> UserView:
        if not is_name(name):
            raise UsageError(f"{name!r} is not the name of a workspace")
        if os.geteuid() != 0:
            # Spares the start-up of `hutch ls` for root.
            from hutch.host.identity.user_view import read_user_view

            view = read_user_view(self.layout, name)
        else:
            found = read_record(self.layout, name)
            if found is not None and member.acting is not None:
                # Spares the start-up of `hutch ls`.
                from hutch.apply.membership import check_own

                check_own({name: found}, [name])
            view = UserView(found) if found else None
        if view is None or (view.record.removed and not view.record.ejected):
            raise UsageError(f"there is no workspace {name}", resolution="`hutch ls` lists them; `hutch up` makes them")
        if view.record.removed:
            raise UsageError(f"{name} was ejected and is not hutch's any more", resolution=f"see {view.record.ejected}")
        return view

    def observe(self, name: str) -> Observation:
        record = self.record(name)
        return observe_all(self.layout, {name: record})[name]

    @with_restored_records
    def start(self, names: Sequence[str]) -> None:
        """Start workspaces; returns when they are ready."""
        self._turn("start", names)

    @with_restored_records
    def stop(self, names: Sequence[str], *, force: bool = False) -> None:
        """Stop workspaces; their state stays. Without `force`, stops none while git work outside of the home would go
        with the root of one."""
        self._turn("stop", names, force=force)

    @with_restored_records
    def restart(self, names: Sequence[str], *, force: bool = False) -> None:
        """Stop and start workspaces. A workspace that could not be started again is not stopped, nor one that `stop`
        would leave alone."""
        self._turn("restart", names, force=force)

    def _turn(self, verb: Verb, names: Sequence[str], *, force: bool = False) -> None:
        # Spares the start-up of `hutch ls`.
        from hutch.apply.turning import turn

        turn(self.layout, verb, names, self.record, self.listen, force=force)

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

    @with_restored_records
    def move(
        self,
        name: str,
        engine: str,
        *,
        member: str = "",
        path: Path | None = None,
        write: bool = False,
        force: bool = False,
        confirm: Confirm = silent,
    ) -> Plan:
        """Have a workspace run by another engine, or by another `member` of its cluster; returns what was done, when it
        is ready. The file that `load` would take must say so already; with `write`, that one line is changed.

        `confirm` is asked before a workspace is stopped in which somebody is at work. `force` is that of `up`.
        """
        # Spares the start-up of `hutch ls`.
        from hutch.api.moving import move

        return move(self, name, engine, member, path, write=write, force=force, confirm=confirm)

    @with_restored_records
    def snapshot(self, name: str, tag: str = "") -> str:
        """Take a snapshot of a workspace, which goes on: of its home, and of a root that is kept, as they are at one
        moment. Returns its tag: without one, the time in UTC. For workspaces of an Incus server."""
        # Spares the start-up of `hutch ls`.
        from hutch.apply.snapshots import snapshot

        return snapshot(self.layout, name, tag, self.record, self.listen)

    def snapshots(self, name: str) -> list[dict[str, Any]]:
        """The snapshots of a workspace, oldest first, as `hutch snapshots --json` shows them."""
        # Spares the start-up of `hutch ls`.
        from hutch.apply.snapshots import snapshots

        return [each.to_json() for each in snapshots(self.layout, self.record(name))]

    @with_restored_records
    def delete_snapshot(self, name: str, tag: str) -> None:
        """Delete a snapshot, or what is left of one."""
        # Spares the start-up of `hutch ls`.
        from hutch.apply.snapshots import delete

        delete(self.layout, name, tag, self.record, self.listen)

    @with_restored_records
    def restore(self, name: str, tag: str, *, confirm: Callable[[str], None] = silent) -> None:
        """Make the home of a workspace, and a root that is kept, as they were in a snapshot. One that runs is stopped,
        once `confirm` has been asked, and started again."""
        # Spares the start-up of `hutch ls`.
        from hutch.apply.snapshots import restore

        restore(self.layout, name, tag, self.record, self.listen, confirm=confirm)

    @with_restored_records
    def fork(self, config: Config, name: str, news: Sequence[str], *, tag: str = "", start: bool = False) -> None:
        """Make new workspaces with the home of another one, and with its root where that is kept, as they are now or
        were in the snapshot `tag`. Identities are their own. `config` declares the new ones."""
        # Spares the start-up of `hutch ls`.
        from hutch.apply.planning import make_plan
        from hutch.apply.snapshots import fork

        make = partial(make_plan, self.layout, config, start=False, prune=False)
        fork(self.layout, config, name, news, self.record, make, self.listen, tag=tag)
        if start:
            self._turn("start", news)

    def explain(self, name: str) -> tuple[Section, ...]:
        """The commands, rules and files behind a workspace, as its next start would make them; for a caller other than
        root its addresses, names and rules."""
        # Spares the start-up of `hutch ls`.
        from hutch.apply.explaining import explain, explain_own

        view = self._view(name)
        return explain(self.layout, view.record) if os.geteuid() == 0 else explain_own(self.layout, view)

    def approvals(self, name: str | None = None) -> list[Refusal]:
        """What a workspace, or all that the caller may see, were refused by name and may want; most often asked for
        first, for each, and last what was denied."""
        # Spares the start-up of `hutch ls`.
        from hutch.api.approvals import refusals_of

        return refusals_of(self, name)

    @with_restored_records
    def allow(self, name: str, host: str, seconds: int | None = None) -> Decision | None:
        """Open a name (with a port, or at all of them) to a workspace beside its list: for so many seconds, or for
        good. One that runs has it at once. Returns the decision, None where the list opens that name already."""
        # Spares the start-up of `hutch ls`.
        from hutch.apply.approving import decide

        return decide(self.layout, name, host, self.record, self.listen, is_allowed=True, seconds=seconds)

    @with_restored_records
    def deny(self, name: str, host: str) -> Decision:
        """Close what `allow` opened, cut the connections that it let out, and remember the no."""
        # Spares the start-up of `hutch ls`.
        from hutch.apply.approving import decide

        decision = decide(self.layout, name, host, self.record, self.listen, is_allowed=False)
        assert decision is not None
        return decision

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
        (entry,) = self._describe({name: self._view(name)}).values()
        return self.look([entry])[0]

    def look(self, entries: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Entries of `hutch status --json` with what a look at the host tells beside: see api/looking."""
        # Spares the start-up of `hutch ls`.
        from hutch.api.looking import look

        return look(self.layout, {name: view.record for name, view in self._views().items()}, entries)

    def describe(self) -> dict[str, dict[str, Any]]:
        """The entries of `hutch status --json` of all existing workspaces, by name, without damage on the host."""
        return self._describe(self._views())

    def _describe(self, views: dict[str, UserView]) -> dict[str, dict[str, Any]]:
        seen = observe_all(self.layout, {name: view.record for name, view in views.items()})
        return {
            name: describe(view.record, seen[name], self._facts(view, seen[name]), view.ages)
            for name, view in self._with_ages(views).items()
        }

    def freshness(self) -> dict[str, Freshness]:
        """The freshness of the image that each workspace runs on, by name."""
        views = self._with_ages(self._views())
        seen = observe_all(self.layout, {name: view.record for name, view in views.items()})
        return {name: freshness_of(view.record, seen[name], view.ages) for name, view in views.items()}

    def _with_ages(self, views: dict[str, UserView]) -> dict[str, UserView]:
        """Views with the ages of images, which root reads once for all of them; those of others have them."""
        if os.geteuid() != 0:
            return views
        ages = read_ages(self.layout)
        return {name: replace(view, ages=ages) for name, view in views.items()}

    def _facts(self, view: UserView, now: Observation) -> Mapping[str, str]:
        """The facts of a machine that runs. `ls` asks for them, and loads no backend."""
        runs = has_processes(now.state) and view.record.booted is not None
        if not runs or not has_effect("hypervisor", view.record.effective.type):
            return {}
        found = observe_facts(self.layout, view.record.name) if view.facts is None else view.facts
        cid = observe_cid(self.layout, view.record.name)
        return {**found, "cid": cid} if cid else found
