"""Facts in, actions out."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from hutch.plan.actions import Action, Change, Plan, Wanted
from hutch.plan.planner import (
    Standing,
    differences,
    effective_weight,
    network_changes,
    pending_of,
    plan,
    plan_one,
    without_effect,
)
from hutch.spec.entries import Publish
from hutch.spec.model import WORKSPACE_KEYS, Idle, Mount, Network, WorkspaceSpec
from hutch.spec.record import Booted, Record, State
from tests.unit.facts import NETWORK, workspace

FILE = "/srv/hutch.toml"
MOVED = replace(NETWORK, bridge="other0")
DECLARED = Change("workspace", None, "declared", "recreate")


def wanted(image: str = "image-1", **keys: Any) -> Wanted:
    return Wanted(workspace(**keys), image)


def standing(state: State = "running", *, recorded: Wanted | None = None, booted: Wanted | None = None) -> Standing:
    """Booted from what is recorded, unless something else is said."""
    recorded = recorded or wanted()
    return Standing(FILE, recorded, booted or recorded, state)


def pending(booted: Wanted | None, target: Wanted) -> str:
    was = Booted(booted.workspace, booted.image) if booted else None
    return pending_of(Record("web", FILE, target.workspace, target.image, 0, "", booted=was))


def moved(old: Network = NETWORK, new: Network = MOVED) -> tuple[Change, ...]:
    return tuple(network_changes(old, new))


def keys_of(action: Action) -> list[str]:
    return [change.key for change in action.reasons]


# (state, what is recorded, what it was booted from, what is wanted, action, keys that cause it)
RECORDED = wanted()
CASES: dict[str, tuple[State, Wanted, Wanted, Wanted, str, list[str]]] = {
    "nothing changed": ("running", RECORDED, RECORDED, wanted(), "no change", []),
    "a live key": ("running", RECORDED, RECORDED, wanted(autostart=True), "live", ["autostart"]),
    "a live key, not in force yet": (
        "running",
        wanted(autostart=True),
        RECORDED,
        wanted(autostart=True),
        "live",
        ["autostart"],
    ),
    "limits of a container": ("running", RECORDED, RECORDED, wanted(memory=2**30), "live", ["memory"]),
    "a live key, taken back": ("running", wanted(autostart=True), RECORDED, RECORDED, "live", ["autostart"]),
    "a key that needs a restart": ("running", RECORDED, RECORDED, wanted(user="me"), "restart", ["user"]),
    "recorded, not restarted": (
        "running",
        wanted(user="me"),
        RECORDED,
        wanted(user="me"),
        "restart",
        ["user"],
    ),
    "recorded, then taken back": ("running", wanted(user="me"), RECORDED, RECORDED, "live", ["user"]),
    "live and restart": (
        "running",
        RECORDED,
        RECORDED,
        wanted(user="me", autostart=True),
        "restart",
        ["user", "autostart"],
    ),
    "another boundary": ("running", RECORDED, RECORDED, wanted(type="vm"), "recreate", ["type"]),
    "another root": ("running", RECORDED, RECORDED, wanted(persist="all"), "recreate", ["persist"]),
    "another image": ("running", RECORDED, RECORDED, wanted("2", packages=("git",)), "restart", ["packages"]),
    "an image that was rebuilt": ("running", RECORDED, RECORDED, wanted("2"), "restart", ["image"]),
    "another image under a kept root": (
        "running",
        wanted(persist="all"),
        wanted(persist="all"),
        wanted("2", persist="all"),
        "recreate",
        ["image"],
    ),
    "a key without effect here": ("running", RECORDED, RECORDED, wanted(cid=7), "live", ["cid"]),
    "stopped": ("stopped", RECORDED, RECORDED, RECORDED, "start", ["state"]),
    "failed": ("failed", RECORDED, RECORDED, RECORDED, "start", ["state"]),
    "starting, and nobody waits": ("starting", RECORDED, RECORDED, RECORDED, "start", ["state"]),
    "stopping": ("stopping", RECORDED, RECORDED, RECORDED, "start", ["state"]),
    "stopped and changed": ("stopped", RECORDED, RECORDED, wanted(user="me"), "start", ["user", "state"]),
    "stopped, another root": ("stopped", RECORDED, RECORDED, wanted(persist="all"), "recreate", ["persist", "state"]),
    "stopped, a put off root": (
        "stopped",
        wanted("2", persist="all"),
        wanted(persist="all"),
        wanted("2", persist="all"),
        "recreate",
        ["image", "state"],
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_one_action(case: tuple[State, Wanted, Wanted, Wanted, str, list[str]]) -> None:
    state, recorded, booted, target, action, keys = case
    found = plan_one("web", target, standing(state, recorded=recorded, booted=booted))
    assert (found.action, keys_of(found)) == (action, keys)


STOPPED_CASES: dict[str, tuple[Wanted, str, list[str]]] = {
    "nothing changed": (wanted(), "no change", []),
    "a live key": (wanted(autostart=True), "live", ["autostart"]),
    "a key that would need a restart": (wanted(user="me"), "live", ["user"]),
    "another root": (wanted(persist="all"), "recreate", ["persist"]),
}


@pytest.mark.parametrize("case", STOPPED_CASES.values(), ids=STOPPED_CASES.keys())
def test_stopped_and_not_to_be_started(case: tuple[Wanted, str, list[str]]) -> None:
    target, action, keys = case
    found = plan_one("web", target, standing("stopped"), start=False)
    assert (found.action, keys_of(found)) == (action, keys)


@pytest.mark.parametrize("keys", [{"user": "me"}, {"shell": "/bin/zsh", "persist": "all"}])
def test_no_start_leaves_what_runs_alone(keys: dict[str, Any]) -> None:
    found = plan_one("web", wanted(**keys), standing(), start=False)
    assert (found.action, found.starts) == ("live", False)
    assert found.notes == (
        f"--no-start: it takes effect at the next restart ({', '.join(sorted(keys, reverse=True))})",
    )
    recorded = replace(standing(), wanted=wanted(**keys))
    assert plan_one("web", wanted(**keys), recorded, start=False).action == "no change"


def test_autostart_is_promised_where_there_is_systemd() -> None:
    assert plan_one("web", wanted(autostart=True), None).notes == (
        "autostart is recorded; without systemd, nothing starts it when this host boots",
    )
    assert plan_one("web", wanted(autostart=True), None, has_systemd=True).notes == ()


def test_images_are_made_anew_where_there_is_systemd() -> None:
    assert plan_one("web", wanted(auto_refresh="weekly"), None).notes == (
        "auto_refresh is recorded; without systemd, nothing makes its image anew by itself",
    )
    assert plan_one("web", wanted(auto_refresh="weekly"), None, has_systemd=True).notes == ()


def test_autostart_elsewhere_needs_no_systemd_here() -> None:
    assert plan_one("web", wanted(autostart=True, engine="incus", home=None), None).notes == ()


def test_a_new_workspace() -> None:
    assert plan_one("web", wanted(), None) == Action("web", "create", (DECLARED,), (), wanted())


def test_a_removed_workspace_comes_back() -> None:
    gone = replace(standing("absent"), booted=None)
    assert plan_one("web", wanted(), gone).action == "create"


def test_never_started_is_compared_with_what_was_wanted() -> None:
    created = Standing(FILE, wanted(), None, "stopped")
    assert keys_of(plan_one("web", wanted(user="me"), created)) == ["user", "state"]
    assert plan_one("web", wanted(user="me"), created, start=False).action == "live"


# Where `restart_if_changed` is false.


def test_a_restart_is_put_off() -> None:
    before, after = wanted(restart_if_changed=False), wanted(restart_if_changed=False, user="me")
    found = plan_one("web", after, standing(recorded=before))
    assert (found.action, keys_of(found)) == ("live", ["user"])
    assert found.notes == ("restart_if_changed is false: it takes effect at the next restart (user)",)
    again = plan_one("web", after, standing(recorded=after, booted=before))
    assert again.action == "no change"
    assert again.notes == found.notes


def test_a_recreation_is_put_off_too() -> None:
    before, after = wanted(restart_if_changed=False), wanted(restart_if_changed=False, persist="all")
    assert plan_one("web", after, standing(recorded=before)).action == "live"
    stopped = plan_one("web", after, standing("stopped", recorded=after, booted=before))
    assert (stopped.action, keys_of(stopped)) == ("recreate", ["persist", "state"])


def test_what_was_put_off_happens_once_it_may() -> None:
    before, after = wanted(restart_if_changed=False), wanted(user="me")
    now = standing(recorded=wanted(restart_if_changed=False, user="me"), booted=before)
    assert plan_one("web", after, now).action == "restart"


def test_forbidding_restarts_is_itself_live() -> None:
    assert plan_one("web", wanted(restart_if_changed=False), standing()).action == "live"


# The network is everybody's.


def test_a_network_change_restarts_what_runs() -> None:
    found = plan_one("web", wanted(), standing(), moved())
    assert (found.action, keys_of(found)) == ("restart", ["network.bridge"])


def test_a_network_change_cannot_be_put_off() -> None:
    kept = wanted(restart_if_changed=False)
    found = plan_one("web", kept, standing(recorded=kept), moved())
    assert (found.action, found.notes) == ("restart", ())


def test_a_network_change_is_a_reason_for_the_stopped_too() -> None:
    assert keys_of(plan_one("web", wanted(), standing("stopped"), moved())) == ["network.bridge", "state"]
    assert plan_one("web", wanted(), standing("stopped"), moved(), start=False).action == "live"


def test_a_network_change_is_nothing_to_another_hosts_workspace() -> None:
    far = wanted(engine="incus", home=None)
    assert plan_one("web", far, standing(recorded=far), moved()) == Action("web", "no change", (), (), far)
    assert keys_of(plan_one("web", far, standing("stopped", recorded=far), moved())) == ["state"]
    assert plan_one("web", far, standing("stopped", recorded=far), moved(), start=False).action == "no change"
    found = plan(FILE, MOVED, NETWORK, {"a": wanted(), "b": far}, {"a": standing(), "b": standing(recorded=far)})
    assert [action.action for action in found.actions] == ["restart", "no change"]


def test_network_changes() -> None:
    assert network_changes(None, NETWORK) == []
    assert network_changes(NETWORK, NETWORK) == []
    other = Network(bridge="b", subnet="10.0.0.0/24", uplink="10.1.0.0/30")
    assert [(c.key, c.old, c.new) for c in network_changes(NETWORK, other)] == [
        ("network.bridge", "hutch0", "b"),
        ("network.subnet", "192.168.83.0/24", "10.0.0.0/24"),
        ("network.uplink", "192.168.84.0/30", "10.1.0.0/30"),
    ]


# Reasons and notes.


def test_a_key_for_the_other_type_is_noted() -> None:
    assert without_effect("web", workspace()) == []
    assert without_effect("web", workspace(type="vm", gpu=True, nesting=True)) == [
        "gpu has no effect on a vm",
        "nesting has no effect on a vm",
    ]
    assert without_effect("web", workspace(hypervisor="qemu")) == ["hypervisor has no effect on a container"]
    assert without_effect("web", workspace(cid=7)) == ["cid has no effect on a container"]
    assert plan_one("web", wanted(cid=7), None).notes == ("cid has no effect on a container",)


def test_reasons_are_plain_data() -> None:
    target = wanted(
        mounts=(Mount("/srv", "/srv", readonly=True),),
        publish=(Publish("", 80, 80, "tcp"),),
        env=(("A", "b"),),
        egress=("a.example",),
        idle=Idle("30min", "stop"),
    )
    found = plan_one("web", target, standing()).to_json()
    assert json.loads(json.dumps(found)) == found
    assert {reason["key"]: reason["new"] for reason in found["reasons"]} == {
        "mounts": [{"source": "/srv", "target": "/srv", "mode": None, "readonly": True, "create": False}],
        "publish": [{"host_ip": "", "host_port": 80, "guest_port": 80, "protocol": "tcp"}],
        "env": [["A", "b"]],
        "egress": ["a.example"],
        "idle": {"after": "30min", "then": "stop"},
    }


def test_the_image_is_not_told_twice() -> None:
    assert [c.key for c in differences(wanted("1"), wanted("2", setup="true"))] == ["setup"]
    assert [c.key for c in differences(wanted("1"), wanted("2"))] == ["image"]


def test_pending() -> None:
    assert pending(None, wanted()) == "none"
    assert pending(wanted(), wanted()) == "none"
    assert pending(wanted(), wanted(autostart=True)) == "live"
    assert pending(wanted(), wanted(user="me", autostart=True)) == "restart"
    assert pending(wanted(), wanted(user="me", persist="all")) == "recreate"


def test_a_balloon_has_a_ceiling() -> None:
    """A machine's memory changes live up to what it was started with; nothing said is a gigabyte."""
    machine, ceiling = wanted(type="vm", memory=2**31), 2**31

    def weight(memory: int | None, ceiling: int | None = ceiling) -> list[str]:
        return [change.weight for change in differences(machine, wanted(type="vm", memory=memory), ceiling)]

    assert weight(2**30) == weight(None) == ["live"]
    assert weight(2**31) == []
    assert weight(2**31 + 2**20) == ["restart"]
    assert weight(2**30, None) == ["restart"]
    assert weight(None, 2**29) == ["restart"]


