"""Starts and stops of one workspace, and what is left when one is cut short at any step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from hutch.backends.incus import CREDENTIALS, ID, IMAGE, WAS_READY, Ground, render
from hutch.engines.incus import turning
from hutch.engines.incus.client import Client
from hutch.engines.incus.failures import Foreign, NoAnswer, Refused
from hutch.engines.incus.homes import find_homes, note_in_home, remove_home
from hutch.engines.incus.turning import Start
from hutch.errors import HutchError
from hutch.guest.credentials import HOST_KEY
from hutch.spec.record import Record
from tests.unit.engines.incus.cluster import ClusterClient, Gone, World, moved, record
from tests.unit.engines.incus.fake import refused

WEB = record()
INSTANCE, STATE = "/1.0/instances/web", "/1.0/instances/web/state"
VOLUMES = "/1.0/storage-pools/default/volumes/custom"


def start(world: World, of: Record = WEB, *, image: str = "image-1", fingerprint: str = "f1") -> None:
    """Start a workspace as `up` does: what is there is looked up first."""
    client = world.client()
    home = find_homes(client, {of.name: of}).get(of.name)
    ground = Ground("net", "10.83.0.0/16", "default", "default", of.file, image, ("key",), "private\n", of.machine_id)
    wanted = render(of.name, of.wanted, ground)
    turning.start(client, Start(of, wanted, home, "m2", fingerprint, "10.83.0.2"))


def test_the_first_start() -> None:
    world = World()
    start(world)
    made = [("POST", VOLUMES), ("POST", "/1.0/instances"), ("PUSH", "web"), ("PUT", STATE), ("EXEC", "web")]
    assert world.steps == [*made, ("PUT", INSTANCE)]
    assert world.instances["web"]["config"][WAS_READY] == WEB.machine_id
    found = world.instances["web"]
    assert (found["status"], found["location"], found["profiles"], found["source"]["fingerprint"]) == (
        "Running",
        "m2",
        [],
        "f1",
    )
    assert world.volumes["default", "m2", "home-web"]["config"] == {ID: WEB.machine_id}
    assert world.files["web"][f"{CREDENTIALS}/{HOST_KEY}"] == b"private\n"


def test_no_secret_is_in_a_request_or_on_a_command_line() -> None:
    world = World()
    start(world)
    assert "private" not in repr([body for body in world.bodies if body is not None])


def test_files_that_come_into_a_root_that_is_no_more_are_pushed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server goes on serving it for a while; that a push fails for another reason is told at once."""
    world, pauses, failures = World(), list[float](), [Refused("no", code=0, text=turning.NO_FILE)]
    push = ClusterClient.push

    def refusing(client: ClusterClient, name: str, files: Mapping[str, bytes]) -> None:
        if failures:
            raise failures.pop()
        push(client, name, files)

    monkeypatch.setattr(ClusterClient, "push", refusing)
    monkeypatch.setattr("time.sleep", pauses.append)
    start(world)
    assert pauses == [turning.FORGET_SECONDS]
    assert world.files["web"][f"{CREDENTIALS}/{HOST_KEY}"] == b"private\n"
    failures.append(Refused("no", code=0, text="permission denied"))
    turning.stop(world.client(), WEB)
    with pytest.raises(Refused):
        start(world)
    assert len(pauses) == 1


def test_the_next_start_makes_the_root_anew() -> None:
    world = World()
    start(world)
    turning.stop(world.client(), WEB)
    world.steps.clear()
    start(world, image="image-2", fingerprint="f2")
    again = [("POST", f"{INSTANCE}/rebuild"), ("PUT", INSTANCE), ("PUSH", "web"), ("PUT", STATE), ("EXEC", "web")]
    assert world.steps == again
    assert world.instances["web"]["config"][IMAGE] == "image-2"
    assert world.instances["web"]["config"]["volatile.base_image"] == "f2"
    assert len(world.volumes) == 1


