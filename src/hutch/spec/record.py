"""The record and the observation of a workspace: values, and questions about them. `state` reads and writes records,
`runtime/observe` makes observations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from datetime import UTC, datetime
from typing import Literal

from hutch.frozen import dataclass
from hutch.spec.model import MACHINE_MEMORY, Brought, Network, WorkspaceSpec, has_effect

State = Literal["absent", "stopped", "starting", "running", "stopping", "suspended", "failed", "unreachable"]


def writable_paths(workspace: WorkspaceSpec) -> tuple[str, ...]:
    """Host directories and files that the workspace can write, home first; those of a workspace that another host runs
    are there."""
    if not is_local(workspace):
        return ()
    assert workspace.home is not None
    return (workspace.home, *(mount.source for mount in workspace.mounts if mount.is_writable))


@dataclass(frozen=True)
class Booted:
    """The settings that a workspace runs with; their difference to the wanted ones is pending. `memory` is the memory
    that a machine was started with, in bytes; its balloon may have taken some of it since. `once_writable` are the
    host directories that live changes gave to it or took from it since its start: what was opened inside stays open."""

    workspace: WorkspaceSpec
    image: str
    memory: int | None = None
    once_writable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Place:
    """The place on an Incus server where a workspace is: `remote`, `project`, `target` and `subnet` are as in
    [engines.incus]. `account` is the uid whose incus client is used, with its configuration in the directory `conf`."""

    remote: str
    project: str
    target: str
    subnet: str
    account: int
    conf: str

    def __str__(self) -> str:
        return f"the Incus server {self.remote}, project {self.project}"

    @property
    def identity(self) -> tuple[str, str, str]:
        """The part that tells two places apart: another caller, or another choice of members, leads to the same one."""
        return self.remote, self.project, self.subnet


@dataclass(frozen=True)
class Moving:
    """The other side of a move that is under way; the record itself says where the workspace is.

    While it is "copying", this is where it goes to, and all that is there is of no use before it is whole. While it is
    "starting", the workspace is at its new place, and this is where it was: what is there is kept until the new one has
    been ready. `since` is the moment, in Unix time, from which nobody has changed a home that this host had: the copy
    is of then. The rest is as in a Record.
    """

    step: Literal["copying", "starting"]
    wanted: WorkspaceSpec
    image: str
    uid_base: int
    booted: Booted | None
    place: Place | None
    since: float | None = None


@dataclass(frozen=True)
class Decision:
    """A person's decision about a name that the list of a workspace leaves open: see spec/decisions.

    `host` is a name as in a list, with its port or without one; what is denied has none. Times are Unix time; `until`
    is None for good.
    """

    host: str
    is_allowed: bool
    since: float
    until: float | None = None

    def is_over(self, now: float) -> bool:
        return self.until is not None and self.until <= now


@dataclass(frozen=True)
class Record:
    """A workspace as hutch remembers it. `image` is the id of the wanted image in the cache.

    `file` declared it, and `origin` tells that file again when it has been moved (see apply/ownership). `removed`
    marks a workspace of which only home, key, address and uid range are kept, since `removed_at`, in Unix time.
    `ejected` is the directory that it is ejected to; it is on its way there until it is `removed` too, and then
    only address and uid range are kept of it. `place` is None for a workspace of this host; one that is elsewhere
    has no home here, and its `uid_base` is 0. `moving` is there while it is moved between the two, and after a move
    that was cut short. `decisions` are those of people about names, beside its list, in the order in which they
    were made. `brought` is the part of what is wanted that is its kits'. `member` is the uid of the member of the
    group who declared it, with whose rights its directories are opened; None where root did.
    """

    name: str
    file: str
    wanted: WorkspaceSpec
    image: str
    uid_base: int
    machine_id: str
    booted: Booted | None = None
    removed: bool = False
    origin: tuple[int, ...] = ()
    ejected: str = ""
    place: Place | None = None
    moving: Moving | None = None
    removed_at: float | None = None
    decisions: tuple[Decision, ...] = ()
    brought: Brought = field(default_factory=dict)
    member: int | None = None

    def while_moving(self, step: Literal["copying", "starting"], other: Record, since: float | None = None) -> Record:
        """The record during a move, of which `other` is the other side."""
        side = Moving(step, other.wanted, other.image, other.uid_base, other.booted, other.place, since)
        return replace(self, moving=side)

    @property
    def other_side(self) -> Record:
        """The record of the other side of a move."""
        assert self.moving is not None, f"{self.name} is not being moved"
        there = self.moving
        return replace(
            self,
            wanted=there.wanted,
            image=there.image,
            uid_base=there.uid_base,
            booted=there.booted,
            place=there.place,
            moving=None,
        )

    def is_of(self, uid: int) -> bool:
        """Whether it is a user's, as it is wanted and as it runs, and on this host."""
        return self.wanted.owner == uid and self.effective.owner == uid and self.place is None

    @property
    def has_brought_home(self) -> bool:
        """Whether its home has just come to this host, and the old one waits: an empty one must not take its place."""
        return self.moving is not None and self.moving.step == "starting" and self.moving.booted is not None

    def with_booted(self) -> Record:
        memory = (self.wanted.memory or MACHINE_MEMORY) if self.wanted.type == "vm" else None
        return replace(self, booted=Booted(self.wanted, self.image, memory))

    def to_be_booted(self) -> Record:
        """The record of a stopped workspace that others than hutch may start: what it wrote before is still there."""
        ready, before = self.with_booted(), set(self.written) - set(writable_paths(self.wanted))
        assert ready.booted is not None
        return replace(ready, booted=replace(ready.booted, once_writable=tuple(sorted(before))))

    def before_live_change(self) -> Record:
        """The record as it has to be written before a live change to what is wanted begins."""
        if self.booted is None:
            return self
        before, after = set(writable_paths(self.booted.workspace)), set(writable_paths(self.wanted))
        once = tuple(sorted({*self.booted.once_writable, *(before ^ after)}))
        return replace(self, booted=replace(self.booted, once_writable=once))

    @property
    def written(self) -> tuple[str, ...]:
        """The host directories that its guest can write, could at any time since its last start, or will at the next.
        Nobody believes files that lie there, and guards stand on them, until it starts without them or is removed."""
        booted = (*writable_paths(self.booted.workspace), *self.booted.once_writable) if self.booted else ()
        return tuple(dict.fromkeys((*writable_paths(self.wanted), *booted)))

    @property
    def members_own(self) -> dict[str, int]:
        """Those of the written directories that a member shares, with the member's uid: they are guarded only as long
        as they are the member's own."""
        if self.member is None:
            return {}
        return {path: self.member for path in self.written if path != self.wanted.home}

    @property
    def kept_root(self) -> Booted | None:
        """The start from which its root is kept; None without a kept root."""
        is_kept = self.booted is not None and not self.removed and self.booted.workspace.persist == "all"
        return self.booted if is_kept else None

    @property
    def home_words(self) -> str:
        """The place of its home, for people."""
        if self.place is None:
            return str(self.wanted.home)
        return f"a volume of the project {self.place.project} on the Incus server {self.place.remote}"

    @property
    def images(self) -> set[str]:
        """The ids of the images from which it was booted, or will be."""
        both = self.other_side.images if self.moving is not None else set()
        return both | ({self.image, self.booted.image} if self.booted else {self.image})

    @property
    def effective(self) -> WorkspaceSpec:
        """The settings of its last start; the wanted ones where it was never started."""
        return self.booted.workspace if self.booted else self.wanted


