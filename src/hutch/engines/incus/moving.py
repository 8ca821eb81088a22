"""Homes on their way to a server and from it, and workspaces on their way between its members.

A home travels as a tar archive, through the standard streams of `incus exec`. On the server a transfer container
unpacks or packs it, which is made for this alone, of the workspace's image and with a range of uids of its own; nobody
else is in it. It has no port, no account and no credentials; of the workspace it has the home, which is not in its
place, and read-only where it is sent. So nothing that a guest wrote runs, files can be given to anybody whom a guest
knows and to nobody else, and no archive makes a device or leads out of the volume. The workspace's own instance would
run a kept root as its guest left it. `incus storage volume import` needs no container, but keeps a second copy of all
in a directory of the server, and restricted projects refuse it, as they do all backups.

An instance that is left is retired before its home is read: it keeps nothing but its root. Whoever starts it has
neither the home nor the workspace's address. What a move makes is marked, so that whatever was cut short is known.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hutch.access.piped import Take
from hutch.backends.incus import HOMEWARD, MEMBER, MOVING, RESTORING
from hutch.engines.incus import IncusEngine, turning
from hutch.engines.incus.answers import NOT_FOUND, found, mapping, words
from hutch.engines.incus.archives import INSIDE, pack, unpack
from hutch.engines.incus.client import GRACE, Client, instance_path, path_to
from hutch.engines.incus.failures import NoAnswer, Refused
from hutch.engines.incus.homes import (
    Volume,
    bring_home,
    ensure_home,
    find_homes,
    home_path,
    note_in_home,
    on,
    reconcile_home,
    remove_home,
)
from hutch.engines.incus.images import ensure_image
from hutch.engines.incus.observing import Found, read_instance
from hutch.engines.incus.preparing import (
    Pools,
    check_member,
    choose_members,
    owner_of,
    pools_of,
    render_instance,
)
from hutch.engines.incus.server import Server, check_floor, choose_pool, ensure_project, find_project, look
from hutch.engines.incus.ways import client_of, place_of
from hutch.engines.incus.whereabouts import mismatches, note
from hutch.errors import HutchError
from hutch.frozen import dataclass
from hutch.spec.record import Record

if TYPE_CHECKING:
    from hutch.spec.names import Layout

SPARE = 1.02  # of what a home needs, for its directories and for what they lie in

Tell = Callable[[float], None]
"""A callback that gets the fraction of a home that has been copied, from 0 to 1."""


@dataclass(frozen=True)
class Arrival:
    """A place for a home on a server, which was looked at: the pool and the member, and the image of the transfer
    container."""

    pool: str
    member: str
    fingerprint: str


class Mover:
    """One workspace's side of a move, on a server. `record` is its record as far as it is, or was, or is to be there.
    See hutch.engines.protocols.Mover."""

    def __init__(self, layout: Layout, client: Client, record: Record) -> None:
        self.layout, self.client, self.record = layout, client, record
        self.name = record.name

    # Coming to the server.

    def reserve(self, size: int, member: str = "") -> Arrival:
        """Look at everything, and bring the image; `size` are the bytes of the home. Nothing of the workspace is made.
        Raises HutchError where it cannot come."""
        client, record = self.client, self.record
        server = look(client)
        check_floor(server, client.place)
        chosen = self._choose_member(server, member)
        self._check_server()
        word = ensure_project(client, owner_of(self.layout), find_project(client))
        note(self.layout, [self.name], client.place, word)
        pool = choose_pool(client)
        self._check_room(pool, chosen, size)
        return Arrival(pool, chosen, ensure_image(client, self.layout, record.image))

    def check_member(self, member: str) -> None:
        """Refuse a member that is not there, or takes nothing."""
        check_member(look(self.client), self.client, member)

    def _choose_member(self, server: Server, member: str) -> str:
        if not member:
            return choose_members(self.client, server, {self.name: self.record}, {}, {})[self.name]
        check_member(server, self.client, member)
        return member

    def _check_room(self, pool: str, member: str, size: int) -> None:
        """Refuse a home that the pool, or its own limit, has no room for."""
        limit = self.record.wanted.disk
        if limit is not None and size > limit:
            raise HutchError(f"the home of {self.name} has {size} bytes, and its `disk` allows {limit}")
        question = path_to("storage-pools", pool, "resources", **on(member))
        space = (found(self.client, question) or {}).get("space")
        known = space if isinstance(space, dict) else {}
        total, used = known.get("total"), known.get("used")
        if isinstance(total, int) and isinstance(used, int) and total > 0 and size * SPARE > total - used:
            where = f"{self.client.place.remote}{f', member {member}' if member else ''}"
            left = max(0, total - used)
            raise HutchError(
                f"the home of {self.name} has {size} bytes, and the pool {pool} of {where} has {left} left",
                resolution="remove something there, or name another `target`",
            )

    def receive(self, arrival: Arrival, pieces: Iterable[bytes], size: int, end: str) -> None:
        """Make the home of the pieces of an archive, of about `size` bytes, whose last entry has the name `end`. It
        is marked until `accept`."""
        self._clear()
        instance = render_instance(
            self.layout, self.record, self.record.wanted, self.record.image, self._pools(arrival), secrets=False
        )
        marked = replace(instance.home, config={**instance.home.config, MOVING: self.record.machine_id})
        ensure_home(self.client, self.name, marked, None, arrival.member)
        with self._transfer(arrival, instance.home.volume, readonly=False) as transfer:
            unpack(self.client, transfer, self.name, pieces, size, end)

    def _pools(self, arrival: Arrival) -> Pools:
        return Pools(arrival.pool, arrival.pool)

    def has_home(self) -> bool:
        """Whether its home is there; a server that is another one has none. Raises HutchError where nobody can tell."""
        error = mismatches(self.layout, self.client, [self.name]).get(self.name)
        if isinstance(error, (NoAnswer, Refused)):
            raise error
        return error is None and self._home() is not None

    def accept(self) -> None:
        """Take the mark from the home: the workspace is here. May be called again."""
        self._check_server()
        home = self._home()
        if home is None:
            raise HutchError(
                f"the home of {self.name} is not on {self.client.place.remote}, where it was copied to",
                details="nothing was removed at its old place",
                resolution=f"`incus storage volume list` shows the volumes; `hutch rm --force {self.name}` keeps the "
                "old home",
            )
        note_in_home(self.client, home, {MOVING: None})

    def prefer(self, member: str) -> None:
        """Note the member that somebody wants it on."""
        turning.note(self.client, self.record, {MEMBER: member})

    def discard(self, *, is_accepted: bool = False) -> None:
        """Remove all that there is of the workspace, which is somewhere else; with the last one, what hutch has made
        for all of them. A home without the mark goes only if `is_accepted`. May be called again."""
        self._check_server()
        self._clear(is_accepted=is_accepted)
        IncusEngine(self.layout).leave(self.client)
        self.layout.server(self.name).unlink(missing_ok=True)

    def _check_server(self) -> None:
        """Refuse a server that is another one than it was made on, by the same name."""
        if (error := mismatches(self.layout, self.client, [self.name]).get(self.name)) is not None:
            raise error

    def _clear(self, *, is_accepted: bool = False) -> None:
        self._remove_transfer()
        reconcile_home(self.client, self.record)
        home = self._home()
        if home is not None and not is_accepted and home.config.get(MOVING) != self.record.machine_id:
            raise HutchError(
                f"the volume {home.name} of {self.client.place.remote} is a home that no move has left half made",
                details=f"it is in the pool {home.pool} of the project {self.client.place.project}",
                resolution="inspect it; `incus storage volume` renames or deletes it",
            )
        turning.stop(self.client, self.record)
        turning.remove(self.client, self.record)
        if home is not None:
            remove_home(self.client, home)

    # Leaving the server.

    def retire(self) -> None:
        """Stop the instance, and take everything but its root from it. May be called again."""
        self._check_server()
        turning.stop(self.client, self.record)

        def retired(instance: Found) -> turning.Parts:
            config = {**instance.config, MOVING: self.record.machine_id, "boot.autostart": "false"}
            return config, {name: device for name, device in instance.devices.items() if name == "root"}

        turning.edit(self.client, self.record, retired, is_whole=True)
        self.check_retired()

    def check_retired(self) -> None:
        """Raise HutchError where somebody has started the instance since, or given it what it had."""
        instance = turning.own(self.client, self.record)
        if instance is None:
            return
        if instance.runs or MOVING not in instance.config or instance.devices.keys() - {"root"}:
            what = "runs" if instance.runs else "is not as it was left"
            raise HutchError(
                f"the instance {self.name} of {self.client.place.remote}, which is being moved, {what}",
                details="somebody else has started or changed it meanwhile, so the copy of its home may be stale",
                resolution=f"stop it (`incus stop {self.client.of(self.name)}`), then `hutch up {self.name}`",
            )

    def rearm(self) -> None:
        """Give a retired instance back what it had; it stays stopped. May be called again."""
        self._remove_transfer()
        instance = turning.own(self.client, self.record)
        if instance is None:
            return
        pools = pools_of(instance, self._home(), instance.pool)
        workspace, image = self.record.effective, self.record.booted.image if self.record.booted else self.record.image
        wanted = render_instance(self.layout, self.record, workspace, image, pools, secrets=False)
        turning.update(self.client, self.record, wanted)

    def send(self, take: Take, is_whole: Callable[[], bool]) -> bool:
        """Have `take` get an archive of the home of the retired instance, until it `is_whole`. Returns False where
        there is none yet."""
        self._remove_transfer()
        reconcile_home(self.client, self.record)
        home = self._home()
        if home is None:
            if self.record.booted is None:
                return False
            raise HutchError(
                f"the home of {self.name} is not on {self.client.place.remote} any more",
                resolution=f"`incus storage volume list` shows the volumes; `hutch rm {self.name}` gives it up",
            )
        fingerprint = ensure_image(self.client, self.layout, self.record.image)
        arrival = Arrival(home.pool, home.member, fingerprint)
        with self._transfer(arrival, home.name, readonly=True) as transfer:
            pack(self.client, transfer, self.name, take, is_whole, self.size_of(home))
        return True

    def check_leaving(self) -> None:
        """Refuse a workspace with what does not go along."""
        questions, home = [instance_path(self.name, "snapshots")], self._home()
        if home is not None:
            questions.append(home_path(home, "snapshots"))
        snapshots: set[str] = set()
        for answer in self.client.get_all(questions):
            if isinstance(answer, HutchError) and not (isinstance(answer, Refused) and answer.code == NOT_FOUND):
                raise answer
            snapshots |= {path.partition("?")[0].rpartition("/")[2] for path in words(answer)}
        if snapshots:
            raise HutchError(
                f"{self.name} has {len(snapshots)} snapshots, which stay with the server and cannot go along",
                resolution=f"`hutch snapshots {self.name}` shows them; delete those first",
            )
        if home is not None and RESTORING in home.config:
            raise HutchError(
                f"a restore of {self.name} was cut short",
                resolution=f'with engine = "incus" as before, `hutch up {self.name}` finishes it; then move it',
            )

    def size(self) -> int:
        """The bytes that the home takes there; 0 where the server does not tell."""
        home = self._home()
        return self.size_of(home) if home is not None else 0

    def size_of(self, home: Volume) -> int:
        question = home_path(home, "state")
        try:
            usage = mapping(self.client.get(question), question).get("usage")
        except Refused:
            return 0
        used = usage.get("used") if isinstance(usage, dict) else None
        return used if isinstance(used, int) and used > 0 else 0

    # Between members.

    def move_to(self, member: str) -> None:
        """Bring the stopped workspace to another member, by Incus's own migration. May be called again: what has come
        there stays there."""
        self.check_member(member)
        self._check_server()
        if turning.own(self.client, self.record) is None:
            raise HutchError(f"{self.name} is not at {self.client.place.remote}", resolution="`hutch up` makes it")
        reconcile_home(self.client, self.record)
        self.retire()
        home = self._home()
        if home is not None and home.member not in ("", member):
            turning.note(self.client, self.record, {HOMEWARD: json.dumps(dict(home.config), sort_keys=True)})
            bring_home(self.client, home, member)
            reconcile_home(self.client, self.record)
            home = self._home()
            if home is None or home.member != member:
                raise HutchError(f"the home of {self.name} did not come to {member}; it is where it was")
        turning.migrate(self.client, self.record, member)
        self.rearm()
        self.prefer(member)

    def member(self) -> str:
        """The member that has it; "" where there is no instance, or no cluster."""
        instance = turning.own(self.client, self.record)
        return instance.member if instance is not None else ""

    # Transfer containers.

    @property
    def transfer_name(self) -> str:
        """The name of the transfer container. No workspace has a capital letter in its name."""
        return f"Move-{self.name}"

    @contextmanager
    def _transfer(self, arrival: Arrival, volume: str, *, readonly: bool) -> Iterator[str]:
        """A container that runs, with the home; as the client's verbs name it. It goes in the end."""
        wanted = render_instance(
            self.layout, self.record, self.record.wanted, self.record.image, self._pools(arrival), secrets=False
        )
        config = {key: value for key, value in wanted.config.items() if key.startswith("security.idmap.")}
        config |= {"security.privileged": "false", "boot.autostart": "false", MOVING: self.record.machine_id}
        home = {"type": "disk", "pool": arrival.pool, "source": volume, "path": INSIDE}
        devices = {
            "root": {"type": "disk", "path": "/", "pool": arrival.pool},
            "home": {**home, "readonly": "true"} if readonly else home,
        }
        body: dict[str, Any] = {
            "name": self.transfer_name,
            "type": "container",
            "description": f"carries the home of hutch's workspace {self.name}",
            "source": {"type": "image", "fingerprint": arrival.fingerprint},
            "config": config,
            "devices": devices,
            "profiles": [],
            "ephemeral": False,
        }
        self.client.change("POST", path_to("instances", **on(arrival.member)), body, seconds=600.0)
        try:
            self._turn_transfer({"action": "start", "timeout": turning.START_SECONDS}, turning.START_SECONDS)
            yield f"{self.client.place.remote}:{self.transfer_name}"
        finally:
            self._remove_transfer()

    def _turn_transfer(self, body: dict[str, Any], seconds: float) -> None:
        self.client.change("PUT", path_to("instances", self.transfer_name, "state"), body, seconds=seconds + GRACE)

    def _remove_transfer(self) -> None:
        """Remove the transfer container. May be called again. Raises HutchError for another's instance of that name."""
        path = path_to("instances", self.transfer_name)
        try:
            there = read_instance(self.client.get(path))
        except Refused as error:
            if error.code == NOT_FOUND:
                return
            raise
        if there.config.get(MOVING) != self.record.machine_id:
            raise turning.foreign(self.client, self.transfer_name)
        if there.runs:
            self._turn_transfer(
                {"action": "stop", "force": True, "timeout": turning.KILL_SECONDS}, turning.KILL_SECONDS
            )
        self.client.change("DELETE", path)

    def _home(self) -> Volume | None:
        return find_homes(self.client, {self.name: self.record}).get(self.name)


def mover_of(layout: Layout, record: Record) -> Mover:
    """One workspace's side of a move, by a client of its own."""
    return Mover(layout, client_of(layout, place_of(record)), record)