def test_what_is_as_it_is_to_be_is_not_changed() -> None:
    world = World()
    start(world)
    turning.stop(world.client(), WEB)
    world.steps.clear()
    start(world)
    assert ("PUT", INSTANCE) not in world.steps


def test_a_kept_root_is_kept() -> None:
    kept, world = moved(WEB, persist="all"), World()
    start(world, kept)
    turning.stop(world.client(), kept)
    world.steps.clear()
    start(world, kept)
    assert world.steps[:4] == [*3 * [("UNLINK", "web")], ("PUSH", "web")]  # the guest may have made them anything


def test_a_kept_root_outlives_a_member_whose_clock_says_1970() -> None:
    kept, world = moved(WEB, persist="all"), World()
    start(world, kept)
    turning.stop(world.client(), kept)
    world.instances["web"]["last_used_at"] = "1970-01-01T00:05:00Z"
    world.steps.clear()
    start(world, kept)
    assert ("POST", f"{INSTANCE}/rebuild") not in world.steps and ("PUT", INSTANCE) not in world.steps


@pytest.mark.parametrize("noted", ["", "f" * 32])
def test_one_that_was_not_noted_as_ready_is_known_by_its_start(noted: str) -> None:
    """As with those of an older hutch, and with copies."""
    kept, world = moved(WEB, persist="all"), World()
    start(world, kept)
    turning.stop(world.client(), kept)
    world.instances["web"]["config"] |= {WAS_READY: noted}
    world.steps.clear()
    start(world, kept)
    assert ("POST", f"{INSTANCE}/rebuild") not in world.steps
    assert world.instances["web"]["config"][WAS_READY] == WEB.machine_id


@pytest.mark.parametrize("of", ["another image", "an ephemeral root", "a half-made one"])
def test_a_kept_root_begins_anew(of: str) -> None:
    kept, world = moved(WEB, persist="all"), World()
    start(world, WEB if of == "an ephemeral root" else kept)
    turning.stop(world.client(), kept)
    if of == "a half-made one":
        world.instances["web"]["last_used_at"] = "1970-01-01T00:00:00Z"
        del world.instances["web"]["config"][WAS_READY]
    world.steps.clear()
    start(world, kept, image="image-2" if of == "another image" else "image-1")
    assert ("POST", f"{INSTANCE}/rebuild") in world.steps


def test_what_an_administrator_added_stays_unless_it_says_what_the_guest_may() -> None:
    world = World()
    start(world)
    turning.stop(world.client(), WEB)
    found = world.instances["web"]
    found["config"] |= {"snapshots.schedule": "@daily", "security.privileged": "true", "raw.lxc": "x"}
    found["devices"]["etc"] = {"type": "disk", "source": "/etc", "path": "/etc"}
    found["profiles"] = ["default"]
    start(world)
    found = world.instances["web"]
    assert found["config"]["snapshots.schedule"] == "@daily"
    assert found["config"]["security.privileged"] == "false" and "raw.lxc" not in found["config"]
    assert "etc" not in found["devices"] and found["profiles"] == []


def test_one_that_runs_with_other_settings_is_stopped_first() -> None:
    world = World()
    start(world)
    world.steps.clear()
    start(world, moved(WEB, memory=1 << 30))
    assert world.steps[0] == ("PUT", STATE)
    assert world.instances["web"]["config"]["limits.memory"] == str(1 << 30)


COMPLETE = 7
"""The most steps of a start that follows a stop."""


