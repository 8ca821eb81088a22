"""Moves of workspaces between the members of one cluster: the server brings the home and the instance."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hutch.apply.moving import start_all_the_same, start_one
from hutch.apply.recovery import recover
from hutch.apply.unsaved import sessions_of
from hutch.apply.vanishing import refuse_unsaved, unsaved_in_root
from hutch.engines import mover_of, observe_all
from hutch.errors import HutchError
from hutch.host.services.lock import lock
from hutch.plan.actions import Action, Affected, Change, Plan
from hutch.plan.turning import refuse_moving
from hutch.spec.model import Network
from hutch.spec.record import has_processes
from hutch.state import journaled, read_records

if TYPE_CHECKING:
    from hutch.runtime.control import Listener
    from hutch.spec.names import Layout


def move_to_member(
    layout: Layout, name: str, member: str, confirm: Callable[[Plan], None], listen: Listener, *, force: bool = False
) -> Plan:
    """Bring a workspace of a cluster to another member, and start it there if it ran. `confirm` is asked where somebody
    is at work in it; without `force`, no git work is lost with its root. Returns what was done as a plan."""
    with lock(layout):
        recover(layout, listen)
        record = read_records(layout)[name]
        refuse_moving(record, ", so it was not moved")
        mover, now = mover_of(layout, record), observe_all(layout, {name: record})[name]
        runs, there = has_processes(now.state), mover.member()
        reason = (Change("member", there, member, "restart"),)
        if there == member:
            mover.prefer(member)
            return Plan(record.file, Network(), (Action(name, "no change", ()),))
        mover.check_member(member)
        affected = None
        if runs:
            unsaved = () if force else tuple(unsaved_in_root(layout, record))
            affected = Affected(tuple(sessions_of(layout, record)), now.since, unsaved)
        plan = Plan(record.file, Network(), (Action(name, "move", reason, affected=affected),))
        refuse_unsaved(plan)
        if plan.disturbed:
            confirm(plan)
        with journaled(layout, "restart", (name,)):
            try:
                mover.move_to(member)
            except HutchError:
                if runs and not has_processes(observe_all(layout, {name: record})[name].state):
                    start_all_the_same(layout, Network(), record, listen)
                raise
            if runs:
                start_one(layout, Network(), record, listen)
        listen(name, "moved", f"to the member {member}")
        return plan
