"""The keys of hutch.toml: each is declared once, here, with its type, default, weight and meaning.

Validation (spec/loading), the JSON Schema (spec/schema), the planner and the records on disk all read
these dataclasses. They are plain: nothing here imports pydantic, so commands that only read records
start fast. The markers in spec/values and spec/entries tell pydantic how to parse a field once a file is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, field
from typing import Annotated, Any, Literal

from hutch.errors import UsageError
from hutch.frozen import dataclass
from hutch.spec.entries import Egress, EnvironmentTable, PublicKey, Publish, Published
from hutch.spec.values import (
    Address,
    AddressNetwork,
    ContextId,
    Duration,
    HardwareAddress,
    HostPath,
    Image,
    InterfaceName,
    LoginName,
    Owner,
    PackageName,
    Remote,
    SetupScript,
    ShellPath,
    Size,
    Target,
    TargetPath,
    WholeNumber,
)

__all__ = [
    "DEFAULT_PACKAGES",
    "WORKSPACE_KEYS",
    "Config",
    "Idle",
    "Incus",
    "Mount",
    "Network",
    "Publish",
    "Weight",
    "Workspace",
    "weight_of",
]

Weight = Literal["live", "restart", "recreate"]

MACHINE_CPUS, MACHINE_MEMORY = 2, 1 << 30  # what a virtual machine has where the file does not say
MOST_MACHINE_CPUS = 255  # what a processor's number has room for, without hardware that QEMU's microvm does not have


def key(
    meaning: str, *, weight: Weight = "restart", in_vm: Weight | None = None, only: str = "", default: Any = None
) -> Any:
    """A key of hutch.toml.

    `weight` is what it takes to apply a change, `in_vm` the same for a virtual machine where that differs; `only` names
    the one type that the key has an effect on. A `default` of MISSING makes the key required.
    """
    metadata = {"meaning": meaning, "weight": weight, "in_vm": in_vm or weight, "only": only}
    return field(default=default, metadata=metadata)


STRICT = {"extra": "forbid", "strict": True}
DEFAULT_PACKAGES = ("git", "vim", "htop", "wget", "curl", "tmux", "dnsutils")


@dataclass(frozen=True)
class Mount:
    """An extra host directory inside a workspace."""

    __pydantic_config__ = STRICT

    source: Annotated[str, HostPath()] = key("directory on the host", default=MISSING)
    target: Annotated[str, TargetPath()] = key("where it is inside", default=MISSING)
    readonly: bool = key("the workspace cannot write to it", default=False)
    create: bool = key("make the directory when it is absent", default=False)


@dataclass(frozen=True)
class Idle:
    """What happens to a workspace that nobody uses.

    `after` is a duration as written ("30min").
    """

    __pydantic_config__ = STRICT

    after: Annotated[str, Duration()] = key("how long nobody must have used it", default=MISSING)
    then: Literal["suspend", "stop"] = key("what happens then", default=MISSING)


@dataclass(frozen=True)
class Network:
    """The `[network]` table.

    `uplink` is "" until resolved to a free /30.
    """

    __pydantic_config__ = STRICT

    bridge: Annotated[str, InterfaceName()] = key("name of the workspaces' bridge", default="hutch0")
    subnet: Annotated[str, AddressNetwork(widest=16, narrowest=29)] = key(
        "the workspaces' network; its first address is their gateway and DNS server", default="192.168.83.0/24"
    )
    uplink: Annotated[str, AddressNetwork(widest=30, narrowest=30)] = key(
        "joins the host to the workspaces' network; default: the first free /30 of 192.168.84.0/24", default=""
    )


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """One workspace.

    As declared, None is what was not said; as resolved, nothing is left open. Sizes are bytes; `owner` is a
    uid, `authorized_keys` are key lines and `home` is an absolute path once resolved.
    """

    __pydantic_config__ = STRICT

    type: Literal["container", "vm"] = key("the isolation boundary", weight="recreate", default=MISSING)
    engine: Literal["local", "incus"] = key(
        "who runs it (incus: not supported yet)", weight="recreate", default="local"
    )
    hypervisor: Literal["auto", "qemu", "cloud-hypervisor"] = key(
        "the virtual machine monitor", only="vm", default="auto"
    )
    image: Annotated[str, Image()] = key(
        "guest operating system (oci and nix: not supported yet)", default="debian:trixie"
    )
    packages: tuple[Annotated[str, PackageName()], ...] = key(
        "distribution packages built into the image", default=DEFAULT_PACKAGES
    )
    setup: Annotated[str, SetupScript()] = key(
        "shell script run as root in the image build, after packages", default=""
    )
    user: Annotated[str, LoginName()] = key("login user inside; passwordless doas", default="dev")
    shell: Annotated[str, ShellPath()] = key("the login user's shell", default="/bin/bash")
    authorized_keys: tuple[Annotated[str, PublicKey()], ...] | None = key(
        "public keys, or paths or globs of .pub files; default: all of the owner's", weight="live"
    )
    owner: Annotated[int | str | None, Owner()] = key(
        "host user or uid that owns home; default: who is behind sudo or doas, for root itself uid 1000"
    )
    ip: Annotated[str | None, Address()] = key("static address; default: allocated once, then kept")
    mac: Annotated[str | None, HardwareAddress()] = key("MAC address; default: derived from the name")
    cid: Annotated[int | None, ContextId()] = key("vsock context id; default: derived from the name", only="vm")
    vcpus: Annotated[int | None, WholeNumber(1, 1024)] = key(
        "limit for containers, hardware for vms", weight="live", in_vm="restart"
    )
    memory: Annotated[int | None, Size(minimum=64 * 2**20)] = key(
        "limit for containers, hardware for vms", weight="live", in_vm="restart"
    )
    disk: Annotated[int | None, Size(minimum=64 * 2**20)] = key(
        "limit for containers, hardware for vms", weight="live", in_vm="restart"
    )
    autostart: bool = key("start when the host boots", weight="live", default=False)
    restart_if_changed: bool = key(
        "`hutch up` restarts it when a key that needs a restart changed", weight="live", default=True
    )
    home: Annotated[str | None, HostPath()] = key("host directory that persists as /home/USER")
    persist: Literal["home", "all"] = key(
        "root is ephemeral (home), or kept too (all)", weight="recreate", default="home"
    )
    mounts: tuple[Mount, ...] = key("extra host directories", weight="live", in_vm="restart", default=())
    egress: Annotated[str | tuple[str, ...], Egress()] = key("what it may reach", weight="live", default="internet")
    publish: tuple[Annotated[Publish, Published()], ...] = key("ports on the host", weight="live", default=())
    env: Annotated[tuple[tuple[str, str], ...], EnvironmentTable()] = key(
        "environment of login sessions", weight="live", default=()
    )
    nix_store: bool = key(
        "share the host's /nix/store read-only with a writable overlay, whose fate is the root's; not /nix/var",
        default=False,
    )
    gpu: bool = key("pass the host's GPU render nodes through (not supported yet)", only="container", default=False)
    nesting: bool = key("allow user namespaces inside", only="container", default=False)
    learn: bool = key("record what an egress list would refuse, and let it pass", weight="live", default=False)
    idle: Idle | None = key("what happens when nobody uses it (not supported yet)", weight="live")


@dataclass(frozen=True)
class Incus:
    """The `[engines.incus]` table."""

    __pydantic_config__ = STRICT

    remote: Annotated[str, Remote()] = key("a remote of the incus client", default="local")
    project: Annotated[str, Remote()] = key("the Incus project that workspaces live in", default="hutch")
    target: Annotated[str, Target()] = key("which members of a cluster run workspaces", default="auto")


@dataclass(frozen=True)
class Config:
    """A whole hutch.toml, valid and with nothing left to look up. `file` is its real path."""

    file: str
    network: Network
    workspaces: Mapping[str, Workspace]
    incus: Incus | None = None

    def select(self, names: Sequence[str]) -> list[str]:
        """`names`, or all that the file declares; UsageError for one that it does not."""
        names = [names] if isinstance(names, str) else names
        unknown = [name for name in names if name not in self.workspaces]
        if unknown:
            known = ", ".join(self.workspaces) or "none"
            raise UsageError(
                f"{self.file} declares no workspace {', '.join(unknown)}", resolution=f"it declares: {known}"
            )
        return list(dict.fromkeys(names)) or list(self.workspaces)


WORKSPACE_KEYS: tuple[str, ...] = tuple(Workspace.__dataclass_fields__)


def weight_of(name: str, type: str) -> Weight:
    """What it takes to apply a change of the key `name` to a workspace of that type; a key without effect is free."""
    metadata = Workspace.__dataclass_fields__[name].metadata
    if metadata["only"] not in ("", type):
        return "live"
    weight: Weight = metadata["in_vm" if type == "vm" else "weight"]
    return weight