@pytest.mark.parametrize("is_done", [False, True], ids=["before it", "after it"])
@pytest.mark.parametrize("cut", range(COMPLETE))
@pytest.mark.parametrize("persist", ["home", "all"])
@pytest.mark.parametrize("again", [False, True], ids=["first", "again"])
def test_a_start_that_is_cut_short_is_carried_on(cut: int, persist: str, again: bool, is_done: bool) -> None:
    """The next one comes to what an undisturbed one comes to, wherever this one ended, and the home is never two."""
    of = moved(WEB, persist=persist)
    undisturbed, world = World(), World()
    for each in (undisturbed, world):
        if again:
            start(each, of)
        each.steps.clear()
    start(undisturbed, moved(of, memory=1 << 30), image="image-2", fingerprint="f2")
    world.cut, world.is_done = cut, is_done
    try:
        start(world, moved(of, memory=1 << 30), image="image-2", fingerprint="f2")
    except Gone:
        pass
    else:
        assert cut >= len(undisturbed.steps)
    world.cut = None
    start(world, moved(of, memory=1 << 30), image="image-2", fingerprint="f2")
    assert comparable(world) == comparable(undisturbed)


def comparable(world: World) -> Any:
    """What counts of a world: not with what the instance was made at first."""
    instances, files, volumes = world.state()
    for found in instances.values():
        del found["source"], found["config"]["volatile.base_image"]
    return instances, files, volumes


def test_another_ones_instance_is_left_alone() -> None:
    world = World()
    start(world)
    before, stranger = world.state(), replace(WEB, machine_id="f" * 32)
    world.steps.clear()
    with pytest.raises(HutchError, match="not"):
        start(world, stranger)
    assert not turning.stop(world.client(), stranger)
    turning.remove(world.client(), stranger)
    assert (world.steps, world.state()) == ([], before)


def test_what_somebody_sets_meanwhile_is_not_lost() -> None:
    world = World()
    start(world)
    config = world.instances["web"]["config"]
    world.meanwhile = lambda: config.update({"user.note": "x", "volatile.eth0.hwaddr": "y"})
    turning.note(world.client(), WEB, {"user.hutch.member": "m1"})
    expected = {"user.note": "x", "volatile.eth0.hwaddr": "y", "user.hutch.member": "m1"}
    assert world.instances["web"]["config"].items() >= expected.items()


def test_a_note_changes_nothing_else() -> None:
    """The parts that only a start sets are an administrator's until then."""
    world = World()
    start(world)
    theirs = {"description": "Ann's, until May", "profiles": ["watched"], "ephemeral": True}
    world.instances["web"] |= theirs
    before = dict(world.instances["web"])
    turning.note(world.client(), WEB, {"user.hutch.member": "m1"})
    config = {**before["config"], "user.hutch.member": "m1"}
    assert world.instances["web"] == {**before, "config": config}
    start(world)
    found = world.instances["web"]
    assert (found["description"], found["profiles"]) == ("hutch's workspace web", [])
    assert found["ephemeral"] is False


def test_one_that_becomes_anothers_meanwhile_is_left_alone() -> None:
    world = World()
    start(world)
    turning.stop(world.client(), WEB)
    stolen = {**world.instances["web"]["config"], ID: "f" * 32}
    world.meanwhile = lambda: world.instances["web"].update(config=dict(stolen))
    with pytest.raises(Foreign):
        turning.edit(world.client(), WEB, lambda found: ({}, {}))
    assert world.instances["web"]["config"] == stolen


def test_a_home_that_becomes_anothers_meanwhile_is_left_alone() -> None:
    world = World()
    start(world)
    home = find_homes(world.client(), {"web": WEB})["web"]
    volume = world.volumes["default", "m2", "home-web"]
    world.meanwhile = lambda: volume.update(config={"user.note": "x", ID: WEB.machine_id})
    assert note_in_home(world.client(), home, {"size": "1GiB"}).config == volume["config"]
    assert volume["config"] == {"user.note": "x", ID: WEB.machine_id, "size": "1GiB"}
    world.meanwhile = lambda: volume.update(config={ID: "f" * 32})
    with pytest.raises(Foreign) as caught:
        note_in_home(world.client(), home, {"size": None})
    assert "choose another name" in caught.value.resolution
    with pytest.raises(Foreign):
        remove_home(world.client(), home)
    assert volume["config"] == {ID: "f" * 32}
    volume["config"] = {ID: WEB.machine_id}
    remove_home(world.client(), home)
    remove_home(world.client(), home)
    assert world.volumes == {}