@dataclass(frozen=True)
class NetworkRecord:
    """The network as it was last set up, and the state of the host before that.

    `sysctls` maps each kernel setting that hutch changed to the value it had; `forwarders` are the interfaces
    for which the host might forward packets that were there then.
    """

    network: Network
    file: str
    sysctls: dict[str, str] = field(default_factory=dict)
    forwarders: tuple[str, ...] = ()


def iso(when: float, precision: str = "seconds") -> str:
    """A time in the form of records: ISO 8601, in UTC."""
    return datetime.fromtimestamp(when, UTC).isoformat(timespec=precision)


LATEST = 253_000_000_000.0  # of the year 9987: what is later has no date


def stamp(when: float) -> str:
    """A time as it stands in a record of what a workspace did: ISO 8601 in UTC, with milliseconds."""
    return iso(min(max(when, 0.0), LATEST), "milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True)
class Age:
    """The age of an image, and the last answer about its updates. Times are ISO 8601 in UTC, "" for never. `security`
    are packages of which its distribution had security updates when it was `asked`, `kernel` those of the kernel that
    machines boot from it, which was `packed` then."""

    created: str
    asked: str = ""
    security: tuple[str, ...] = ()
    packed: str = ""
    kernel: tuple[str, ...] = ()

    @property
    def updates(self) -> set[str]:
        """The names of all packages that wait."""
        return {*self.security, *self.kernel}

    @property
    def words(self) -> str:
        return waiting_words(len(self.updates), self.asked)


def update_words(count: int) -> str:
    """A count of updates in words, such as "7 security updates"."""
    return f"{count or 'no'} security update{'' if count == 1 else 's'}"


def waiting_words(count: int, asked: str) -> str:
    """The same with the day of the answer, such as "7 security updates waiting (asked 2026-11-27)"."""
    if not asked:
        return "nobody has asked for security updates yet"
    return f"{update_words(count)} waiting (asked {asked[:10]})"


@dataclass(frozen=True)
class ImageFacts:
    """What the users of an image are told of it. `size` is in bytes; `created` is ISO 8601, in UTC; `digest` is the
    SHA-256 of the tree as a tar archive; `sources` are (name, date) of what it was made from. Digest and sources are
    empty where an older hutch built it."""

    image: str
    packages: tuple[str, ...]
    created: str
    size: int
    digest: str = ""
    sources: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class UserView:
    """The view that somebody has of a workspace. `ages` and `images` are those of its images, by id; `facts` those of
    its last start, if it is a machine, None where they are yet to be read; `network` is the host's as it was last set
    up, for other people than root."""

    record: Record
    ages: Mapping[str, Age] = field(default_factory=dict)
    facts: Mapping[str, str] | None = None
    network: Network | None = None
    images: Mapping[str, ImageFacts] = field(default_factory=dict)


@dataclass(frozen=True)
class Observation:
    """The observed state of a workspace. `leader` is (pid, start time) of its PID 1 as the host sees it; `cgroup` is
    the path of its present or last cgroup; `member` is the member of a cluster that has it."""

    state: State = "stopped"
    pid: int | None = None
    since: float | None = None
    ready_seconds: float | None = None
    leader: tuple[int, int] | None = None
    reason: str = ""
    cgroup: str = ""
    member: str | None = None


def state_of(record: Record | None, seen: Observation) -> State:
    """The state of a workspace: the record tells whether it exists, the observation how it does."""
    return "absent" if record is None or record.removed else seen.state


@dataclass(frozen=True)
class Freshness:
    """The age of the image that a workspace runs on, or would run on, for people. The number of `updates` is None
    without an answer, and for a kept root; for a machine with such a root it counts those of the kernel. `warnings` are
    pairs: the problem, and its remedy."""

    created: str | None = None
    asked: str | None = None
    updates: int | None = None
    warnings: tuple[tuple[str, str], ...] = ()


def freshness_of(record: Record, seen: Observation, ages: Mapping[str, Age]) -> Freshness:
    """The freshness of the image that a workspace runs on, or would run on."""
    runs = has_processes(state_of(record, seen))
    image = record.booted.image if record.booted and runs else record.image
    boots, age = has_effect("hypervisor", record.effective.type), ages.get(image)
    if age is None:
        return Freshness()
    packages = {*(() if record.kept_root else age.security), *(age.kernel if boots else ())}
    is_known = bool(age.asked) and (bool(age.packed) if boots else not record.kept_root)
    count = len(packages) if is_known else None
    warnings = []
    if count:
        way = "`hutch image refresh` makes it anew" if image == record.image else "a restart moves it to a newer one"
        warnings.append((f"image: {waiting_words(count, age.asked)}", way))
    if boots and runs and iso(seen.since or 0) < age.packed:
        warnings.append((f"kernel: a newer one is there since {age.packed[:10]}", "a restart boots it"))
    return Freshness(age.created, age.asked if count is not None else None, count, tuple(warnings))


def has_processes(state: State) -> bool:
    """Whether processes of the workspace run on this host, which can be asked, and have to be stopped."""
    return state in ("starting", "running", "stopping")


def holds_identity(state: State) -> bool:
    """Whether a started workspace holds its address, uid range and name: nobody else can have them, and it keeps them
    until it starts anew. A suspended workspace goes on with them, and so may an unreachable one."""
    return has_processes(state) or state in ("suspended", "unreachable")


def is_local(workspace: WorkspaceSpec) -> bool:
    """Whether this host runs it, so that it needs the host's router, homes, units and ranges of uids."""
    return workspace.engine == "local"


def present(records: Mapping[str, Record]) -> dict[str, Record]:
    """Records of workspaces that exist, not those of which only home and key are kept. In the order of their names:
    files that are written from them must not depend on who came last."""
    return {name: record for name, record in sorted(records.items()) if not record.removed}


def users_of(image: str, records: Mapping[str, Record]) -> tuple[str, ...]:
    """The names of existing workspaces that were booted from an image, or will be."""
    return tuple(name for name, record in present(records).items() if image in record.images)


def served(records: Mapping[str, Record]) -> dict[str, Record]:
    """Records of those that exist and are this host's to serve."""
    return {name: record for name, record in present(records).items() if is_local(record.wanted)}
