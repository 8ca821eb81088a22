"""An Incus server as hutch needs it: what it can do, the project that workspaces live in, and their storage pool.

Whose a project is stands in its key user.hutch.id. hutch takes one that is its own, or that is empty; it removes only
its own. Names of members and groups are the server's, so they are compared and shown, and never trusted.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hutch.backends.incus import API_PORT, ID
from hutch.engines import Misplaced
from hutch.engines.incus.answers import found, is_name, listing, mapping, shown, text, texts, words
from hutch.engines.incus.client import path_to
from hutch.engines.incus.failures import Refused
from hutch.errors import HutchError
from hutch.frozen import dataclass

if TYPE_CHECKING:
    from hutch.engines.incus.client import Client
    from hutch.spec.record import Place

OLDEST = (6, 0)
NEEDED = {
    "projects": "keeps workspaces apart from other instances",
    "projects_restrictions": "tells the restrictions of a project",
    "project_usage": "says how much of a project's limits is used",
    "clustering": "has several members",
    "clustering_groups": "runs workspaces on a group of members",
    "id_map": "gives each workspace user ids of its own",
    "instances_rebuild": "makes a workspace's root anew from its image",
    "instance_nic_network": "connects workspaces to a managed network",
    "instance_nic_bridged_port_isolation": "keeps workspaces from reaching each other",
    "container_nic_ipfilter": "pins a workspace to its own MAC and IPv4 address",
    "network_acl": "filters traffic of workspaces",
    "network_bridge_acl": "filters traffic of workspaces on a bridge",
    "network_state": "says which addresses a member has",
    "storage_api_local_volume_handling": "keeps homes as volumes",
    "storage_volume_state": "says how large a home is",
    "proxy": "publishes ports of workspaces",
    "console": "shows a workspace's console",
    "image_types": "keeps images of containers",
}
"""The extensions of Incus's API that hutch uses, all in Incus 6.0 -> the purpose of each."""

FEATURES = {
    "features.images": "true",
    "features.networks": "false",  # a bridge exists in the default project only
    "features.profiles": "true",
    "features.storage.buckets": "true",
    "features.storage.volumes": "true",
}
DESCRIPTION = "workspaces of hutch"
WORD = "user.hutch.word"
"""The key with a random word, by which hutch knows the project again whatever the remote is called."""
BEFORE = "user.hutch.before"
"""The key that says what hutch changed in a project which it took, and did not make: key -> value, or null."""
ONLINE = ("Online", "Evacuated")


@dataclass(frozen=True)
class Member:
    """A member of a cluster. `status` is Incus's word: "Online", "Offline", "Evacuated", "Blocked"; `scheduler` is its
    setting scheduler.instance, and `url` the address at which it says that it listens."""

    name: str
    status: str
    architecture: str
    groups: tuple[str, ...] = ()
    scheduler: str = "all"
    url: str = ""

    @property
    def answers(self) -> bool:
        """Whether the member's own server answers, which says nothing on whether it takes instances."""
        return self.status in ONLINE


@dataclass(frozen=True)
class Server:
    """A server, or a cluster, as it was when it was asked. `members` is empty where it is no cluster; `listeners` are
    the IPv4 addresses, with their ports, at which it says that it listens; `kind` is "incus". `method` is Incus's word
    for how the user is known to it: "tls", "unix", "oidc"."""

    name: str
    kind: str
    version: str
    extensions: frozenset[str]
    architectures: tuple[str, ...]
    members: tuple[Member, ...] = ()
    listeners: tuple[tuple[str, int], ...] = ()
    is_clustered: bool = False
    method: str = ""

    @property
    def addresses(self) -> tuple[str, ...]:
        """The IPv4 addresses that it says it has itself."""
        return tuple(dict.fromkeys(address for address, _ in self.listeners))


MEMBERS = path_to("cluster", "members", recursion=1)


def server_questions(place: Place) -> dict[str, bool]:
    """The questions about the server and the project, which no answer comes before. See Client.ask_ahead."""
    return dict.fromkeys(("/1.0", MEMBERS, project_path(place)), False)


def look(client: Client) -> Server:
    """The server, by one question, or by two where it is a cluster. Raises HutchError where it does not trust the
    client."""
    said = mapping(client.get("/1.0", project=False), "/1.0")
    environment = mapping(said.get("environment", {}), "/1.0")
    if text(said, "auth") != "trusted":
        raise HutchError(
            f"the Incus remote {client.place.remote} does not trust this client",
            resolution=f"`incus remote ls` shows it; `incus config trust add` on the server makes a token for "
            f"`incus remote add {client.place.remote} TOKEN`",
        )
    is_clustered = environment.get("server_clustered") is True
    members = listing(client.get(MEMBERS, project=False), MEMBERS) if is_clustered else []
    hosts = [*words(environment.get("addresses")), *(text(member, "url") for member in members)]
    return Server(
        name=text(environment, "server_name"),
        kind=text(environment, "server"),
        version=text(environment, "server_version"),
        extensions=frozenset(words(said.get("api_extensions"))),
        architectures=words(environment.get("architectures")),
        members=tuple(_member(member) for member in members),
        listeners=tuple(sorted({listener for host in hosts if (listener := _listener(host))})),
        is_clustered=is_clustered,
        method=text(said, "auth_user_method"),
    )


