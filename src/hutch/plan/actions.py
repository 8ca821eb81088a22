"""The parts of a plan. `hutch plan` prints one; `hutch up` makes one again under the lock, executes that and prints it,
so whatever changed in between is in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, field
from typing import Any, Literal

from hutch.frozen import dataclass
from hutch.spec.model import Brought, Network, Weight, WorkspaceSpec
from hutch.spec.record import Place

Kind = Literal["no change", "create", "start", "live", "restart", "recreate", "move", "remove", "stop"]
Verb = Literal["start", "stop", "restart"]
Command = Literal["up"] | Verb
"""The command that a plan is for."""


@dataclass(frozen=True)
class Change:
    """One key whose value differs, and what applying it takes. `kits` are those that the difference comes from;
    `ceiling` is that of members, in words, where its file says nothing and the value is that."""

    key: str
    old: Any
    new: Any
    weight: Weight = "restart"
    kits: tuple[str, ...] = ()
    ceiling: str = ""

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key not in ("kits", "ceiling") or value}


@dataclass(frozen=True)
class Wanted:
    """A workspace with nothing left open, the id of its image, and its place if another host runs it. `brought` is the
    part of it that is its kits'."""

    workspace: WorkspaceSpec
    image: str
    place: Place | None = None
    brought: Brought = field(default_factory=dict)


@dataclass(frozen=True)
class Affected:
    """The effect of stopping a running workspace, or of deleting the root of a stopped one: `sessions` in words;
    `since`, in Unix time, it has been up; `unsaved` is the git work in words that goes with its root."""

    sessions: tuple[str, ...]
    since: float | None
    unsaved: tuple[str, ...] = ()


@dataclass(frozen=True)
class Action:
    """The action for one workspace, and its reasons. `notes` tell what a person should know beside it; `affected` is
    there when a running workspace is stopped for it, or git work is lost."""

    workspace: str
    action: Kind
    reasons: tuple[Change, ...] = ()
    notes: tuple[str, ...] = ()
    wanted: Wanted | None = None
    affected: Affected | None = None

    @property
    def starts(self) -> bool:
        return self.action in ("create", "start", "restart", "recreate", "move")

    @property
    def shows(self) -> bool:
        """Whether the workspace is to show other directories of the host's while it runs."""
        return any(change.key == "mounts" and change.weight == "live" for change in self.reasons)

    @property
    def stops(self) -> bool:
        return self.action in ("restart", "recreate", "move", "remove", "stop")

    def to_json(self) -> dict[str, Any]:
        return {
            "workspace": self.workspace,
            "action": self.action,
            "reasons": [change.to_json() for change in self.reasons],
            "notes": list(self.notes),
            "affected": None if self.affected is None else asdict(self.affected),
        }


@dataclass(frozen=True)
class Repair:
    """A part of the host that is not as the records say, and that `up` puts right without stopping anything: `what` it
    is, what was `found` there, and whose it is, if it is one workspace's."""

    what: str
    found: str
    workspace: str | None = None

    def __str__(self) -> str:
        return f"{self.what}: {self.found}"


@dataclass(frozen=True)
class Plan:
    """All actions of one command, in the order of the file; `network` is this host's, `start` whether they start.

    `inherited` are workspaces of the same file from before it was moved, which it declares no more. `notes` are about
    none of its workspaces. `repairs` are of what somebody else changed: what the actions themselves change is not among
    them.
    """

    file: str
    network: Network
    actions: tuple[Action, ...]
    start: bool = True
    notes: tuple[str, ...] = ()
    inherited: tuple[str, ...] = ()
    repairs: tuple[Repair, ...] = ()
    command: Command = "up"

    @property
    def changes(self) -> bool:
        return bool(self.repairs) or any(action.action != "no change" for action in self.actions)

    @property
    def disturbed(self) -> frozenset[str]:
        """The workspaces that are stopped although somebody is at work in them."""
        return frozenset(a.workspace for a in self.actions if a.affected is not None and a.affected.sessions)

    @property
    def unsaved(self) -> tuple[str, ...]:
        """The git work that goes with the roots of workspaces, in words."""
        affected = ((a.workspace, a.affected.unsaved) for a in self.actions if a.affected is not None)
        return tuple(f"{name}: {line}" for name, lines in affected for line in lines)

    @property
    def wanted(self) -> Mapping[str, Wanted]:
        return {a.workspace: a.wanted for a in self.actions if a.wanted is not None}

    def to_json(self) -> dict[str, Any]:
        return {
            "actions": [action.to_json() for action in self.actions],
            "repairs": [asdict(repair) for repair in self.repairs],
            "notes": list(self.notes),
        }
