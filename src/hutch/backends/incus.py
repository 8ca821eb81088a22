"""Containers of an Incus server: an Instance describes one, as the server is to have it.

Identity travels as systemd credentials, as everywhere: files in the instance, put there while it is stopped. The home
is a custom volume, so the root can be made anew from the image without it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from hutch.backends.identity import identify
from hutch.backends.traits import Traits
from hutch.errors import Problem
from hutch.frozen import dataclass
from hutch.guest.credentials import HOST_KEY, render_credentials
from hutch.spec import names
from hutch.spec.model import WorkspaceSpec

TRAITS = Traits(
    name="incus",
    console="console-getty.service",
    live=frozenset({"vcpus", "memory", "disk"}),
)
CREDENTIALS = "/etc/hutch/credentials"
"""The directory of the credentials inside; systemd takes it for its own, as its environment says so."""
TASKS = 16384
API_PORT = 8443
"""The port at which a server listens, unless it was told another one."""
ID = "user.hutch.id"
"""The key that says whose an instance or a volume is: the workspace's machine id, which its record alone tells."""
FILE, IMAGE, PERSIST, DIGEST = (f"user.hutch.{name}" for name in ("file", "image", "persist", "digest"))
"""Keys that tell of a workspace, and change nothing about it: its file, the id of its image, whether its root is kept,
and what all of it was made of."""
SNAPSHOT, RESTORING, COPIED, FORK = (f"user.hutch.{name}" for name in ("snapshot", "restoring", "copied", "fork"))
"""Keys that tell how far a snapshot, a restore or a fork has come (see engines/incus/points, restoring and forking)."""
PASSING = frozenset({SNAPSHOT, RESTORING, COPIED, FORK})
WAS_READY = "user.hutch.ready"
"""The key of an instance that was ready once, so its root is no half-made one: the workspace's machine id, so a copy
does not have it. The time of its last start does not tell, since a member's clock may say anything."""
MEMBER = "user.hutch.member"
"""The key that says which member of a cluster somebody wants it on; an instance keeps it."""
MOVING = "user.hutch.moving"
"""The key that says that an instance or a volume is one side of a move, and not to be used: the workspace's machine
id."""
HOMEWARD = "user.hutch.home"
"""The key of an instance that tells the configuration of its home while that is brought to another member: Incus does
not keep it."""
NIC = "eth0"
PROXY = "proxy"
"""The type of a device that publishes a port."""
LIMITS = (
    "egress lists and `learn` are not there: the member's network and the project's ACL set its reach",
    "the network does not fail closed: a member whose firewall is flushed filters nothing",
    "whoever administers the server or the project can read its files, its host key and its credentials",
    "published ports listen on all addresses of the member that runs it, not on this host",
    "the member's resolver answers the names in the member's own /etc/hosts, and is the same for all",
    "a member's own public addresses are closed as far as the server tells them",
    "`disk` holds only where the storage pool has quotas",
    "log volume and connections are the server's to limit",
)
"""What holds for a workspace of this host and not for one of a server, in sentences for people."""


@dataclass(frozen=True)
class Ground:
    """The surroundings of a workspace on the server: the name of the `network`, whose addresses are of `subnet`, and
    the storage pools of the root and of the home; `file` declares the workspace, `image` is the id of its image in the
    cache. `keys` are public keys of hutch's own, `host_key` is the private host key."""

    network: str
    subnet: str
    pool: str
    home_pool: str
    file: str
    image: str
    keys: tuple[str, ...]
    host_key: str
    machine_id: str


@dataclass(frozen=True)
class Home:
    """The custom volume with a workspace's home, and its own `config`."""

    pool: str
    volume: str
    config: Mapping[str, str]


@dataclass(frozen=True)
class Instance:
    """An instance as the server is to have it, without what the server adds itself (`volatile.*` and `image.*`).
    `credentials` are files, name -> content, in the directory CREDENTIALS."""

    name: str
    config: Mapping[str, str]
    devices: Mapping[str, Mapping[str, str]]
    credentials: Mapping[str, str]
    home: Home