@pytest.mark.parametrize("key", ["vcpus", "disk", "mounts"])
def test_limits_of_a_container_are_hardware_of_a_machine(key: str) -> None:
    assert [effective_weight(key, workspace(type=kind)) for kind in ("container", "vm")] == ["live", "restart"]


# A whole plan.


def test_a_whole_plan() -> None:
    targets = {"b": wanted(), "a": wanted(user="me"), "new": wanted()}
    found = plan(FILE, NETWORK, NETWORK, targets, {"a": standing(), "b": standing()}, remove=("old",))
    assert [(action.workspace, action.action) for action in found.actions] == [
        ("b", "no change"),
        ("a", "restart"),
        ("new", "create"),
        ("old", "remove"),
    ]
    assert found.changes
    assert found.wanted == targets
    assert found.to_json()["actions"][3] == {
        "workspace": "old",
        "action": "remove",
        "reasons": [{"key": "workspace", "old": "declared", "new": None, "weight": "recreate"}],
        "notes": ["its home is kept"],
        "affected": None,
    }
    assert [action.starts for action in found.actions] == [False, True, True, False]


def test_what_the_file_no_longer_declares() -> None:
    found = plan(FILE, NETWORK, NETWORK, {"a": wanted()}, {"a": standing()}, undeclared=("two",))
    note = "two is no longer declared here: `hutch up --prune` removes it, its home is kept"
    assert found.to_json()["notes"] == [note]
    assert not found.changes


