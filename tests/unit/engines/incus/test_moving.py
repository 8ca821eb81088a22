"""A server's side of a move, with a cluster of the tests: what is there at each moment, and whatever is cut short."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hutch.backends.incus import HOMEWARD, ID, MEMBER, MOVING
from hutch.engines import CutShort
from hutch.engines.incus import IncusEngine, archives, homes, moving
from hutch.engines.incus.archives import INSIDE, render_take
from hutch.engines.incus.failures import Foreign
from hutch.engines.incus.moving import Mover
from hutch.errors import HutchError
from hutch.spec.names import Layout
from hutch.spec.record import Record
from tests.unit.engines.incus.cluster import Gone, World, record
from tests.unit.engines.incus.test_engine import booted, engine, up, world
from tests.unit.facts import workspace

__all__ = ["engine", "world"]  # fixtures

TRANSFER, HOME = "Move-web", "home-web"
CONTENT = b"an archive"
END = ".hutch-end-0"


@pytest.fixture
def carried(world: World, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What transfers carried: the direction, their devices, and who else was there."""
    done: list[tuple[Any, ...]] = []

    def carry(client: Any, words: tuple[str, ...], take: Any, pieces: Iterable[bytes], seconds: float) -> Any:
        transfer = world.instances[TRANSFER]
        assert transfer["status"] == "Running"
        assert words[1] == f"lab:{TRANSFER}"
        assert not any(each["status"] == "Running" for name, each in world.instances.items() if name != TRANSFER)
        way = "take" if "--extract" in words[-1] else "send"
        if way == "send":
            take(CONTENT)
        told = b"".join(filter(None, pieces))
        done.append((way, transfer["devices"]["home"], told, transfer["location"]))
        return world.exits.get("tar", 0), b"tar: no"

    monkeypatch.setattr(archives, "carry", carry)
    monkeypatch.setattr(moving, "ensure_project", lambda client, owner, project: world.word)
    monkeypatch.setattr(moving, "ensure_image", lambda client, layout, image: f"fingerprint of {image}")
    monkeypatch.setattr(moving, "choose_pool", lambda client: "default")
    monkeypatch.setattr(IncusEngine, "leave", lambda self, client: None)
    return done


@pytest.fixture
def mover(world: World, engine: IncusEngine, carried: list[tuple[Any, ...]]) -> Mover:
    return mover_for(world, engine.layout, record())


def mover_for(world: World, layout: Layout, found: Record) -> Mover:
    return Mover(layout, world.client(), found)


def volumes(world: World) -> dict[str, tuple[str, bool]]:
    """The volumes: name -> (member, whether it is marked)."""
    return {name: (member, MOVING in each["config"]) for (_, member, name), each in world.volumes.items()}


def test_a_home_comes(world: World, engine: IncusEngine, mover: Mover, carried: list[tuple[Any, ...]]) -> None:
    mover.receive(mover.reserve(10, "m2"), [CONTENT], 10, END)
    home = {"type": "disk", "pool": "default", "source": HOME, "path": INSIDE}
    assert carried == [("take", home, CONTENT, "m2")]
    assert world.instances == {}
    assert volumes(world) == {HOME: ("m2", True)}
    assert world.volumes["default", "m2", HOME]["config"][ID] == mover.record.machine_id
    up(engine, mover.record)
    assert (world.instances["web"]["location"], volumes(world)) == ("m2", {HOME: ("m2", True)})
    mover.accept()
    mover.accept()
    assert volumes(world) == {HOME: ("m2", False)}


def test_a_transfer_has_nothing_of_the_workspace_but_its_home(world: World, mover: Mover) -> None:
    mover.receive(mover.reserve(10), [CONTENT], 10, END)
    made = next(body for (_, path), body in zip(world.steps, world.bodies, strict=True) if path == "/1.0/instances")
    assert set(made["devices"]) == {"root", "home"}
    assert made["config"].pop("volatile.base_image", None) is None
    assert {key for key in made["config"] if "idmap" not in key} == {"security.privileged", "boot.autostart", MOVING}
    assert made["config"]["security.idmap.isolated"] == "true"
    assert not any(what == "PUSH" for what, _ in world.steps)


def test_what_a_server_cannot_take(world: World, mover: Mover) -> None:
    with pytest.raises(HutchError, match="has no member 'm9'"):
        mover.reserve(10, "m9")
    world.members["m2"]["status"] = "Evacuated"
    with pytest.raises(HutchError, match="takes no workspace: it is Evacuated"):
        mover.reserve(10, "m2")
    world.room = 100
    with pytest.raises(HutchError, match="has 100 bytes, and the pool default of lab, member m1 has 100 left"):
        mover.reserve(100, "m1")
    assert world.instances == {}
    assert world.volumes == {}