def check(prefix: str, workspace: WorkspaceSpec) -> Iterable[Problem]:
    """Problems: the keys that a server cannot honour, since they are about this host, or about hutch's own router."""
    name = prefix.rpartition(".")[2]
    if name.isdigit():
        yield Problem("Incus has no instance whose name is a number", prefix, hint="choose a name with a letter")
    if workspace.home is not None:
        message = "a directory of this host is not there on the server"
        yield Problem(message, f"{prefix}.home", hint="leave it out: the home is a volume of the server's")
    if workspace.mounts:
        message = "directories of this host are not there on the server"
        yield Problem(message, f"{prefix}.mounts", hint="leave them out; `hutch cp` copies files")
    if workspace.protect:
        message = "directories of this host are not there on the server"
        yield Problem(message, f"{prefix}.protect", hint="leave it out: nothing of this host's is shown")
    if workspace.nix_store:
        message = "the /nix/store of this host is not there on the server"
        yield Problem(message, f"{prefix}.nix_store", hint="use false or leave it out")
    if workspace.egress != "internet":
        message = "an Incus server has no hutch router, which holds egress lists"
        yield Problem(message, f"{prefix}.egress", hint='use "internet", or engine = "local"')
    if workspace.learn:
        message = "an Incus server has no hutch router, which records connections"
        yield Problem(message, f"{prefix}.learn", hint="use false or leave it out")
    if workspace.auto_refresh != "never":
        message = "it is a timer of this host's, which serves the workspaces that run here"
        yield Problem(message, f"{prefix}.auto_refresh", hint='use "never"; `hutch image refresh` does it')
    for index, publish in enumerate(workspace.publish):
        if publish.host_ip:
            message = f"{publish.host_ip} is an address of this host, and the port listens on a member of the server"
            yield Problem(message, f"{prefix}.publish[{index}]", hint=f'use "{_without_address(str(publish))}"')


def _without_address(publish: str) -> str:
    return publish.partition(":")[2]


def render(name: str, workspace: WorkspaceSpec, host: Ground) -> Instance:
    """The Instance of a workspace."""
    credentials = render_all_credentials(name, workspace, host)
    told = {ID: host.machine_id, FILE: host.file, IMAGE: host.image, PERSIST: workspace.persist}
    config = {**render_config(workspace, host), **told}
    devices = render_devices(name, workspace, host)
    home = Home(host.home_pool, home_volume(name), {ID: told[ID], **_size(workspace)})
    digest = digest_of({"config": config, "devices": devices, "credentials": credentials})
    return Instance(name, {**config, DIGEST: digest}, devices, credentials, home)


def home_volume(name: str) -> str:
    """The name of the volume with the workspace's home."""
    return f"home-{name}"


def render_config(workspace: WorkspaceSpec, host: Ground) -> dict[str, str]:
    """The instance's own settings: its range of uids is nobody else's, and its environment is that of its PID 1."""
    found = {
        "boot.autostart": _word(workspace.autostart),
        "environment.CREDENTIALS_DIRECTORY": CREDENTIALS,
        "environment.container_uuid": host.machine_id,
        "limits.processes": str(TASKS),
        "security.idmap.isolated": "true",
        "security.idmap.size": str(names.UID_COUNT),
        "security.nesting": _word(workspace.nesting),
        "security.privileged": "false",
    }
    if workspace.vcpus is not None:
        found["limits.cpu"] = str(workspace.vcpus)
    if workspace.memory is not None:
        found["limits.memory"] = str(workspace.memory)
    return found


def render_devices(name: str, workspace: WorkspaceSpec, host: Ground) -> dict[str, dict[str, str]]:
    """The devices. The port emits frames with the workspace's own MAC, IP and ARP identity only, and none to the other
    isolated ports of the member's bridge. The bridge has no IPv6. Incus's filter of it would have the member filter the
    frames of all its bridges (br_netfilter)."""
    assert workspace.ip is not None and workspace.mac is not None
    home = {"path": f"/home/{workspace.user}", "pool": host.home_pool, "source": home_volume(name)}
    found = {
        "root": {"type": "disk", "path": "/", "pool": host.pool, **_size(workspace)},
        "home": {"type": "disk", **home},
        NIC: {
            "type": "nic",
            "network": host.network,
            "name": NIC,
            "hwaddr": workspace.mac,
            "ipv4.address": workspace.ip,
            "security.mac_filtering": "true",
            "security.ipv4_filtering": "true",
            "security.port_isolation": "true",
        },
    }
    for publish in workspace.publish:
        found[f"publish-{publish.protocol}-{publish.host_port}"] = {
            "type": PROXY,
            "bind": "host",
            "listen": f"{publish.protocol}:0.0.0.0:{publish.host_port}",
            "connect": f"{publish.protocol}:{workspace.ip}:{publish.guest_port}",
        }
    return found


def render_all_credentials(name: str, workspace: WorkspaceSpec, host: Ground) -> dict[str, str]:
    """The credentials, with the host key. The volume is born root's, so the guest gives its home to the login user."""
    identity = identify(name, workspace, host.subnet, host.keys, f"Name={NIC}")
    told = render_credentials(identity)
    user = workspace.user
    told["tmpfiles.extra"] += f"z /home/{user} - {user} {user} - -\n"
    return {**told, HOST_KEY: host.host_key}


def digest_of(value: object) -> str:
    """The SHA-256 of a value's canonical JSON."""
    # Spares the start-up of `hutch ls`: it brings OpenSSL with it.
    import hashlib

    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _size(workspace: WorkspaceSpec) -> dict[str, str]:
    return {} if workspace.disk is None else {"size": str(workspace.disk)}


def _word(value: bool) -> str:
    return "true" if value else "false"
