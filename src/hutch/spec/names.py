"""Every derived name: paths, interfaces, addresses, identifiers. One home for each, with the kernel's limit beside it.

Paths under the state and runtime directories and names of interfaces begin here; an image's own directory is laid
out by images/cache.
"""

from __future__ import annotations

import ipaddress
import os
import re
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from hutch.errors import UsageError
from hutch.frozen import dataclass

T = TypeVar("T")

DEFAULT_STATE_DIR = "/var/lib/hutch"
DEFAULT_RUN_DIR = "/run/hutch"
PACKAGE = Path(__file__).resolve().parent.parent
"""The directory of hutch's own code, for programs of ours that run by path."""
NAME = r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?"
"""The grammar of a workspace's name."""
UPLINKS = ipaddress.IPv4Network("192.168.84.0/24")
"""The range in which an uplink is looked for when none is given."""
NIX_STORE = "/nix/store"
"""The directory in which Nix keeps its builds, on the host and inside: paths to it are part of the programs."""
GUEST_INTERFACE = "host0"
"""The name of the interface inside a guest."""
BEHIND = ("SUDO_UID", "DOAS_USER", "PKEXEC_UID")
"""Variables that name the user behind sudo, doas or pkexec."""
PROXIES = tuple(f"{kind}_proxy" for kind in ("http", "https", "ftp", "no"))
PROXIES += tuple(name.upper() for name in PROXIES)
"""Variables that say how the host reaches the Internet."""
HANDED_ON = (*BEHIND, *PROXIES, "TERM")
"""All variables of a caller's environment that a process of hutch's own is to have too."""
HEARD_GROUP = 83
"""The group of NFLOG by which the router's rules tell the egress proxy of packets."""
HEARD = "hutch "
"""The prefix of the rule's name in those messages."""
IFNAMSIZ = 15  # bytes of an interface name, without the closing NUL
SUN_PATH = 107  # bytes of a socket path, without the closing NUL

UID_FIRST = 0x7000_0000  # above what systemd-nspawn picks from, below the sign bit
UID_COUNT = 0x1_0000
UID_RANGES = 3840  # the ranges of workspaces; those that follow are for builds
BUILDER_RANGES = 256
ROOT_DIRECTORIES = ("dev", "etc", "home", "proc", "root", "run", "sys", "tmp", "usr", "var")
GUEST_UIDS = range(1000, 60001)  # the uids that adduser gives to people, on every distribution


def _sha256(name: str) -> bytes:
    # Spares the start-up of `hutch ls`: it brings OpenSSL with it.
    import hashlib

    return hashlib.sha256(name.encode()).digest()


def is_name(text: str) -> bool:
    """Whether `text` could be the name of a workspace; it becomes part of paths, so everything asks first."""
    return re.fullmatch(NAME, text, re.ASCII) is not None


def hostname(name: str) -> str:
    """The name of a workspace for ssh and /etc/hosts."""
    return f"workspace-{name}"


def mac(name: str) -> str:
    """The default MAC address: locally administered, the first five bytes of SHA-256(name)."""
    return ":".join(["02", *(f"{byte:02x}" for byte in _sha256(name)[:5])])


def cid(name: str) -> int:
    """The default vsock context id: 100 + the first six hexadecimal digits of SHA-256(name)."""
    return 100 + int(_sha256(name).hex()[:6], 16)


def interface(prefix: str, name: str) -> str:
    """`prefix`-`name` within 15 bytes; a long name is cut and told apart by a hash of the whole."""
    full = f"{prefix}-{name}"
    if len(name) <= IFNAMSIZ - len(prefix) - 1:
        return full
    digest = _sha256(name).hex()[:4]
    return f"{prefix}-{name[: IFNAMSIZ - len(prefix) - 1 - len(digest)]}{digest}"


def port(name: str, type: str) -> str:
    """The workspace's port on the bridge, in the router namespace."""
    return interface("vm" if type == "vm" else "ve", name)


def gateway(subnet: str) -> str:
    """The first address of the subnet: gateway and DNS server of the workspaces."""
    return str(next(ipaddress.IPv4Network(subnet).hosts()))


def builder_address(subnet: str) -> str:
    """The last address of the subnet, kept for image builds."""
    return str(ipaddress.IPv4Network(subnet).broadcast_address - 1)


BUILDER = "_build"  # no workspace can be called that
"""The name under which image builds take part in the network."""
BUILDER_MAC = "02:6e:27:10:a4:23"
"""The MAC address of builds, mac(BUILDER). Each start needs it, and a digest takes four milliseconds, for OpenSSL."""


def uplink_addresses(uplink: str) -> tuple[str, str]:
    """(the host's end, the router's end) of the /30 that joins them."""
    host, router = ipaddress.IPv4Network(uplink).hosts()
    return str(host), str(router)


def _directory(variable: str, default: str) -> Path:
    """The path that a variable gives. It is used in mount options and in ssh's configuration."""
    path = os.path.abspath(os.environ.get(variable) or default)
    if not re.fullmatch(r"(/[A-Za-z0-9_.+-]+)+", path, re.ASCII):
        raise UsageError(f"{variable}={path!r} cannot be used", resolution="letters, digits and _.+-/ only")
    return Path(path)


