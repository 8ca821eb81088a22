"""The engine as apply uses it, with a cluster of the tests."""

from __future__ import annotations

import threading
from base64 import b64decode
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hutch.backends.incus import LIMITS
from hutch.engines.incus import IncusEngine, images, network, owner, preparing, server, side_by_side
from hutch.engines.incus.addresses import Route
from hutch.engines.incus.client import Client
from hutch.engines.incus.failures import NoAnswer
from hutch.errors import HutchError
from hutch.plan.actions import Wanted
from hutch.spec.entries import Publish
from hutch.spec.names import Layout
from hutch.spec.record import Place, Record
from tests.unit.engines.incus.cluster import SILENT, ClusterClient, World, moved, record
from tests.unit.engines.incus.fake import PLACE, refused
from tests.unit.facts import KEY

STATE = "/1.0/instances/web/state"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A cluster; what has tests of its own is there, and is told of in `steps`."""
    made = World()

    def step(name: str, answer: Any) -> Any:
        def take(*arguments: Any) -> Any:
            made.steps.append((name, ""))
            return answer

        return take

    monkeypatch.setattr(preparing, "ensure_project", lambda client, owner, project: made.word)
    monkeypatch.setattr(preparing, "ensure_network", lambda client, server, place, owner: "net")
    monkeypatch.setattr(preparing, "ensure_image", lambda client, layout, image: f"fingerprint of {image}")
    monkeypatch.setattr(preparing, "choose_pool", lambda client: "default")
    monkeypatch.setattr(server, "choose_pool", lambda client: "default")
    monkeypatch.setattr(server, "remove_project", step("remove the project", True))
    monkeypatch.setattr(network, "remove_network", step("remove the network", True))
    monkeypatch.setattr(images, "prune_images", step("prune", ("old",)))
    return made


@pytest.fixture
def engine(world: World, tmp_path: Path) -> IncusEngine:
    layout = Layout(tmp_path / "state", tmp_path / "run")
    for name in ("web", "lab", "far"):
        layout.host_key(name).parent.mkdir(parents=True)
        layout.host_key(name).write_text("private\n")
    layout.key(0).parent.mkdir(parents=True)
    layout.key(0).with_name("id_ed25519.pub").write_text("ssh-ed25519 A\n")
    return IncusEngine(layout, world.client)


def booted(*records: Record) -> dict[str, Record]:
    return {each.name: each.with_booted() for each in records}


@pytest.fixture
def heard() -> list[tuple[str, str, str]]:
    return []


def up(engine: IncusEngine, *records: Record) -> dict[str, Record]:
    """Start workspaces as `up` does."""
    running = booted(*records)
    assert engine.start(running, lambda *said: None) == {}
    return running


def test_new_ones_spread_and_are_ready(engine: IncusEngine, world: World, heard: list[tuple[str, str, str]]) -> None:
    records = booted(record(), record("lab", 3), record("far", 4))
    assert engine.start(records, lambda *said: heard.append(said)) == {}
    assert sorted(heard) == [(name, "ready", "") for name in ("far", "lab", "web")]
    assert {name: found["location"] for name, found in world.instances.items()} == {
        "web": "m1",
        "lab": "m2",
        "far": "m1",
    }
    assert {seen.state for seen in engine.observe(records).values()} == {"running"}
    assert engine.broken(records) == {}


def test_a_start_remembers_where_the_other_members_are(engine: IncusEngine, world: World, tmp_path: Path) -> None:
    def connect(place: Place) -> Client:
        client = world.client(place)
        client.route = Route(tmp_path / "lab")
        return client

    engine.connect = connect
    for name, member in world.members.items():
        member["url"] = f"https://{name}:8443"
    up(engine, record())
    assert [path.name for path in (tmp_path / "lab").iterdir()] == ["1-m2"]


def test_a_start_asks_for_the_project_once(engine: IncusEngine, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is theirs, and whether it is as it is to be, are told from one answer."""
    records = up(engine, record())
    asked: list[str] = []
    get = ClusterClient.get

    def note(client: ClusterClient, path: str, **options: Any) -> Any:
        asked.append(path)
        return get(client, path, **options)

    monkeypatch.setattr(ClusterClient, "get", note)
    monkeypatch.setattr(preparing, "ensure_project", server.ensure_project)
    up(engine, *records.values())
    assert asked.count("/1.0/projects/hutch") == 1


