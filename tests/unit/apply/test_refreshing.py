"""The workspaces that move to an image made anew, and the editions that stay or are removed."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from hutch.apply import refreshing
from hutch.apply.refreshing import NotAllRefreshed, Refreshed
from hutch.errors import HutchError
from hutch.images.recipe import Recipe, make_recipe
from hutch.spec.model import Network
from hutch.spec.names import Layout
from hutch.spec.record import Booted, NetworkRecord, Record
from hutch.state import read_records
from tests.unit.facts import workspace

RECIPE = make_recipe("debian:trixie")
FIRST, SECOND, THIRD = (replace(RECIPE, edition=number).id for number in (1, 2, 3))
OTHER = make_recipe("debian:bookworm").id


def record(name: str, image: str, booted: str | None = None, **keys: str) -> Record:
    own = workspace(name, **keys)
    return Record(name, "/f", own, image, 1 << 30, "0" * 32, booted=Booted(own, booted) if booted else None)


RECORDS = {
    found.name: found
    for found in (
        record("new", FIRST),
        record("web", FIRST, FIRST),
        record("late", SECOND, FIRST),
        record("pet", FIRST, FIRST, persist="all"),
        record("other", OTHER, OTHER),
        replace(record("gone", FIRST, FIRST), removed=True),
    )
}


def test_who_starts_from_what() -> None:
    own = {"new": THIRD, "web": THIRD, "late": THIRD, "pet": FIRST}
    assert refreshing.targets_of(RECORDS, RECIPE, THIRD, ()) == own


def test_who_comes_from_another_recipe() -> None:
    """Such as that of an older hutch, which put other files into every image."""
    records = {**RECORDS, "kept": record("kept", OTHER, OTHER, persist="all")}
    found = refreshing.targets_of(records, RECIPE, THIRD, ("other", "kept"))
    assert (found["other"], found["kept"], found["web"]) == (THIRD, OTHER, THIRD)


def test_what_is_noted_and_what_is_removed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    layout, removed, reconciled = Layout(tmp_path / "state", tmp_path / "run"), [], []
    monkeypatch.setattr(
        refreshing, "reconcile_again", lambda layout, network, records: reconciled.append(dict(records))
    )
    monkeypatch.setattr(refreshing, "remove_image", lambda id, layout: removed.append(id))
    monkeypatch.setattr(refreshing, "whole_image", lambda layout, id: (layout.images / id).is_dir())
    for id in (FIRST, SECOND, THIRD, OTHER):
        (layout.images / id).mkdir(parents=True)
    records = {name: RECORDS[name] for name in ("web", "late", "other")}
    records["gone"] = replace(RECORDS["gone"], image=SECOND)
    refreshing.move(layout, records, RECIPE, THIRD, ())
    assert {name: found.image for name, found in read_records(layout).items()} == {"web": THIRD, "late": THIRD}
    assert [found["web"].image for found in reconciled] == [THIRD]
    assert removed == [SECOND]  # both run on the first one still
    refreshing.move(layout, records, RECIPE, THIRD, ())
    assert len(reconciled) == 1
    (layout.images / THIRD).rmdir()
    with pytest.raises(HutchError, match="was removed meanwhile"):
        refreshing.move(layout, records, RECIPE, THIRD, ())


def test_who_asks_for_another_image_by_then_is_left_alone() -> None:
    now = {
        "same": replace(RECORDS["web"], name="same", image=SECOND),
        "other": replace(RECORDS["web"], wanted=workspace("other", packages=("git",))),
    }
    before = dict.fromkeys(("same", "other", "gone"), RECORDS["web"])
    assert refreshing.unchanged(("same", "other", "gone"), before, now) == ["same"]


def test_one_that_cannot_be_made_is_no_reason_not_to_make_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each is in force before the next is begun."""
    layout, did = Layout(tmp_path / "state", tmp_path / "run"), list[str]()
    layout.state.mkdir()
    recipes = {"bad": make_recipe("debian:bookworm"), "web": RECIPE, "more": make_recipe("ubuntu:noble")}
    records = {name: record(name, recipe.id) for name, recipe in recipes.items()} | {"lost": record("lost", OTHER)}

    def recipe_for(name: str, wanted: object) -> Recipe:
        if name == "lost":
            raise HutchError("there is no tree")
        return recipes[name]

    def refresh_recipe(layout: Layout, recipe: Recipe, users: list[str], *rest: object) -> Refreshed:
        did.append(f"make {users[0]}")
        if users == ["bad"]:
            raise HutchError("the setup script failed", resolution="see its log")
        return Refreshed(recipe.id, "", (), ())

    monkeypatch.setattr(refreshing, "read_records", lambda layout: records)
    monkeypatch.setattr(refreshing, "read_network", lambda layout: NetworkRecord(Network(), ""))
    monkeypatch.setattr(refreshing, "recipes_for", lambda layout, records: recipe_for)
    monkeypatch.setattr(refreshing, "collect_leftovers", lambda layout: None)
    monkeypatch.setattr(refreshing, "recover", lambda *words: None)
    monkeypatch.setattr(refreshing, "lock", lambda layout: nullcontext())
    monkeypatch.setattr(refreshing, "refresh_recipe", refresh_recipe)
    monkeypatch.setattr(refreshing, "ask_for_updates", lambda layout, listen: did.append("ask"))
    monkeypatch.setattr(
        refreshing, "move", lambda layout, records, recipe, newest, users: did.append(f"move {users[0]}")
    )
    with pytest.raises(NotAllRefreshed) as caught:
        refreshing.refresh(layout, ["lost", *recipes], lambda *words: None, lambda *words: None)
    assert did == ["make bad", "make web", "move web", "make more", "move more", "ask"]
    assert [each.id for each in caught.value.done] == [recipes["web"].id, recipes["more"].id]
    assert caught.value.brief == "lost: there is no tree" and "the setup script failed" in caught.value.details
