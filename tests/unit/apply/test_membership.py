"""What members may use of the host."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hutch.apply.membership import check_tree


@pytest.fixture
def lstat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Root's directories, down to the test's own; what is in `carol` is a member's."""
    real, member = os.lstat, os.getuid() + 4321

    def lstat(path: Path) -> os.stat_result:
        found, uid = real(path), member if path.is_relative_to(tmp_path / "carol") else os.getuid()
        return os.stat_result((found.st_mode & ~0o022, *found[1:4], uid, 0, *found[6:10]))

    monkeypatch.setattr("hutch.files.os.lstat", lstat)


@pytest.mark.usefixtures("lstat")
def test_a_members_link_to_a_tree_of_roots_is_not_the_tree(tmp_path: Path) -> None:
    """They can have it lead elsewhere before root reads it."""
    (tmp_path / "trees/one").mkdir(parents=True)
    (tmp_path / "carol").mkdir()
    (tmp_path / "carol/tree").symlink_to(tmp_path / "trees/one")
    (tmp_path / "usual").symlink_to("trees/one")
    assert check_tree(str(tmp_path / "trees/one")) == check_tree(str(tmp_path / "usual")) == ""
    assert check_tree(str(tmp_path / "carol/tree")) == f"can be changed at {tmp_path}/carol by others than root"
