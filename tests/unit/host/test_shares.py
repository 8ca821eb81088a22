"""The guards of what guests can write: when one is let go, and what becomes of one that cannot be."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from hutch.apply import removal
from hutch.errors import HutchError
from hutch.host.storage import shares
from hutch.host.storage.shares import Guest
from hutch.spec import member
from hutch.spec.member import Member
from hutch.spec.names import Layout

GUEST = Guest(70_000, 1000)


class Mounts:
    """What is mounted over itself, and which directories cannot be looked through, and why."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.points: list[str] = []
        self.bad: dict[str, str] = {}
        self.tried: list[str] = []
        monkeypatch.setattr(shares, "observe_mountinfo", lambda: "")
        monkeypatch.setattr(shares, "Tree", lambda text: self)
        monkeypatch.setattr(shares, "find_mounts", lambda text: dict.fromkeys(self.points, shares.OPTIONS))
        monkeypatch.setattr(shares, "_mount", lambda path, member: self.points.append(path))
        monkeypatch.setattr(shares, "_unmount", self.points.remove)
        monkeypatch.setattr(shares, "disarm", self.disarm)

    def options(self, path: str) -> set[str]:
        return shares.OPTIONS if path in self.points else set()

    def self_binds(self) -> dict[str, int]:
        return {path: number for number, path in enumerate(self.points)}

    def over_itself(self, path: str) -> str:
        return "1" if path in self.points else ""

    def disarm(self, path: str, guest: Guest) -> None:
        self.tried.append(path)
        if path in self.bad:
            raise HutchError(self.bad[path])


@pytest.fixture
def mounts(monkeypatch: pytest.MonkeyPatch) -> Mounts:
    return Mounts(monkeypatch)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state", tmp_path / "run")


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    made = [f"{tmp_path}/bad", f"{tmp_path}/bad/inner", f"{tmp_path}/good"]
    for path in made:
        os.mkdir(path)
    return made


def ensure(layout: Layout, paths: list[str]) -> None:
    shares.ensure_shares(layout, paths, {path: [GUEST] for path in paths})


def test_one_that_cannot_be_looked_through_holds_up_nobody(
    mounts: Mounts, layout: Layout, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its guard stays, and with it those around it; it is told of, and not tried again at once."""
    bad, inner, good = paths
    ensure(layout, paths)
    assert mounts.points == [bad, good, inner]  # an outer one first: it hides what is in it
    mounts.bad = {inner: "there is no end to it"}
    ensure(layout, [])
    assert sorted(mounts.points) == [bad, inner]
    (told,) = shares.kept_guards(layout)
    assert told == f"{inner} stays mounted nosuid,nodev over itself: there is no end to it"
    with monkeypatch.context() as for_another:
        for_another.setattr(member, "acting", Member(1002, 1002, "carol", None))
        assert shares.kept_guards(layout) == []  # whose directory it is
    assert shares.noted_guests(layout)[inner] == {GUEST}
    mounts.tried.clear()
    ensure(layout, [good])
    assert (sorted(mounts.points), mounts.tried) == ([bad, inner, good], [])
    ensure(layout, [inner, good])  # shared again: it is where it should be
    assert shares.kept_guards(layout) == []
    ensure(layout, [good])
    assert mounts.tried == [inner]


def test_one_that_cannot_be_guarded_leaves_no_other_unguarded(
    mounts: Mounts, layout: Layout, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, inner, good = paths
    failing = {bad}

    def mount(path: str, member: int | None) -> None:
        if path in failing:
            raise HutchError(f"{path} cannot be shared", details=f"no {path}")
        mounts.points.append(path)

    monkeypatch.setattr(shares, "_mount", mount)
    with pytest.raises(HutchError, match=f"^{bad} cannot be shared$"):
        ensure(layout, paths)
    assert sorted(mounts.points) == [inner, good]
    mounts.points.clear()
    failing.add(inner)
    with pytest.raises(HutchError, match=f"^{bad}, {inner} cannot be shared$") as caught:
        ensure(layout, paths)
    assert mounts.points == [good]
    assert f"no {bad}\n" in caught.value.details and caught.value.details.endswith(f"no {inner}")


def test_what_is_another_s_by_now_gets_no_guard_and_holds_up_nobody(
    mounts: Mounts, layout: Layout, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, inner, good = paths
    own = os.stat(good).st_uid
    shares.ensure_shares(layout, paths, {}, {bad: own + 1, good: own})
    assert sorted(mounts.points) == [inner, good]
    mounts.points.clear()

    def mount(path: str, member: int | None) -> None:  # something else was put there just now
        raise HutchError(f"{path} cannot be shared", details=f"{member}")

    monkeypatch.setattr(shares, "_mount", mount)
    shares.ensure_shares(layout, [good], {}, {good: own})
    with pytest.raises(HutchError, match=f"^{inner} cannot be shared$"):
        shares.ensure_shares(layout, [good, inner], {}, {good: own})


def test_it_is_tried_again_in_the_end(
    mounts: Mounts, layout: Layout, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure(layout, paths)
    mounts.bad = {paths[2]: "it was moved"}
    ensure(layout, [])
    assert mounts.points == [paths[2]]
    later = time.time() + shares.TRY_AGAIN + 60
    monkeypatch.setattr("time.time", lambda: later)
    ensure(layout, [])
    assert mounts.points == [paths[2]]
    mounts.bad = {}
    ensure(layout, [])
    assert len(shares.kept_guards(layout)) == 1
    later += shares.TRY_AGAIN + 60
    ensure(layout, [])
    assert mounts.points == []
    assert not layout.shares.exists()


def test_what_a_removal_could_not_look_through_is_not_looked_through_twice(
    mounts: Mounts, layout: Layout, paths: list[str]
) -> None:
    _, inner, good = paths
    ensure(layout, [good])
    mounts.bad = {good: "no end", inner: "no end"}
    assert removal._disarm(layout, good, GUEST) == []
    (told,) = removal._disarm(layout, inner, GUEST)
    assert "nothing guards them" in told
    mounts.tried.clear()
    ensure(layout, [])
    assert (mounts.points, mounts.tried) == ([good], [])


def test_a_guard_of_what_is_to_be_deleted_is_not_kept(mounts: Mounts, layout: Layout, paths: list[str]) -> None:
    _, _, good = paths
    ensure(layout, [good])
    mounts.bad = {good: "no end"}
    ensure(layout, [])
    assert len(shares.kept_guards(layout)) == 1
    shares.release(layout, good)
    shares.release(layout, good)
    assert mounts.points == []
    assert not layout.shares.exists()
