"""A Launch: everything that makes one workspace run, as plain data.

A backend makes it, purely; runtime/units renders it as a unit and the script that this runs, which `hutch explain`
prints. It holds no objects of ours, so it travels as JSON.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, field, is_dataclass
from functools import cache
from types import NoneType
from typing import Any, cast, get_args, get_origin, get_type_hints

from hutch.failure import HutchError
from hutch.frozen import dataclass
from hutch.spec.model import Network
from hutch.spec.names import Layout
from hutch.spec.record import Decision

REBOOT = 133
"""The exit code that means "the guest asked for a reboot": nspawn's own, with --keep-unit."""


@dataclass(frozen=True)
class Hardware:
    """The files and programs of virtual machines on this host. `kernel`, `initrd`, `root` and `firmware` are files of
    the image cache and of the host; `accelerator` is "kvm" or "tcg", `tsc_khz` the rate of the host's time stamp
    counter for the latter, `kvm_gid` the group that may use the former; `virtiofsd` is a path. `hypervisors` has, for
    each by its name, what it has found here: see Traits. `slowness` is how many times as long as usual a start may take
    here."""

    kernel: str
    initrd: str
    root: str
    firmware: str | None
    accelerator: str
    tsc_khz: int | None
    kvm_gid: int | None
    virtiofsd: str
    has_vsock: bool
    hypervisors: dict[str, dict[str, str]]
    slowness: int = 1

    def program_of(self, hypervisor: str) -> str:
        """The program of a hypervisor. HutchError where it is not there, or not any more."""
        if program := self.hypervisors.get(hypervisor, {}).get("program"):
            return program
        raise HutchError(
            f"{hypervisor} is not installed, or is too old", resolution="`hutch doctor` says what is there"
        )


@dataclass(frozen=True)
class Surroundings:
    """The facts of the host, and the allocated values, that a backend must know beside the workspace itself.

    `owner_gid` is the owner's primary group on the host; `image_root` the image's tree; `keys`
    the public keys of hutch's own that open it; `hardware` is there for virtual machines; `python` and
    `package` the interpreter and the directory of hutch's own code, for steps that are programs of ours; `ceiling` is
    the memory, in bytes, that a machine which runs was started with. `has_machined` says that machinectl lists what
    runs here. `decisions` are those of people about names. `files` are those sources of mounts that are files, not
    directories. `member` is the uid with whose rights the sources of mounts are opened; None for root's.
    """

    layout: Layout
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
    has_machined: bool = False
    decisions: tuple[Decision, ...] = ()
    files: tuple[str, ...] = ()
    member: int | None = None


@dataclass(frozen=True)
class Step:
    """One command around the main process. `why` is shown to people; a step that `may_fail` may do so unnoticed."""

    argv: tuple[str, ...]
    why: str
    may_fail: bool = False


@dataclass(frozen=True)
class File:
    """A small file that must exist before the first step: a credential, say. Nobody but `uid` can read it, unless it is
    public."""

    path: str
    content: str
    uid: int = 0
    is_public: bool = False


@dataclass(frozen=True)
class Helper:
    """A process beside the main one, which talks to it over the socket at `socket`; the command opens that. It is there
    before the main process is. It may have `open_files` files open, or as many as this host allows. `why` is shown to
    people."""

    argv: tuple[str, ...]
    why: str
    socket: str
    open_files: int


@dataclass(frozen=True)
class HotMount:
    """A directory or file that is shown to a container once that has a PID 1, and can be taken away while it runs.

    `bind` and the steps after it make it ready at `place`, in the service's mount namespace. `attach`, with the pid of
    PID 1 as one more argument, shows it at `target`; `detach` takes the same pid and then the mount points to take
    away. Of a file, the steps make the place too.
    """

    target: str
    place: str
    bind: Step
    attach: Step
    detach: Step
    more: tuple[Step, ...] = ()
    is_file: bool = False

    @property
    def steps(self) -> tuple[Step, ...]:
        return (self.bind, *self.more)


@dataclass(frozen=True)
class Seccomp:
    """The seccomp filter of the main process and of all its descendants, whoever they are inside. It refuses system
    calls by their names, and sockets of all families but these. systemd's own filters know nothing of the other ABIs
    that a kernel offers, so a program of ours installs these."""

    system_calls: tuple[str, ...]
    other_families_than: tuple[str, ...]


@dataclass(frozen=True)
class Limits:
    """The limits of the workspace's cgroup; None is no limit. `cpus` counts processors, `memory` bytes."""

    cpus: int | None = None
    memory: int | None = None
    tasks: int | None = None


