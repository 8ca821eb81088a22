"""What the kernel is told of quotas. Whether it obeys is tried in a machine, see tests/host/vm/test_enforced.py."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hutch.host import quota
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
    quota.ensure_quota(str(tmp_path), 70_000, 1 << 20)
    quota.ensure_quota(str(tmp_path), 70_000, None)
    quota.release_quota(str(tmp_path), 70_000, is_kept=True)
    quota.ensure_quota(f"{tmp_path}/gone", 70_000, 1 << 20)
    assert os.stat(tmp_path).st_ctime_ns == before.st_ctime_ns
    assert quota.why_unlimited(f"{tmp_path}/gone") == ""


def test_a_tree_is_enlisted_from_the_bottom_and_nothing_odd_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The top comes last: by it one knows that the rest is done."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "file").touch()
    os.mkfifo(tmp_path / "a" / "fifo")
    (tmp_path / "link").symlink_to("/etc")
    marked: list[str] = []
    monkeypatch.setattr(quota, "_mark", lambda fd, project: marked.append(os.readlink(f"/proc/self/fd/{fd}")))
    with opened(tmp_path) as top:
        quota._enlist(top, 70_000)
    assert sorted(marked[:3]) == [f"{tmp_path}/a", f"{tmp_path}/a/b", f"{tmp_path}/a/file"]
    assert marked[3:] == [str(tmp_path), f"{tmp_path}/a"]


def test_the_kind_of_a_file_system() -> None:
    assert quota.type_of(os.stat("/proc").st_dev) == "proc"
    assert quota.type_of(os.makedev(4000, 7)) == ""