def test_a_limit_smaller_than_the_home(world: World, mover: Mover, engine: IncusEngine) -> None:
    small = mover_for(world, engine.layout, record(disk=99))
    with pytest.raises(HutchError, match="its `disk` allows 99"):
        small.reserve(100)


def test_a_tar_that_fails_leaves_no_transfer(world: World, mover: Mover) -> None:
    world.exits["tar"] = 2
    with pytest.raises(HutchError, match="tar in the transfer container ended with the code 2") as caught:
        mover.receive(mover.reserve(10), [CONTENT], 10, END)
    assert caught.value.details == "tar: no"
    assert world.instances == {}
    mover.discard()
    assert world.volumes == {}


def test_a_home_goes(world: World, engine: IncusEngine, mover: Mover, carried: list[tuple[Any, ...]]) -> None:
    found = up(engine, record())["web"]
    mover = mover_for(world, engine.layout, found)
    world.instances["web"]["profiles"] = ["of an administrator, with a device"]
    mover.retire()
    mover.retire()
    instance = world.instances["web"]
    assert (instance["status"], set(instance["devices"]), instance["profiles"]) == ("Stopped", {"root"}, [])
    assert instance["config"]["boot.autostart"] == "false"
    heard: list[bytes] = []
    assert mover.send(heard.append, lambda: bool(heard))
    [(way, home, told, member)] = carried
    assert (way, home["readonly"], told, member) == ("send", "true", b"\n", instance["location"])
    assert heard == [CONTENT]
    mover.check_retired()
    assert world.files["web"] != {}  # what was there is still there
    with pytest.raises(HutchError, match=f"the volume {HOME} of lab is a home that no move has left half made"):
        mover.discard()
    with pytest.raises(HutchError, match="is a home that no move"):
        mover.receive(mover.reserve(10), [CONTENT], 10, END)
    assert set(world.volumes) == {("default", member, HOME)}
    mover.discard(is_accepted=True)
    mover.discard(is_accepted=True)
    assert (world.instances, world.volumes) == ({}, {})


def test_one_that_somebody_started_is_noticed(world: World, engine: IncusEngine, mover: Mover) -> None:
    mover = mover_for(world, engine.layout, up(engine, record())["web"])
    mover.retire()
    world.instances["web"]["status"] = "Running"
    with pytest.raises(HutchError, match="which is being moved, runs"):
        mover.check_retired()
    world.instances["web"]["status"] = "Stopped"
    world.instances["web"]["devices"]["home"] = {"type": "disk", "source": HOME, "path": "/home/dev"}
    with pytest.raises(HutchError, match="is not as it was left"):
        mover.check_retired()


def test_a_retired_one_is_armed_again(world: World, engine: IncusEngine, mover: Mover) -> None:
    found = up(engine, record())
    before = world.instances["web"]
    devices, config = dict(before["devices"]), dict(before["config"])
    mover = mover_for(world, engine.layout, found["web"])
    mover.retire()
    mover.rearm()
    mover.rearm()
    after = world.instances["web"]
    assert (after["devices"], after["status"]) == (devices, "Stopped")
    assert {key for key in config if config[key] != after["config"].get(key)} <= {"user.hutch.digest"}
    assert MOVING not in after["config"]
    assert engine.start(found, lambda *said: None) == {}
    assert engine.broken(found) == {}


def test_one_that_was_never_started_has_no_home_to_send(world: World, engine: IncusEngine, mover: Mover) -> None:
    assert not mover.send(lambda data: None, lambda: True)
    gone = mover_for(world, engine.layout, booted(record())["web"])
    with pytest.raises(HutchError, match="the home of web is not on lab any more"):
        gone.send(lambda data: None, lambda: True)


def test_snapshots_do_not_go_along(world: World, engine: IncusEngine, mover: Mover) -> None:
    mover.check_leaving()
    up(engine, record())
    mover.check_leaving()
    world.snapshots = ["/1.0/instances/web/snapshots/monday"]
    with pytest.raises(HutchError, match="web has 1 snapshots, which stay with the server"):
        mover.check_leaving()


