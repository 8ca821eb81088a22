"""The homes of workspaces: custom volumes, which outlive their instances.

A volume is a workspace's where its key user.hutch.id says so. It is looked for in every pool and on every member before
one is made, so a workspace never gets a second, empty home.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from hutch.backends.incus import HOMEWARD, ID, home_volume
from hutch.engines.incus.answers import NOT_FOUND, is_name, listing, mapping, shown, text, texts, words
from hutch.engines.incus.client import path_to
from hutch.engines.incus.failures import Foreign, Refused
from hutch.engines.incus.observing import look_up
from hutch.errors import HutchError
from hutch.frozen import dataclass
from hutch.spec.record import Record

if TYPE_CHECKING:
    from hutch.backends.incus import Home
    from hutch.engines.incus.client import Client

MIGRATING = "Migrating storage volume"
"""Incus's word for the operation that brings a volume to another member."""
MIGRATION_SECONDS = 6 * 3600.0
ASK_AGAIN = 0.5  # seconds


@dataclass(frozen=True)
class Volume:
    """A custom volume as the server has it. `member` is "" where it is on no member alone. One that `is_stray` has lost
    its configuration on the way between members: what stands here is what it had."""

    pool: str
    name: str
    member: str
    config: Mapping[str, str]
    description: str = ""
    is_stray: bool = False


def find_homes(client: Client, records: Mapping[str, Record]) -> dict[str, Volume]:
    """The homes that are there, of these workspaces. One that is on its way to another member is where it was until
    all of it has come. Raises Foreign for a volume of that name which is not the workspace's, and HutchError where
    there are two homes of one."""
    named = {home_volume(name): record for name, record in records.items()}
    homes: dict[str, Volume] = {}
    strays: dict[str, Volume] = {}
    for volume in volumes(client):
        record = named.get(volume.name)
        if record is None:
            continue
        if ID not in volume.config:
            strays[record.name] = volume
        elif volume.config[ID] != record.machine_id:
            raise foreign(client, volume)
        elif record.name in homes:
            other = homes[record.name]
            raise HutchError(
                f"{client.place.remote} has two homes of the workspace {record.name}",
                details="\n".join(f"pool {each.pool}, member {each.member or '-'}" for each in (other, volume)),
                resolution="`incus storage volume` shows and removes volumes; keep the one with the files",
            )
        else:
            homes[record.name] = volume
    for name, volume in strays.items():
        config = config_under_way(client, records[name])
        if config is None:
            raise foreign(client, volume)
        if name not in homes:
            homes[name] = _known_again(volume, name, config)
    return homes


def foreign(client: Client, volume: Volume) -> Foreign:
    return Foreign(
        f"the volume {volume.name} of {client.place.remote} is not the home of this workspace",
        details=f"it is in the pool {volume.pool} of the project {client.place.project}"
        + (f", on the member {volume.member}" if volume.member else ""),
        resolution="another hutch, or somebody else, made it: choose another name, or another `project`",
    )


def find_own_home(client: Client, record: Record) -> Volume | None:
    """The home of a workspace; None without one, or where there is another's alone."""
    try:
        return find_homes(client, {record.name: record}).get(record.name)
    except Foreign:
        return None


# On the way between members.


def config_under_way(client: Client, record: Record) -> dict[str, str] | None:
    """The configuration of a home that is brought to another member, by the workspace's instance; None where it is
    not."""
    found = look_up(client, record.name)
    if found is None or not found.is_of(record) or HOMEWARD not in found.config:
        return None
    try:
        return texts(json.loads(found.config[HOMEWARD]))
    except (ValueError, RecursionError):
        return None


def _known_again(volume: Volume, name: str, config: Mapping[str, str]) -> Volume:
    return replace(volume, config=config, description=described(name), is_stray=True)


def bring_home(client: Client, home: Volume, member: str) -> None:
    """Have Incus bring a home to another member, where it loses its configuration. To be reconciled."""
    body = {"name": home.name, "pool": home.pool, "migration": True, "source": {"location": home.member}}
    client.change("POST", home_path(replace(home, member=member)), body, seconds=MIGRATION_SECONDS)


