"""Workspaces that another host runs, in a whole plan: their place, and what of this host they do not need."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hutch.errors import HutchError
from hutch.plan import decide as deciding
from hutch.plan.actions import Plan
from hutch.plan.decide import Ownership, decide, noted
from hutch.spec.model import Config, Network, WorkspaceSpec
from hutch.spec.record import Observation, Record
from tests.unit.facts import LAYOUT, NETWORK
from tests.unit.plan.test_properties import FILE, PLACE, Host

WEB, FAR = WorkspaceSpec(type="container"), WorkspaceSpec(type="container", engine="incus")


def planned(host: Host, **declared: WorkspaceSpec) -> Plan:
    config = Config(FILE, host.network, declared)
    return decide(LAYOUT, config, (), host.facts(), Ownership(), start=True, prune=False)


def brought_up(host: Host, **declared: WorkspaceSpec) -> dict[str, Record]:
    """The records that `hutch up` writes."""
    records = {}
    for action in planned(host, **declared).actions:
        assert action.wanted is not None
        new = Record(action.workspace, FILE, action.wanted.workspace, action.wanted.image, 0, "0" * 32)
        records[action.workspace] = noted(new, action, action.wanted, FILE, ())
    return records


def test_a_place_is_noted() -> None:
    found = brought_up(Host(), web=WEB, far=FAR)
    assert [(record.place, record.wanted.home is None) for record in found.values()] == [(None, False), (PLACE, True)]


def test_a_record_keeps_up_with_its_caller() -> None:
    """Whoever changes something has it changed by a client of their own."""
    before = brought_up(Host(), far=FAR)["far"]
    other = replace(PLACE, account=0, conf="/root/.config/incus")
    (action,) = planned(Host({"far": replace(before, place=other)}), far=replace(FAR, env=(("A", "b"),))).actions
    assert action.action == "start" and action.wanted is not None
    assert noted(before, action, action.wanted, FILE, ()).place == PLACE


def test_uid_ranges_are_for_workspaces_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deciding, "UID_RANGES", 1)
    gone = {"gone": replace(brought_up(Host(), gone=FAR)["gone"], removed=True)}
    assert planned(Host(gone), web=WEB, far=FAR).notes == ()
    assert "1 of them are more than this host has user ids for" in planned(Host(gone), web=WEB, lab=WEB).notes[0]


def test_the_network_of_this_host_is_its_own() -> None:
    """A plan for a server's workspaces alone leaves it as it is, whatever the file says."""
    other = replace(NETWORK, bridge="other0")
    web = brought_up(Host(), web=WEB)
    assert planned(Host(web, applied=other), far=FAR).network == other
    assert planned(Host(), far=FAR).network == NETWORK
    with pytest.raises(HutchError, match="would cut off web"):
        planned(Host(web, applied=other), far=FAR, lab=WEB)


def test_no_server_is_asked_for_this_hosts_workspaces() -> None:
    asked: list[str] = []

    def observe(name: str) -> Observation:
        asked.append(name)
        return Observation("running")

    far = {name: record.with_booted() for name, record in brought_up(Host(), far=FAR).items()}
    facts = replace(Host(far).facts(), observe=observe)

    def plan(*names: str, **declared: WorkspaceSpec) -> Plan:
        config = Config(FILE, NETWORK, declared)
        return decide(LAYOUT, config, names, facts, Ownership(), start=True, prune=False)

    assert plan(web=WEB).changes
    assert plan("web", web=WEB, far=FAR).changes
    assert asked == []
    assert plan(new=FAR).wanted["new"].workspace.ip == "10.83.0.3"
    assert asked == ["far"]


def test_overlapping_networks_of_two_files() -> None:
    far = brought_up(Host(), far=FAR)
    overlapping = Network(subnet="10.83.4.0/24", uplink="10.9.0.0/30")
    with pytest.raises(HutchError, match="would overlap") as caught:
        planned(Host(far, network=overlapping), web=WEB)
    assert caught.value.details == "far is in 10.83.0.0/16, which overlaps the subnet 10.83.4.0/24"
    with pytest.raises(HutchError, match="would overlap"):
        planned(Host(far, network=Network(uplink="10.83.4.0/30")), web=WEB)
    gone = {"far": replace(far["far"], removed=True)}
    assert planned(Host(gone, network=overlapping), web=WEB).network == overlapping
    assert planned(Host(far, network=overlapping), lab=FAR).changes  # this host has none of its own