def test_somebody_elses_transfer_is_left_alone(world: World, mover: Mover) -> None:
    client = world.client()
    body = {"name": TRANSFER, "config": {}, "devices": {}, "profiles": [], "source": {"fingerprint": "x"}}
    client.change("POST", "/1.0/instances", body)
    with pytest.raises(HutchError, match=f"the instance {TRANSFER} of lab is not this workspace"):
        mover.discard()
    assert set(world.instances) == {TRANSFER}


def test_between_members(world: World, engine: IncusEngine, mover: Mover) -> None:
    found = up(engine, record())
    mover = mover_for(world, engine.layout, found["web"])
    other = next(member for member in world.members if member != mover.member())
    mover.move_to(other)
    assert (mover.member(), volumes(world)) == (other, {HOME: (other, False)})
    assert world.instances["web"]["config"][MEMBER] == other
    assert engine.start(found, lambda *said: None) == {}
    assert (world.instances["web"]["config"][MEMBER], engine.broken(found)) == (other, {})
    with pytest.raises(HutchError, match="has no member 'm9'"):
        mover.move_to("m9")


def on_its_way(world: World, engine: IncusEngine, mover: Mover) -> tuple[Mover, str, str]:
    """A home that Incus is bringing to another member: (its mover, the member it leaves, the one it comes to)."""
    mover = mover_for(world, engine.layout, up(engine, record())["web"])
    mover.retire()
    [(pool, member, name)] = world.volumes
    other = next(each for each in world.members if each != member)
    config = world.volumes[pool, member, name]["config"]
    world.instances["web"]["config"][HOMEWARD] = json.dumps(config)
    world.volumes[pool, other, name] = {"name": HOME, "location": other, "config": {}, "description": ""}
    return mover, member, other


def test_a_home_on_its_way_is_where_it_was(world: World, engine: IncusEngine, mover: Mover) -> None:
    mover, member, other = on_its_way(world, engine, mover)
    found = homes.find_homes(mover.client, {"web": mover.record})["web"]
    assert (found.member, found.config[ID]) == (member, mover.record.machine_id)
    del world.volumes["default", member, HOME]
    found = homes.find_homes(mover.client, {"web": mover.record})["web"]
    assert (found.member, found.config[ID]) == (other, mover.record.machine_id)
    homes.reconcile_home(mover.client, mover.record)
    assert world.volumes["default", other, HOME]["config"][ID] == mover.record.machine_id
    del world.instances["web"]["config"][HOMEWARD]
    world.volumes["default", other, HOME]["config"] = {}
    with pytest.raises(Foreign, match="the volume home-web of lab is not the home of this workspace"):
        homes.find_homes(mover.client, {"web": mover.record})


def test_what_did_not_all_come_is_removed(world: World, engine: IncusEngine, mover: Mover) -> None:
    mover, member, _ = on_its_way(world, engine, mover)
    assert engine.start({"web": mover.record}, lambda *said: None) == {}
    assert volumes(world) == {HOME: (member, False)}
    assert world.instances["web"]["location"] == member
    assert HOMEWARD not in world.instances["web"]["config"]


def test_what_is_still_coming_is_waited_for(
    world: World, engine: IncusEngine, mover: Mover, monkeypatch: pytest.MonkeyPatch
) -> None:
    mover, member, other = on_its_way(world, engine, mover)
    world.running = [{"description": "Migrating storage volume"}, {"description": "Copying storage volume"}]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            world.running = []
            del world.volumes["default", member, HOME]

    monkeypatch.setattr(time, "sleep", sleep)
    assert engine.start({"web": mover.record}, lambda *said: None) == {}
    assert len(slept) == 3
    assert volumes(world) == {HOME: (other, False)}
    assert world.instances["web"]["location"] == other


def moved(world: World, engine: IncusEngine, home: Path) -> Record:
    """The record of a workspace that is to start on the server, and whose old home is in this directory."""
    here = replace(record(), wanted=workspace("web", home=str(home)), place=None)
    return record().while_moving("starting", here)


def test_a_home_that_is_lost_is_neither_accepted_nor_made_anew(
    world: World, engine: IncusEngine, mover: Mover, tmp_path: Path
) -> None:
    mover.reserve(10)
    with pytest.raises(HutchError, match="the home of web is not on lab, where it was copied to"):
        mover.accept()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "file").touch()
    found = booted(moved(world, engine, tmp_path / "home"))
    assert "no empty one was made" in engine.start(found, lambda *said: None)["web"]
    assert (world.instances, world.volumes) == ({}, {})
    (tmp_path / "home" / "file").unlink()
    assert engine.start(found, lambda *said: None) == {}
    assert all(is_marked for _, is_marked in volumes(world).values())
    mover.discard()
    assert (world.instances, world.volumes) == ({}, {})


