"""What a workspace's record and what is seen of it mean together."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

from hutch.spec.record import (
    Observation,
    Record,
    State,
    has_processes,
    holds_identity,
    is_local,
    present,
    served,
    state_of,
)
from tests.unit.facts import workspace

WEB = Record("web", "/srv/hutch.toml", workspace(), "image-1", 0x7000_0000, "0" * 32)


def test_a_state_is_told_from_both() -> None:
    assert state_of(None, Observation("running")) == "absent"
    assert state_of(replace(WEB, removed=True), Observation()) == "absent"
    assert state_of(WEB, Observation()) == "stopped"
    assert state_of(WEB, Observation("failed")) == "failed"


def test_what_has_processes_holds_an_identity_and_not_the_other_way_round() -> None:
    states = get_args(State)
    assert {state for state in states if has_processes(state)} == {"starting", "running", "stopping"}
    assert {state for state in states if holds_identity(state) and not has_processes(state)} == {
        "suspended",
        "unreachable",
    }


def test_what_is_served_is_there_and_is_this_hosts() -> None:
    far = replace(WEB, name="far", wanted=replace(WEB.wanted, engine="incus"))
    gone = replace(WEB, name="gone", removed=True)
    records = {found.name: found for found in (WEB, far, gone)}
    assert list(present(records)) == ["far", "web"]
    assert list(served(records)) == ["web"]
    assert is_local(WEB.wanted) and not is_local(far.wanted)


def test_what_counts_is_what_it_was_started_with() -> None:
    assert WEB.effective == WEB.wanted
    changed = replace(WEB.with_booted(), wanted=workspace(user="me"))
    assert changed.effective == WEB.wanted
