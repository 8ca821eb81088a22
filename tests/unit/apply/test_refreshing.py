"""The workspaces that move to an image made anew, and the editions that stay or are removed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hutch.apply import refreshing
from hutch.errors import HutchError
from hutch.images.recipe import make_recipe
from hutch.spec.names import Layout
from hutch.spec.record import Booted, Record
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