def test_a_kept_root_is_not_deleted_without_a_word() -> None:
    note = "deletes everything outside its home"
    kept = wanted(persist="all")
    for state in ("running", "stopped"):
        assert note in plan_one("web", wanted(), standing(state, recorded=kept)).notes
        assert note not in plan_one("web", kept, standing(state)).notes
        assert note not in plan_one("web", kept, standing(state, recorded=kept)).notes
    (action,) = plan(FILE, NETWORK, NETWORK, {}, {"old": standing(recorded=kept)}, remove=("old",)).actions
    assert action.notes == ("its home is kept", note)


def test_a_plan_without_changes() -> None:
    assert not plan(FILE, NETWORK, NETWORK, {"a": wanted()}, {"a": standing()}).changes
    assert not Plan(FILE, NETWORK, ()).changes


def test_what_is_resolved_is_whole() -> None:
    """That the facts of these tests are of the kind that planning gets."""
    left_open = {key for key in WORKSPACE_KEYS if getattr(workspace(), key) is None}
    assert left_open == {"vcpus", "memory", "disk", "idle"}
    assert isinstance(workspace(), WorkspaceSpec)


def test_a_kept_disk_does_not_shrink() -> None:
    note = "disk: a root that is kept grows, and does not shrink"
    for kind, persist, before, after, is_told in (
        ("vm", "all", 2 << 30, 1 << 30, True),
        ("vm", "all", 1 << 30, 2 << 30, False),
        ("vm", "home", 2 << 30, 1 << 30, False),
        ("container", "home", 2 << 30, 1 << 30, False),
    ):
        now = standing(recorded=wanted(type=kind, persist=persist, disk=before))
        assert (note in plan_one("web", wanted(type=kind, persist=persist, disk=after), now).notes) == is_told
