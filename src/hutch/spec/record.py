"""The record and the observation of a workspace: values, and questions about them. `state` reads and writes records,
`runtime/observe` makes observations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Literal

from hutch.frozen import dataclass
from hutch.spec.model import MACHINE_MEMORY, Network, WorkspaceSpec

State = Literal["absent", "stopped", "starting", "running", "stopping", "suspended", "failed", "unreachable"]


@dataclass(frozen=True)
class Booted:
    """The settings that a workspace runs with; their difference to the wanted ones is pending. `memory` is the memory
    that a machine was started with, in bytes; its balloon may have taken some of it since."""

    workspace: WorkspaceSpec
    image: str
    memory: int | None = None


@dataclass(frozen=True)
class Record:
    """A workspace as hutch remembers it. `image` is the id of the wanted image in the cache.

    `file` declared it, and `origin` tells that file again when it has been moved (see apply/ownership). `removed` marks
    a workspace of which only home, key, address and uid range are kept. `ejected` is the directory that it is ejected
    to; it is on its way there until it is `removed` too, and then only address and uid range are kept of it.
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

    def with_booted(self) -> Record:
        memory = (self.wanted.memory or MACHINE_MEMORY) if self.wanted.type == "vm" else None
        return replace(self, booted=Booted(self.wanted, self.image, memory))

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


@dataclass(frozen=True)
class Observation:
    """The observed state of a workspace. `leader` is (pid, start time) of its PID 1 as the host sees it; `cgroup` is
    the path of its present or last cgroup."""

    state: State = "stopped"
    pid: int | None = None
    since: float | None = None
    ready_seconds: float | None = None
    leader: tuple[int, int] | None = None
    reason: str = ""
    cgroup: str = ""


def state_of(record: Record | None, seen: Observation) -> State:
    """The state of a workspace: the record tells whether it exists, the observation how it does."""
    return "absent" if record is None or record.removed else seen.state


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


def served(records: Mapping[str, Record]) -> dict[str, Record]:
    """Records of those that exist and are this host's to serve."""
    return {name: record for name, record in present(records).items() if is_local(record.wanted)}
