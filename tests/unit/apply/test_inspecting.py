"""What is said of a host that is not as it was left, and where it goes: into the plan, and into words for `status`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hutch.apply import inspecting
from hutch.apply.inspecting import (
    Findings,
    has_lost_tree,
    has_stray_vsock,
    inspect,
    unbuilt_images,
    warnings_of,
    with_findings,
    wrong_network,
)
from hutch.apply.serving import endpoints_of
from hutch.backends.launch import encode_launch
from hutch.errors import HutchError
from hutch.host.network import router
from hutch.host.network.ruleset import Shape, shape_of
from hutch.plan.actions import Action, Change, Kind, Plan, Repair, Wanted
from hutch.plan.planner import Standing, plan_one
from hutch.spec import member
from hutch.spec.member import Member
from hutch.spec.model import Publish, WorkspaceSpec
from hutch.spec.names import Layout
from hutch.spec.record import Booted, Record
from tests.support.statuses import write_status
from tests.unit.facts import NETWORK, launched, workspace

NOTHING = Findings()
WANTED = Wanted(workspace(), "image-1")
SEEN = Findings(
    repairs=(Repair("bridge", "hutch0 is gone"), Repair("port", "ve-lab is down", "lab")),
    broken={"web": (Change("port", "ve-web is gone", "ve-web"),)},
    lost={"web": "host key: it is gone"},
)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state", tmp_path / "run")


def record(name: str = "web", **keys: Any) -> Record:
    return replace(Record(name, "/f", workspace(name), "image-1", 0x7000_0000, "0" * 32), **keys)


def test_nothing_is_damaged_before_the_first_up(layout: Layout) -> None:
    assert inspect(layout, None, {"web": record()}) == NOTHING
    assert inspect(layout, NETWORK, {"web": record(removed=True)}) == NOTHING


@pytest.mark.parametrize(
    ("kind", "image", "repairs", "notes"),
    [
        ("no change", "image-1", ["image: gone"], ()),
        ("live", "image-1", ["image: gone"], ()),
        ("start", "image-1", [], ("gone: it is built first",)),
        ("restart", "image-0", [], ("gone: it is built first",)),
        ("no change", "image-0", [], ("gone: it is built first",)),  # it is for later
    ],
)
def test_an_image_is_a_repair_only_where_it_was(kind: Kind, image: str, repairs: list[str], notes: Any) -> None:
    plan = Plan("/f", NETWORK, (Action("web", kind, wanted=WANTED),))
    found = with_findings(plan, NOTHING, {"web": "gone"}, {"web": record(image=image)})
    assert [str(repair) for repair in found.repairs] == repairs
    assert found.actions[0].notes == notes
    assert found.changes == (bool(repairs) or kind != "no change")


@pytest.mark.parametrize(
    ("loaded", "repairs"),
    [("booted", []), ("wanted", []), ("nothing", ["host rules", "router rules"]), ("both", [])],
)
def test_what_the_next_up_changes_again_is_no_damage(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, loaded: str, repairs: list[str]
) -> None:
    """An `up` that publishes a port was cut short after it had noted that: rules are those of before, or of then."""
    for name in ("missing_services", "different_units"):
        monkeypatch.setattr(inspecting, name, lambda *arguments: [])
    monkeypatch.setattr(router, "observe_sysctls", lambda settings: {})
    write_status(layout, "web", "running")
    host = router.HostNetwork({}, ())
    before, after = workspace(), workspace(publish=(Publish("", 8080, 80, "tcp"),))
    serving = {"web": record(wanted=after, booted=Booted(before, "image-1"))}

    def shapes(declared: WorkspaceSpec) -> tuple[Shape, Shape]:
        endpoints = endpoints_of({"web": record(wanted=declared)}, NETWORK)
        rules = router.wanted_rules(layout, NETWORK, endpoints, host)
        return shape_of(rules.router), shape_of(rules.host)

    old, new = shapes(before), shapes(after)
    there = {"booted": old, "wanted": new, "nothing": ({}, {}), "both": (new[0], old[1])}[loaded]
    facts = router.RouterFacts(links={}, rules=there[0], host_rules=there[1])
    found = {repair.what for repair in wrong_network(layout, NETWORK, serving, host, facts)}
    assert sorted(found & {"router rules", "host rules"}) == repairs


def test_a_plan_tells_what_it_repairs() -> None:
    plan = with_findings(Plan("/f", NETWORK, (Action("web", "no change", wanted=WANTED),)), SEEN, {}, {})
    assert plan.changes
    assert plan.to_json()["repairs"] == [
        {"what": "bridge", "found": "hutch0 is gone", "workspace": None},
        {"what": "port", "found": "ve-lab is down", "workspace": "lab"},
    ]
    assert plan.notes == ("web: host key: it is gone",)
    json.dumps(plan.to_json())


def test_a_member_is_told_nothing_of_what_is_another_s(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {"lab": record("lab", wanted=workspace("lab", owner=1002)), "web": record(wanted=workspace(owner=1003))}
    monkeypatch.setattr(member, "acting", Member(1002, 1002, "carol", None))
    plan = with_findings(Plan("/f", NETWORK, (Action("lab", "no change", wanted=WANTED),)), SEEN, {}, theirs)
    assert ([repair.workspace for repair in plan.repairs], plan.notes) == ([None, "lab"], ())
    monkeypatch.setattr(member, "acting", Member(1003, 1003, "bob", None))
    plan = with_findings(Plan("/f", NETWORK, (Action("web", "no change", wanted=WANTED),)), SEEN, {}, theirs)
    assert ([repair.workspace for repair in plan.repairs], plan.notes) == ([None], ("web: host key: it is gone",))


def test_what_others_stop_is_told_and_no_change(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = Findings(obstacles=("ufw drops it",))
    plan = with_findings(Plan("/f", NETWORK, (Action("web", "no change", wanted=WANTED),)), seen, {}, {})
    assert (plan.changes, plan.notes) == (False, ("ufw drops it",))
    monkeypatch.setattr(inspecting, "inspect", lambda *arguments: seen)
    monkeypatch.setattr(inspecting, "unbuilt_images", lambda *arguments: {})
    assert warnings_of(layout, NETWORK, {"web": record()}) == {"web": ["ufw drops it"]}


def test_a_program_whose_port_a_workspace_has_is_told_of_and_no_change(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Findings(deaf={"web": ("sshd hears nothing",)})
    plan = with_findings(Plan("/f", NETWORK, (Action("web", "no change", wanted=WANTED),)), seen, {}, {})
    assert (plan.changes, plan.notes) == (False, ("web: sshd hears nothing",))
    monkeypatch.setattr(inspecting, "inspect", lambda *arguments: seen)
    monkeypatch.setattr(inspecting, "unbuilt_images", lambda *arguments: {})
    assert warnings_of(layout, NETWORK, {"web": record(), "lab": record("lab")}) == {
        "web": ["sshd hears nothing"],
        "lab": [],
    }


def test_what_is_wrong_in_words(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspecting, "inspect", lambda *arguments: SEEN)
    told = warnings_of(layout, NETWORK, {"web": record(), "lab": record("lab"), "old": record("old", removed=True)})
    image = "image: image-1 is not in the cache (`hutch up` repairs it)"
    bridge = "bridge: hutch0 is gone (`hutch up` repairs it)"
    assert told == {
        "web": [bridge, image, "port: ve-web is gone (a restart brings it back)", "host key: it is gone"],
        "lab": [bridge, "port: ve-lab is down (`hutch up` repairs it)", image],
    }


def test_limits_that_are_not_in_force_are_told_while_it_runs(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspecting, "inspect", lambda *arguments: NOTHING)
    monkeypatch.setattr(inspecting, "unbuilt_images", lambda *arguments: {})
    monkeypatch.setattr(inspecting, "unlimited_launch", lambda layout, launch: f"no limits: {launch}")
    for state, told in (("running", ["no limits: None"]), ("stopped", [])):
        write_status(layout, "web", state)
        assert warnings_of(layout, NETWORK, {"web": record()}) == {"web": told}


def test_a_host_that_cannot_be_looked_at(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Findings:
        raise HutchError("nft is not installed")

    monkeypatch.setattr(inspecting, "inspect", fail)
    told = warnings_of(layout, NETWORK, {"web": record()})
    assert told == {"web": ["the host cannot be looked at: nft is not installed"]}


def test_an_image_without_its_tree_is_none(layout: Layout) -> None:
    wanted = {"web": WANTED, "lab": Wanted(workspace(type="vm"), "image-1")}
    (layout.images / "image-1").mkdir(parents=True)
    content = {"format": 1, "recipe": {"image": "a", "packages": [], "setup": ""}, "created": "", "size": 0}
    (layout.images / "image-1" / "image.json").write_text(json.dumps(content))
    assert unbuilt_images(layout, wanted) == dict.fromkeys(wanted, "image-1 is not in the cache")
    (layout.images / "image-1" / "root").mkdir()
    assert unbuilt_images(layout, wanted) == {"lab": "boot data of image-1 is not in the cache"}
    (layout.images / "image-1" / "image.json").write_text("{")
    assert unbuilt_images(layout, wanted).keys() == {"web", "lab"}


def test_each_image_is_looked_at_once(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("hutch.apply.inspecting.whole_image", lambda layout, id: asked.append(id))
    wanted = {f"w{number}": Wanted(workspace(), f"image-{number % 2}") for number in range(6)}
    assert unbuilt_images(layout, wanted).keys() == wanted.keys()
    assert sorted(asked) == ["image-0", "image-1"]


@pytest.mark.parametrize(
    ("directory", "is_lost"),
    [("/images/i/root", False), ("/images/i/root//deleted", True), ("/images/with\\040blank//deleted", True)],
)
def test_a_tree_that_was_deleted_under_its_container(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, directory: str, is_lost: bool
) -> None:
    lower = layout.runtime("web") / "lower"
    text = f"1 0 8:1 /x//deleted {lower}er rw - ext4 /dev/a rw\n2 0 8:1 {directory} {lower} ro - ext4 /dev/a rw\n"
    monkeypatch.setattr("hutch.apply.inspecting.observe_mountinfo", lambda process: text if process == 7 else "")
    assert has_lost_tree(layout, "web", 7) is is_lost
    assert not has_lost_tree(layout, "web", 8)


@pytest.mark.parametrize(
    ("vsock", "device", "is_stray"), [(False, True, True), (True, True, False), (False, False, False)]
)
def test_a_vsock_device_of_before_an_upgrade(layout: Layout, vsock: bool, device: bool, is_stray: bool) -> None:
    machine = workspace(type="vm", vsock=vsock)
    argv = ("qemu", *(("-device", "vhost-vsock-pci,guest-cid=7,vhostfd=6") if device else ()))
    launch = replace(launched(), argv=argv)
    layout.launch("web").parent.mkdir(parents=True)
    layout.launch("web").write_bytes(encode_launch(launch))
    assert has_stray_vsock(layout, record(wanted=machine)) is is_stray


BROKEN = (Change("port", "ve-web is gone", "ve-web"),)


@pytest.mark.parametrize(
    ("keys", "start", "action", "note"),
    [
        ({}, True, "restart", ""),
        ({"restart_if_changed": False}, True, "no change", "restart_if_changed is false"),
        ({}, False, "no change", "--no-start"),
    ],
)
def test_what_only_a_restart_gives_back(keys: Any, start: bool, action: str, note: str) -> None:
    target = Wanted(workspace(**keys), "image-1")
    found = plan_one("web", target, Standing("/f", target, target, "running", broken=BROKEN), start=start)
    assert (found.action, found.reasons) == (action, BROKEN)
    assert [text.startswith(note) for text in found.notes] == ([True] if note else [])


def test_why_it_does_not_run_is_said() -> None:
    now = Standing("/f", WANTED, WANTED, "failed", reason="nspawn was killed by SIGKILL; the end of its log:\nx")
    found = plan_one("web", WANTED, now)
    assert found.action == "start"
    assert found.notes == ("it is failed: nspawn was killed by SIGKILL",)
