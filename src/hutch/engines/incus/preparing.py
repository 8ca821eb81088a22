"""The ground of workspaces on one server: project, network, pools, homes, images, and the member that each goes to.

Makes what is missing, and may be called again. What only one workspace needs is made when that one starts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hutch.backends.incus import HOMEWARD, Ground, Instance, render
from hutch.engines.incus.addresses import remember
from hutch.engines.incus.answers import listing, mapping, shown, text
from hutch.engines.incus.client import path_to
from hutch.engines.incus.failures import NoAnswer, Refused
from hutch.engines.incus.homes import POOLS, Volume, find_homes, reconcile_home
from hutch.engines.incus.images import IMAGES, ensure_image
from hutch.engines.incus.network import ensure_network, network_name, network_questions
from hutch.engines.incus.observing import Found, look_up_patiently
from hutch.engines.incus.owner import owner_of as owner_of
from hutch.engines.incus.placement import Candidate, eligible, place_all
from hutch.engines.incus.server import (
    Server,
    check_floor,
    check_target,
    choose_pool,
    ensure_project,
    find_project,
    look,
    server_questions,
)
from hutch.engines.incus.turning import Start, foreign
from hutch.engines.incus.ways import place_of
from hutch.engines.incus.whereabouts import mismatch, note
from hutch.errors import HutchError
from hutch.files import read_or_none
from hutch.frozen import dataclass
from hutch.host.identity.holders import read_public_keys
from hutch.spec.model import WorkspaceSpec
from hutch.spec.names import Layout
from hutch.spec.record import Record

if TYPE_CHECKING:
    from hutch.engines.incus.client import Client
    from hutch.spec.record import Place

LOAD_SECONDS = 3.0
ASKED = 32
"""Members whose memory is asked for: those with the fewest instances."""
OURS = path_to("instances", recursion=1)


@dataclass(frozen=True)
class Pools:
    """The storage pools of a workspace's root and home."""

    root: str
    home: str


def pools_of(found: Found | None, home: Volume | None, chosen: str) -> Pools:
    """The pools where things are, and the one that was `chosen` for those that are not there yet."""
    at_home = home.pool if home is not None else chosen
    return Pools((found.pool if found is not None else "") or chosen or at_home, at_home)


def pools_as_found(found: Found) -> Pools:
    """The pools of an instance that is there, by its own devices."""
    return Pools(found.pool, found.devices.get("home", {}).get("pool", "") or found.pool)


def render_instance(
    layout: Layout, record: Record, workspace: WorkspaceSpec, image: str, pools: Pools, *, secrets: bool = True
) -> Instance:
    """The instance of a workspace. Without `secrets`, its credentials lack hutch's keys and the host key, which not
    everybody can read: they are then of no use. Raises HutchError for a key that is gone."""
    keys: tuple[str, ...] = ()
    host_key = ""
    if secrets:
        keys = read_public_keys(layout, record.name, workspace)
        private = read_or_none(layout.host_key(record.name))
        if private is None:
            raise HutchError(
                f"{layout.host_key(record.name)} is not there", resolution=f"`hutch up {record.name}` makes it"
            )
        host_key = private.decode("ascii", "replace")
    place = place_of(record)
    ground = Ground(
        network=network_name(place),
        subnet=place.subnet,
        pool=pools.root,
        home_pool=pools.home,
        file=record.file,
        image=image,
        keys=keys,
        host_key=host_key,
        machine_id=record.machine_id,
    )
    return render(record.name, workspace, ground)


def prepare(
    layout: Layout, client: Client, records: Mapping[str, Record]
) -> tuple[dict[str, Start], dict[str, HutchError]]:
    """Make the ground for workspaces of one project that are to start. Returns the starts, and why others cannot be.
    Raises HutchError for what concerns all of them."""
    place, owner = client.place, owner_of(layout)
    client.ask_ahead({**server_questions(place), **network_questions(place), POOLS: False, IMAGES: True})
    server = look(client)
    check_floor(server, place)
    check_target(server, place)
    remember(client.route, server)
    project = find_project(client)
    failures = {name: error for name in records if (error := mismatch(layout, name, place, project)) is not None}
    records = {name: record for name, record in records.items() if name not in failures}
    if not records:
        return {}, failures
    word = ensure_project(client, owner, project)
    ensure_network(client, server, place, owner)
    seen = look_up_patiently(client, records)
    for name, each in seen.items():
        if isinstance(each, Found) and HOMEWARD in each.config:  # a move between members was cut short
            try:
                reconcile_home(client, records[name])
            except HutchError as why:
                failures[name] = why
    homes = find_homes(client, records)
    failures |= {
        name: error
        for name, record in records.items()
        if (error := obstacle(client, server, record, seen[name], homes.get(name))) is not None
    }
    found = {name: each for name, each in seen.items() if isinstance(each, Found) and name not in failures}
    able = {name: record for name, record in records.items() if name not in failures}
    is_everything_there = all(name in found and found[name].pool and name in homes for name in able)
    pool = "" if is_everything_there else choose_pool(client)
    images = sorted({record.image for record in able.values()})
    fingerprints = {image: ensure_image(client, layout, image) for image in images}
    members = choose_members(client, server, able, found, homes)
    note(layout, able, place, word)
    starts = {}
    for name, record in able.items():
        pools = pools_of(found.get(name), homes.get(name), pool)
        try:
            wanted = render_instance(layout, record, record.wanted, record.image, pools)
        except HutchError as error:
            failures[name] = error
            continue
        fingerprint, ip = fingerprints[record.image], record.wanted.ip or ""
        starts[name] = Start(record, wanted, homes.get(name), members[name], fingerprint, ip)
    return starts, failures