def test_another_server_accepts_nothing(world: World, mover: Mover) -> None:
    mover.receive(mover.reserve(10), [CONTENT], 10, END)
    assert mover.has_home()
    world.word = "other"
    assert not mover.has_home()
    with pytest.raises(HutchError, match="was made on another server"):
        mover.accept()


def test_the_last_entry_must_have_come(world: World, mover: Mover, monkeypatch: pytest.MonkeyPatch) -> None:
    """tar takes an archive that ends between two entries for whole, so what it has made of the last one is removed."""
    seen: list[str] = []

    def carry(client: Any, words: tuple[str, ...], *rest: Any) -> tuple[int, bytes]:
        seen.append(words[-1])
        return 1, f"rm: cannot remove '{INSIDE}/{END}'".encode()

    monkeypatch.setattr(archives, "carry", carry)
    with pytest.raises(CutShort, match="cannot be copied"):
        mover.receive(mover.reserve(10), [CONTENT], 10, END)
    assert seen == [render_take(END)]
    steps = seen[0].split(" && ")
    assert steps[0].startswith("tar --extract")
    assert steps[2] == f"rm {INSIDE}/{END}"


# Cut short.


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("cut", range(12))
def test_a_move_between_members_is_cut_short(
    world: World, engine: IncusEngine, carried: list[tuple[Any, ...]], cut: int, is_done: bool
) -> None:
    """The next start brings both to one member; another move brings them where they are to be."""
    found = up(engine, record())
    mover = mover_for(world, engine.layout, found["web"])
    other = next(member for member in world.members if member != mover.member())
    world.cut, world.is_done = len(world.steps) + cut, is_done
    try:
        mover.move_to(other)
    except Gone:
        pass
    world.cut = None
    assert engine.start(found, lambda *said: None) == {}
    [(member, _)] = volumes(world).values()
    assert (world.instances["web"]["location"], world.instances["web"]["status"]) == (member, "Running")
    assert MOVING not in world.instances["web"]["config"]
    mover.move_to(other)
    assert (mover.member(), volumes(world)) == (other, {HOME: (other, False)})


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("cut", range(12))
def test_an_arrival_is_cut_short(
    world: World, mover: Mover, carried: list[tuple[Any, ...]], cut: int, is_done: bool
) -> None:
    """What is left is marked, and both going back and going on from there are whole."""
    token = mover.reserve(10, "m1")
    world.cut, world.is_done = len(world.steps) + cut, is_done
    try:
        mover.receive(token, [CONTENT], 10, END)
    except Gone:
        pass
    world.cut = None
    assert all(is_marked for _, is_marked in volumes(world).values())
    mover.receive(mover.reserve(10, "m2"), [CONTENT], 10, END)
    assert (world.instances, volumes(world)) == ({}, {HOME: ("m2", True)})
    mover.discard()
    assert (world.instances, world.volumes) == ({}, {})


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("cut", range(12))
def test_a_departure_is_cut_short(
    world: World, engine: IncusEngine, carried: list[tuple[Any, ...]], cut: int, is_done: bool
) -> None:
    """It can go back, and start; nothing of its home was touched."""
    found = up(engine, record())
    mover = mover_for(world, engine.layout, found["web"])
    homes = volumes(world)
    world.cut, world.is_done = len(world.steps) + cut, is_done
    try:
        mover.retire()
        mover.send(lambda data: None, lambda: True)
    except Gone:
        pass
    world.cut = None
    mover.rearm()
    assert volumes(world) == homes
    assert engine.start(found, lambda *said: None) == {}
    assert (set(world.instances), world.instances["web"]["status"]) == ({"web"}, "Running")


def test_without_an_instance_nothing_moves(world: World, engine: IncusEngine, carried: list[tuple[Any, ...]]) -> None:
    mover = mover_for(world, engine.layout, up(engine, record())["web"])
    other = next(member for member in world.members if member != mover.member())
    del world.instances["web"]
    world.steps.clear()
    with pytest.raises(HutchError, match="web is not at lab") as caught:
        mover.move_to(other)
    assert caught.value.resolution == "`hutch up` makes it"
    assert world.steps == []


def test_the_layout_forgets_the_server(engine: IncusEngine, mover: Mover, tmp_path: Path) -> None:
    mover.receive(mover.reserve(10), [CONTENT], 10, END)
    assert engine.layout.server("web").exists()
    mover.discard()
    assert not engine.layout.server("web").exists()