def _member(said: Mapping[str, Any]) -> Member:
    name, status, architecture, url = (text(said, key) for key in ("server_name", "status", "architecture", "url"))
    if not is_name(name):
        raise HutchError(f"the Incus cluster has a member whose name hutch cannot use: {shown(name)}")
    scheduler = texts(said.get("config")).get("scheduler.instance", "all")
    return Member(name, status, architecture, words(said.get("groups")), scheduler, url)


def _listener(host: str) -> tuple[str, int] | None:
    """The IPv4 address and the port in "https://10.0.0.1:8443" or "10.0.0.1:8443"; None for a name or an IPv6 address.
    Where it tells no port, it is Incus's own."""
    found = re.fullmatch(r"(?:https://)?(\d{1,3}(?:\.\d{1,3}){3})(?::(\d{1,5}))?", host, re.ASCII)
    if found is None:
        return None
    try:
        address = str(ipaddress.IPv4Address(found[1]))
    except ValueError:
        return None
    port = int(found[2] or 0)
    return address, port if 0 < port < 2**16 else API_PORT


def check_floor(server: Server, place: Place, machine: str | None = None) -> None:
    """Raise one HutchError that names all that the server lacks. `machine` is the architecture of the images that are
    built here (default: this host's)."""
    machine = machine or os.uname().machine
    lacks = []
    if server.kind != "incus":
        lacks.append(f"it is {shown(server.kind) or 'no Incus'}, not Incus")
    if _version(server.version) < OLDEST:
        lacks.append(f"it is version {shown(server.version) or 'unknown'}, and hutch needs 6.0 or newer")
    lacks += [
        f"it has no API extension {name}, which {NEEDED[name]}" for name in NEEDED if name not in server.extensions
    ]
    kinds = {member.architecture for member in server.members} or set(server.architectures)
    if machine not in kinds:
        has = ", ".join(sorted(shown(kind) for kind in kinds)) or "none that it tells"
        lacks.append(f"it runs {has}, and images that are built here are for {machine}")
    if lacks:
        raise HutchError(
            f"the Incus server of the remote {place.remote} cannot run workspaces",
            details="\n".join(lacks),
            resolution="upgrade it, or name another `remote` in [engines.incus]",
        )


def _version(version: str) -> tuple[int, int]:
    """(6, 0) of "6.0.4"; (0, 0) of what is no version."""
    found = re.match(r"(\d{1,4})\.(\d{1,4})", version, re.ASCII)
    found = found or re.match(r"(\d{1,4})()", version, re.ASCII)
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)


def check_target(server: Server, place: Place) -> None:
    """Raise HutchError where `target` names no member or group of the server, or none that answers."""
    if place.target == "auto":
        return
    if not server.is_clustered:
        raise Misplaced("the server is no cluster", key="target", resolution='leave it out, or say "auto"')
    kind, name = ("group", place.target[1:]) if place.target.startswith("@") else ("member", place.target)
    chosen = [each for each in server.members if name in (each.groups if kind == "group" else (each.name,))]
    if not chosen:
        names = {each for member in server.members for each in (member.groups if kind == "group" else (member.name,))}
        known = ", ".join(sorted(map(shown, names))) or "none"
        raise Misplaced(f"the cluster has no such {kind}", key="target", resolution=f"it has: {known}")
    if not any(member.status == "Online" for member in chosen):
        states = ", ".join(f"{member.name} is {shown(member.status)}" for member in chosen)
        raise HutchError(
            f"target = {place.target!r} in [engines.incus]: nothing there takes workspaces: {states}",
            resolution="`incus cluster ls` shows it",
        )


# The project.


def project_path(place: Place, *parts: str) -> str:
    return path_to("projects", place.project, *parts)


def find_project(client: Client) -> dict[str, Any] | None:
    """The project; None where there is none."""
    return found(client, project_path(client.place))


def render_project(place: Place, owner: str, word: str) -> dict[str, Any]:
    """The body that makes the project. Its owner is the hutch that removes it when it is empty."""
    config = {**FEATURES, ID: owner, WORD: word}
    return {"name": place.project, "description": DESCRIPTION, "config": config}


def ensure_project(client: Client, owner: str, project: Mapping[str, Any] | None) -> str:
    """Make the project, or take one that is empty, as it was just found. May be called again. Returns its word. Raises
    HutchError for a project that another made and uses, or whose features do not fit."""
    place, word = client.place, secrets.token_hex(16)
    if project is None:
        try:
            client.change("POST", "/1.0/projects", render_project(place, owner, word), project=False)
            return word
        except Refused:
            project = find_project(client)  # somebody else made it meanwhile
            if project is None:
                raise

    def make(answer: object) -> dict[str, Any] | None:
        return taken(place, mapping(answer, project_path(place)), owner, word)

    if make(project) is None:
        return word_of(texts(project.get("config")))
    seen = client.update(project_path(place), make, project=False)
    return word_of(texts((make(seen) or seen)["config"]))


