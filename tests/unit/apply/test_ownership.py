"""Whose is a workspace: of several files, of one that was renamed, of one whose directory was moved."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest

from hutch.apply import ownership
from hutch.apply.ownership import origin_of, orphans
from hutch.errors import HutchError
from hutch.spec.model import Config
from hutch.spec.record import Record
from tests.unit.facts import NETWORK, workspace


def declaring(file: Path, *names: str) -> Config:
    return Config(str(file), NETWORK, {name: workspace(name) for name in names})


def record(file: Path, name: str = "web", *, removed: bool = False) -> dict[str, Record]:
    """As it was written down when `file` brought it up."""
    origin = origin_of(str(file))
    found = Record(name, str(file), workspace(), "image-1", 0x7000_0000, "0" * 32, removed=removed, origin=origin)
    return {name: found}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project's file."""
    file = tmp_path / "project" / "hutch.toml"
    file.parent.mkdir()
    file.touch()
    return file


def former_paths(config: Config, records: dict[str, Record]) -> set[str]:
    return ownership.former_paths(config, records, origin_of(config.file), os.path.exists)


def check_ownership(
    config: Config, records: dict[str, Record], former: Collection[str], *, adopt: bool = False
) -> None:
    ownership.check_ownership(config, records, former, os.path.exists, adopt=adopt)


def refused(config: Config, records: dict[str, Record]) -> str:
    former = former_paths(config, records)
    with pytest.raises(HutchError) as caught:
        check_ownership(config, records, former)
    assert "--adopt" in caught.value.resolution
    check_ownership(config, records, former, adopt=True)
    return caught.value.details


def taken_along(config: Config, records: dict[str, Record]) -> bool:
    former = former_paths(config, records)
    check_ownership(config, records, former)
    return bool(former)


def test_another_file_is_refused(project: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.touch()
    assert refused(declaring(other, "web"), record(project)) == f"web belongs to {project}"
    check_ownership(declaring(other, "lab"), record(project), ())
    check_ownership(declaring(other, "web"), record(project, removed=True), ())


def test_a_file_that_is_gone_is_not_forgotten(project: Path, tmp_path: Path) -> None:
    """Its disk may not be mounted, or it is a checkout of another branch."""
    records, other = record(project), tmp_path / "other.toml"
    other.touch()
    project.unlink()
    assert refused(declaring(other, "web"), records) == f"web belongs to {project}, which is gone"


def test_a_renamed_file(project: Path) -> None:
    records, renamed = record(project) | record(project, "lab"), project.with_name("machines.toml")
    project.rename(renamed)
    config = declaring(renamed, "web")
    assert taken_along(config, records)
    assert list(orphans(config, records, former_paths(config, records))) == ["lab"]
    assert former_paths(declaring(renamed, "new"), records) == set()  # it has nothing in common with what it was


def test_a_moved_directory_whose_file_was_edited(project: Path, tmp_path: Path) -> None:
    """Editors write a new file and rename it, so its inode is another one."""
    records = record(project)
    project.with_name("new").touch()
    project.with_name("new").rename(project)
    moved = project.parent.rename(tmp_path / "elsewhere") / "hutch.toml"
    assert taken_along(declaring(moved, "web"), records)


def test_a_disk_that_is_not_there_is_no_move(project: Path, tmp_path: Path) -> None:
    """The directory is still there, which the disk was mounted on; another disk has one with the same number."""
    records, other = record(project), tmp_path / "other" / "hutch.toml"
    other.parent.mkdir()
    other.touch()
    project.unlink()
    twin = {"web": replace(records["web"], origin=(1, origin_of(str(other))[1]))}
    assert refused(declaring(other, "web"), twin) == f"web belongs to {project}, which is gone"


def test_an_inode_that_is_used_again_is_another_file(tmp_path: Path) -> None:
    seen, file = set(), tmp_path / "hutch.toml"
    for _ in range(20):
        file.touch()
        seen.add(origin_of(str(file))[0])
        file.unlink()
    assert len(seen) == 20 or seen == {0}
    assert origin_of(str(file))[0] == 0


def test_what_is_known_of_no_origin(project: Path, tmp_path: Path) -> None:
    records, other = record(project), tmp_path / "other.toml"
    other.touch()
    project.unlink()
    refused(declaring(other, "web"), {"web": replace(records["web"], origin=())})


def test_a_neighbour_does_not_inherit(project: Path) -> None:
    """Of two files in one directory, the one that stays has nothing to do with what the other one declared."""
    records, other = record(project), project.with_name("other.toml")
    other.touch()
    project.unlink()
    config = declaring(other, "lab")
    assert former_paths(config, records) == set()
    assert list(orphans(config, records, ())) == []


def test_orphans_are_those_of_the_file(project: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.touch()
    records = record(project) | record(other, "lab") | record(project, "old", removed=True)
    assert list(orphans(declaring(project, "new"), records, ())) == ["web"]
