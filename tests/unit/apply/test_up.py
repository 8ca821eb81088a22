"""`up` builds images before it takes the lock, so it looks again once it has it."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from hutch.api import Hutch
from hutch.apply.up import apply_plan
from hutch.errors import HutchError, Unmet
from hutch.plan.actions import Action, Plan, Wanted
from hutch.spec.model import Config, Network
from hutch.spec.names import Layout
from tests.unit.facts import NETWORK, workspace

CONFIG = Config(file="/f", network=NETWORK, workspaces={"web": workspace()})


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done, in words; every effect is replaced by a word."""
    words: list[str] = []
    plan = Plan("/f", NETWORK, (Action("web", "create", wanted=Wanted(workspace(), "image-1")),))
    monkeypatch.setattr("hutch.apply.planning.make_plan", lambda *arguments, **keys: plan)
    monkeypatch.setattr("hutch.apply.up.ensure_images", lambda *arguments: words.append("build"))
    monkeypatch.setattr("hutch.apply.reconcile.first_network", lambda layout, **needed: nullcontext())
    monkeypatch.setattr("hutch.apply.up.recover", lambda layout, listen: words.append("recover"))
    monkeypatch.setattr("hutch.apply.up.apply_plan", lambda *arguments: words.append("apply"))
    return words


def in_cache(monkeypatch: pytest.MonkeyPatch, *answers: bool) -> None:
    found: list[Any] = list(answers)
    monkeypatch.setattr("hutch.apply.building.whole_image", lambda layout, id: found.pop(0))


def test_an_image_that_went_meanwhile_is_built_again(
    done: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_cache(monkeypatch, False, False, False, True)  # before each build, and after it under the lock
    Hutch(Layout(tmp_path / "state", tmp_path / "run")).up(CONFIG)
    assert done == ["build", "recover", "build", "recover", "apply"]


def test_one_that_goes_every_time_is_given_up(done: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    in_cache(monkeypatch, *[False] * 20)
    with pytest.raises(HutchError, match=r"kept changing while planning \(5 attempts\)"):
        Hutch(Layout(tmp_path / "state", tmp_path / "run")).up(CONFIG)
    assert "apply" not in done


def test_a_move_that_is_refused_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def move(layout: Layout, plan: Plan, action: Action, *words: object) -> None:
        tried.append(action.workspace)
        raise HutchError("there is no room", resolution="make some")

    monkeypatch.setattr("hutch.apply.up.execute", lambda *words: None)
    monkeypatch.setattr("hutch.apply.up._move", move)
    monkeypatch.setattr("hutch.apply.up.kept_guards", lambda layout: ())
    monkeypatch.setattr("hutch.apply.up.observe_ejected", dict)
    moves = tuple(Action(name, "move", ()) for name in ("api", "web"))
    plan = Plan("/srv/hutch.toml", Network(), moves, start=False)
    with pytest.raises(Unmet, match="api was not moved: there is no room; web was not moved: there is no room"):
        apply_plan(Layout(tmp_path / "state", tmp_path / "run"), plan, lambda *words: None)
    assert tried == ["api", "web"]
