"""start, stop and restart as plans: what is to be done, why, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hutch.errors import HutchError
from hutch.plan.actions import Change, Kind, Plan, Verb
from hutch.plan.turning import plan_turn
from hutch.spec.record import NetworkRecord, Observation, Record, State
from tests.unit.facts import NETWORK, workspace

APPLIED = NetworkRecord(NETWORK, "/srv/hutch.toml")


def record(name: str = "web", **keys: Any) -> Record:
    return Record(name, "/srv/hutch.toml", workspace(**keys), "image-1", 0x7000_0000, "0" * 32).with_booted()


def turned(verb: Verb, *records: Record, state: State) -> Plan:
    seen = {found.name: Observation(state) for found in records}
    return plan_turn(verb, APPLIED, {found.name: found for found in records}, seen)


@pytest.mark.parametrize(
    ("verb", "state", "action"),
    [
        ("start", "stopped", "start"),
        ("start", "failed", "start"),
        ("start", "starting", "start"),  # nobody waits for it: whoever did was killed
        ("start", "running", "no change"),
        ("stop", "running", "stop"),
        ("stop", "stopped", "stop"),  # what is left of it goes
        ("restart", "running", "restart"),
        ("restart", "stopped", "restart"),
    ],
)
def test_one_action_each_and_why(verb: Verb, state: State, action: Kind) -> None:
    found = turned(verb, record(), record("db"), state=state)
    assert [(each.workspace, each.action) for each in found.actions] == [("web", action), ("db", action)]
    wanted = "stopped" if verb == "stop" else "running"
    reasons = () if action == "no change" else (Change("state", state, wanted),)
    assert {each.reasons for each in found.actions} == {reasons}
    assert (found.command, found.file, found.network) == (verb, "/srv/hutch.toml", NETWORK)


def test_what_starts_and_what_stops() -> None:
    verbs: tuple[Verb, ...] = ("start", "stop", "restart")
    found = [turned(verb, record(), state="failed").actions[0] for verb in verbs]
    assert [(each.starts, each.stops) for each in found] == [(True, False), (False, True), (True, True)]


def test_a_root_that_must_be_made_anew_is_no_business_of_a_start() -> None:
    pending = replace(record(), wanted=workspace(persist="all"))
    with pytest.raises(HutchError, match=r"web: its root must be made anew for changes since its start$"):
        turned("start", pending, state="stopped")
    with pytest.raises(HutchError, match="so it was not stopped"):
        turned("restart", pending, state="running")
    assert turned("start", pending, state="running").actions[0].action == "no change"
    assert turned("stop", pending, state="running").actions[0].action == "stop"


def test_a_stop_goes_without_a_network() -> None:
    assert plan_turn("stop", None, {"web": record()}, {"web": Observation("running")}).actions[0].action == "stop"
