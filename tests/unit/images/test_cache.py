"""The cache as it lies on disk: what counts as an image, and who may touch it."""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.host.services import lock
from hutch.host.services.lock import Busy
from hutch.images.cache import collect_leftovers, locked, remove_image
from hutch.images.recipe import make_recipe
from hutch.images.record import observe_image, observe_images, parse_image, render_image
from hutch.spec.names import Layout

RECIPE = make_recipe("debian:trixie", ("git",), "true")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "state", tmp_path / "run")
    layout.images.mkdir(parents=True)
    return layout


def publish(layout: Layout) -> Path:
    directory = layout.images / RECIPE.id
    directory.mkdir()
    (directory / "image.json").write_bytes(render_image(RECIPE, "2025-01-01T00:00:00+00:00", 4096))
    return directory


def test_no_cache_is_an_empty_one(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "absent", tmp_path / "run")
    assert observe_images(layout) == ()
    assert collect_leftovers(layout) == ()
    remove_image(RECIPE.id, layout)


def test_what_was_written_is_read(layout: Layout) -> None:
    directory = publish(layout)
    (image,) = observe_images(layout)
    assert (image.id, image.image, image.packages, image.setup) == (RECIPE.id, "debian:trixie", ("git",), "true")
    assert (image.size, image.root) == (4096, directory / "root")


def test_locks_and_unfinished_builds_are_no_images(layout: Layout) -> None:
    (layout.images / f".build-{RECIPE.id}").mkdir()
    (layout.images / f"{RECIPE.id}.lock").touch()
    assert observe_images(layout) == ()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}', '{"format": 2}'])
def test_a_damaged_record_is_not_taken_for_no_image(layout: Layout, text: str) -> None:
    (publish(layout) / "image.json").write_text(text)
    with pytest.raises(HutchError, match="damaged") as caught:
        observe_image(layout, RECIPE.id)
    assert RECIPE.id in caught.value.resolution
    (image,) = observe_images(layout)  # so that it can be seen and removed
    assert (image.id, image.image) == (RECIPE.id, "damaged")


def test_an_image_without_a_record_is_damaged_too(layout: Layout) -> None:
    (publish(layout) / "image.json").unlink()
    with pytest.raises(HutchError, match="damaged"):
        observe_image(layout, RECIPE.id)
    assert [image.image for image in observe_images(layout)] == ["damaged"]


@pytest.mark.parametrize("format", [0, 3, "1", None])
def test_a_record_of_another_format_is_refused(format: object) -> None:
    with pytest.raises(ValueError, match="format"):
        parse_image(RECIPE.id, Path("/root"), json.dumps({"format": format}).encode())


@pytest.mark.parametrize(("key", "value"), [("sources", []), ("size", float("inf")), ("recipe", 5)])
def test_a_record_of_another_shape_is_damaged_and_stops_nobody(layout: Layout, key: str, value: object) -> None:
    record = json.loads(render_image(RECIPE, "2025-01-01T00:00:00+00:00", 4096)) | {key: value}
    image_file = layout.images / RECIPE.id / "image.json"
    image_file.parent.mkdir(parents=True)
    image_file.write_text(json.dumps(record))
    assert [image.image for image in observe_images(layout)] == ["damaged"]
    assert observe_images(layout, among=["another"]) == ()


def test_an_image_knows_what_it_was_made_from() -> None:
    sources = (("deb.debian.org/debian/dists/trixie", "2026-11-21T09:15:44+00:00"), ("/srv/tree", ""))
    image = parse_image(RECIPE.id, Path("/root"), render_image(RECIPE, "2026-11-27T12:00:00+00:00", 1, "abc", sources))
    assert (image.digest, set(image.sources)) == ("abc", set(sources))


def test_a_record_of_an_older_hutch_says_nothing_of_sources() -> None:
    older = json.dumps({"format": 1, "recipe": RECIPE.as_json(), "created": "2025-01-01T00:00:00+00:00", "size": 7})
    image = parse_image(RECIPE.id, Path("/root"), older.encode())
    assert (image.created, image.digest, image.sources) == ("2025-01-01T00:00:00+00:00", "", ())


def test_a_lock_is_held_by_one(layout: Layout) -> None:
    with locked(layout, RECIPE.id), pytest.raises(BlockingIOError), locked(layout, RECIPE.id, wait=False):
        pass
    with locked(layout, RECIPE.id, wait=False):
        pass


def test_a_lock_leaves_nothing_behind(layout: Layout) -> None:
    with locked(layout, RECIPE.id):
        assert list(layout.images.iterdir())
    assert not list(layout.images.iterdir())


def test_whoever_waited_gets_a_lock_of_their_own(layout: Layout) -> None:
    holder = ExitStack()
    holder.enter_context(locked(layout, RECIPE.id))
    waited = locked(layout, RECIPE.id, waiting=holder.close)
    with waited, pytest.raises(BlockingIOError), locked(layout, RECIPE.id, wait=False):
        pass


def test_a_build_is_waited_for_until_a_deadline_and_named(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("hutch.images.cache.PATIENCE", 0.2)
    monkeypatch.setattr(lock, "POLITE", 0.0)
    monkeypatch.setattr(lock, "listener", told.append)
    with locked(layout, "network"), pytest.raises(Busy, match=f"pid {os.getpid()}"), locked(layout, "network"):
        pass
    assert len(told) == 1
    assert f"(pid {os.getpid()}, since " in told[0]


def test_a_running_build_is_no_leftover(layout: Layout) -> None:
    (layout.images / f".build-{RECIPE.id}").mkdir()
    with locked(layout, RECIPE.id):
        assert collect_leftovers(layout) == ()
    assert (layout.images / f".build-{RECIPE.id}").exists()


@pytest.mark.parametrize("id", ["", "..", "../../etc-0123456789ab", "network"])
def test_only_an_id_is_removed(layout: Layout, id: str) -> None:
    with pytest.raises(HutchError, match="not the id"):
        remove_image(id, layout)
