"""`up` builds images before it takes the lock, so it looks again once it has it."""

from __future__ import annotations

from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest

from hutch.api import Hutch
from hutch.apply import planning
from hutch.apply.planning import TakesLong
from hutch.apply.up import apply_plan
from hutch.errors import HutchError, Unmet
from hutch.host.services.lock import lock, lock_if_free
from hutch.plan.actions import Action, Affected, Plan, Wanted
from hutch.spec.model import Config, Network
from hutch.spec.names import Layout
from hutch.state import journaled
from tests.unit.facts import NETWORK, workspace

CONFIG = Config(file="/f", network=NETWORK, workspaces={"web": workspace()})


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done, in words; every effect is replaced by a word."""
    words: list[str] = []
    plan = Plan("/f", NETWORK, (Action("web", "create", wanted=Wanted(workspace(), "image-1")),))
    monkeypatch.setattr("hutch.apply.planning.make_plan", lambda *arguments, **keys: plan)
    monkeypatch.setattr("hutch.apply.up.look", lambda layout: ExitStack())
    monkeypatch.setattr("hutch.apply.up.ensure_images", lambda *arguments: words.append("build"))
    monkeypatch.setattr("hutch.apply.reconcile.first_network", lambda layout, **needed: nullcontext())
    monkeypatch.setattr("hutch.apply.up.recover", lambda layout, listen: words.append("recover"))
    monkeypatch.setattr("hutch.apply.up.apply_plan", lambda *arguments, **keys: words.append("apply"))
    return words


def in_cache(monkeypatch: pytest.MonkeyPatch, *answers: bool) -> None:
    found: list[Any] = list(answers)
    monkeypatch.setattr("hutch.apply.inspecting.whole_image", lambda layout, id: found.pop(0))


def test_an_image_that_went_meanwhile_is_built_again(
    done: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_cache(monkeypatch, False, False, False, False, True)  # at once; before each build, and after it under the lock
    Hutch(Layout(tmp_path / "state", tmp_path / "run")).up(CONFIG)
    assert done == ["recover", "build", "recover", "build", "recover", "apply"]


def test_a_plan_is_made_once_where_nothing_has_to_be_done_before(
    done: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_cache(monkeypatch, True)
    Hutch(Layout(tmp_path / "state", tmp_path / "run")).up(CONFIG)
    assert done == ["recover", "apply"]


def test_nobody_is_asked_with_the_lock_held(done: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    in_cache(monkeypatch, True, True)
    layout, restart = Layout(tmp_path / "state", tmp_path / "run"), Affected(("ssh",), None)
    plan = Plan("/f", NETWORK, (Action("web", "restart", wanted=Wanted(workspace(), "image-1"), affected=restart),))
    monkeypatch.setattr("hutch.apply.planning.make_plan", lambda *arguments, **keys: plan)

    def ask(plan: Plan) -> None:
        with lock_if_free(layout) as is_free:
            done.append("asked" if is_free else "asked with the lock held")

    Hutch(layout).up(CONFIG, confirm=ask)
    assert done == ["recover", "asked", "build", "recover", "apply"]


@pytest.mark.parametrize("obstacle", ["busy", "unfinished", "unsaved"])
def test_a_plan_is_made_again_where_it_cannot_be_carried_out_at_once(
    obstacle: str, done: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    in_cache(monkeypatch, True, True)
    layout, make = Layout(tmp_path / "state", tmp_path / "run"), planning.make_plan

    def make_in_haste(*arguments: Any, **keys: Any) -> Plan:
        if obstacle == "unsaved" and keys.get("looking"):
            raise TakesLong
        assert not keys.get("looking")
        return make(*arguments, **keys)

    monkeypatch.setattr("hutch.apply.planning.make_plan", make_in_haste)
    with ExitStack() as somebody:
        if obstacle == "busy":
            somebody.enter_context(lock(layout))
            monkeypatch.setattr("hutch.apply.up.ensure_images", lambda *arguments: somebody.close())
        elif obstacle == "unfinished":
            layout.state.mkdir()
            somebody.enter_context(journaled(layout, "up", ("web",)))
        Hutch(layout).up(CONFIG)
    assert done[-2:] == ["recover", "apply"]


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
