"""Whose is a workspace: of several files, of one that was renamed, of one whose directory was moved."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hutch.api.engine import Hutch
from hutch.apply import ownership
from hutch.apply.ownership import directories_to, origin_of, orphans
from hutch.apply.repairing import declared_network
from hutch.errors import HutchError, UsageError
from hutch.spec.model import Config, Mount, Network
from hutch.spec.names import Layout
from hutch.spec.reading import Judge
from hutch.spec.record import Record
from hutch.state import Damaged, copy_of, read_record, write_record
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


# A file that a guest could write.


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A hutch whose caller is root, with a workspace `bad` that can write in `share`."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    layout = Layout(tmp_path / "state", tmp_path / "run")
    share = tmp_path / "share"
    share.mkdir()
    bad = workspace("bad", home=str(tmp_path / "home"), mounts=(Mount(str(share), "/srv/s"),))
    write_record(layout, Record("bad", "/f", bad, "image-1", 0x7000_0000, "0" * 32))
    return layout


def write_file(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    file = directory / "hutch.toml"
    file.write_text("")
    file.chmod(0o644)
    return file


@pytest.mark.parametrize("place", ["share", "share/deep", "home"])
def test_root_obeys_no_file_that_a_guest_can_write(layout: Layout, tmp_path: Path, place: str) -> None:
    file = write_file(tmp_path / place)
    directory = tmp_path / place.split("/")[0]
    with pytest.raises(UsageError, match=f"workspace bad can write in {directory}") as caught:
        Hutch(layout).load(file)
    assert f"take {directory} from bad" in str(caught.value.resolution)
    assert Hutch(layout).load(write_file(tmp_path / "other")).workspaces == {}


def test_it_lies_there_by_every_way(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link in the share, a link to it, a relative path; also when a record is damaged, or its workspace removed."""
    outside, share = write_file(tmp_path / "outside"), tmp_path / "share"
    (share / "hutch.toml").symlink_to("../outside/hutch.toml")
    (share / "way").symlink_to(tmp_path / "outside")
    (tmp_path / "linked").symlink_to("share/way")
    monkeypatch.chdir(share)
    for path in (share / "hutch.toml", tmp_path / "linked" / "hutch.toml", None, Path("../share/../share/hutch.toml")):
        with pytest.raises(UsageError, match="workspace bad can write"):
            Hutch(layout).load(path)
    Hutch(layout).load(outside)
    layout.record("bad").write_text("{")
    with pytest.raises(UsageError, match="workspace bad can write"):
        Hutch(layout).load(None)
    Hutch(layout).load(outside)
    copy_of(layout.record("bad")).unlink()
    with pytest.raises(Damaged):
        Hutch(layout).load(outside)


def test_a_removed_workspace_may_have_written_it(layout: Layout, tmp_path: Path) -> None:
    found = read_record(layout, "bad")
    assert found is not None
    write_record(layout, replace(found, removed=True))
    with pytest.raises(UsageError, match="workspace bad could write") as caught:
        Hutch(layout).load(write_file(tmp_path / "home"))
    assert str(caught.value.resolution).endswith(": `hutch rm --purge bad`")  # a home of one's own stays
    home = layout.home("bad")
    write_record(layout, replace(found, removed=True, wanted=replace(found.wanted, home=str(home))))
    home.mkdir()
    with pytest.raises(UsageError, match="workspace bad could write") as caught:
        Hutch(layout).load(write_file(home))
    assert str(caught.value.resolution).endswith(f"`hutch rm --purge bad`, which deletes its kept home {home}")


def test_an_ejected_workspace_writes_on(layout: Layout, tmp_path: Path) -> None:
    found = read_record(layout, "bad")
    assert found is not None
    write_record(layout, replace(found, removed=True, ejected="/srv/bad"))
    with pytest.raises(UsageError, match="workspace bad can write") as caught:
        Hutch(layout).load(write_file(tmp_path / "share"))
    assert "/srv/bad/remove, which takes bad off this host" in str(caught.value.resolution)


def test_what_is_checked_is_what_is_read(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link may lead elsewhere as soon as it was checked, or only while it was."""
    good, bad, link = write_file(tmp_path / "good"), write_file(tmp_path / "share"), tmp_path / "link"
    check = ownership.Writers.check

    def lead_to(file: Path) -> None:
        link.unlink(missing_ok=True)
        link.symlink_to(file)

    def check_and_flip(*what: Any) -> Judge:
        judge = check(*what)
        lead_to(bad)
        return judge

    def flip_and_check(*what: Any) -> Judge:
        lead_to(good)
        return check(*what)

    lead_to(good)
    monkeypatch.setattr(ownership.Writers, "check", check_and_flip)
    assert Hutch(layout).load(link).file == str(good)
    monkeypatch.setattr(ownership.Writers, "check", flip_and_check)
    with pytest.raises(UsageError, match=f"{link}: workspace bad can write"):
        Hutch(layout).load(link)


def test_the_network_of_a_file_that_a_guest_can_write_is_not_believed(layout: Layout, tmp_path: Path) -> None:
    text = '[network]\nsubnet = "10.9.0.0/24"\n'
    subnets = []
    for place in ("other", "share"):
        file = write_file(tmp_path / place)
        file.write_text(text)
        subnets.append(declared_network(layout, file).subnet)
    assert subnets == ["10.9.0.0/24", Network().subnet]


def test_links_without_an_end(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert str(tmp_path) in set(directories_to(str(tmp_path / "loop")))