def reconcile_home(client: Client, record: Record) -> None:
    """Wait until a home that is brought to another member is on one alone, and give it back what it is known by. The
    one that it came from is whole until Incus removes it, which is when all has come. May be called again."""
    config = config_under_way(client, record)
    deadline = time.monotonic() + MIGRATION_SECONDS
    while config is not None:
        runs = is_migrating(client)  # before the look: one that ends after this is seen in the next round
        there = [volume for volume in volumes(client) if volume.name == home_volume(record.name)]
        strays = [volume for volume in there if ID not in volume.config]
        if not strays:
            return
        if len(there) == len(strays) == 1:
            note_in_home(client, _known_again(strays[0], record.name, config), {})
            return
        if not runs:  # it did not all come
            for volume in strays:
                remove_home(client, volume)
            return
        if time.monotonic() > deadline:
            raise HutchError(f"the home of {record.name} is still on its way to {shown(strays[0].member)}")
        time.sleep(ASK_AGAIN)


def is_migrating(client: Client) -> bool:
    """Whether a volume of the project is being brought to another member."""
    question = path_to("operations", recursion=1)
    running = mapping(client.get(question, seconds=20.0), question).get("running")
    return any(text(operation, "description") == MIGRATING for operation in listing(running or [], question))


def described(name: str) -> str:
    return f"home of hutch's workspace {name}"


POOLS = "/1.0/storage-pools"


def volumes(client: Client) -> Iterator[Volume]:
    """The custom volumes of the project, in all pools; none where there is no such project."""
    pools = [path.rpartition("/")[2] for path in words(client.get(POOLS, project=False))]
    pools = sorted(filter(is_name, pools))
    questions = [path_to("storage-pools", pool, "volumes", "custom", recursion=1) for pool in pools]
    for pool, question, answer in zip(pools, questions, client.get_all(questions), strict=True):
        if isinstance(answer, Refused) and answer.code == NOT_FOUND:
            continue
        if isinstance(answer, HutchError):
            raise answer
        for volume in listing(answer, question):
            member = text(volume, "location")
            yield Volume(
                pool=pool,
                name=text(volume, "name"),
                member="" if member == "none" else shown(member),
                config=texts(volume.get("config")),
                description=text(volume, "description"),
            )


def ensure_home(client: Client, name: str, wanted: Home, found: Volume | None, member: str) -> None:
    """Make the volume on a member, or give it the size that it is to have. May be called again."""
    if found is None:
        body = {
            "name": wanted.volume,
            "type": "custom",
            "content_type": "filesystem",
            "config": dict(wanted.config),
            "description": described(name),
        }
        client.change("POST", path_to("storage-pools", wanted.pool, "volumes", "custom", **on(member)), body)
    elif found.config.get("size") != wanted.config.get("size"):
        note_in_home(client, found, {"size": None, **wanted.config})


def remove_home(client: Client, found: Volume) -> None:
    """Remove a home with all that is in it. May be called again. Raises Foreign for one that has become another's."""
    path = home_path(found)
    try:
        _config_of(client, found, client.get(path))
        client.change("DELETE", path)
    except Refused as error:
        if error.code != NOT_FOUND:
            raise


def _config_of(client: Client, found: Volume, answer: object) -> dict[str, str]:
    """The configuration that a volume has by now. Raises Foreign for one that has become another's."""
    config = texts(mapping(answer, home_path(found)).get("config"))
    if found.is_stray and ID not in config:
        return dict(found.config)
    if config.get(ID) != found.config.get(ID):
        raise foreign(client, found)
    return config


def note_in_home(
    client: Client, found: Volume, keys: Mapping[str, str | None], *, restore: str = "", seconds: float = 120.0
) -> Volume:
    """Set keys of a home's configuration, or take them away with None; `restore` is the snapshot that it becomes first.
    Returns the volume as it is then. Raises Foreign for one that has become another's, and changes nothing then."""
    path = home_path(found)

    def noted(config: Mapping[str, str]) -> dict[str, str]:
        others = {name: value for name, value in config.items() if name not in keys}
        return {**others, **{name: value for name, value in keys.items() if value is not None}}

    def make(answer: object) -> dict[str, object] | None:
        said, config = mapping(answer, path), noted(_config_of(client, found, answer))
        if config == texts(said.get("config")) and not restore:
            return None
        body: dict[str, object] = {"config": config, "description": text(said, "description") or found.description}
        return {**body, "restore": restore} if restore else body

    seen = client.update(path, make, seconds=seconds)
    return replace(found, config=noted(_config_of(client, found, seen)), is_stray=False)


def home_path(volume: Volume, *parts: str, **query: str | int) -> str:
    """The path of a volume, or of a part of it."""
    return path_to("storage-pools", volume.pool, "volumes", "custom", volume.name, *parts, **query, **on(volume.member))


def on(member: str) -> dict[str, str]:
    """The part of a question that says which member it is for."""
    return {"target": member} if member else {}