class Derived(Generic[T]):
    """A value that follows from the two directories of a hutch: a property that is written as one expression."""

    def __init__(self, derive: Callable[[Layout], T]) -> None:
        self._derive = derive

    def __get__(self, layout: Layout, owner: type[Layout]) -> T:
        return self._derive(layout)


class OfEach(Derived[Callable[[str], T]]):
    """A derived value of each workspace or image, as a function of its name."""

    def __init__(self, derive: Callable[[Layout, str], T]) -> None:
        super().__init__(lambda layout: partial(derive, layout))


@dataclass(frozen=True)
class Layout:
    """The paths and names of one hutch on this host. A second one has other directories, hence other names."""

    state: Path
    run: Path

    @classmethod
    def from_environment(cls) -> Layout:
        """The layout by $HUTCH_STATE_DIR and $HUTCH_RUN_DIR. Another state directory alone gives a runtime directory
        that is no other hutch's."""
        layout = cls(_directory("HUTCH_STATE_DIR", DEFAULT_STATE_DIR), Path(DEFAULT_RUN_DIR))
        return cls(layout.state, _directory("HUTCH_RUN_DIR", f"/run/{layout.instance}"))

    # Names of this hutch on the host.

    @property
    def instance(self) -> str:
        """ "hutch", or "hutch-" and six digits for a second one: at most 12 bytes."""
        if str(self.state) == DEFAULT_STATE_DIR:
            return "hutch"
        return f"hutch-{self._checksum & 0xFFFFFF:06x}"

    @property
    def uid_index(self) -> int:
        """The range at which the search for a workspace's uids begins. Hutches do not know each other's workspaces, so
        a second one begins at a place of its own, out of the way of the first."""
        if self.instance == "hutch":
            return 0
        return BUILDER_RANGES + self._checksum % (UID_RANGES - BUILDER_RANGES)

    egress_uid = Derived(lambda layout: UID_FIRST - 1 - layout.uid_index)
    """The egress proxy's account: nobody else's, and below the ranges of workspaces."""

    @property
    def builder_uid(self) -> int:
        """The first of the uids that builds run as: a range after all those of workspaces."""
        index = 0 if self.instance == "hutch" else 1 + self._checksum % (BUILDER_RANGES - 1)
        return UID_FIRST + (UID_RANGES + index) * UID_COUNT

    @property
    def _checksum(self) -> int:
        return zlib.crc32(str(self.state).encode())

    namespace = Derived(lambda layout: layout.instance)
    """The router's network namespace, as `ip netns` knows it."""
    namespace_path = Derived(lambda layout: Path("/run/netns") / layout.namespace)

    @property
    def uplink_host(self) -> str:
        """The host's end of the uplink: an interface of the host."""
        return f"{self.instance}-up"

    uplink_mac = Derived(lambda layout: mac(f"uplink of {layout.state}"))
    """The MAC address of the host's end: no other interface has it, so the interface is known as ours at once."""
    uplink_router = "up0"
    """The router's end of the uplink: an interface in the router namespace."""
    proof_namespace = Derived(lambda layout: f"{layout.instance}-prove")
    """The network namespace that `hutch prove` has while it runs."""
    proof_interface = Derived(lambda layout: f"{layout.instance}-pv")
    """The host's interface that leads into that namespace."""
    table = Derived(lambda layout: layout.instance)
    """The name of the nftables tables, on the host and in the router namespace."""

    @property
    def ssh_config(self) -> Path:
        return Path("/etc/ssh/ssh_config.d") / f"50-{self.instance}.conf"

    # State: survives a reboot.

    images = Derived(lambda layout: layout.state / "images")
    workspaces = Derived(lambda layout: layout.state / "workspaces")
    lock = Derived(lambda layout: layout.state / "lock")
    journal = Derived(lambda layout: layout.state / "journal.json")
    network_record = Derived(lambda layout: layout.state / "network.json")
    repairs = Derived(lambda layout: layout.state / "repairs.json")
    """The record of the changes that `hutch doctor --fix` has made to others' software on this host."""
    known_hosts = Derived(lambda layout: layout.state / "known_hosts")
    group_key = Derived(lambda layout: layout.state / "keys" / "hutch" / "id_ed25519")
    """A copy of root's key for the members of the group `hutch`."""
    user_views = Derived(lambda layout: layout.state / "shown")
    """The user views, which owners and the group read; installed aliases know the directory by its name."""

    def image_root(self, id: str) -> Path:
        """An image's tree."""
        return self.images / id / "root"

    def key(self, uid: int) -> Path:
        """The private key that hutch made for a host user: root's opens every workspace."""
        return self.state / "keys" / str(uid) / "id_ed25519"

    user_view = OfEach(lambda layout, name: layout.user_views / f"{name}.json")

    def workspace(self, name: str) -> Path:
        """Root's own directory for a workspace; nothing in it but `home` and `root` is written by guests."""
        return self.workspaces / name

    record = OfEach(lambda layout, name: layout.workspace(name) / "workspace.json")
    home = OfEach(lambda layout, name: layout.workspace(name) / "home")
    root = OfEach(lambda layout, name: layout.workspace(name) / "root")
    """The kept root (`persist = "all"`)."""
    host_key = OfEach(lambda layout, name: layout.workspace(name) / "ssh" / "ssh_host_ed25519_key")
    quota = OfEach(lambda layout, name: layout.workspace(name) / "quota")
    """The note on the quota of the home: since when it holds, and whether it covers all files there."""
    # Runtime: gone after a reboot.

    shares = Derived(lambda layout: layout.run / "shares.json")
    """The record of the host's bind mounts that are hutch's."""
    reconciled = Derived(lambda layout: layout.run / "settled")
    """A mark, there once the host is as the records want it. It keeps the name by which an upgrade finds it."""

    def runtime(self, name: str) -> Path:
        return self.run / "workspaces" / name

    launch = OfEach(lambda layout, name: layout.runtime(name) / "launch.json")
    status = OfEach(lambda layout, name: layout.runtime(name) / "status.json")
    """The status that its service reports."""
    runner_lock = OfEach(lambda layout, name: layout.runtime(name) / "runner.lock")
    """The lock that the workspace's runner holds for as long as it lives, where systemd is not process 1."""
    log = OfEach(lambda layout, name: layout.runtime(name) / "machine.log")
    console = OfEach(lambda layout, name: layout.runtime(name) / "console")
    """The console's socket."""

    def slice_cgroup(self, name: str) -> str:
        """The cgroup that has the workspace's limits, relative to the root of the cgroup2 hierarchy: each dash of a
        slice's name is a level."""
        parts = self.slice(name).removesuffix(".slice").split("-")
        levels = ("-".join(parts[: count + 1]) for count in range(len(parts)))
        return "/".join(f"{level}.slice" for level in levels)

    cgroup = OfEach(lambda layout, name: f"{layout.slice_cgroup(name)}/{layout.unit(name)}")
    """The cgroup of its service."""
    build_cgroup = OfEach(lambda layout, name: f"{layout.instance}/build.{name}")
    """The cgroup of an image's build; a workspace's name has no dot."""
    inspection_cgroup = OfEach(lambda layout, name: f"{layout.instance}/look.{name}")
    """The cgroup of the inspection of a home whose workspace is to be removed."""
    # Units.

    def unit(self, name: str) -> str:
        """The unit of a workspace, a service."""
        return f"{self.instance}@{name}.service"

    def machine(self, name: str) -> str:
        """The workspace's name for machinectl: whoever else runs machines may have one of the workspace's own name.
        machined answers with the addresses that the guest reports, so this is a name that /etc/hosts answers for."""
        return hostname(name) if self.instance == "hutch" else f"{self.instance}-{hostname(name)}"

    def slice(self, name: str) -> str:
        """The slice that limits the service and its helpers together. A dash stands for a slice within another, and one
        without a unit of its own stays when it is empty; no second hutch has a slice of such a name."""
        escaped = name.replace("-", "\\x2d")
        return f"{self.instance}-ws_{escaped}.slice"

    @property
    def network_unit(self) -> str:
        """The unit that sets up the host for all workspaces; it is there before any of them is."""
        return f"{self.instance}-network.service"

    @property
    def target(self) -> str:
        """The target of all that runs of this hutch; the units that it wants are started when the host boots."""
        return f"{self.instance}.target"

    @property
    def stopped_by(self) -> tuple[str, ...]:
        """The units that end all of it when they are stopped."""
        return (self.target,)

    @property
    def slice_of_all(self) -> str:
        """The slice that holds the workspaces' slices and the shared services."""
        return f"{self.instance}.slice"

    def service_unit(self, pid_file: str) -> str:
        """The unit of a process that serves all workspaces, by the file that names it."""
        called = {"host": "dns-host", "router": "dns"}
        stem = Path(pid_file).stem
        return f"{self.instance}-{called.get(stem, stem)}.service"

    @property
    def service_units(self) -> tuple[str, ...]:
        """The units of all shared services."""
        return tuple(map(self.service_unit, ("host.pid", "router.pid", "watch.pid", "egress.pid")))

    unit_directory = OfEach(lambda layout, name: layout.workspace(name) / "unit")
    """The directory with root's own copies of all files of the workspace's service, for its next start."""
    unit_script = OfEach(lambda layout, name: layout.unit_directory(name) / "run")
    """The script that the service runs."""
    # Shared services, for all workspaces: resolvers, the egress proxy, the watch.

    services_cgroup = Derived(lambda layout: f"{layout.instance}/_services")
    """The cgroup of the shared services; no workspace can be called that."""
    services = Derived(lambda layout: layout.run / "services")
    """The directory of their configuration and their pid files."""
    egress_control = Derived(lambda layout: layout.run / "egress")
    """The directory through which the egress proxy is told of changes; its own."""
    egress = Derived(lambda layout: layout.state / "egress")
    """The directory where the egress proxy records what watched workspaces ask and reach; its own."""
