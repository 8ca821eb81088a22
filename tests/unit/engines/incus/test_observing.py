"""The states of workspaces on a server, and what somebody else has changed there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hutch.backends.incus import Ground, Home, Instance, render
from hutch.engines.incus.failures import NoWay
from hutch.engines.incus.observing import drift, look_up_patiently, observe_all, read_instance
from hutch.plan.actions import Change
from hutch.spec.record import Observation, Record
from tests.unit.engines.incus.cluster import NEVER, SILENT, World, record
from tests.unit.engines.incus.fake import refused

WEB = record().with_booted()
STRANGE = "\N{REPLACEMENT CHARACTER}"


def instance(of: Record, **keys: Any) -> dict[str, Any]:
    """The instance of a workspace, as a server tells of it."""
    ground = Ground("net", "10.83.0.0/16", "default", "default", of.file, of.image, (), "", of.machine_id)
    made = render(of.name, of.wanted, ground)
    told = {
        "name": of.name,
        "status": "Running",
        "location": "m1",
        "config": {**made.config, "volatile.uuid": "1", "image.os": "debian", "snapshots.schedule": "@daily"},
        "devices": {name: dict(device) for name, device in made.devices.items()},
        "profiles": [],
        "last_used_at": NEVER,
    }
    return {**told, **keys}


def world(*instances: dict[str, Any]) -> World:
    found = World()
    found.instances = {each["name"]: each for each in instances}
    return found


@pytest.mark.parametrize(
    ("keys", "seen"),
    [
        ({}, Observation("running", member="m1")),
        ({"location": "none"}, Observation("running")),
        ({"status": "Stopped"}, Observation("stopped", member="m1")),
        ({"status": "Frozen"}, Observation("suspended", member="m1")),
        (SILENT, Observation("unreachable", reason="its member, m1, does not answer", member="m1")),
        ({"status": "\x1b[2J"}, Observation("unreachable", reason=f"the server says {STRANGE}[2J", member="m1")),
        ({"config": {}}, Observation("absent")),
        ({"name": "other"}, Observation("absent")),
    ],
)
def test_states(keys: dict[str, Any], seen: Observation) -> None:
    assert observe_all(world(instance(WEB, **keys)).client(), {"web": WEB}) == {"web": seen}


def test_members_that_do_not_answer_hold_up_nobody_else() -> None:
    """The question for all is then not answered either."""
    there, lost, gone = WEB, record("lost", 3), record("gone", 4)
    found = world(instance(there), instance(lost, location="m2"))
    found.is_slow, found.silent = True, {"m2"}
    seen = observe_all(found.client(), {each.name: each for each in (there, lost, gone)})
    assert [each.state for each in seen.values()] == ["running", "unreachable", "absent"]
    assert seen["lost"].reason


def test_a_server_without_a_way_to_it_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    client = world().client()
    asked = []

    def get(path: str, **keys: Any) -> Any:
        asked.append(path)
        raise NoWay("the remote lab is unknown")

    monkeypatch.setattr(client, "get", get)
    assert observe_all(client, {"web": WEB}) == {"web": Observation("unreachable", reason="the remote lab is unknown")}
    assert len(asked) == 1


def test_a_project_that_is_not_there_has_no_instances(monkeypatch: pytest.MonkeyPatch) -> None:
    client = world().client()
    monkeypatch.setattr(client, "get", lambda path, **keys: (_ for _ in ()).throw(refused(404)))
    assert look_up_patiently(client, {"web": WEB}) == {"web": None}


def made(of: Record = WEB) -> Instance:
    ground = Ground("net", "10.83.0.0/16", "default", "default", "/moved.toml", of.image, (), "", of.machine_id)
    return render(of.name, of.wanted, ground)


def changed(change: Any) -> list[Change]:
    found = instance(WEB)
    change(found)
    return list(drift(read_instance(found), made()))


def test_what_nobody_has_changed() -> None:
    """What the server adds, and what is the administrator's own business, is no difference."""
    assert changed(lambda found: None) == []
    assert changed(lambda found: found["config"].update({"user.note": "x", "boot.host_shutdown_timeout": "3"})) == []


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda f: f["config"].update({"security.nesting": "true"}), Change("security.nesting", "true", "false")),
        (lambda f: f["config"].update({"security.privileged": "true"}), Change("security.privileged", "true", "false")),
        (lambda f: f["config"].update({"raw.lxc": "a\x1b"}), Change("raw.lxc", f"a{STRANGE}", None)),
        (lambda f: f["config"].update({"limits.memory": "1GiB"}), Change("limits.memory", "1GiB", None)),
        (lambda f: f["config"].pop("limits.processes"), Change("limits.processes", None, "16384")),
        (
            lambda f: f["devices"]["eth0"].update({"security.mac_filtering": "false"}),
            Change("device eth0 security.mac_filtering", "false", "true"),
        ),
        (
            lambda f: f["devices"]["eth0"].pop("security.port_isolation"),
            Change("device eth0 security.port_isolation", None, "true"),
        ),
        (
            lambda f: f["devices"].update({"etc": {"type": "disk", "source": "/etc", "path": "/x"}}),
            Change("device etc", "path=/x source=/etc type=disk", None),
        ),
        (
            lambda f: f["devices"].pop("home"),
            Change("device home", None, "path=/home/dev pool=default source=home-web type=disk"),
        ),
        (lambda f: f.update(profiles=["default"]), Change("profiles", "default", None)),
    ],
)
def test_what_somebody_else_has_changed_takes_a_restart(change: Any, difference: Change) -> None:
    assert changed(change) == [difference]
    assert difference.weight == "restart"


def test_it_is_known_whether_it_was_ever_started() -> None:
    for told, was in ((NEVER, False), ("0001-01-01T00:00:00Z", False), ("", False), ("2026-11-28T12:00:00Z", True)):
        assert read_instance(instance(WEB, last_used_at=told)).was_started == was


def test_answers_of_another_shape_are_no_instances() -> None:
    found = read_instance({"name": 3, "config": [], "devices": {"root": None}, "profiles": "x", "location": {}})
    assert (found.name, found.config, found.devices, found.profiles) == ("", {}, {"root": {}}, ())
    assert not found.is_of(replace(WEB, machine_id="0" * 32))


def test_hostile_names_are_neither_shown_nor_asked_for() -> None:
    """The server may say anything: of members, which become part of a question, and of keys, which a plan shows."""
    booted = instance(WEB)
    hostile = instance(WEB, location="m1&project=default")
    hostile["config"]["security.\x1b[2J"] = "x"
    found = read_instance(hostile)
    assert found.member == ""
    made = Instance(WEB.name, read_instance(booted).config, read_instance(booted).devices, {}, Home("", "", {}))
    assert [change.key for change in drift(found, made)] == [f"security.{STRANGE}[2J"]
