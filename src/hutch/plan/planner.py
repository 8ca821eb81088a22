"""Planning: compares each wanted workspace with its record and its state, and picks one action for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass, replace
from typing import Any

from hutch.backends import initial_memory, is_machine, weight_of
from hutch.frozen import dataclass
from hutch.plan.actions import Action, Change, Plan, Wanted
from hutch.spec import names
from hutch.spec.model import WORKSPACE_KEYS, Network, Weight, WorkspaceSpec, has_effect
from hutch.spec.record import Record, State, is_local

HEAVIER: dict[Weight, int] = {"live": 0, "restart": 1, "recreate": 2}
LEARNS = "learn = true: whatever `egress` would refuse of the Internet passes, and is recorded"
IMAGE_KEYS = ("image", "packages", "setup")


@dataclass(frozen=True)
class Standing:
    """The standing of a workspace: the settings wanted last, those that it was booted from, and its state now.

    `booted` has the keys that need no restart as they are in force. `ceiling` is the memory, in bytes, that a machine
    was started with: its balloon can take of it and give back, and never beyond. `reason` says how it came to that
    state; `broken` are the parts that it lost while it runs, and only a start gives back.
    """

    file: str
    wanted: Wanted
    booted: Wanted | None
    state: State
    ceiling: int | None = None
    reason: str = ""
    broken: tuple[Change, ...] = ()

    @property
    def is_running(self) -> bool:
        """Whether it runs. If it is starting and the command that waited was killed, it is started again."""
        return self.state == "running"


def plan(
    file: str,
    network: Network,
    applied_network: Network | None,
    wanted: Mapping[str, Wanted],
    standing: Mapping[str, Standing],
    *,
    remove: tuple[str, ...] = (),
    undeclared: Iterable[str] = (),
    start: bool = True,
    has_systemd: bool = False,
) -> Plan:
    """The actions that lead from `standing` to `wanted`; `remove` names workspaces that are to go, and
    `undeclared` such as would go with --prune. Only a host that `has_systemd` can start any of its own when it
    boots."""
    moved = tuple(network_changes(applied_network, network))
    actions = [
        plan_one(name, target, standing.get(name), moved, file=file, start=start, has_systemd=has_systemd)
        for name, target in wanted.items()
    ]
    for name in remove:
        reason = Change("workspace", "declared", None, "recreate")
        notes = ("its home is kept", *(deleted_root(standing[name]) if name in standing else ()))
        actions.append(Action(name, "remove", (reason,), notes))
    learning = [f"{name}: {LEARNS}" for name, target in wanted.items() if target.workspace.learn]
    gone = "is no longer declared here: `hutch up --prune` removes it, its home is kept"
    return Plan(file, network, tuple(actions), start, (*learning, *(f"{name} {gone}" for name in undeclared)))


def deleted_root(now: Standing) -> tuple[str, ...]:
    """The note that all that a workspace keeps outside its home goes with its root."""
    root = (now.booted or now.wanted).workspace
    return ("deletes everything outside its home",) if root.persist == "all" else ()


def plan_one(
    name: str,
    target: Wanted,
    now: Standing | None,
    moved: tuple[Change, ...] = (),
    *,
    file: str | None = None,
    start: bool = True,
    has_systemd: bool = False,
) -> Action:
    """The one action for a workspace. `moved` are changes of this host's network; `file` declares it, None for its last
    one."""
    notes = tuple(without_effect(name, target.workspace))
    if now is not None and is_elsewhere(now.wanted, target):
        return _plan_move(name, target, now, notes, file=file, start=start)
    if not is_local(target.workspace):
        moved = ()
    elif target.workspace.autostart and not has_systemd:
        notes += ("autostart is recorded; without systemd, nothing starts it when this host boots",)
    if target.workspace.auto_refresh != "never" and not has_systemd:
        notes += ("auto_refresh is recorded; without systemd, nothing makes its image anew by itself",)
    if now is None or now.state == "absent":
        if now is not None and file not in (None, now.file):
            notes += (f"gets the home, key and address that are kept of the one which {now.file} declared",)
        return Action(name, "create", (Change("workspace", None, "declared", "recreate"),), notes, target)
    owned = () if file in (None, now.file) else (Change("file", now.file, file, "live"),)
    since_booted = (*owned, *differences(now.booted or now.wanted, target, now.ceiling), *moved, *now.broken)
    since_record = (*owned, *differences(now.wanted, target, now.ceiling))
    if not now.is_running:
        unrecorded = (*since_record, *moved)
        return _plan_stopped(name, target, now, since_booted, unrecorded, notes, start=start)
    notes += kept_disk(since_booted, target)
    heaviest = max((change.weight for change in since_booted), key=HEAVIER.__getitem__, default=None)
    if heaviest is None:  # a recorded change that was never put in force is taken back, at no cost
        taken_back = tuple(replace(change, weight="live") for change in since_record)
        return Action(name, "live" if taken_back else "no change", taken_back, notes, target)
    why = "--no-start" if not start else "" if target.workspace.restart_if_changed else "restart_if_changed is false"
    if heaviest != "live" and why and not moved:  # nobody stays on a network that is gone
        keys = ", ".join(change.key for change in since_booted if change.weight != "live")
        notes += (f"{why}: it takes effect at the next restart ({keys})",)
        is_live = bool(since_record) or any(change.weight == "live" for change in since_booted)
        return Action(name, "live" if is_live else "no change", since_booted, notes, target)
    if heaviest == "recreate":
        notes += deleted_root(now)
    return Action(name, heaviest, since_booted, notes, target)


def is_elsewhere(now: Wanted, target: Wanted) -> bool:
    """Whether a workspace is to be at another place than it is."""
    return (now.place and now.place.identity) != (target.place and target.place.identity)


def _plan_move(
    name: str, target: Wanted, now: Standing, notes: tuple[str, ...], *, file: str | None, start: bool
) -> Action:
    """The action for a workspace that is to be run by another host. Its home goes along, and its root does not."""
    owned = () if file in (None, now.file) else (Change("file", now.file, file, "live"),)
    reasons = (*owned, *differences(now.wanted, target))
    runs = now.is_running and not target.workspace.restart_if_changed
    if why := "--no-start" if not start else "restart_if_changed is false" if runs else "":
        way = f"`hutch stop {name}`, then `hutch up {name}` moves it" if start else "the next `hutch up` moves it"
        return Action(name, "no change", reasons, (*notes, f"{why}: it stays where it is; {way}"), target)
    there = "this host" if target.place is None else str(target.place)
    kept = "the old one is kept until the new one is ready"
    notes += (f"while it is stopped, its home is copied to {there}; {kept}", *deleted_root(now))
    return Action(name, "move", reasons, notes, target)


def _plan_stopped(
    name: str,
    target: Wanted,
    now: Standing,
    since_booted: tuple[Change, ...],
    unrecorded: tuple[Change, ...],
    notes: tuple[str, ...],
    *,
    start: bool,
) -> Action:
    """The action for a stopped workspace. Changes that `restart_if_changed = false` put off while it ran are recorded
    by now, and still weigh at the next start."""
    recreate = any(change.weight == "recreate" for change in since_booted)
    if recreate:
        notes += deleted_root(now)
    if start:
        reasons = (*since_booted, Change("state", now.state, "running", "restart"))
        notes += (f"it is {now.state}: {now.reason.partition(';')[0]}",) if now.reason else ()
        return Action(name, "recreate" if recreate else "start", reasons, notes, target)
    if recreate:
        return Action(name, "recreate", since_booted, notes, target)
    if later := [change.key for change in unrecorded if change.weight != "live"]:
        notes += (f"--no-start: it takes effect at the next start ({', '.join(later)})",)
    return Action(name, "live" if unrecorded else "no change", unrecorded, notes, target)


def kept_disk(changes: tuple[Change, ...], target: Wanted) -> tuple[str, ...]:
    """The note that a machine's root which is kept on a disk does not shrink."""
    shrinks = any(change.key == "disk" and (change.new or 0) < (change.old or 0) for change in changes)
    is_kept = is_machine(target.workspace) and target.workspace.persist == "all"
    return ("disk: a root that is kept grows, and does not shrink",) if shrinks and is_kept else ()


