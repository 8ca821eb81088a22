"""Snapshots, restores and forks on a cluster of the tests, and what is left when one is cut short at any step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hutch.backends.incus import FORK, ID, IMAGE, PASSING, RESTORING, SNAPSHOT
from hutch.engines.incus import IncusEngine, preparing, restoring, server
from hutch.engines.incus.snapshots import IncusSnapshots
from hutch.errors import HutchError, UsageError
from hutch.spec.names import Layout
from hutch.spec.record import Record
from hutch.spec.snapshot import check_tag, default_tag
from tests.unit.engines.incus.cluster import WORD_OF_IT, moved, record
from tests.unit.engines.incus.fake import refused
from tests.unit.engines.incus.points_cluster import PointsWorld

WEB, KEPT = record().with_booted(), moved(record(), persist="all").with_booted()
COPY = record("copy", 9)
KEPT_COPY = moved(COPY, persist="all")
STATE = "/1.0/instances/web/state"
STEPS = range(30)  # more than any of them has


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> PointsWorld:
    monkeypatch.setattr(preparing, "ensure_project", lambda client, owner, project: WORD_OF_IT)
    monkeypatch.setattr(preparing, "ensure_network", lambda client, server, place, owner: "net")
    monkeypatch.setattr(preparing, "ensure_image", lambda client, layout, image: f"fingerprint of {image}")
    monkeypatch.setattr(preparing, "choose_pool", lambda client: "default")
    monkeypatch.setattr(server, "choose_pool", lambda client: "default")
    monkeypatch.setattr(restoring, "QUIET_SECONDS", 0.0)
    return PointsWorld()


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(tmp_path / "state", tmp_path / "run")
    for name in ("web", "copy"):
        found.host_key(name).parent.mkdir(parents=True)
        found.host_key(name).write_text("private\n")
    found.key(0).parent.mkdir(parents=True)
    found.key(0).with_name("id_ed25519.pub").write_text("ssh-ed25519 A\n")
    return found


@pytest.fixture
def points(world: PointsWorld, layout: Layout) -> IncusSnapshots:
    return IncusSnapshots(layout, world.client)


@pytest.fixture
def engine(world: PointsWorld, layout: Layout) -> IncusEngine:
    return IncusEngine(layout, world.client)


def up(engine: IncusEngine, of: Record = WEB) -> None:
    assert engine.start({of.name: of}, lambda *said: None) == {}


def running(engine: IncusEngine, world: PointsWorld, of: Record = WEB, word: str = "one") -> None:
    """Have a workspace run that has written a word."""
    up(engine, of)
    world.write(of.name, word)
    world.steps.clear()


def cut(world: PointsWorld, step: int, *, is_done: bool, do: Any) -> bool:
    """Do something that is cut short before, or after, a step; whether it has so many."""
    world.steps.clear()
    world.cut, world.is_done = step, is_done
    try:
        do()
    except HutchError:
        return True
    finally:
        world.cut = None
    return False


def tags(points: IncusSnapshots, of: Record = WEB) -> list[tuple[str, str]]:
    return [(each.tag, each.problem) for each in points.list(of)]


# Snapshots.


def test_both_parts_are_of_one_frozen_moment(engine: IncusEngine, world: PointsWorld, points: IncusSnapshots) -> None:
    running(engine, world, KEPT)
    points.take(KEPT, "monday")
    what = [method for method, _ in world.steps]
    assert what == ["PUT", "PUT", "PUT", "POST", "POST", "PUT", "PUT", "PUT"]
    frozen = [path for method, path in world.steps if path == STATE]
    assert len(frozen) == 2 and world.instances["web"]["status"] == "Running"
    (found,) = points.list(KEPT)
    assert (found.tag, found.problem, found.parts) == ("monday", "", ("root", "home"))
    assert found.to_json()["complete"] and found.taken > 1.7e9
    for config in (world.instances["web"]["config"], world.volume("home-web")["config"]):
        assert not PASSING & config.keys()
    assert engine.broken({"web": KEPT}) == {}


def test_an_ephemeral_root_is_no_part(engine: IncusEngine, world: PointsWorld, points: IncusSnapshots) -> None:
    """There is no going back to it; and Incus makes no root anew that has snapshots."""
    running(engine, world)
    points.take(WEB, "monday")
    (found,) = points.list(WEB)
    assert (found.parts, found.problem) == (("home",), "") and not world.roots
    world.write("web", "two")
    points.restore(WEB, "monday")
    up(engine)
    assert world.words("web") == ("new", "one")


def test_a_stopped_one_is_not_frozen(engine: IncusEngine, world: PointsWorld, points: IncusSnapshots) -> None:
    running(engine, world)
    engine.stop({"web": WEB})
    world.steps.clear()
    assert points.take(WEB, "monday") == 0.0
    assert STATE not in [path for _, path in world.steps]


def test_a_tag_is_given_once(engine: IncusEngine, world: PointsWorld, points: IncusSnapshots) -> None:
    running(engine, world)
    points.take(WEB, "monday")
    with pytest.raises(HutchError, match="has a snapshot monday already"):
        points.take(WEB, "monday")
    points.delete(WEB, "monday")
    points.take(WEB, "monday")
    with pytest.raises(UsageError, match="has no snapshot tuesday"):
        points.delete(WEB, "tuesday")


def test_one_that_was_never_made_has_none(points: IncusSnapshots) -> None:
    assert points.list(WEB) == []
    with pytest.raises(HutchError, match="has no instance"):
        points.take(WEB, "monday")


def test_the_administrators_own_are_left_alone(engine: IncusEngine, world: PointsWorld, points: IncusSnapshots) -> None:
    running(engine, world)
    client = world.client()
    client.change("POST", "/1.0/instances/web/snapshots", {"name": "theirs"})
    assert tags(points) == []
    with pytest.raises(HutchError, match="has a snapshot theirs already"):
        points.take(WEB, "theirs")
    points.recover(WEB, ())
    assert ("web", "theirs") in world.roots


def test_a_refusal_leaves_nothing(engine: IncusEngine, world: PointsWorld, points: IncusSnapshots) -> None:
    running(engine, world, KEPT)
    before = world.state()
    world.failing["POST", "/1.0/instances/web/snapshots"] = refused(400, "no space left")
    with pytest.raises(HutchError, match="no space left"):
        points.take(KEPT, "monday")
    assert world.state() == before and not world.roots and not world.homes


@pytest.mark.parametrize("is_done", [False, True])
def test_cut_short_anywhere_it_goes_on_and_no_half_looks_whole(
    engine: IncusEngine, world: PointsWorld, points: IncusSnapshots, is_done: bool
) -> None:
    running(engine, world, KEPT)
    before = world.state()
    for step in STEPS:
        is_cut = cut(world, step, is_done=is_done, do=lambda: points.take(KEPT, "monday"))
        if not is_cut:
            break
        if tags(points, KEPT) == [("monday", "")]:  # nothing was left to do
            assert is_done and (world.roots and world.homes)
            points.delete(KEPT, "monday")
        assert all(problem for _, problem in tags(points, KEPT)), step
        points.recover(KEPT, ())
        assert world.state() == before and not world.roots and not world.homes, step
    assert tags(points, KEPT) == [("monday", "")] and step > 6


def test_the_next_one_cleans_up(engine: IncusEngine, world: PointsWorld, points: IncusSnapshots) -> None:
    running(engine, world)
    cut(world, 3, is_done=True, do=lambda: points.take(WEB, "monday"))
    assert engine.observe({"web": WEB})["web"].reason.startswith("a snapshot of it was cut short")
    (half,) = points.list(WEB)
    assert half.problem.startswith("cut short")
    points.take(WEB, "tuesday")
    assert tags(points) == [("tuesday", "")] and world.instances["web"]["status"] == "Running"


def test_an_operation_that_goes_on_is_waited_for(
    engine: IncusEngine, world: PointsWorld, points: IncusSnapshots
) -> None:
    running(engine, world)
    cut(world, 3, is_done=False, do=lambda: points.take(WEB, "monday"))
    id = "01234567-89ab-cdef-0123-456789abcdef"
    world.operations = [
        {"id": id, "resources": {"instances": ["/1.0/instances/web?project=hutch"]}},
        {"id": "../../evil", "resources": {"instances": ["/1.0/instances/web"]}},
        {"id": id, "resources": {"instances": ["/1.0/instances/web-2"]}},
    ]
    points.recover(WEB, ())
    assert world.waited == [id]


def test_a_stop_that_goes_on_is_waited_for(engine: IncusEngine, world: PointsWorld, points: IncusSnapshots) -> None:
    """It would stop what the next command finds running."""
    running(engine, world)
    id = "01234567-89ab-cdef-0123-456789abcdef"
    world.operations = [{"id": id, "resources": {"instances": ["/1.0/instances/web"]}}]
    points.recover(WEB, ())
    assert world.waited == [id]


def test_a_start_lets_it_go_on_first(engine: IncusEngine, world: PointsWorld, points: IncusSnapshots) -> None:
    running(engine, world)
    cut(world, 3, is_done=True, do=lambda: points.take(WEB, "monday"))
    up(engine)
    assert not world.homes and not world.roots
    assert SNAPSHOT not in world.volume("home-web")["config"]


@pytest.mark.parametrize("tag", ["", "Monday", "a/b", "-a", "a" * 33, "../x"])
def test_tags_are_names(tag: str) -> None:
    with pytest.raises(UsageError):
        check_tag(tag)


def test_the_default_tag_is_the_time_in_utc() -> None:
    check_tag(default_tag(1795000000.0))
    assert default_tag(0.0) == "19700101-000000"


# Restores.


@pytest.mark.parametrize("of", [WEB, KEPT])
def test_root_and_home_go_back_together(
    engine: IncusEngine, world: PointsWorld, points: IncusSnapshots, of: Record
) -> None:
    running(engine, world, of)
    points.take(of, "monday")
    world.write("web", "two")
    assert points.check(of, "monday") == ()
    points.restore(of, "monday")
    assert world.words("web")[1] == "one" and world.instances["web"]["status"] == "Stopped"
    for _ in range(2):
        up(engine, of)
        assert world.words("web") == ("one" if of == KEPT else "new", "one")
        assert engine.broken({"web": of}) == {}
        engine.stop({"web": of})
    assert not PASSING & world.volume("home-web")["config"].keys()


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("of", [WEB, KEPT])
def test_a_restore_that_is_cut_short_is_finished_by_the_next_start(
    engine: IncusEngine, world: PointsWorld, points: IncusSnapshots, of: Record, is_done: bool
) -> None:
    running(engine, world, of)
    points.take(of, "monday")
    for step in STEPS:
        if world.instances["web"]["status"] == "Stopped":
            up(engine, of)
        world.write("web", "two")
        if not cut(world, step, is_done=is_done, do=lambda: points.restore(of, "monday")):
            break
        was_begun = RESTORING in world.volume("home-web")["config"] or world.words("web")[1] == "one"
        points.recover(of, ())
        up(engine, of)
        root, home = world.words("web")
        if was_begun:
            assert (root, home) == ("one" if of == KEPT else "new", "one"), step
        else:
            assert home == "two", step
        engine.stop({"web": of})
        up(engine, of)
        assert world.words("web")[1] == home and RESTORING not in world.volume("home-web")["config"], step
    assert step >= 6


def test_the_plan_is_told(engine: IncusEngine, world: PointsWorld, points: IncusSnapshots) -> None:
    running(engine, world)
    points.take(WEB, "monday")
    cut(world, 3, is_done=False, do=lambda: points.restore(WEB, "monday"))
    seen = engine.observe({"web": WEB})["web"]
    assert seen.state == "stopped" and "a restore of the snapshot monday was cut short" in seen.reason


def test_work_of_one_that_was_started_since_is_not_undone(
    engine: IncusEngine, world: PointsWorld, points: IncusSnapshots
) -> None:
    running(engine, world)
    points.take(WEB, "monday")
    cut(world, 3, is_done=False, do=lambda: points.restore(WEB, "monday"))
    world.client().change("PUT", STATE, {"action": "start"})  # by hand
    world.write("web", "three")
    up(engine)
    assert world.words("web")[1] == "three"


def test_no_other_snapshot_is_taken_of_a_half_restored_one(
    engine: IncusEngine, world: PointsWorld, points: IncusSnapshots
) -> None:
    running(engine, world)
    points.take(WEB, "monday")
    points.take(WEB, "tuesday")
    cut(world, 3, is_done=False, do=lambda: points.restore(WEB, "monday"))
    with pytest.raises(HutchError, match="between two states"):
        points.take(WEB, "wednesday")
    points.restore(WEB, "tuesday")
    assert world.words("web")[1] == "one"


def test_a_root_of_another_image_is_refused(engine: IncusEngine, world: PointsWorld, points: IncusSnapshots) -> None:
    running(engine, world, KEPT)
    points.take(KEPT, "monday")
    world.instances["web"]["config"][IMAGE] = "debian-trixie-ffffffffffff"
    with pytest.raises(HutchError, match="lies on another image"):
        points.restore(KEPT, "monday")
    assert world.instances["web"]["status"] == "Running"


def test_a_root_that_is_made_anew_loses_its_snapshots(
    engine: IncusEngine, world: PointsWorld, points: IncusSnapshots
) -> None:
    running(engine, world, KEPT)
    points.take(KEPT, "monday")
    engine.stop({"web": KEPT})
    newer = replace(KEPT, image="debian-trixie-ffffffffffff").with_booted()
    up(engine, newer)
    assert world.words("web") == ("new", "one")
    assert tags(points, newer) == [("monday", "half: it has the home alone")]
    engine.stop({"web": newer})
    world.client().change("POST", "/1.0/instances/web/snapshots", {"name": "theirs"})
    (why,) = engine.start({"web": KEPT}, lambda *said: None).values()
    assert "somebody has taken snapshots of the instance" in why and "theirs" in why


def test_zfs_goes_back_to_the_newest_alone(engine: IncusEngine, world: PointsWorld, points: IncusSnapshots) -> None:
    running(engine, world)
    points.take(WEB, "monday")
    points.take(WEB, "tuesday")
    world.driver = "zfs"
    assert points.check(WEB, "tuesday") == ()
    with pytest.raises(HutchError, match="zfs") as caught:
        points.restore(WEB, "monday")
    assert "tuesday" in caught.value.details and world.instances["web"]["status"] == "Running"


# Removal.


def test_rm_says_what_it_deletes(engine: IncusEngine, world: PointsWorld, points: IncusSnapshots) -> None:
    running(engine, world, KEPT)
    points.take(KEPT, "monday")
    assert engine.remove(KEPT, purge=False)[1] == "of its snapshots (monday), the homes stay with it"
    assert tags(points) == [("monday", "half: it has the home alone")]
    up(engine)
    world.write("web", "two")
    points.restore(WEB, "monday")
    up(engine)
    assert world.words("web") == ("new", "one")


def test_half_of_one_is_no_point_in_time_of_a_kept_root(
    engine: IncusEngine, world: PointsWorld, points: IncusSnapshots
) -> None:
    running(engine, world, KEPT)
    points.take(KEPT, "monday")
    for parts, half in ((world.roots, "home"), (world.homes, "root")):
        kept = dict(parts)
        parts.clear()
        with pytest.raises(HutchError, match=f"not whole: half: it has the {half} alone"):
            points.restore(KEPT, "monday")
        parts.update(kept)
    world.homes["home-web", "monday"]["config"][SNAPSHOT] = "monday 0123 user root+home"
    with pytest.raises(HutchError, match="of two different moments"):
        points.restore(KEPT, "monday")


def test_a_purge_deletes_all(
    engine: IncusEngine, world: PointsWorld, points: IncusSnapshots, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IncusEngine, "leave", lambda self, client: None)
    running(engine, world)
    points.take(WEB, "monday")
    assert engine.remove(WEB, purge=True) == ("its snapshots are deleted: monday",)
    assert not world.homes and not world.roots


# Forks.


@pytest.mark.parametrize("state", ["running", "stopped", "a snapshot"])
def test_a_fork_has_the_home_and_an_identity_of_its_own(
    engine: IncusEngine, world: PointsWorld, points: IncusSnapshots, state: str
) -> None:
    running(engine, world)
    world.volume("home-web")["config"] |= {"volatile.idmap.last": "[]", "volatile.uuid": "theirs"}
    tag = ""
    if state == "a snapshot":
        tag = "monday"
        points.take(WEB, tag)
        world.write("web", "two")
    elif state == "stopped":
        engine.stop({"web": WEB})
    points.fork(WEB, tag, [COPY], ())
    config = world.volume("home-copy")["config"]
    assert config == {ID: COPY.machine_id, FORK: WEB.machine_id, "volatile.idmap.last": "[]"}
    assert world.instances["web"]["status"] == ("Stopped" if state == "stopped" else "Running")
    points.confirm(WEB, [COPY])
    assert FORK not in world.volume("home-copy")["config"]
    up(engine, COPY.with_booted())
    assert world.words("copy")[1] == "one"
    assert world.volume("home-copy")["location"] == world.instances["copy"]["location"] == "m1"
    assert [each.tag for each in points.list(WEB)] == ([tag] if tag else [])


def test_a_kept_root_goes_with_it(engine: IncusEngine, world: PointsWorld, points: IncusSnapshots) -> None:
    running(engine, world, KEPT)
    points.fork(KEPT, "", [KEPT_COPY], ())
    assert f"{KEPT_COPY.machine_id}\n".encode() in world.bodies
    pushed = world.steps.index(("PUSH", "copy/etc/machine-id"))
    assert world.steps[pushed - 1] == ("UNLINK", "copy")  # it may be a link, or a fifo
    assert not world.roots and not world.homes
    points.confirm(KEPT, [KEPT_COPY])
    up(engine, KEPT_COPY.with_booted())
    assert world.words("copy") == ("one", "one")
    made = world.instances["copy"]
    assert made["config"][ID] == KEPT_COPY.machine_id and made["devices"]["eth0"]["ipv4.address"] == "10.83.0.9"
    assert not PASSING & (made["config"].keys() - {"user.hutch.copied"})
    engine.stop({"copy": KEPT_COPY.with_booted()})
    up(engine, KEPT_COPY.with_booted())
    assert world.words("copy") == ("one", "one")


@pytest.mark.parametrize("is_done", [False, True])
def test_a_fork_that_is_cut_short_leaves_nothing_that_looks_whole(
    engine: IncusEngine, world: PointsWorld, points: IncusSnapshots, is_done: bool
) -> None:
    running(engine, world, KEPT)
    before = world.state()
    for step in STEPS:
        if not cut(world, step, is_done=is_done, do=lambda: points.fork(KEPT, "", [KEPT_COPY], ())):
            break
        points.recover(KEPT, {KEPT.machine_id})
        assert world.state() == before and not world.roots and not world.homes, step
    assert step > 10
    points.recover(KEPT, {KEPT.machine_id, KEPT_COPY.machine_id})  # its record is written by now
    assert "copy" in world.instances and FORK not in world.volume("home-copy")["config"]


def test_a_name_that_is_there_is_refused(engine: IncusEngine, world: PointsWorld, points: IncusSnapshots) -> None:
    running(engine, world)
    points.fork(WEB, "", [COPY], ())
    with pytest.raises(HutchError, match="has something of the name copy already"):
        points.fork(WEB, "", [replace(COPY, machine_id="f" * 32)], {COPY.machine_id})
    assert world.volume("home-copy")["config"][ID] == COPY.machine_id


def test_a_refused_fork_leaves_nothing(engine: IncusEngine, world: PointsWorld, points: IncusSnapshots) -> None:
    running(engine, world, KEPT)
    before = world.state()
    world.failing["POST", "/1.0/instances"] = refused(400, "no space left")
    with pytest.raises(HutchError, match="no space left"):
        points.fork(KEPT, "", [KEPT_COPY], ())
    assert world.state() == before and not world.roots and not world.homes
