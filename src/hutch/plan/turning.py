"""The plans of `hutch start`, `stop` and `restart`: workspaces as they are recorded, turned on and off."""

from __future__ import annotations

from collections.abc import Mapping

from hutch.errors import HutchError
from hutch.plan.actions import Action, Change, Plan, Verb
from hutch.spec.model import Network
from hutch.spec.record import NetworkRecord, Observation, Record, State, state_of

SO_NOT = {"start": "", "stop": "", "restart": ", so it was not stopped"}
"""The end of an error, by verb, when a workspace cannot be started."""


def plan_turn(
    verb: Verb, network: NetworkRecord | None, records: Mapping[str, Record], seen: Mapping[str, Observation]
) -> Plan:
    """The actions for these workspaces, each with the change of its state as its reason. Raises HutchError for a
    workspace that could not be started as it is recorded."""
    actions = tuple(_turn(verb, name, state_of(record, seen[name])) for name, record in records.items())
    for action in actions:
        if action.starts:
            refuse_copying(records[action.workspace], SO_NOT[verb])
            refuse_recreate(records[action.workspace], SO_NOT[verb])
    file, on = (network.file, network.network) if network else ("", Network())  # stand-ins, with which nothing starts
    return Plan(file, on, actions, command=verb)


def _turn(verb: Verb, name: str, state: State) -> Action:
    if verb == "start" and state == "running":
        return Action(name, "no change")
    wanted: State = "stopped" if verb == "stop" else "running"
    return Action(name, verb, (Change("state", state, wanted),))


def refuse_copying(record: Record, so_not: str) -> None:
    """Refuse a workspace whose home has not all come to its new place. One that has starts there."""
    if record.moving is not None and record.moving.step == "copying":
        refuse_moving(record, so_not)


def refuse_moving(record: Record, so_not: str) -> None:
    """Refuse a workspace whose move was cut short: only `up` says where it goes on."""
    if record.moving is not None:
        raise HutchError(
            f"{record.name}: its move was cut short{so_not}",
            resolution=f"`hutch up {record.name}` goes on with it, or goes back",
        )


def refuse_recreate(record: Record, so_not: str) -> None:
    """Refuse a root that must be made anew: only `up` deletes it, and says so first."""
    if record == record.with_booted():
        return
    # Spares the start-up of `hutch start` where nothing is pending.
    from hutch.plan.planner import pending_of

    if pending_of(record) == "recreate":
        raise HutchError(
            f"{record.name}: its root must be made anew for changes since its start{so_not}",
            resolution=f"`hutch stop {record.name}`, then `hutch up {record.name}`",
        )


def no_network() -> HutchError:
    """The error for a missing network, which an `up` that was cut short may have left."""
    return HutchError("the network is not set up", resolution="`hutch up` does that")
