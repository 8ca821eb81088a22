"""A Launch: everything that makes one workspace run, as plain data.

A backend makes it, purely; the embedded supervisor runs it; systemd units can be rendered from it; and
`hutch explain` prints it. It holds no objects of ours, so it travels as JSON.
"""

from __future__ import annotations

from dataclasses import field

from hutch.frozen import dataclass
from hutch.spec.model import Network
from hutch.spec.names import Places

REBOOT = 133
"""The exit code that means "the guest asked for a reboot": nspawn's own, with --keep-unit."""


@dataclass(frozen=True)
class Hardware:
    """What virtual machines are made of on this host. `kernel`, `initrd`, `root` and `firmware` are files of the image
    cache and of the host; `accelerator` is "kvm" or "tcg", `tsc_khz` the rate of the host's time stamp counter for the
    latter, `kvm_gid` the group that may use the former; `qemu`, `virtiofsd` and `library` (where qemu.qmp lies) are
    paths, and so is `cloud_hypervisor`, if a version that can be used is installed: see backends/hypervisor.
    `slowness` is how many times as long as usual a start may take here."""

    kernel: str
    initrd: str
    root: str
    firmware: str | None
    accelerator: str
    tsc_khz: int | None
    kvm_gid: int | None
    qemu: str
    virtiofsd: str
    library: str
    has_vsock: bool
    cloud_hypervisor: str | None = None
    slowness: int = 1


@dataclass(frozen=True)
class Surroundings:
    """What a backend must know of the host and of what was allocated, beside the workspace itself.

    `owner_gid` is the owner's primary group on the host; `image_root` the image's tree; `keys`
    the public keys of hutch's own that open it; `hardware` is there for virtual machines; `python` and
    `package` the interpreter and the directory of hutch's own code, for steps that are programs of ours; `ceiling` is
    the memory, in bytes, that a machine which runs was started with. It is run `by_systemd` on a host that has it.
    """

    places: Places
    network: Network
    image_root: str
    uid_base: int
    owner_gid: int
    machine_id: str
    keys: tuple[str, ...]
    python: str
    package: str
    hardware: Hardware | None = None
    ceiling: int | None = None
    by_systemd: bool = False


@dataclass(frozen=True)
class Step:
    """One command around the main process. `why` is shown to people; a step that `may_fail` may do so unnoticed."""

    argv: tuple[str, ...]
    why: str
    may_fail: bool = False


@dataclass(frozen=True)
class File:
    """A small file that must exist before the first step: a credential, say. Nobody but `uid` can read it."""

    path: str
    content: str
    uid: int = 0


@dataclass(frozen=True)
class Helper:
    """A process beside the main one, which talks to it over a socket. It is started before it and inherits, as
    descriptor 3, the listening socket at `socket`, which belongs to `uid`. It may have `open_files` files open, or as
    many as this host allows. `why` is shown to people."""

    argv: tuple[str, ...]
    why: str
    socket: str
    uid: int
    open_files: int


@dataclass(frozen=True)
class Graft:
    """A directory that is shown to a container once that has a PID 1, and can be taken away from it while it runs.

    `bind` makes it ready at `place`, in the supervisor's mount namespace. `attach`, with the pid of PID 1 as one more
    argument, shows it at `target`; `detach` takes the same pid and then the mount points to take away.
    """

    target: str
    place: str
    bind: Step
    attach: Step
    detach: Step


@dataclass(frozen=True)
class Vsock:
    """How a machine whose context id is `cid` calls its host: at a port of the host's that is chosen for each start.
    Its address is written to `file`, in the words of sd_notify, before the main process begins; nobody but `uid` can
    read it."""

    cid: int
    file: str
    uid: int


@dataclass(frozen=True)
class Forbidden:
    """What the kernel refuses to the main process and to all that comes of it, whoever that is inside: system calls by
    their names, and sockets of all families but these. A unit of systemd's says the same with SystemCallFilter=~ and
    RestrictAddressFamilies=."""

    system_calls: tuple[str, ...]
    other_families_than: tuple[str, ...]


@dataclass(frozen=True)
class Limits:
    """What the workspace's cgroup may use; None is no limit. `cpus` counts processors, `memory` bytes."""

    cpus: int | None = None
    memory: int | None = None
    tasks: int | None = None


@dataclass(frozen=True)
class Launch:
    """The processes, devices, files and limits of one start of one workspace.

    `prepare`, `connect`, `argv` and `cleanup` run in a mount namespace of their own (a slave of the host's) and in the
    network namespace at `network_namespace`; so mounts vanish with the last process. `prepare` are chains of steps that
    do not depend on each other: the chains may run side by side, and while the host's network is still being set up;
    `connect` joins the network, so it waits: its stages follow one another, the steps of a stage may run side by side.
    `forbidden` binds the supervisor too. `held` are steps while that which becomes PID 1 is held in its cgroup, before
    anything of the guest's has run; the word PID in them stands for its pid. `inward` follow as soon as there is a PID
    1, one after the other, and then `grafts`; each takes its pid as one more argument. `helpers` are there before
    `argv` is; when one ends, so does the workspace. `argv` tells that it is ready by sd_notify; a virtual machine does
    so over `vsock`, or by its port. `links` names the sockets that it inherits as descriptors 3, 4, …, see
    runtime/sources. `restart_codes` are exit codes of `argv` that mean "the guest asked for a reboot", as a machine's
    monitor may say too: everything is cleaned up, prepared, connected and started again. `library` is where the
    supervisor finds what it needs of other people's for that; `facts` are told to people.
    `memory` are the bytes that a machine is made with.

    A Launch may be handed in while the workspace runs: its `limits` and `grafts` count at once, and so do `balloon`,
    the bytes that are left to a machine of its memory, and `resize`, which gives a root in memory the size that it is
    to have; all else counts when the guest boots again.

    `shares` are the host's directories that it is shown; `guards` are steps in the host's own mount namespace, which
    keep what it makes there from counting as somebody else's, where others than hutch may mount something meanwhile.
    `unit` is the service of systemd's that it is run as, "" where the embedded supervisor runs it. A machine's `links`
    are named pipes then, its `helpers` open their sockets themselves, and its `inward` steps take the pid of its main
    process.
    """

    workspace: str
    backend: str
    network_namespace: str
    cgroup: str
    directories: tuple[str, ...]
    files: tuple[File, ...]
    prepare: tuple[tuple[Step, ...], ...]
    connect: tuple[tuple[Step, ...], ...]
    argv: tuple[str, ...]
    cleanup: tuple[Step, ...]
    limits: Limits
    runtime: str
    forbidden: Forbidden | None = None
    held: tuple[Step, ...] = ()
    inward: tuple[Step, ...] = ()
    grafts: tuple[Graft, ...] = ()
    helpers: tuple[Helper, ...] = ()
    links: tuple[str, ...] = ()
    vsock: Vsock | None = None
    library: str = ""
    memory: int | None = None
    balloon: int | None = None
    resize: Step | None = None
    facts: dict[str, str] = field(default_factory=dict)
    restart_codes: tuple[int, ...] = ()
    start_seconds: float = 60.0
    stop_seconds: float = 15.0
    shares: tuple[str, ...] = ()
    guards: tuple[Step, ...] = ()
    unit: str = ""