@dataclass(frozen=True)
class Launch:
    """The processes, devices, files and limits of one start of one workspace; runtime/units renders it as a unit.

    `prepare`, `connect`, `argv` and `cleanup` run in a mount namespace of their own (a slave of the host's) and in the
    network namespace at `network_namespace`; so mounts vanish with the last process. `prepare` are chains of steps that
    do not depend on each other; `connect` joins the network: its stages follow one another, the steps of a stage may
    run side by side. `seccomp` holds for the main process, and `sandbox` are lines of the unit that bind all processes.

    `dialect` are functions of a shell: what only this backend knows. `begin` has all made ready, connects, and starts
    or becomes `argv`; it sees to READY=1 once the guest serves, and notes "shown" before. Where the main process is a
    shell that stays, it asks the guest to end on SIGTERM, and ends with a code, and a reason in the file
    "noted/reason", as runtime/unit.sh knows them. `commands` are programs that it runs, by the names of functions.

    `pre_exec` are steps while that which becomes PID 1 is held in its cgroup, before anything of the guest's has run;
    runtime/pre_exec fills the words PID and HALVES in them. `post_start` follow as soon as there is a PID 1, one after
    the other, and then `hot_mounts`; each takes its pid (of a machine, that of the main process) as one more argument.
    `helpers` are there before `argv` is; when one ends, so does the workspace. `restart_codes` are exit codes of the
    main process that mean "the guest asked for a reboot": everything is cleaned up, prepared, connected and started
    again. `facts` are told to people. `memory` are the bytes that a machine is made with.

    A Launch may be handed in while the workspace runs: its `limits` and `hot_mounts` count at once, and so do
    `balloon`, which leaves a machine less of its memory, and `resize`, which gives a root in memory the size that it is
    to have; all else counts when the guest boots again.

    `watch`, with the pid of the main process as one more argument, runs beside the guest and ends with it.

    `shares` are the host's directories that it is shown; `guards` are steps in the host's own mount namespace, which
    keep what it makes there from counting as somebody else's, where others than hutch may mount something meanwhile.
    `unit` is the service that it is.
    """

    workspace: str
    backend: str
    unit: str
    network_namespace: str
    cgroup: str
    runtime: str
    dialect: str
    directories: tuple[str, ...]
    files: tuple[File, ...]
    prepare: tuple[tuple[Step, ...], ...]
    connect: tuple[tuple[Step, ...], ...]
    argv: tuple[str, ...]
    cleanup: tuple[Step, ...]
    limits: Limits
    commands: dict[str, tuple[str, ...]] = field(default_factory=dict)
    seccomp: Seccomp | None = None
    sandbox: tuple[str, ...] = ()
    pre_exec: tuple[Step, ...] = ()
    post_start: tuple[Step, ...] = ()
    hot_mounts: tuple[HotMount, ...] = ()
    helpers: tuple[Helper, ...] = ()
    memory: int | None = None
    balloon: Step | None = None
    resize: Step | None = None
    watch: Step | None = None
    facts: dict[str, str] = field(default_factory=dict)
    restart_codes: tuple[int, ...] = ()
    start_seconds: float = 60.0
    stop_seconds: float = 15.0
    shares: tuple[str, ...] = ()
    guards: tuple[Step, ...] = ()


# A Launch as it stands in a file.

CHECKSUM = "crc32"


def encode_launch(launch: Launch) -> bytes:
    """The bytes of a Launch, with a checksum, since commands are run that stand in it."""
    text = json.dumps(asdict(launch))
    return f'{{"{CHECKSUM}": {zlib.crc32(text.encode())}, {text[1:]}'.encode()


def decode_launch(content: bytes) -> Launch | None:
    """The Launch in these bytes; None where they are damaged, or are another version's."""
    try:
        found = dict(json.loads(content))
        checksum = found.pop(CHECKSUM)
        launch: Launch = rebuild(Launch, found)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return launch if zlib.crc32(json.dumps(found).encode()) == checksum else None


@cache
def hints_of(kind: Any) -> dict[str, Any]:
    """The types of a class's fields. To look them up takes longer than all the rest of reading a Launch."""
    return get_type_hints(kind)


def rebuild(kind: Any, value: Any) -> Any:
    """A value of the type `kind` from its JSON. ValueError or TypeError where it is none."""
    if is_dataclass(kind):
        if type(value) is not dict:
            raise ValueError(f"{value!r} is no table")
        hints = hints_of(cast(Any, kind))
        return cast(Any, kind)(**{name: rebuild(hints.get(name, NoneType), item) for name, item in value.items()})
    inner = get_args(kind)
    if not inner:
        if type(value) is not kind and (kind, type(value)) != (float, int):
            raise ValueError(f"{value!r} is no {kind}")
        return value
    if NoneType in inner:
        return None if value is None else rebuild(inner[0], value)
    if get_origin(kind) is dict:
        if type(value) is not dict:
            raise ValueError(f"{value!r} is no table")
        return {rebuild(inner[0], key): rebuild(inner[1], item) for key, item in value.items()}
    if type(value) is not list:
        raise ValueError(f"{value!r} is no list")
    return tuple(rebuild(inner[0], item) for item in value)
