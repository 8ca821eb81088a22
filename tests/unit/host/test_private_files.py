"""A private file is the host's until the workspace changes it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.host.storage.private_files import ensure_private_files, kept_files
from hutch.spec.model import Mount, WorkspaceSpec
from hutch.spec.names import Layout
from tests.unit.facts import workspace


class Scene:
    def __init__(self, directory: Path) -> None:
        self.layout = Layout(directory / "state", directory / "run")
        self.layout.workspace("web").mkdir(parents=True)
        self.source, self.home = directory / "hers.json", directory / "home"
        self.home.mkdir()
        self.copy = self.home / ".config/agent.json"
        mount = Mount(str(self.source), "/home/dev/.config/agent.json", mode="private")
        self.declared: WorkspaceSpec = workspace(owner=os.getuid(), home=str(self.home), mounts=(mount,))

    def give(self) -> str:
        ensure_private_files(self.layout, "web", self.declared, os.getgid())
        return self.copy.read_text()

    @property
    def kept(self) -> int:
        return len(kept_files(self.layout, "web", self.declared))


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    scene = Scene(tmp_path)
    scene.source.write_text("one")
    scene.source.chmod(0o600)
    return scene


def test_it_follows_the_host(scene: Scene) -> None:
    assert scene.give() == "one"
    assert scene.copy.stat().st_mode & 0o7777 == 0o600
    scene.source.write_text("two")
    assert scene.give() == scene.give() == "two"
    assert scene.kept == 0


def test_it_keeps_what_is_written_inside(scene: Scene) -> None:
    scene.give()
    scene.copy.write_text("inside")
    assert (scene.give(), scene.source.read_text(), scene.kept) == ("inside", "one", 0)
    scene.source.write_text("two")
    assert (scene.give(), scene.kept) == ("inside", 1)
    assert (scene.give(), scene.kept) == ("inside", 1)
    scene.source.write_text("inside")
    assert (scene.give(), scene.kept) == ("inside", 0)
    scene.source.write_text("three")
    assert (scene.give(), scene.kept) == ("three", 0)


def test_a_file_that_the_host_lacks_for_a_while_is_followed_again(scene: Scene) -> None:
    scene.give()
    scene.source.unlink()
    scene.give()
    scene.source.write_text("two")
    assert scene.give() == "two"


def test_what_is_gone_inside_comes_anew(scene: Scene) -> None:
    scene.give()
    scene.copy.unlink()
    assert scene.give() == "one"


def test_what_was_in_the_home_before_is_the_workspaces(scene: Scene) -> None:
    scene.copy.parent.mkdir()
    scene.copy.write_text("before")
    assert (scene.give(), scene.kept) == ("before", 1)


def test_links_of_a_guests_lead_nowhere(scene: Scene, tmp_path: Path) -> None:
    scene.copy.parent.mkdir()
    scene.copy.symlink_to(tmp_path / "elsewhere")
    ensure_private_files(scene.layout, "web", scene.declared, os.getgid())
    assert not (tmp_path / "elsewhere").exists()
    scene.copy.unlink()
    scene.copy.parent.rmdir()
    (tmp_path / "other").mkdir()
    scene.copy.parent.symlink_to(tmp_path / "other")
    with pytest.raises(HutchError, match="cannot be a copy"):
        scene.give()
    assert os.listdir(tmp_path / "other") == []


def test_another_link_to_the_copy_is_left_alone(scene: Scene) -> None:
    """A guest may have linked it to another file of its home's: that stays as it is."""
    scene.give()
    os.link(scene.copy, scene.home / "other")
    scene.source.write_text("two")
    assert (scene.give(), (scene.home / "other").read_text()) == ("two", "one")


def test_a_file_of_somebody_elses_is_not_read(scene: Scene) -> None:
    foreign = replace(scene.declared, owner=os.getuid() + 1)
    with pytest.raises(HutchError, match="belongs to uid"):
        ensure_private_files(scene.layout, "web", foreign, os.getgid())
    assert not scene.copy.exists()
