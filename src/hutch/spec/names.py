"""Every derived name: paths, interfaces, addresses, identifiers. One home for each, with the kernel's limit beside it.

Paths under the state and runtime directories and names of interfaces begin here; an image's own directory is laid
out by images/cache.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from hutch.errors import UsageError
from hutch.files import open_to_others
from hutch.frozen import dataclass

T = TypeVar("T")

DEFAULT_STATE_DIR = "/var/lib/hutch"
DEFAULT_RUN_DIR = "/run/hutch"
AUDITS = "/var/log/hutch"
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
INCUS_CONF = "INCUS_CONF"
"""The variable that names the directory with the configuration of the incus client."""
STATE_HOME = "XDG_STATE_HOME"
"""The variable that names the directory in which a person's programs keep what they remember."""
HANDED_ON = (*BEHIND, *PROXIES, INCUS_CONF, "TERM")
"""All variables of a caller's environment that a process of hutch's own is to have too."""
HEARD_GROUP = 83
"""The group of NFLOG by which the router's rules tell the egress proxy of packets."""
HEARD = "hutch "
"""The prefix of the rule's name in those messages."""
IFNAMSIZ = 15  # bytes of an interface name, without the closing NUL
SUN_PATH = 107  # bytes of a socket path, without the closing NUL
LONGEST = 512  # bytes of the directories of a hutch: three paths in one go into a page of mount options

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


def fingerprint(text: str) -> str:
    """Six hexadecimal digits that tell a text from others."""
    return _sha256(text).hex()[:6]


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
    return 100 + int(fingerprint(name), 16)


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
    """The last address of the subnet, kept for image builds; on an Incus server, for its DHCP."""
    return str(ipaddress.IPv4Network(subnet).broadcast_address - 1)


LOOK = "look"
"""The first part of the names of inspections' cgroups; a workspace's name has no dot."""

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
    found, wrong = Path(path), f"{variable}={path[:LONGEST]!r} cannot be used"
    if len(path) > LONGEST:
        raise UsageError(f"{wrong}: it is too long", resolution=f"take a path of {LONGEST} bytes at most")
    if not re.fullmatch(r"(/[A-Za-z0-9_.+-]+)+", path, re.ASCII):
        raise UsageError(wrong, resolution="letters, digits and _.+-/ only")
    there = next(each for each in (found, *found.parents) if os.path.lexists(each))
    if not os.path.isdir(there):
        raise UsageError(f"{wrong}: {there} leads to no directory", resolution="take another path")
    if os.geteuid() == 0 and (loose := open_to_others(found)):
        raise UsageError(
            f"{wrong}: {loose} can be changed by others than root",
            details="As root, hutch trusts the files there.",
            resolution=_way_to_roots_own(loose),
        )
    return found


def _way_to_roots_own(loose: Path) -> str:
    """The advice on a path whose part `loose` others can change. A directory like /tmp is everybody's by intent, and of
    a link these commands would change what it leads to."""
    other = (
        "take a path that lies, with all that leads there, where only root can change it; "
        "below a directory such as /tmp, make one of root's first"
    )
    if loose.is_symlink() or loose.stat().st_mode & stat.S_ISVTX:
        return other
    return f"if it is in use, and nobody else's: chown root: {loose}; chmod go-w {loose}; or {other}"


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


def inspected_by(group: str) -> tuple[int, int] | None:
    """The (pid, start time) of the process that makes an inspection, by its cgroup's name; None for another cgroup."""
    found = re.fullmatch(rf"{LOOK}\.{NAME}\.(?P<pid>\d+)\.(?P<started>\d+)", group, re.ASCII)
    return (int(found["pid"]), int(found["started"])) if found else None