def obstacle(
    client: Client, server: Server, record: Record, found: Found | HutchError | None, home: Volume | None
) -> HutchError | None:
    """The reason why a workspace cannot start now; None without any. Where its member is away, it is made nowhere else
    meanwhile."""
    if isinstance(found, HutchError):
        return found
    if found is not None and found.is_foreign(record):
        return foreign(client, record.name)
    member = found.member if found is not None else home.member if home is not None else ""
    away = {each.name for each in server.members if not each.answers}
    if member in away or (found is not None and found.status == "Error"):
        return HutchError(
            f"{record.name} is on {shown(member) or client.place.remote}, which does not answer",
            resolution="`incus cluster list` shows the members; bring it back first",
        )
    return None


def choose_members(
    client: Client,
    server: Server,
    records: Mapping[str, Record],
    found: Mapping[str, Found],
    homes: Mapping[str, Volume],
) -> dict[str, str]:
    """The member of each workspace: the one that has its instance, or its home, or else the least loaded. "" where the
    server is no cluster."""
    if not server.is_clustered:
        return dict.fromkeys(records, "")
    fixed = {name: homes[name].member for name in records if name in homes and homes[name].member}
    fixed |= {name: found[name].member for name in records if name in found}
    new = [name for name in records if name not in fixed]
    if not new:
        return fixed
    able = takers(server, client.place)
    return {**fixed, **place_all(new, with_loads(client, able))}


def takers(server: Server, place: Place) -> list[Candidate]:
    """The members that may get new workspaces. Raises HutchError where there is none."""
    able = eligible(candidates(server), place.target, os.uname().machine)
    if not able:
        states = "\n".join(
            f"{each.name} is {shown(each.status)}, scheduler.instance={shown(each.scheduler)}"
            for each in server.members
        )
        raise HutchError(
            f"no member of {place.remote} takes new workspaces (target = {place.target!r})",
            details=states,
            resolution="`incus cluster list` shows them; set `target` in [engines.incus], or `incus cluster restore`",
        )
    return able


def candidates(server: Server) -> list[Candidate]:
    """The members of the cluster, without their loads."""
    return [
        Candidate(each.name, each.status == "Online", each.architecture, each.scheduler, each.groups)
        for each in server.members
    ]


def with_loads(client: Client, able: Sequence[Candidate]) -> list[Candidate]:
    """The candidates with the number of their instances, and the memory that those of them have free which have the
    fewest; there is nothing to compare with one alone."""
    if len(able) < 2:
        return list(able)
    counts: dict[str, int] = {}
    for instance in _all_instances(client):
        counts[text(instance, "location")] = counts.get(text(instance, "location"), 0) + 1
    counted = sorted(
        (replace(each, instances=counts.get(each.name, 0)) for each in able),
        key=lambda each: (each.instances, each.name),
    )
    emptiest, others = counted[:ASKED], counted[ASKED:]
    questions = [path_to("cluster", "members", each.name, "state") for each in emptiest]
    states = client.get_all(questions, seconds=LOAD_SECONDS, project=False)
    return [*(replace(each, free=_free(state)) for each, state in zip(emptiest, states, strict=True)), *others]


def _all_instances(client: Client) -> list[dict[str, object]]:
    """The instances of all projects, or of ours where the user may not see others; none where a member keeps the server
    from an answer."""
    for question, project in (("/1.0/instances?recursion=1&all-projects=true", False), (OURS, True)):
        try:
            return listing(client.get(question, project=project), question)
        except (Refused, NoAnswer):
            continue
    return []


def _free(state: object) -> int:
    """The free memory in the state of a member, in bytes; 0 where it does not tell."""
    if isinstance(state, HutchError):
        return 0
    said = mapping(state, "the state of a member").get("sysinfo")
    said = said if isinstance(said, dict) else {}
    found = [said.get(key) for key in ("free_ram", "buffered_ram")]
    return sum(value for value in found if isinstance(value, int))


def check_member(server: Server, client: Client, member: str) -> None:
    """Refuse a member that is not there, or takes nothing."""
    if not server.is_clustered:
        raise HutchError(f"{client.place.remote} is no cluster, so it has no member {member!r}")
    known = {each.name: each for each in server.members}
    if member not in known:
        raise HutchError(
            f"{client.place.remote} has no member {member!r}", resolution=f"it has: {', '.join(sorted(known))}"
        )
    if not eligible(candidates(server), member, os.uname().machine):
        raise HutchError(
            f"the member {member} of {client.place.remote} takes no workspace: it is {shown(known[member].status)}",
            resolution="`incus cluster list` shows the members",
        )