def taken(place: Place, project: Mapping[str, Any], owner: str, word: str) -> dict[str, Any] | None:
    """The body that makes a project one that hutch can use, and its own if it is nobody's; None where it is. Raises
    HutchError as `check_project` does."""
    check_project(place, project)
    config = texts(project.get("config"))
    wanted = _unlike(config)
    if ID not in config:
        wanted |= {ID: owner, WORD: word, BEFORE: json.dumps({key: config.get(key) for key in wanted})}
    return {"config": {**config, **wanted}, "description": text(project, "description")} if wanted else None


def word_of(config: Mapping[str, str]) -> str:
    """The word by which a project of hutch's is known, by its configuration; who made it where an administrator did."""
    return config.get(WORD) or config.get(ID, "")


def check_project(place: Place, project: Mapping[str, Any]) -> None:
    """Raise HutchError for a project that is no hutch's and has something in it, or whose features do not fit."""
    config = texts(project.get("config"))
    if ID not in config and (place.project == "default" or not _is_empty(project)):
        some = [shown(path) for path in words(project.get("used_by")) if not _is_default_profile(path)][:5]
        raise Misplaced(
            f"the Incus project {place.project} of {place.remote} is not hutch's",
            key="project",
            details="\n".join(some),
            resolution="name another `project` in [engines.incus]; hutch makes it, or takes one that is empty",
        )
    if (unlike := _unlike(config)) and not _is_empty(project):
        raise Misplaced(
            f"the Incus project {place.project} of {place.remote} is not as hutch needs it",
            key="project",
            details="\n".join(f"{key} is {shown(config.get(key, 'false'))}" for key in unlike),
            resolution="name another `project` in [engines.incus]: Incus changes these in empty projects only",
        )


def _unlike(config: Mapping[str, str]) -> dict[str, str]:
    """The features that a project is to have, and has not."""
    return {key: value for key, value in FEATURES.items() if config.get(key, "false") != value}


def remove_project(client: Client, owner: str) -> bool:
    """Remove the project if this hutch made it and nothing is left in it; give it back as it was if this hutch took it.
    May be called again. Returns whether hutch has left it."""
    project = find_project(client)
    if project is None:
        return True
    if not _is_left(project, owner):
        return False
    try:
        if BEFORE in texts(project.get("config")):
            path = project_path(client.place)
            return _is_left(client.update(path, lambda answer: given_back(answer, owner), project=False), owner)
        client.change("DELETE", project_path(client.place), project=False)
    except Refused:  # somebody put something into it meanwhile
        return False
    return True


def _is_left(project: Mapping[str, Any], owner: str) -> bool:
    """Whether a project is this hutch's, and nothing is in it."""
    return texts(project.get("config")).get(ID) == owner and _is_empty(project)


def given_back(answer: object, owner: str) -> dict[str, Any] | None:
    """The body that makes a project that this hutch had taken what it was; None where it is not left."""
    project = mapping(answer, "the project")
    if not _is_left(project, owner):
        return None
    return {"config": _without_ours(texts(project.get("config"))), "description": text(project, "description")}


def _without_ours(config: Mapping[str, str]) -> dict[str, str]:
    """The configuration of a project that hutch had taken, without what hutch put there."""
    try:
        before = json.loads(config.get(BEFORE, ""))
    except (ValueError, RecursionError):
        before = {}
    before = before if isinstance(before, dict) else {}
    changed = {key for key in FEATURES if key in before}
    kept = {key: value for key, value in config.items() if key not in {ID, WORD, BEFORE, *changed}}
    return {**kept, **{key: before[key] for key in changed if isinstance(before[key], str)}}


def _is_empty(project: Mapping[str, Any]) -> bool:
    return all(_is_default_profile(path) for path in words(project.get("used_by")))


def _is_default_profile(path: str) -> bool:
    return path.partition("?")[0] == "/1.0/profiles/default"


# The storage pool.

PROFILE = "/1.0/profiles/default"


def choose_pool(client: Client) -> str:
    """The pool of the default profile's root, or else the only pool. Raises HutchError where there is a choice."""
    profile = found(client, PROFILE) or {}
    devices = profile.get("devices")
    for device in devices.values() if isinstance(devices, dict) else ():
        known = texts(device)
        if known.get("type") == "disk" and known.get("path") == "/" and is_name(known.get("pool", "")):
            return known["pool"]
    pools = [path.rpartition("/")[2] for path in words(client.get("/1.0/storage-pools", project=False))]
    if len(pools) == 1 and is_name(pools[0]):
        return pools[0]
    remote = client.place.remote
    if not pools:
        raise HutchError(
            f"the Incus server of the remote {remote} has no storage pool",
            resolution=f"`incus storage create {remote}:default dir` makes one",
        )
    raise HutchError(
        f"the Incus server of the remote {remote} has several storage pools, and its default profile names none",
        details=", ".join(shown(pool) for pool in sorted(pools)),
        resolution=f"`incus profile device add {remote}:default root disk path=/ pool=POOL --project default` chooses",
    )