def _cgroup_of_slice(unit: str) -> str:
    """The cgroup of a slice, relative to the root of the hierarchy: each dash of its name is a level."""
    parts = unit.removesuffix(".slice").split("-")
    return "/".join(f"{'-'.join(parts[: count + 1])}.slice" for count in range(len(parts)))


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
    uplink_router_mac = Derived(lambda layout: mac(f"router of {layout.state}"))
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
    ages = Derived(lambda layout: layout.state / "ages.json")
    """The ages of images, and the last answers about their updates."""
    workspaces = Derived(lambda layout: layout.state / "workspaces")
    lock = Derived(lambda layout: layout.state / "lock")
    journal = Derived(lambda layout: layout.state / "journal.json")
    network_record = Derived(lambda layout: layout.state / "network.json")
    repairs = Derived(lambda layout: layout.state / "repairs.json")
    """The record of the changes that `hutch doctor --fix` has made to others' software on this host."""
    placeholders = Derived(lambda layout: layout.state / "placeholders.json")
    """The note on what was made in shared directories where protected paths are absent."""
    known_hosts = Derived(lambda layout: layout.state / "known_hosts")
    ssh_proxy = Derived(lambda layout: layout.state / "ssh-proxy")
    """The program by which everybody's ssh reaches workspaces that this host has no route to. It is a copy, since
    hutch's own files may be root's alone, and may move with an upgrade."""
    addresses = Derived(lambda layout: layout.state / "addresses")
    """The other addresses of clusters, for each user of a remote of this host."""

    def addresses_of(self, account: int, conf: str, remote: str) -> Path:
        """Those of one remote, as the configuration `conf` of a user's client knows it. The ssh proxy says the same."""
        return self.addresses / str(account) / _sha256(conf).hex()[:16] / remote

    keys = Derived(lambda layout: layout.state / "keys")
    old_group_key = Derived(lambda layout: layout.keys / "hutch" / "id_ed25519")
    """A copy of root's key, which an older hutch gave to the members of the group `hutch`."""
    user_views = Derived(lambda layout: layout.state / "shown")
    """The user views, which are read by whoever sees a workspace; installed aliases know the directory by its name."""

    def image_root(self, id: str) -> Path:
        """An image's tree."""
        return self.images / id / "root"

    def key(self, holder: int | str) -> Path:
        """The private key that hutch made for a user or a group of the host (see spec/sharing): root's opens every
        workspace."""
        return self.keys / str(holder) / "id_ed25519"

    audits = Derived(lambda layout: Path(AUDITS) if layout.instance == "hutch" else layout.state / "log")
    """The records of what workspaces did; those of a second hutch lie with the rest of its own."""
    audit = OfEach(lambda layout, name: layout.audits / f"{name}.jsonl")
    """The newest file of a record; older ones have a number behind that."""
    audit_head = OfEach(lambda layout, name: layout.workspace(name) / "record.json")
    """The note on where it begins and ends."""
    inboxes = OfEach(lambda layout, name: layout.audits / "inbox" / name)
    """The directory in which others than root tell what is to go into it, each in a file of their own."""
    audit_ends = OfEach(lambda layout, name: layout.inboxes(name) / "service")
    """The file in which its service tells of its starts and ends; root's only."""

    user_view = OfEach(lambda layout, name: layout.user_views / f"{name}.json")

    def workspace(self, name: str) -> Path:
        """Root's own directory for a workspace; nothing in it but `home` and `root` is written by guests."""
        return self.workspaces / name

    record = OfEach(lambda layout, name: layout.workspace(name) / "workspace.json")
    home = OfEach(lambda layout, name: layout.workspace(name) / "home")
    root = OfEach(lambda layout, name: layout.workspace(name) / "root")
    """The kept root (`persist = "all"`)."""
    arriving = OfEach(lambda layout, name: layout.workspace(name) / "arriving")
    """The directory of root's own in which a home from a server stands until all of it has come."""
    leaving = OfEach(lambda layout, name: layout.workspace(name) / "leaving")
    """The home that is deleted, since it has come to a server."""
    host_key = OfEach(lambda layout, name: layout.workspace(name) / "ssh" / "ssh_host_ed25519_key")
    private = OfEach(lambda layout, name: layout.workspace(name) / "private")
    """The directory of root's own with what is written in private mounts; its guest writes below it."""
    private_files = OfEach(lambda layout, name: layout.workspace(name) / "private.json")
    """The note on the private files that were given to the workspace."""
    quota = OfEach(lambda layout, name: layout.workspace(name) / "quota")
    """The note on the quota of the home: since when it holds, and whether it covers all files there."""
    server = OfEach(lambda layout, name: layout.workspace(name) / "server")
    """The note on where its engine has made it, if that is not this host."""
    # Runtime: gone after a reboot.

    shares = Derived(lambda layout: layout.run / "shares.json")
    """The record of the host's bind mounts that are hutch's."""
    reconciled = Derived(lambda layout: layout.run / "reconciled")
    """A mark, there once the host is as the records want it. It keeps the name by which an upgrade finds it."""

    def runtime(self, name: str) -> Path:
        return self.run / "workspaces" / name

    launch = OfEach(lambda layout, name: layout.runtime(name) / "launch.json")
    status = OfEach(lambda layout, name: layout.runtime(name) / "status.json")
    """The status that its service reports."""
    asker = OfEach(lambda layout, name: layout.runtime(name) / "by")
    """The account that its service starts or ends for just now."""
    runner_lock = OfEach(lambda layout, name: layout.runtime(name) / "runner.lock")
    """The lock that the workspace's runner holds for as long as it lives, where systemd is not process 1."""
    log = OfEach(lambda layout, name: layout.runtime(name) / "machine.log")
    console = OfEach(lambda layout, name: layout.runtime(name) / "console")
    """The console's socket."""
    cid = OfEach(lambda layout, name: layout.runtime(name) / "cid")  # of vsock; see host/hardware/context_id

    def slice_cgroup(self, name: str) -> str:
        """The cgroup that has the workspace's limits, relative to the root of the cgroup2 hierarchy: each dash of a
        slice's name is a level."""
        return _cgroup_of_slice(self.slice(name))

    cgroup_of_all = Derived(lambda layout: _cgroup_of_slice(layout.slice_of_all))
    """The cgroup of the slice of all: what runs below it leaves the host its reserve."""
    cgroup = OfEach(lambda layout, name: f"{layout.slice_cgroup(name)}/{layout.unit(name)}")
    """The cgroup of its service."""
    build_cgroup = OfEach(lambda layout, name: f"{layout.cgroup_of_all}/build.{name}")
    """The cgroup of an image's build; a workspace's name has no dot."""

    def inspection_cgroup(self, name: str, pid: int, started: int | None) -> str:
        """The cgroup of an inspection of a home whose workspace is to be removed, by the process that makes it."""
        return f"{self.cgroup_of_all}/{LOOK}.{name}.{pid}.{started}"

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
    def guards_unit(self) -> str:
        """The unit that guards what stopped workspaces have written, before anybody can log in."""
        return f"{self.instance}-guards.service"

    @property
    def fold_units(self) -> tuple[str, str]:
        """The timer, and the service that it starts, by which what others tell gets into the records."""
        return f"{self.instance}-record.timer", f"{self.instance}-record.service"

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
    """The directory of the records of what watched workspaces ask and reach; root's."""
    egress_records = OfEach(lambda layout, name: layout.egress / name)
    """The directory of one workspace's records; the egress proxy's own."""