def test_a_root_that_becomes_anothers_meanwhile_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way to another member is long."""
    world = World()
    start(world)
    turning.stop(world.client(), WEB)
    world.instances["web"]["location"] = "m1"
    migrate = turning.migrate

    def steal(client: Client, of: Record, member: str) -> None:
        migrate(client, of, member)
        world.instances["web"]["config"][ID] = "f" * 32

    monkeypatch.setattr(turning, "migrate", steal)
    with pytest.raises(Foreign):
        start(world)
    assert world.steps[-1] == ("POST", INSTANCE)


@pytest.mark.parametrize("what", ["said more than 1048576 bytes", "did not end within 65 s"])
def test_one_whose_guest_answers_with_nonsense_does_not_count_as_running(what: str) -> None:
    world = World()
    world.unheard = NoAnswer(what)
    with pytest.raises(NoAnswer, match=what):
        start(world)
    assert world.instances["web"]["status"] == "Stopped"


def test_another_ones_volume_is_no_home() -> None:
    world = World()
    start(world)
    del world.instances["web"]
    with pytest.raises(HutchError, match="not the home of this workspace"):
        start(world, replace(WEB, machine_id="f" * 32))


def test_two_homes_are_told_rather_than_chosen_from() -> None:
    world = World()
    start(world)
    world.volumes["default", "m1", "home-web"] = {**world.volumes["default", "m2", "home-web"], "location": "m1"}
    with pytest.raises(HutchError, match="two homes") as caught:
        start(world)
    assert caught.value.details == "pool default, member m2\npool default, member m1"


def test_a_home_outlives_its_instance_and_has_it_come_back_to_its_member() -> None:
    world = World()
    start(world)
    turning.stop(world.client(), WEB)
    turning.remove(world.client(), WEB)
    turning.remove(world.client(), WEB)
    assert world.instances == {} and len(world.volumes) == 1
    start(world)
    assert len(world.volumes) == 1 and world.instances["web"]["location"] == "m2"


def test_a_home_grows_and_loses_its_limit() -> None:
    world = World()
    start(world)
    for disk in (1 << 30, 2 << 30, None):
        start(world, moved(WEB, disk=disk))
        config = world.volumes["default", "m2", "home-web"]["config"]
        assert config.get("size") == (None if disk is None else str(disk)) and config[ID] == WEB.machine_id


def test_a_guest_that_does_not_get_up_is_stopped_and_says_why() -> None:
    world = World()
    world.exits["exec"] = 1
    with pytest.raises(HutchError, match="its sshd does not answer: why") as caught:
        start(world)
    assert "hutch logs web" in caught.value.resolution
    assert world.instances["web"]["status"] == "Stopped"


def test_stopping() -> None:
    world = World()
    assert not turning.stop(world.client(), WEB)
    start(world)
    world.steps.clear()
    assert turning.stop(world.client(), WEB)
    assert not turning.stop(world.client(), WEB)
    assert world.steps == [("PUT", STATE)] and world.bodies[-1] == {"action": "stop", "timeout": 15}


def test_a_guest_that_does_not_stop_is_stopped_by_force() -> None:
    world = World()
    start(world)
    world.failing["PUT", STATE] = refused(400, "Failed to stop in time")
    with pytest.raises(HutchError):
        turning.stop(world.client(), WEB)
    assert [body.get("force", False) for body in world.bodies[-2:]] == [False, True]


def test_a_frozen_guest_is_not_asked() -> None:
    world = World()
    start(world)
    world.instances["web"]["status"] = "Frozen"
    world.steps.clear()
    world.failing["PUT", STATE] = refused(400)
    with pytest.raises(HutchError):
        turning.stop(world.client(), WEB)
    assert world.bodies[-1]["force"] and len(world.steps) == 1
