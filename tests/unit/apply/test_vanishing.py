"""Git work in a root that goes: what of a layer is looked into, of whom it is asked, and what it is in the way of."""

from __future__ import annotations

import itertools
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hutch.apply import turning, vanishing
from hutch.apply.vanishing import (
    Repositories,
    check_roots,
    look_into,
    refuse_unsaved,
    touched_repositories,
    unsaved_in_root,
)
from hutch.errors import HutchError
from hutch.plan.actions import Action, Affected, Plan
from hutch.spec.names import Layout
from hutch.spec.record import Observation, Record
from hutch.state import write_record
from tests.unit.facts import NETWORK, workspace

WHETHER = "whether its root holds unsaved git work"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state", tmp_path / "run")


def record(**keys: Any) -> Record:
    return Record("web", "/f", workspace(**keys), "image-1", 1 << 30, "0" * 32).with_booted()


def touched(tmp_path: Path) -> list[str]:
    upper = os.open(tmp_path / "upper", os.O_RDONLY)
    try:
        return sorted(set(touched_repositories(upper, str(tmp_path / "image"))))
    finally:
        os.close(upper)


def make(top: Path, *paths: str) -> None:
    for path in paths:
        (top / path).mkdir(parents=True, exist_ok=True)


def test_repositories_of_a_layer(tmp_path: Path) -> None:
    """Those that were made in it, wherever; and those of the image of which something was changed, and no others."""
    make(tmp_path / "image", "opt/tool/.git", "opt/same/.git", "opt/gone/.git", "opt/tool/lib")
    make(tmp_path / "upper", "srv/x/.git/objects", "srv/x/sub", "opt/tool/lib", "opt/plain", "home/dev")
    (tmp_path / "upper/srv/x/sub/.git").write_text("gitdir: ../.git/modules/sub\n")
    (tmp_path / "upper/opt/tool/lib/file").touch()
    assert touched(tmp_path) == ["opt/tool/.git", "srv/x/.git", "srv/x/sub/.git"]


def test_a_repository_that_was_deleted_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "image", "opt/tool/.git")
    make(tmp_path / "upper", "opt/tool")
    (tmp_path / "upper/opt/tool/.git").touch()
    assert touched(tmp_path) == ["opt/tool/.git"]
    monkeypatch.setattr(stat, "S_ISCHR", lambda mode: True)  # only root makes such a device
    assert touched(tmp_path) == []


def test_links_of_a_layer_lead_nowhere(tmp_path: Path) -> None:
    make(tmp_path, "image", "elsewhere/x/.git", "upper")
    (tmp_path / "upper/link").symlink_to(tmp_path / "elsewhere")
    assert touched(tmp_path) == []


def test_links_of_what_a_layer_lies_on_lead_nowhere(tmp_path: Path) -> None:
    """The guest has made a directory where the host has a link."""
    make(tmp_path, "image", "elsewhere/x/.git", "upper/link/x")
    (tmp_path / "image/link").symlink_to(tmp_path / "elsewhere")
    assert touched(tmp_path) == []


def test_what_a_layer_lay_on_may_be_gone(tmp_path: Path) -> None:
    make(tmp_path, "upper/x/.git")
    assert touched(tmp_path) == ["x/.git"]


def test_a_layer_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "upper", "a")
    monkeypatch.setattr(vanishing, "WALK_SECONDS", -1.0)
    with pytest.raises(HutchError, match="no end"):
        touched(tmp_path)


def test_the_top_of_what_a_layer_lies_on_may_be_one(tmp_path: Path) -> None:
    make(tmp_path / "image", ".git")
    make(tmp_path / "upper", "made")
    assert touched(tmp_path) == [".git"]


