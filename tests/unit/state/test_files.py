"""Small files are replaced whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hutch.files import read_or_none, write_atomic


def test_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    old = os.umask(0o077)
    try:
        write_atomic(path, b"new")
        write_atomic(tmp_path / "secret", b"", mode=0o600)
    finally:
        os.umask(old)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o7777 == 0o644
    assert (tmp_path / "secret").stat().st_mode & 0o7777 == 0o600


def test_owner_and_mode_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o4751)
    owners: list[tuple[int, int]] = []
    monkeypatch.setattr("hutch.files.os.fchown", lambda _, uid, gid: owners.append((uid, gid)))
    write_atomic(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o7777 == 0o4751
    assert owners == [(os.getuid(), os.getgid())]


def test_a_killed_runs_leftover_goes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    leftover = tmp_path / ".file.hutch-new"
    leftover.symlink_to("/dev/full")
    write_atomic(path, b"new")
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("call", ["fsync", "rename", "fchmod"])
def test_a_failure_leaves_the_old_content_alone(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"hutch.files.os.{call}", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"new")
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == b"old"


def test_a_directory_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomic(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == ["file"]


def test_read_or_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    assert read_or_none(tmp_path / "file") == b"x"
    assert read_or_none(tmp_path / "absent") is None
    assert read_or_none(tmp_path / "file" / "below") is None
