"""What the kernel is told of quotas. Whether it obeys is tried in a machine, see tests/host/vm/test_enforced.py."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.host.storage import quota
from hutch.trees.cursor import opened


def test_a_limit_as_the_kernel_reads_it() -> None:
    blocks, soft, used, files, soft_files, inodes, _, _, valid = quota.LIMITS.unpack(quota.render_limit(1 << 30))
    assert (blocks, soft, used, inodes) == (1 << 20, 1 << 20, 0, 0)
    assert files == soft_files == 1 << 18  # or files without content would use up what all share
    assert valid == quota.QIF_LIMITS
    assert quota.LIMITS.unpack(quota.render_limit(1))[0] == 1  # a limit is never rounded to none
    assert quota.LIMITS.unpack(quota.render_limit(0)) == (0,) * 8 + (quota.QIF_LIMITS,)
    assert quota.LIMITS.size == 72  # struct if_dqblk
    assert quota.ATTRIBUTES.size == 28  # struct fsxattr


def test_where_there_is_none_it_is_said_and_nothing_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "is_enforced", lambda descriptor: False)
    for kind, words in (
        ("ext4", "prjquota"),
        ("xfs", "prjquota"),
        ("btrfs", "btrfs has no project quotas"),
        ("", "its"),
    ):
        monkeypatch.setattr(quota, "type_of", lambda device, kind=kind: kind)
        assert words in quota.why_unlimited(str(tmp_path))
    before = os.stat(tmp_path)
    note = tmp_path / "note"
    quota.ensure_quota(str(tmp_path), 70_000, 1 << 20, note)
    quota.ensure_quota(str(tmp_path), 70_000, None, note)
    quota.release_quota(str(tmp_path), 70_000, is_kept=True)
    quota.ensure_quota(f"{tmp_path}/gone", 70_000, 1 << 20, note)
    assert os.stat(tmp_path).st_ctime_ns == before.st_ctime_ns
    assert quota.why_unlimited(f"{tmp_path}/gone") == ""
    assert quota.why_partly(str(tmp_path), 70_000, 1 << 20, note) == ""


class Projects:
    """A file system that counts: which project each inode is in, and what was marked, by its path, in that order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.of: dict[int, int] = {}
        self.marked: list[str] = []
        self.limit = 0
        monkeypatch.setattr(quota, "_mark", self.mark)
        monkeypatch.setattr(quota, "is_enforced", lambda descriptor: True)
        monkeypatch.setattr(quota, "read_limit", lambda descriptor, project: self.limit)
        monkeypatch.setattr(quota, "_set_limit", lambda descriptor, project, size: setattr(self, "limit", size))
        monkeypatch.setattr(quota, "_project_of", lambda descriptor: self.of.get(os.fstat(descriptor).st_ino, 0))

    def mark(self, descriptor: int, project: int) -> bool:
        inode = os.fstat(descriptor).st_ino
        before, self.of[inode] = self.of.get(inode, 0), project
        if before != project:
            self.marked.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        return before != project


@pytest.fixture
def projects(monkeypatch: pytest.MonkeyPatch) -> Projects:
    return Projects(monkeypatch)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    (home / "a" / "b").mkdir(parents=True)
    return home


def test_a_tree_is_enlisted_from_the_top_and_nothing_odd_is_opened(projects: Projects, home: Path) -> None:
    """What is made in a directory once it is marked is in the project by itself."""
    (home / "a" / "b" / "file").touch()
    os.mkfifo(home / "a" / "fifo")
    (home / "link").symlink_to("/etc")
    with opened(home) as top:
        quota._enlist(top, 70_000)
    assert projects.marked == [str(home), f"{home}/a", f"{home}/a/b", f"{home}/a/b/file"]


def test_what_is_put_out_of_the_way_of_a_walk_is_found_by_the_next(
    projects: Projects, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two levels of it: what is made at the top while it goes on was marked once, and what is in it never."""
    enlist_one = quota._enlist_one

    def moving(found: int, project: int) -> bool:
        if os.readlink(f"/proc/self/fd/{found}") == f"{home}/a/b" and not (home / "late").exists():
            (home / "late" / "inner").mkdir(parents=True)
            (home / "late" / "inner" / "file").touch()
        return enlist_one(found, project)

    monkeypatch.setattr(quota, "_enlist_one", moving)
    with opened(home) as top:
        quota._enlist(top, 70_000)
    inside = [home, *home.rglob("*")]
    assert len(inside) == 6
    assert {projects.of[path.stat().st_ino] for path in inside} == {70_000}


def test_it_is_done_once_and_again_for_another_directory(projects: Projects, home: Path, tmp_path: Path) -> None:
    note = tmp_path / "quota"
    quota.ensure_quota(str(home), 70_000, 1 << 20, note)
    assert projects.limit == 1 << 20
    assert quota.why_partly(str(home), 70_000, 1 << 20, note) == ""
    assert stat.S_IMODE(note.stat().st_mode) == 0o600
    count = len(projects.marked)
    (home / "later").touch()  # the kernel puts it there
    quota.ensure_quota(str(home), 70_000, 1 << 20, note)
    assert len(projects.marked) == count
    home.rename(tmp_path / "old")
    home.mkdir()
    quota.ensure_quota(str(home), 70_000, 1 << 20, note)
    assert projects.marked[count:] == [str(home)]


def test_a_walk_that_fails_is_told_and_not_tried_again_at_once(
    projects: Projects, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note, tries = tmp_path / "quota", 0

    def endless(top: int, *, seconds: float) -> Iterator[tuple[int, str]]:
        nonlocal tries
        tries += 1
        raise HutchError("there is no end to it")

    with monkeypatch.context() as patch:
        patch.setattr(quota, "walk", endless)
        for _ in range(3):
            quota.ensure_quota(str(home), 70_000, 1 << 20, note)
        assert tries == 1
        assert "there is no end to it" in quota.why_partly(str(home), 70_000, 1 << 20, note)
        quota.release_quota(str(home), 70_000, is_kept=True)  # holds up no purge
        assert projects.limit == 0
        assert "did not take a limit" in quota.why_partly(str(home), 70_000, 1 << 20, note)
    identity, _, why = note.read_text().split("\n")
    note.write_text(f"{identity}\n{time.time() - quota.TRY_AGAIN - 60}\n{why}")
    quota.ensure_quota(str(home), 70_000, 1 << 20, note)
    assert quota.why_partly(str(home), 70_000, 1 << 20, note) == ""
    note.write_text("damaged")
    quota.ensure_quota(str(home), 70_000, 1 << 20, note)
    assert note.read_text().endswith(quota.WHOLE)


def test_a_tree_that_is_changed_all_the_while(projects: Projects, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota, "_enlist_one", lambda found, project: True)
    with opened(home) as top, pytest.raises(HutchError, match="all the while"):
        quota._enlist(top, 70_000)


def test_the_kind_of_a_file_system() -> None:
    assert quota.type_of(os.stat("/proc").st_dev) == "proc"
    assert quota.type_of(os.makedev(4000, 7)) == ""
