"""A workspace in, an Instance of an Incus server out."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from hutch.backends import check
from hutch.backends.incus import DIGEST, ID, LIMITS, Ground, Instance, render
from hutch.guest.credentials import HOST_KEY
from hutch.spec.entries import Publish
from hutch.spec.model import Mount, WorkspaceSpec
from tests.unit.facts import KEY, NETWORK, check_golden_case, workspace

GROUND = Ground(
    network="hutch-6d1fa2",
    subnet="10.83.0.0/16",
    pool="default",
    home_pool="default",
    file="/srv/hutch.toml",
    image="debian-trixie-0123456789ab",
    keys=(f"{KEY} hutch key of root",),
    host_key="the private host key\n",
    machine_id="0123456789abcdef0123456789abcdef",
)


def declared(**keys: Any) -> WorkspaceSpec:
    return workspace(**{"engine": "incus", "home": None, "ip": "10.83.0.2", **keys})


INSTANCES = {
    "minimal": declared(),
    "limits": declared(vcpus=2, memory=1 << 30, disk=8 << 30),
    "published": declared(publish=(Publish("", 8080, 80, "tcp"), Publish("", 5353, 53, "udp"))),
    "everything": declared(
        user="me", owner=70000, nesting=True, autostart=True, persist="all", env=(("EDITOR", "vim"),)
    ),
}


def lines_of(instance: Instance) -> str:
    return json.dumps(asdict(instance), indent=1) + "\n"


@pytest.mark.parametrize("case", INSTANCES)
def test_instance(case: str) -> None:
    minimal, found = (lines_of(render("web", INSTANCES[name], GROUND)) for name in ("minimal", case))
    check_golden_case(f"incus/{case}", found, minimal)


def test_its_digest_tells_of_each_part() -> None:
    usual = render("web", declared(), GROUND)
    others = [
        render("web", declared(memory=1 << 30), GROUND),
        render("web", declared(env=(("A", "b"),)), GROUND),
        render("web", declared(publish=(Publish("", 80, 80, "tcp"),)), GROUND),
        render("web", declared(), replace(GROUND, host_key="another\n")),
    ]
    assert render("web", declared(), GROUND) == usual
    assert len({one.config[DIGEST] for one in (usual, *others)}) == 5


def test_secrets_are_files_only() -> None:
    found = render("web", declared(), GROUND)
    assert found.credentials[HOST_KEY] == GROUND.host_key
    assert GROUND.host_key.strip() not in json.dumps([found.config, found.devices], default=dict)


def test_instance_and_home_say_whose_they_are() -> None:
    found = render("web", declared(), GROUND)
    assert found.config[ID] == found.home.config[ID] == GROUND.machine_id


REFUSED = {
    "nothing": (declared(publish=(Publish("", 80, 80, "tcp"),), persist="all", disk=1 << 30), []),
    "a home": (declared(home="/srv/home"), ["home"]),
    "protect": (declared(protect=("Makefile",)), ["protect"]),
    "mounts": (declared(mounts=(Mount("/srv/a", "/a"), Mount("/srv/b", "/b"))), ["mounts"]),
    "lists": (declared(egress=("a.example",), learn=True), ["egress", "learn"]),
    "no network": (declared(egress="none"), ["egress"]),
    "the store": (declared(nix_store=True), ["nix_store"]),
    "an address": (declared(publish=(Publish("", 1, 1, "tcp"), Publish("127.0.0.1", 2, 2, "udp"))), ["publish[1]"]),
    "a timer": (declared(auto_refresh="weekly"), ["auto_refresh"]),
    "the graphics": (declared(gpu=True), ["gpu"]),
    "an unknown hypervisor, which has no effect": (declared(hypervisor="qemu", cid=7), []),
}


@pytest.mark.parametrize(("wanted", "keys"), REFUSED.values(), ids=REFUSED)
def test_check(wanted: WorkspaceSpec, keys: list[str]) -> None:
    problems = list(check("web", wanted, NETWORK))
    assert [problem.key for problem in problems] == [f"workspaces.web.{key}" for key in keys]
    assert all(problem.message and problem.hint for problem in problems)


def test_a_number_is_no_name_there() -> None:
    (problem,) = check("42", declared(), NETWORK)
    assert problem.key == "workspaces.42"


def test_the_hint_for_an_address_is_the_port_without_it() -> None:
    (problem,) = check("web", declared(publish=(Publish("127.0.0.1", 2, 3, "udp"),)), NETWORK)
    assert problem.hint == 'use "2:3/udp"'


def test_what_does_not_hold_there_is_said() -> None:
    assert len(set(LIMITS)) == len(LIMITS) and all(text and not text.endswith(".") for text in LIMITS)