def test_where_it_is_no_cluster(engine: IncusEngine, world: World) -> None:
    world.members.clear()
    up(engine, record())
    assert world.instances["web"]["location"] == "none"


def test_one_that_fails_is_told_and_the_others_run(
    engine: IncusEngine, world: World, heard: list[tuple[str, str, str]]
) -> None:
    world.failing["PUT", STATE] = refused(400, "no room")
    failures = engine.start(booted(record(), record("lab", 3)), lambda *said: heard.append(said))
    assert failures == {"web": "the remote lab refuses: no room"}
    assert sorted(heard) == [("lab", "ready", ""), ("web", "failed", failures["web"])]


def test_a_server_that_fails_fails_its_own_only(
    engine: IncusEngine, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = replace(PLACE, remote="other")

    def ensure_project(client: Any, owner: str, project: object) -> str:
        if client.place == other:
            raise HutchError("no project", resolution="make one")
        return world.word

    monkeypatch.setattr(preparing, "ensure_project", ensure_project)
    records = booted(record(), record("far", 4, place=other))
    assert engine.start(records, lambda *said: None) == {"far": "no project (make one)"}


def test_one_whose_member_is_away_is_made_nowhere_else(engine: IncusEngine, world: World) -> None:
    records = up(engine, record())
    engine.stop(records)
    del world.instances["web"]
    world.members["m1"]["status"] = "Offline"
    (why,) = engine.start(records, lambda *said: None).values()
    assert why.startswith("web is on m1, which does not answer")
    assert world.instances == {} and len(world.volumes) == 1


def test_one_whose_member_was_just_lost_holds_up_nobody_else(engine: IncusEngine, world: World) -> None:
    records = up(engine, record())
    world.instances["web"] |= SILENT  # the cluster still says that the member is online
    assert engine.observe(records)["web"].state == "unreachable"
    assert engine.broken(records) == {}
    assert engine.check(wanted(moved(record(), memory=1 << 30)), records) == ()
    failures = engine.start({**records, **booted(record("lab", 3))}, lambda *said: None)
    assert [*failures] == ["web"] and world.instances["lab"]["status"] == "Running"


def test_nowhere_to_go(engine: IncusEngine, world: World) -> None:
    for member in world.members.values():
        member["status"] = "Evacuated"
    (why,) = engine.start(booted(record()), lambda *said: None).values()
    assert why.startswith("no member of lab takes new workspaces (target = 'auto'): m1 is Evacuated")
    with pytest.raises(HutchError, match="no member of lab takes"):
        engine.check(wanted(record()), {})


def test_stops_are_told_together(engine: IncusEngine, world: World) -> None:
    records = up(engine, record(), record("lab", 3))
    world.failing["PUT", STATE] = refused(400, "busy")
    with pytest.raises(HutchError, match="web could not be stopped") as caught:
        engine.stop(records)
    assert "busy" in caught.value.details
    assert engine.observe(records)["lab"].state == "stopped"


def test_what_somebody_changed_is_found_where_it_runs_as_booted(engine: IncusEngine, world: World) -> None:
    records = up(engine, record())
    world.instances["web"]["config"]["security.privileged"] = "true"
    pending = {"web": moved(records["web"], memory=1 << 30)}  # and is not in force yet
    (change,) = engine.broken(pending)["web"]
    assert (change.key, change.old, change.new) == ("security.privileged", "true", "false")


# Checks.


def wanted(found: Record) -> dict[str, Wanted]:
    return {found.name: Wanted(found.wanted, found.image, found.place)}


def test_new_ones_are_told_of_what_does_not_hold(engine: IncusEngine) -> None:
    notes = engine.check(wanted(record()), {})
    assert len(notes) == len(LIMITS)
    known = {"web": record()}
    assert engine.check(wanted(record()), known) == ()
    assert engine.check(wanted(moved(record(), memory=1 << 30)), known) == ()


def test_an_instance_of_that_name_is_another_ones(engine: IncusEngine) -> None:
    records = up(engine, record())
    with pytest.raises(HutchError, match="is not this workspace"):
        engine.check(wanted(record()), {})
    assert engine.check(wanted(moved(record(), memory=1 << 30)), records) == ()
    assert engine.check(wanted(record()), {"web": replace(records["web"], removed=True)})


def test_a_server_that_does_not_answer_refuses_what_is_new(
    engine: IncusEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(client: Any) -> Any:
        raise NoAnswer("no answer from lab")

    monkeypatch.setattr(server, "look", look)
    with pytest.raises(NoAnswer):
        engine.check(wanted(record()), {})
    changed = wanted(moved(record(), memory=1 << 30))
    assert engine.check(changed, {"web": record()}) == ("no answer from lab",)


def test_a_volume_of_that_name_is_another_ones(engine: IncusEngine, world: World) -> None:
    up(engine, record())
    del world.instances["web"]
    before = world.state()
    with pytest.raises(HutchError, match="is not the home of this workspace"):
        engine.check(wanted(record()), {})
    assert world.state() == before


# What was made somewhere is looked for there alone.


@pytest.mark.parametrize("word", ["another", ""])
def test_another_server_of_that_name_is_not_believed(
    engine: IncusEngine, world: World, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    """The remote was given to another server, or the rights of its client were narrowed."""
    records = up(engine, record())
    world.instances.clear()
    world.volumes.clear()
    world.word = word
    seen = engine.observe(records)["web"]
    assert seen.state == "unreachable" and "made on another server" in str(seen.reason)
    assert engine.obstacles(records["web"])
    world.steps.clear()
    with pytest.raises(HutchError, match="made on another server"):
        engine.check(wanted(moved(records["web"], memory=1 << 30)), records)
    (why,) = engine.start(records, lambda *said: None).values()
    assert "made on another server" in why
    monkeypatch.setattr(server, "ensure_project", lambda client, owner, project: world.steps.append(("project", "")))
    engine.supply(wanted(records["web"]), lambda *said: None)
    assert world.steps == []


def test_one_that_was_deleted_by_hand_is_absent(engine: IncusEngine, world: World) -> None:
    records = up(engine, record())
    world.instances.clear()
    assert engine.observe(records)["web"].state == "absent"


def test_a_server_that_does_not_answer_is_not_forgotten(engine: IncusEngine, world: World) -> None:
    records = up(engine, record())
    world.instances["web"] |= SILENT
    before = world.state()
    for do in (lambda: engine.stop(records), lambda: engine.remove(records["web"], purge=True)):
        with pytest.raises(HutchError, match=r"does not answer|could not be stopped"):
            do()
    assert world.state() == before


def test_what_is_another_ones_by_now_stays_and_the_record_may_go(engine: IncusEngine, world: World) -> None:
    records = up(engine, record())
    world.instances["web"]["config"]["user.hutch.id"] = "another"
    for volume in world.volumes.values():
        volume["config"]["user.hutch.id"] = "another"
    before = world.state()
    engine.stop(records)
    assert engine.remove(records["web"], purge=True) == ()
    assert world.state() == before


# Live changes.

LIVE: dict[str, dict[str, Any]] = {
    "memory": {"memory": 1 << 30},
    "vcpus": {"vcpus": 3},
    "autostart": {"autostart": True},
    "disk": {"disk": 2 << 30},
    "publish": {"publish": (Publish("", 80, 8080, "tcp"),)},
}


@pytest.mark.parametrize("key", LIVE)
def test_live_changes_are_in_force_and_no_drift(engine: IncusEngine, world: World, key: str) -> None:
    before = up(engine, record())["web"]
    world.steps.clear()
    after = moved(before, **LIVE[key])
    for now, then in ((before, after), (after.with_booted(), replace(before, booted=after.with_booted().booted))):
        assert engine.change(then) == {}
        assert engine.broken({"web": then.with_booted()}) == {}, now
    assert all(method == "PUT" for method, _ in world.steps)


def test_what_is_told_inside(engine: IncusEngine, world: World) -> None:
    before = up(engine, record())["web"]
    world.steps.clear()
    world.bodies.clear()
    assert engine.change(moved(before, env=(("EDITOR", "vim"),))) == {}
    assert world.steps == [("EXEC", "web")]
    assert world.bodies[-1].startswith(b"f+~ /etc/doas.conf")
    world.exits["exec"] = 1
    failures = engine.change(moved(before, env=(("EDITOR", "vim"),), memory=1 << 30))
    assert [*failures] == ["env"] and "exit code 1" in failures["env"]


def test_who_it_is_shared_with_is_told_inside(engine: IncusEngine, world: World) -> None:
    """A key that is authorised there is one of the lines that its systemd-tmpfiles gets."""
    before = up(engine, record())["web"]
    public = engine.layout.key("1001").with_name("id_ed25519.pub")
    public.parent.mkdir(parents=True)
    public.write_text(f"{KEY} hutch key of bob\n")
    for share_with, is_told in ((("1001",), True), ((), False)):
        world.steps.clear()
        after = moved(before, share_with=share_with)
        assert engine.change(after) == {}
        assert world.steps == [("EXEC", "web")]
        line = next(
            line for line in world.bodies[-1].splitlines() if line.startswith(b"f+~ /etc/ssh/authorized_keys.d/")
        )
        keys = b64decode(line.split()[-1])
        assert (b"hutch key of bob" in keys) is is_told
        before = after.with_booted()


def test_a_port_that_is_taken_there_is_told_by_its_key(engine: IncusEngine, world: World) -> None:
    before = up(engine, record())["web"]
    world.failing["PUT", "/1.0/instances/web"] = refused(400, "address already in use")
    failures = engine.change(moved(before, publish=(Publish("", 80, 80, "tcp"),)))
    assert failures == {"publish": "the remote lab refuses: address already in use"}


def test_one_that_does_not_run_cannot_be_changed(engine: IncusEngine) -> None:
    records = up(engine, record())
    engine.stop(records)
    with pytest.raises(HutchError, match="does not run any more"):
        engine.change(moved(records["web"], memory=1 << 30))


# Removal.


def test_the_home_stays_unless_it_is_purged(engine: IncusEngine, world: World) -> None:
    records = up(engine, record())
    (note,) = engine.remove(records["web"], purge=False)
    assert note == "its home stays in lab: the volume home-web of the pool default of the member m1"
    assert world.instances == {} and len(world.volumes) == 1
    world.steps.clear()
    assert engine.remove(records["web"], purge=True) == ()
    assert world.volumes == {}
    assert [name for name, _ in world.steps] == ["DELETE", "prune", "remove the project", "remove the network"]
    assert engine.remove(records["web"], purge=True) == ()


def test_what_others_need_stays(engine: IncusEngine, world: World) -> None:
    records = up(engine, record(), record("lab", 3))
    world.steps.clear()
    engine.remove(records["web"], purge=True)
    assert [*world.instances] == ["lab"]
    assert not any("remove" in name or "prune" in name for name, _ in world.steps)


# The rest.


def test_log_console_and_prune(engine: IncusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine.log(record(), 2) == "two\nthree\n"
    assert engine.log(record(), 0) == ""
    assert engine.prune({"web": record(), "lab": record("lab", 3)}) == ("old",)


def test_it_is_explained_without_its_secrets(engine: IncusEngine) -> None:
    texts = engine.explain(record())
    assert '"security.idmap.isolated": "true"' in texts["instance web"]
    assert "hutch.ssh-host-key" in texts["files in /etc/hutch/credentials, root's"]
    assert "private" not in "".join(texts.values())


def test_the_owner_is_one_hutchs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = tmp_path / "machine-id"
    machine.write_text("0123456789abcdef\n")
    monkeypatch.setattr(owner, "MACHINE_ID", machine)
    first, second = (preparing.owner_of(Layout(Path(state), Path("/run"))) for state in ("/a", "/b"))
    assert first != second and len(first) == 32 and "0123456789abcdef" not in first
    machine.write_text("another\n")
    assert preparing.owner_of(Layout(Path("/a"), Path("/run"))) != first


def test_works_are_done_side_by_side_and_bugs_are_not_hidden() -> None:
    both = threading.Barrier(2)

    def fail() -> None:
        both.wait(5)
        raise HutchError("no")

    works: dict[str, Any] = {"a": lambda: both.wait(5), "b": fail}
    assert {name: str(error) for name, error in side_by_side(works)} == {"a": "None", "b": "no"}
    with pytest.raises(ZeroDivisionError):
        list(side_by_side({"a": lambda: 1 / 0}))