def test_no_more_are_looked_into_than_fit_into_one_command() -> None:
    looked: list[list[str]] = []

    def look(chosen: list[str]) -> list[str]:
        looked.append(chosen)
        return []

    def these(*paths: str) -> Repositories:
        yield from paths

    def endless(size: int) -> Repositories:
        yield from (f"{number:0{size}}" for number in itertools.count())

    assert look_into(these(), look) == look_into(these("a", "b", "a"), look) == []
    for size in (4, 4000, 1 << 20):
        (more,) = look_into(endless(size), look)
        assert "too many to look into" in more
    assert looked[0] == ["a", "b"]
    assert list(map(len, looked[1:])) == [vanishing.MOST_REPOSITORIES, vanishing.MOST_BYTES // 4000]


def standing(monkeypatch: pytest.MonkeyPatch, state: Any) -> list[str]:
    """Who is asked, in words, when a workspace is in that state."""
    asked: list[str] = []

    def container(layout: Layout, record: Record, *, runs: bool) -> list[str]:
        asked.append("container that runs" if runs else "kept root")
        return ["/srv/x: stashed changes"]

    def machine(layout: Layout, record: Record) -> list[str]:
        asked.append("machine")
        return []

    monkeypatch.setattr(vanishing, "observe", lambda layout, name: Observation(state))
    monkeypatch.setattr(vanishing, "_found_in_container", container)
    monkeypatch.setattr(vanishing, "_told_by_machine", machine)
    return asked


@pytest.mark.parametrize(
    ("keys", "state", "deletes", "asked"),
    [
        ({}, "running", False, ["container that runs"]),
        ({}, "stopped", True, []),
        ({}, "failed", False, []),
        ({"persist": "all"}, "running", False, []),
        ({"persist": "all"}, "running", True, ["container that runs"]),
        ({"persist": "all"}, "stopped", True, ["kept root"]),
        ({"type": "vm"}, "running", False, ["machine"]),
        ({"type": "vm"}, "starting", False, []),
        ({"type": "vm", "persist": "all"}, "stopped", True, []),
        ({"type": "vm", "persist": "all"}, "running", True, ["machine"]),
    ],
)
def test_who_is_asked(
    keys: dict[str, str],
    state: str,
    deletes: bool,
    asked: list[str],
    layout: Layout,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layout.root("web").mkdir(parents=True)
    found = standing(monkeypatch, state)
    unsaved_in_root(layout, record(**keys), deletes=deletes)
    assert found == asked


def test_a_look_that_fails_is_in_the_way_itself(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    standing(monkeypatch, "running")

    def fail(layout: Layout, record: Record, *, runs: bool) -> list[str]:
        raise HutchError("it broke", details="first\nlast")

    monkeypatch.setattr(vanishing, "_found_in_container", fail)
    assert unsaved_in_root(layout, record()) == ["its root cannot be looked at for unsaved git work: last"]


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ((0, b""), []),
        ((0, b"noise\nhutch-unsaved /x\x1b[2J: stashes\n"), ["/x\N{REPLACEMENT CHARACTER}[2J: stashes"]),
        ((1, b"hutch-unsaved /a: x\n"), ["/a: x", f"it cannot tell (exit code 1) {WHETHER}"]),
        ((None, b""), [f"it cannot tell within 60 s {WHETHER}"]),
    ],
)
def test_a_machines_word_only_adds(
    answer: tuple[int | None, bytes], found: list[str], layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vanishing, "observe", lambda layout, name: Observation("running"))
    monkeypatch.setattr("hutch.access.inside.heard_inside", lambda *words, **limits: answer)
    assert unsaved_in_root(layout, record(type="vm")) == found


# What it is in the way of.


def test_stop_and_restart_change_nothing(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    standing(monkeypatch, "running")
    done: list[str] = []
    monkeypatch.setattr(turning, "execute", lambda layout, plan, *words: done.append(plan.command))
    monkeypatch.setattr(turning, "observe_all", lambda layout, records: {n: Observation("running") for n in records})
    monkeypatch.setattr(turning, "check_host", lambda *words: None)
    layout.state.mkdir()
    write_record(layout, record())
    for verb in ("stop", "restart"):
        with pytest.raises(HutchError, match="nothing was stopped") as caught:
            turning.turn(layout, verb, ["web"], lambda name: record(), lambda *words: None)
        assert caught.value.details == "web: /srv/x: stashed changes"
        assert "--force" in caught.value.resolution
    assert done == []
    turning.turn(layout, "stop", ["web"], lambda name: record(), lambda *words: None, force=True)
    assert done == ["stop"]


def test_nothing_in_the_way(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    standing(monkeypatch, "stopped")
    check_roots(layout, {"web": record(), "db": replace(record(), name="db")}, "nothing was stopped")


def test_up_refuses_by_the_words_of_the_plan() -> None:
    affected = Affected((), None, ("/srv/x: stashed changes",))
    plan = Plan("/f", NETWORK, (Action("web", "restart", affected=affected), Action("db", "no change")))
    assert plan.unsaved == ("web: /srv/x: stashed changes",)
    with pytest.raises(HutchError, match="nothing was changed") as caught:
        refuse_unsaved(plan)
    assert caught.value.details == "web: /srv/x: stashed changes"
    refuse_unsaved(Plan("/f", NETWORK, (Action("db", "no change"),)))
