"""The engine of workspaces on Incus servers.

Each workspace has its server and project in its record (Place). Those of one project are asked about together, and
started and stopped side by side, each with a client of its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from hutch.backends.incus import CREDENTIALS, LIMITS, Instance
from hutch.engines.incus import changing, images, network, points, restoring, server, turning, ways
from hutch.engines.incus.client import Client, path_to
from hutch.engines.incus.failures import NoAnswer, Refused
from hutch.engines.incus.homes import POOLS, find_homes, reconcile_home, remove_home, volumes
from hutch.engines.incus.limits import check_limits
from hutch.engines.incus.observing import Found, drift, look_up, look_up_patiently, observe_all
from hutch.engines.incus.preparing import Pools, owner_of, pools_as_found, prepare, render_instance, takers
from hutch.engines.incus.whereabouts import mismatch, mismatches
from hutch.errors import HutchError
from hutch.images.progress import reporter
from hutch.spec.record import Observation, Record

if TYPE_CHECKING:
    from hutch.host.identity.ssh import Peer
    from hutch.images.progress import BuildProgress
    from hutch.plan.actions import Change, Wanted
    from hutch.runtime.control import Listener
    from hutch.spec.names import Layout
    from hutch.spec.record import Place

AT_ONCE = 16
"""Workspaces that are started, or stopped, at a time."""


class IncusEngine:
    """All Incus servers that this hutch has workspaces on. See hutch.engines.protocols.Engine."""

    def __init__(self, layout: Layout, connect: Callable[[Place], Client] | None = None) -> None:
        self.layout = layout
        self.connect = connect or partial(ways.client_of, layout)

    def observe(self, records: Mapping[str, Record]) -> dict[str, Observation]:
        seen: dict[str, Observation] = {}
        for client, theirs in self._by_place(records):
            seen |= observe_all(client, theirs)
            missing = [name for name in theirs if seen[name].state == "absent"]
            for name, error in mismatches(self.layout, client, missing).items():
                seen[name] = Observation("unreachable", reason=error.brief)
        return seen

    def broken(self, records: Mapping[str, Record]) -> dict[str, tuple[Change, ...]]:
        broken: dict[str, tuple[Change, ...]] = {}
        for client, theirs in self._by_place(records):
            for name, found in look_up_patiently(client, theirs).items():
                if isinstance(found, Found) and found.is_of(theirs[name]) and theirs[name].booted is not None:
                    changes = tuple(drift(found, self._as_booted(theirs[name], pools_as_found(found))))
                    broken |= {name: changes} if changes else {}
        return broken

    def check(self, wanted: Mapping[str, Wanted], records: Mapping[str, Record]) -> tuple[str, ...]:
        intended = {name: _intended(name, target, records.get(name)) for name, target in wanted.items()}
        new = {name for name in intended if name not in records or records[name].removed or not records[name].place}
        notes = [f"on an Incus server, {text}" for text in LIMITS] if new else []
        changed = {name: record for name, record in intended.items() if record != records.get(name)}
        for client, theirs in self._by_place(changed):
            try:
                self._check(client, theirs)
            except NoAnswer as error:
                if new & theirs.keys():
                    raise
                notes.append(error.brief)
        return tuple(notes)

    def _check(self, client: Client, records: Mapping[str, Record]) -> None:
        for record in records.values():
            ways.peer(self.layout, record)
        place = client.place
        client.ask_ahead({**server.server_questions(place), **network.network_questions(place), POOLS: False})
        found_server = server.look(client)
        server.check_floor(found_server, place)
        server.check_target(found_server, place)
        project = server.find_project(client)
        if project is not None:
            server.check_project(place, project)
        for name in records:
            if (error := mismatch(self.layout, name, place, project)) is not None:
                raise error
        network.check_ground(client, found_server, place)
        found = look_up_patiently(client, records)
        for name, instance in found.items():
            if isinstance(instance, HutchError):
                raise instance
            if instance is not None and instance.is_foreign(records[name]):
                raise turning.foreign(client, name)
        homes = find_homes(client, records)
        if found_server.is_clustered and not found.keys() <= homes.keys() | present(found):
            takers(found_server, place)
        instances = {
            name: render_instance(self.layout, record, record.wanted, record.image, Pools("", ""), secrets=False)
            for name, record in records.items()
        }
        check_limits(client, project or {}, instances, present(found), is_clustered=found_server.is_clustered)

    def supply(self, wanted: Mapping[str, Wanted], progress: BuildProgress) -> None:
        intended = {name: _intended(name, target, None) for name, target in wanted.items()}
        for client, theirs in self._by_place(intended):
            elsewhere = mismatches(self.layout, client, theirs)
            theirs = {name: record for name, record in theirs.items() if name not in elsewhere}
            if not theirs:  # nothing is brought to a server that is not theirs, as their starts tell
                continue
            client.ask_ahead({server.project_path(client.place): False, images.IMAGES: True})
            server.ensure_project(client, owner_of(self.layout), server.find_project(client))
            for image in sorted({record.image for record in theirs.values()}):
                images.ensure_image(client, self.layout, image, reporter(progress, image))

    def stop(self, records: Mapping[str, Record]) -> None:
        works = {name: self._work(record, turning.stop, record) for name, record in records.items()}
        failures = {name: error for name, error in side_by_side(works) if error is not None}
        if failures:
            brief = f"{', '.join(sorted(failures))} could not be stopped"
            raise HutchError(brief, details="\n".join(f"{name}: {told(error)}" for name, error in failures.items()))

    def start(self, records: Mapping[str, Record], listen: Listener) -> dict[str, str]:
        failures: dict[str, str] = {}
        works: dict[str, Callable[[], object]] = {}
        for client, theirs in self._by_place(records):
            try:
                starts, impossible = prepare(self.layout, client, theirs)
            except HutchError as error:
                failures |= dict.fromkeys(theirs, told(error))
                continue
            failures |= {name: told(error) for name, error in impossible.items()}
            works |= {name: self._work(theirs[name], restoring.start, one) for name, one in starts.items()}
        for name, why in side_by_side(works):
            if why is None:
                listen(name, "ready", "")
            else:
                failures[name] = told(why)
        for name, text in failures.items():
            listen(name, "failed", text)
        return failures

    def change(self, record: Record) -> dict[str, str]:
        assert record.booted is not None
        client = self._client(record)
        pools = pools_as_found(changing.running(client, record))
        wanted = render_instance(self.layout, record, record.wanted, record.booted.image, pools)
        return changing.apply(client, record, wanted)

    def remove(self, record: Record, *, purge: bool) -> tuple[str, ...]:
        client = self._client(record)
        turning.stop(client, record)
        reconcile_home(client, record)
        found = points.look(client, record, is_leaving=True)
        tags = ", ".join(each.tag for each in points.snapshots(found))
        turning.remove(client, record)
        home = found.home
        if not purge:
            if home is None:
                return ()
            where = f" of the member {home.member}" if home.member else ""
            note = f"its home stays in {client.place.remote}: the volume {home.name} of the pool {home.pool}{where}"
            return (note, *([f"of its snapshots ({tags}), the homes stay with it"] if tags else []))
        if home is not None:
            remove_home(client, home)
        self.leave(client)
        return (f"its snapshots are deleted: {tags}",) if tags else ()

    def leave(self, client: Client) -> None:
        """Take away what was made for all workspaces of a project, once there is none."""
        try:
            question = path_to("instances")
            if client.get(question) or any(True for _ in volumes(client)):
                return
        except Refused:  # the project is gone
            pass
        owner = owner_of(self.layout)
        images.prune_images(client, (owner, ""), ())
        server.remove_project(client, owner)
        network.remove_network(client, client.place, owner)

    def prune(self, records: Mapping[str, Record]) -> tuple[str, ...]:
        removed: list[str] = []
        for client, theirs in self._by_place(records):
            used = {image for record in theirs.values() for image in record.images}
            removed += images.prune_images(client, (owner_of(self.layout),), used)
        return tuple(dict.fromkeys(removed))

    def log(self, record: Record, lines: int) -> str:
        text = self._client(record).text(path_to("instances", record.name, "console"))
        return "".join(text.splitlines(keepends=True)[-lines:]) if lines > 0 else ""

    def console_command(self, record: Record) -> tuple[str, ...]:
        client = self._client(record)
        return tuple(client.argv("console", client.of(record.name)))

    def peer(self, record: Record) -> Peer:
        return ways.peer(self.layout, record)

    def listeners(self, record: Record) -> tuple[tuple[str, int], ...]:
        return server.look(self._client(record)).listeners[: network.MOST_ADDRESSES]

    def obstacles(self, record: Record) -> list[str]:
        return ways.obstacles(self._client(record), record, self.observe({record.name: record})[record.name].state)

    def unsaved_in_root(self, record: Record) -> list[str]:
        runs = self.observe({record.name: record})[record.name].state == "running"
        return ways.unsaved_in_root(self._client(record), record) if runs else []

    def sessions(self, record: Record) -> list[str]:
        return ways.sessions(self._client(record), record)

    def explain(self, record: Record) -> dict[str, str]:
        client = self._client(record)
        try:
            found = look_up(client, record.name)
            pools = pools_as_found(found) if found is not None else _both_in(server.choose_pool(client))
        except HutchError as error:
            pools = _both_in(f"unknown: {error.brief}")
        instance = render_instance(self.layout, record, record.wanted, record.image, pools, secrets=False)
        return explained(instance)

    # Helpers.

    def _client(self, record: Record) -> Client:
        return self.connect(ways.place_of(record))

    def _by_place(self, records: Mapping[str, Record]) -> Iterator[tuple[Client, dict[str, Record]]]:
        """A client for each project, with the workspaces in it."""
        places: dict[tuple[str, ...], dict[str, Record]] = {}
        for name, record in records.items():
            place = ways.place_of(record)
            key = (place.remote, place.project, place.target, place.subnet, str(place.account), place.conf)
            places.setdefault(key, {})[name] = record
        for theirs in places.values():
            yield self._client(next(iter(theirs.values()))), theirs

    def _as_booted(self, record: Record, pools: Pools) -> Instance:
        assert record.booted is not None
        workspace, image = record.booted.workspace, record.booted.image
        return render_instance(self.layout, record, workspace, image, pools, secrets=False)

    def _work(self, record: Record, do: Callable[..., object], what: object) -> Callable[[], object]:
        """Something to do for one workspace, with a client of its own."""
        return lambda: do(self._client(record), what)


def present(found: Mapping[str, object]) -> frozenset[str]:
    """The names of the instances that are there."""
    return frozenset(name for name, instance in found.items() if instance is not None)


def _both_in(pool: str) -> Pools:
    """The pools of a workspace whose root and home are in one."""
    return Pools(pool, pool)


def _intended(name: str, target: Wanted, record: Record | None) -> Record:
    """The record that a workspace is to have. A new one has no id yet, so no instance is its own."""
    before = record or Record(name, "", target.workspace, target.image, 0, "")
    return replace(before, wanted=target.workspace, image=target.image, place=target.place, removed=False)


def side_by_side(works: Mapping[str, Callable[[], object]]) -> Iterator[tuple[str, HutchError | None]]:
    """Do works side by side; (name, why it failed) of each as it ends. When interrupted, those that have not begun are
    not done."""
    if not works:
        return
    pool = ThreadPoolExecutor(min(AT_ONCE, len(works)))
    try:
        names = {pool.submit(work): name for name, work in works.items()}
        for done in as_completed(names):
            error = done.exception()
            if error is not None and not isinstance(error, HutchError):
                raise error
            yield names[done], error
    finally:
        pool.shutdown(cancel_futures=True)


def told(error: HutchError) -> str:
    """An error in a line: the details and the advice are of use where there are several."""
    details = "; ".join(error.details.splitlines())
    return error.brief + (f": {details}" if details else "") + (f" ({error.resolution})" if error.resolution else "")


def explained(instance: Instance) -> dict[str, str]:
    """An instance in texts, by their titles. Credentials are told by their names."""
    parts = {"config": dict(instance.config), "devices": {name: dict(each) for name, each in instance.devices.items()}}
    home = {"pool": instance.home.pool, "volume": instance.home.volume, "config": dict(instance.home.config)}
    return {
        f"instance {instance.name}": json.dumps(parts, indent=2) + "\n",
        f"volume {instance.home.volume}, its home": json.dumps(home, indent=2) + "\n",
        f"files in {CREDENTIALS}, root's": "".join(f"{name}\n" for name in sorted(instance.credentials)),
    }
