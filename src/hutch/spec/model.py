"""The keys of hutch.toml: each is declared once, here, with its type, default, weight and meaning.

Validation (spec/loading), the JSON Schema (spec/schema), the planner and the records on disk all read
these dataclasses. They are plain: nothing here imports pydantic, so commands that only read records
start fast. The field types in spec/values and spec/entries tell pydantic how to parse a field once a file is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from hutch.errors import UsageError
from hutch.frozen import dataclass
from hutch.spec import values
from hutch.spec.entries import Destination, Egress, EnvironmentTable, PublicKey, Published
from hutch.spec.entries import Publish as Publish
from hutch.spec.kinds import hypervisors

Weight = Literal["live", "restart", "recreate"]
if TYPE_CHECKING:  # the names are the registry's, which a type checker does not read
    Hypervisor = str
else:
    Hypervisor = Literal["auto", *hypervisors()]

MACHINE_CPUS, MACHINE_MEMORY = 2, 1 << 30  # defaults of a virtual machine; memory in bytes
MOST_MACHINE_CPUS = 255  # the most that a processor's number allows, without hardware that QEMU's microvm lacks


def key(meaning: str, *, weight: Weight = "restart", only: str = "", default: Any = None) -> Any:
    """A key of hutch.toml.

    `weight` is what it takes to apply a change, unless a backend takes it live: see backends/traits. `only` names the
    one type that the key has an effect on. A `default` of MISSING makes the key required.
    """
    metadata = {"meaning": meaning, "weight": weight, "only": only}
    return field(default=default, metadata=metadata)


STRICT = {"extra": "forbid", "strict": True}
DEFAULT_PACKAGES = ("git", "vim", "htop", "wget", "curl", "tmux", "rsync", "dnsutils")


@dataclass(frozen=True)
class Mount:
    """An extra directory or file of the host's inside a workspace.

    As declared, one of `mode` and `readonly` may be given; as `normalized`, both are there and say the same.
    """

    __pydantic_config__ = STRICT

    source: Annotated[str, values.HostPath()] = key("directory or file on the host", default=MISSING)
    target: Annotated[str, values.TargetPath()] = key("where it is inside", default=MISSING)
    mode: Literal["readonly", "writable", "private"] | None = key(
        "effect of writes there: readonly, they fail; writable, the host has them too; private, the workspace has the"
        " host's files, and keeps its own changes to itself; default: writable"
    )
    readonly: bool | None = key('the older word: true is mode = "readonly", false is "writable"')
    create: bool = key("make the directory when it is absent", default=False)

    def normalized(self) -> Mount:
        """The same mount, with both words."""
        mode = self.mode or ("readonly" if self.readonly else "writable")
        return replace(self, mode=mode, readonly=mode == "readonly")

    def summary(self) -> dict[str, Any]:
        """The mount as JSON shows it."""
        mount = self.normalized()
        return {"source": mount.source, "target": mount.target, "mode": mount.mode, "readonly": mount.readonly}

    @property
    def is_private(self) -> bool:
        return self.mode == "private"

    @property
    def is_writable(self) -> bool:
        """Whether the host has what is written there inside."""
        return self.normalized().mode == "writable"


@dataclass(frozen=True)
class Idle:
    """What happens to a workspace that nobody uses.

    `after` is a duration as written ("30min").
    """

    __pydantic_config__ = STRICT

    after: Annotated[str, values.Duration()] = key("how long nobody must have used it", default=MISSING)
    then: Literal["suspend", "stop"] = key("action after that time", default=MISSING)


@dataclass(frozen=True)
class Network:
    """The `[network]` table.

    `uplink` is "" until resolved to a free /30.
    """

    __pydantic_config__ = STRICT

    bridge: Annotated[str, values.InterfaceName()] = key("name of the workspaces' bridge", default="hutch0")
    subnet: Annotated[str, values.AddressNetwork(widest=16, narrowest=29)] = key(
        "the workspaces' network; its first address is their gateway and DNS server", default="192.168.83.0/24"
    )
    uplink: Annotated[str, values.AddressNetwork(widest=30, narrowest=30)] = key(
        "joins the host to the workspaces' network; default: the first free /30 of 192.168.84.0/24", default=""
    )


@dataclass(frozen=True, kw_only=True)
class WorkspaceSpec:
    """One workspace.

    As declared, None stands for a key that was not given; as resolved, nothing is left open. Sizes are bytes; `owner`
    is a uid, `share_with` has numbers (see spec/sharing), `authorized_keys` are key lines and `home` is an absolute
    path once resolved.
    """

    __pydantic_config__ = STRICT

    type: Literal["container", "vm"] = key("the isolation boundary", weight="recreate", default=MISSING)
    engine: Literal["local", "incus"] = key(
        "who runs it: this host, or an Incus server, see [engines.incus]", weight="recreate", default="local"
    )
    hypervisor: Hypervisor = key("the virtual machine monitor", only="vm", default="auto")
    image: Annotated[str, values.ImageReference()] = key(
        "guest operating system (oci and nix: not supported yet)", default="debian:trixie"
    )
    packages: tuple[Annotated[str, values.PackageName()], ...] = key(
        "distribution packages built into the image", default=DEFAULT_PACKAGES
    )
    setup: Annotated[str, values.SetupScript()] = key(
        "shell script run as root in the image build, after packages", default=""
    )
    user: Annotated[str, values.LoginName()] = key("login user inside; passwordless doas", default="dev")
    shell: Annotated[str, values.ShellPath()] = key("the login user's shell", default="/bin/bash")
    authorized_keys: tuple[Annotated[str, PublicKey()], ...] | None = key(
        "public keys, or paths or globs of .pub files; default: all of the owner's", weight="live"
    )
    owner: Annotated[int | str | None, values.HostUser()] = key(
        "host user or uid that owns home; default: who is behind sudo or doas, for root itself uid 1000"
    )
    share_with: tuple[Annotated[str, values.Sharer()], ...] = key(
        "users and groups of the host who see and enter it beside the owner", weight="live", default=()
    )
    ip: Annotated[str | None, values.Address()] = key("static address; default: allocated once, then kept")
    mac: Annotated[str | None, values.HardwareAddress()] = key("MAC address; default: derived from the name")
    cid: Annotated[int | None, values.ContextId()] = key(
        "vsock context id, where nobody else has it; default: derived from the name", only="vm"
    )
    vsock: bool = key(
        "under QEMU, a vsock device: by it the guest reaches every vsock listener of the host, whatever `egress` says",
        only="vm",
        default=False,
    )
    vcpus: Annotated[int | None, values.WholeNumber(1, 1024)] = key(
        "limit for containers, hardware for vms; default: no limit, or 2 processors"
    )
    memory: Annotated[int | None, values.Size(minimum=64 * 2**20)] = key(
        "limit for containers, hardware for vms; default: no limit, or 1 GiB"
    )
    disk: Annotated[int | None, values.Size(minimum=64 * 2**20)] = key(
        "limit for containers, hardware for vms; default: no limit, or a root in half of a machine's memory"
    )
    autostart: bool = key("start when the host boots", weight="live", default=False)
    auto_refresh: Literal["never", "daily", "weekly", "monthly"] = key(
        "how often systemd makes its image anew, which it moves to at its next start", weight="live", default="never"
    )
    restart_if_changed: bool = key(
        "`hutch up` restarts it when a key that needs a restart changed", weight="live", default=True
    )
    home: Annotated[str | None, values.HostPath()] = key("host directory that persists as /home/USER")
    persist: Literal["home", "all"] = key(
        "root is ephemeral (home), or kept too (all)", weight="recreate", default="home"
    )
    mounts: tuple[Mount, ...] = key("extra directories and files of the host's", default=())
    protect: tuple[Annotated[str, values.InnerPath()], ...] = key(
        "paths in each writable directory of `mounts` that are read-only inside, beside those of `protect_default`",
        default=(),
    )
    protect_default: bool = key(
        "keep read-only the files that make the host run something: git's hooks and configuration, and what"
        " editors, agents, direnv, husky and hutch take commands from in a checkout",
        default=True,
    )
    egress: Annotated[str | tuple[str, ...], Egress()] = key("its network access", weight="live", default="internet")
    publish: tuple[Annotated[Publish, Published()], ...] = key("ports on the host", weight="live", default=())
    env: Annotated[tuple[tuple[str, str], ...], EnvironmentTable()] = key(
        "environment of login sessions", weight="live", default=()
    )
    nix_store: bool = key(
        "share the host's /nix/store read-only with a writable overlay, whose fate is the root's; not /nix/var",
        default=False,
    )
    use: tuple[Annotated[str, values.KitName()], ...] = key(
        "kits, whose parts are joined to the workspace's: see [kits.NAME]", weight="live", default=()
    )
    gpu: bool = key("pass the host's GPU render nodes through (not supported yet)", only="container", default=False)
    nesting: bool = key("allow user namespaces inside", only="container", default=False)
    learn: bool = key("let Internet traffic that `egress` refuses pass, and record it", weight="live", default=False)
    idle: Idle | None = key("action when nobody uses it (not supported yet)", weight="live")

    @property
    def uid(self) -> int:
        """The owner, once resolved."""
        assert isinstance(self.owner, int)
        return self.owner


@dataclass(frozen=True, kw_only=True)
class Kit:
    """A part that workspaces have in common: a `[kits.NAME]` table, or a file of its own."""

    __pydantic_config__ = STRICT

    packages: tuple[Annotated[str, values.PackageName()], ...] = key(
        "distribution packages, beside others'", default=()
    )
    setup: Annotated[str, values.SetupScript()] = key(
        "run as root in the image build, before the workspace's", default=""
    )
    mounts: tuple[Mount, ...] = key("host directories; the workspace's own win where a target is the same", default=())
    env: Annotated[tuple[tuple[str, str], ...], EnvironmentTable()] = key(
        "environment of login sessions; the workspace's own variables win", default=()
    )
    egress: tuple[Annotated[str, Destination()], ...] = key(
        "joins the workspace's list, and is its list where it says nothing; not beside a word", default=()
    )
    protect: tuple[Annotated[str, values.InnerPath()], ...] = key(
        "paths in shared directories that are read-only inside, beside others'", default=()
    )


Brought = Mapping[str, Mapping[str, Sequence[Any]]]
"""The part that kits have in a workspace: key -> kit -> the entries, or the script, that are the kit's, as JSON has
them."""

Clamped = Mapping[str, str]
"""The keys of a workspace that its file leaves open, and the ceiling of members has lower than they are for others: key
-> that part of the ceiling, in words."""


@dataclass(frozen=True)
class Incus:
    """The `[engines.incus]` table."""

    __pydantic_config__ = STRICT

    remote: Annotated[str, values.Remote()] = key("a remote of the incus client", default="local")
    project: Annotated[str, values.Remote()] = key("the Incus project that workspaces live in", default="hutch")
    target: Annotated[str, values.IncusTarget()] = key("which members of a cluster run workspaces", default="auto")
    subnet: Annotated[str, values.AddressNetwork(widest=16, narrowest=29)] = key(
        "the workspaces' network there; its first address is their gateway and DNS server", default="10.83.0.0/16"
    )


@dataclass(frozen=True)
class Config:
    """A whole hutch.toml, valid and with nothing left to look up. `file` is its real path. `incus` is None without such
    a table; workspaces of that engine then have its defaults. `checkout` is the top of the checkout that the file is
    in, whose content was accepted; None for one of a person's or the host's own. Kits are joined into the workspaces
    that use them; `brought` tells, by the workspace's name, which of its values are theirs, and `clamped` which are the
    ceiling's. `others` are workspaces that a file which several people share declares for others than the member who
    loads it; they are in no other field."""

    file: str
    network: Network
    workspaces: Mapping[str, WorkspaceSpec]
    incus: Incus | None = None
    checkout: str | None = None
    brought: Mapping[str, Brought] = field(default_factory=dict)
    clamped: Mapping[str, Clamped] = field(default_factory=dict)
    others: frozenset[str] = frozenset()

    def select(self, names: Sequence[str]) -> list[str]:
        """`names`, or all that the file declares; UsageError for one that it does not."""
        names = [names] if isinstance(names, str) else names
        if foreign := [name for name in names if name in self.others]:
            raise UsageError(f"{self.file} declares {', '.join(foreign)} for somebody else")
        unknown = [name for name in names if name not in self.workspaces]
        if unknown:
            known = ", ".join(self.workspaces) or "none"
            raise UsageError(
                f"{self.file} declares no workspace {', '.join(unknown)}", resolution=f"it declares: {known}"
            )
        return list(dict.fromkeys(names)) or list(self.workspaces)


WORKSPACE_KEYS: tuple[str, ...] = tuple(WorkspaceSpec.__dataclass_fields__)


def has_effect(name: str, type: str) -> bool:
    """Whether the key `name` says anything of a workspace of that type."""
    return WorkspaceSpec.__dataclass_fields__[name].metadata["only"] in ("", type)


def declared_weight(name: str) -> Weight:
    weight: Weight = WorkspaceSpec.__dataclass_fields__[name].metadata["weight"]
    return weight
