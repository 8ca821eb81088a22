"""What every backend keeps, the toy of the tests included: it is one file, and one line in the registry."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, cast

import pytest

from hutch import backends
from hutch.apply.explaining import explain_launch
from hutch.backends import Backend, backends_of, check, choose, launch_of, traits_named, traits_of, weight_of
from hutch.backends.launch import Surroundings, decode_launch, encode_launch
from hutch.backends.traits import Traits
from hutch.plan.actions import Wanted
from hutch.plan.planner import Standing, plan_one
from hutch.spec import kinds
from hutch.spec.model import WorkspaceSpec
from tests.support import toys
from tests.unit.facts import HARDWARE, LAYOUT, NETWORK, surroundings, workspace

DIFFERENT = ("name", "rank", "program", "sizes", "modules", "find", "lacks", "needs_kvm")
"""Traits that nobody asks for before it is known which backend it is."""
CHANGES = {"vcpus": 3, "memory": 3 << 30, "disk": 3 << 30, "egress": "none"}


@dataclass(frozen=True)
class Case:
    """A backend: what has it chosen, and what it refuses, by the key that it names. `lines` are the registry's, where
    they are not there already."""

    name: str
    declares: dict[str, Any]
    refuses: dict[str, Any]
    refused: str
    lines: tuple[tuple[str, str, str, str], ...] = field(default=())


CLOUD_HYPERVISOR = {"type": "vm", "hypervisor": "cloud-hypervisor"}
CASES = (
    Case("nspawn", {}, {"disk": 1 << 30, "persist": "all"}, "disk"),
    Case("qemu", {"type": "vm", "hypervisor": "qemu"}, {"memory": 64 << 20}, "memory"),
    Case("cloud-hypervisor", CLOUD_HYPERVISOR, {"image": "debian:bookworm"}, "hypervisor"),
    Case("toy", {}, {"nesting": True}, "nesting", (toys.CONTAINER,)),
    Case("toy-machine", {"type": "vm", "hypervisor": "toy-machine"}, {"memory": 64 << 20}, "memory", (toys.MACHINE,)),
)
ELSEWHERE = (Case("incus", {"engine": "incus", "home": None}, {"egress": "none"}, "egress"),)
"""Those by which a server runs a workspace: they render an Instance where the others make a Launch."""


@pytest.fixture(params=(*CASES, *ELSEWHERE), ids=lambda case: case.name)
def any_case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Case:
    return registered(request, monkeypatch)


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Case:
    return registered(request, monkeypatch)


def registered(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Case:
    assert isinstance(request.param, Case)
    monkeypatch.setattr(kinds, "BACKENDS", (*kinds.BACKENDS, *request.param.lines))
    return request.param


def declared(case: Case, **keys: Any) -> WorkspaceSpec:
    return workspace(**{**case.declares, **keys})


def host(case: Case) -> Surroundings:
    found = {**HARDWARE.hypervisors, "toy-machine": {"program": "/usr/bin/sh"}}
    hardware = replace(HARDWARE, hypervisors=found)
    return surroundings(hardware=hardware if traits_of(declared(case)).is_machine else None)


def test_each_of_the_registry_has_a_case() -> None:
    lines = (*kinds.BACKENDS, *toys.LINES)
    assert sorted(name for *_, name, _ in lines) == sorted(case.name for case in (*CASES, *ELSEWHERE))
    for *_, name, module in lines:
        assert cast(Backend, import_module(module)).TRAITS.name == name


def test_it_is_chosen(any_case: Case) -> None:
    chosen = choose(declared(any_case), host(any_case).hardware)
    assert chosen is not None and chosen.TRAITS.name == any_case.name
    assert traits_named(declared(any_case), any_case.name) == chosen.TRAITS


def test_those_of_one_type_agree_in_what_is_asked_before_one_is_chosen() -> None:
    def agreed(traits: Traits) -> dict[str, Any]:
        return {name: value for name, value in vars(traits).items() if name not in DIFFERENT}

    for kind in ("container", "vm"):
        first, *others = [agreed(backend.TRAITS) for backend in backends_of(workspace(type=kind))]
        assert all(other == first for other in others)


def test_where_it_refuses_the_next_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "BACKENDS", (*kinds.BACKENDS, toys.CONTAINER))
    assert traits_of(workspace()).name == "toy"
    assert traits_of(workspace(nesting=True)).name == "nspawn"
    assert traits_of(workspace(type="vm")).name == "cloud-hypervisor"
    assert traits_of(workspace(type="vm", image="debian:bookworm")).name == "qemu"
    assert traits_of(workspace(type="vm", vsock=True)).name == "qemu"
    assert traits_of(workspace(type="vm", engine="incus")) == backends.FOREIGN


def test_it_refuses_what_it_cannot_do_by_its_key(any_case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [*check("web", declared(any_case), NETWORK)] == []
    monkeypatch.setattr(kinds, "BACKENDS", any_case.lines or kinds.BACKENDS)  # nobody else to take it
    (problem,) = check("web", declared(any_case, **any_case.refuses), NETWORK)
    assert problem.key == f"workspaces.web.{any_case.refused}"
    assert problem.message and problem.hint


def test_it_is_planned(any_case: Case) -> None:
    wanted = Wanted(declared(any_case), "image-1")
    assert plan_one("web", wanted, None, has_systemd=True).action == "create"
    stopped = Standing("/srv/hutch.toml", wanted, wanted, "stopped")
    assert plan_one("web", wanted, stopped).action == "start"
    assert plan_one("web", wanted, replace(stopped, state="running")).action == "no change"


@pytest.mark.parametrize("key", CHANGES)
def test_what_it_cannot_change_live_takes_a_restart_by_name(any_case: Case, key: str) -> None:
    before, after = (Wanted(declared(any_case, **keys), "image-1") for keys in ({}, {key: CHANGES[key]}))
    action = plan_one("web", after, Standing("/srv/hutch.toml", before, before, "running"))
    is_live = key == "egress" or key in traits_of(after.workspace).live  # the host's own side is nobody's to refuse
    assert action.action == weight_of(key, after.workspace) == ("live" if is_live else "restart")
    assert [reason.key for reason in action.reasons] == [key]


def test_its_launch_is_plain_data_that_stays_within_its_places(case: Case) -> None:
    found = launch_of("web", declared(case), host(case))
    assert found == launch_of("web", declared(case), host(case))
    assert (found.workspace, found.backend) == ("web", case.name)
    assert found.runtime == str(LAYOUT.runtime("web"))
    assert found.cgroup == LAYOUT.cgroup("web")
    assert all(path.startswith(f"{found.runtime}/") for path in (*found.directories, *(f.path for f in found.files)))
    assert found.argv and all(step.argv and step.why for chain in found.prepare for step in chain)
    assert decode_launch(encode_launch(found)) == found


def test_it_joins_the_network_behind_its_filter_and_leaves_it(case: Case) -> None:
    found = launch_of("web", declared(case), host(case))
    (seen, *_), *_ = found.connect
    assert "bound" in seen.argv and "nft" in seen.argv
    assert any("delete" in step.argv and step.may_fail for step in found.cleanup)


def test_it_is_explained(case: Case) -> None:
    found = launch_of("web", declared(case), host(case))
    text = "\n".join(section.text for section in explain_launch(LAYOUT, found))
    assert shlex.join(found.argv) in text
    assert all(shlex.quote(step.why) in text for chain in (*found.prepare, *found.connect) for step in chain)