def differences(old: Wanted, new: Wanted, ceiling: int | None = None) -> tuple[Change, ...]:
    """The keys that differ, each with what it takes to apply it; `ceiling` as in Standing."""
    changes = []
    for key in WORKSPACE_KEYS:
        before, after = getattr(old.workspace, key), getattr(new.workspace, key)
        if before != after:
            changes.append(Change(key, plain(before), plain(after), effective_weight(key, new.workspace, ceiling)))
    if old.image != new.image and not any(change.key in IMAGE_KEYS for change in changes):
        changes.append(Change("image", old.image, new.image, effective_weight("image", new.workspace)))
    return tuple(changes)


def effective_weight(key: str, workspace: WorkspaceSpec, ceiling: int | None = None) -> Weight:
    """A key's weight here: a kept root cannot move onto another image, and a machine's balloon knows its ceiling."""
    if key in IMAGE_KEYS and workspace.persist == "all":
        return "recreate"
    if key == "memory" and ceiling is not None and (memory := initial_memory(workspace)) is not None:
        return "live" if memory <= ceiling else "restart"
    return weight_of(key, workspace)


def with_live_changes(booted: Wanted, wanted: Wanted, ceiling: int | None = None) -> Wanted:
    """The settings that a workspace was booted from, with all changes in force that need no restart."""
    live = {
        key: getattr(wanted.workspace, key)
        for key in WORKSPACE_KEYS
        if effective_weight(key, wanted.workspace, ceiling) == "live"
    }
    return replace(booted, workspace=replace(booted.workspace, **live))


def pending_of(record: Record) -> str:
    """The weight of a workspace's pending changes, by its record: "none", "live", "restart" or "recreate"."""
    booted = record.booted
    if booted is None or (booted.workspace == record.wanted and booted.image == record.image):
        return "none"
    now, then = Wanted(booted.workspace, booted.image), Wanted(record.wanted, record.image)
    weights = [change.weight for change in differences(now, then, booted.memory)]
    return max(weights, key=HEAVIER.__getitem__, default="none")


def network_changes(old: Network | None, new: Network) -> list[Change]:
    """Changed keys of [network]: every running workspace must be restarted on the new one."""
    if old is None:
        return []
    return [
        Change(f"network.{key}", getattr(old, key), getattr(new, key), "restart")
        for key in ("bridge", "subnet", "uplink")
        if getattr(old, key) != getattr(new, key)
    ]


def without_effect(name: str, workspace: WorkspaceSpec) -> list[str]:
    """Notes on keys that do nothing: they are for the other type only, or for a device that there is not. A context id
    is always there: derived, unless given."""
    notes = []
    for key, field in WorkspaceSpec.__dataclass_fields__.items():
        value = getattr(workspace, key)
        unsaid = (field.default, names.cid(name)) if key == "cid" else (field.default,)
        if not has_effect(key, workspace.type) and value not in unsaid:
            notes.append(f"{key} has no effect on a {workspace.type}")
        elif key == "cid" and value not in unsaid and not workspace.vsock:
            notes.append("cid has no effect without vsock = true")
    return notes


def plain(value: Any) -> Any:
    """A value as JSON shows it."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    return value
