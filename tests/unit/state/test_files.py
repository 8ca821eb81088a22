"""Small files are replaced whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from hutch.files import open_to_others, read_or_none, write_atomic


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


PLACES: dict[str, tuple[int, int] | str] = {
    "/": (0, 0o755),
    "/srv": (0, 0o755),
    "/srv/own": (0, 0o700),
    "/srv/group": (0, 0o775),
    "/srv/group/own": (0, 0o755),
    "/srv/alice": (1000, 0o755),
    "/srv/alice/own": (0, 0o755),
    "/srv/ours": (0, 0o775),
    "/srv/link": "own",
    "/srv/away": "alice/../../tmp/../srv/own",
    "/srv/up": "../srv/alice/own",
    "/srv/loop": "loop",
    "/srv/here": ".",
    "/tmp": (0, 0o1777),
    "/tmp/own": (0, 0o755),
    "/tmp/alice": (1000, 0o700),
    "/tmp/planted": "/srv/own",
    "/tmp/here": ".",
}
"""What is there: (owner, mode) of directories, and targets of links; /tmp/planted is alice's, all others are root's.
The group of /srv/ours is root's too."""


@pytest.mark.parametrize(
    ("path", "loose"),
    [
        ("/srv/own", None),
        ("/srv/own/not/yet", None),
        ("/srv/ours/not/yet", None),
        ("/srv/link", None),
        ("/srv/here/link/x", None),
        ("/tmp/own", None),
        ("/tmp/own/not/yet", None),
        ("/srv/group", "/srv/group"),
        ("/srv/group/own", "/srv/group"),
        ("/srv/alice/own", "/srv/alice"),
        ("/srv/away/x", "/srv/alice"),
        ("/srv/up", "/srv/alice"),
        ("/srv/loop", "/srv/loop"),
        ("/tmp", "/tmp"),
        ("/tmp/here", "/tmp"),
        ("/tmp/not", "/tmp"),
        ("/tmp/not/yet", "/tmp"),
        ("/tmp/alice/x", "/tmp/alice"),
        ("/tmp/planted", "/tmp/planted"),
    ],
)
def test_others_may_be_able_to_change_what_leads_to_a_path(
    path: str, loose: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lstat(at: Path) -> SimpleNamespace:
        found = PLACES.get(str(at))
        if found is None:
            raise FileNotFoundError
        if isinstance(found, str):
            return SimpleNamespace(st_uid=1000 if at.name == "planted" else 0, st_mode=stat.S_IFLNK | 0o777)
        group = 0 if at.name == "ours" else 50
        return SimpleNamespace(st_uid=found[0], st_gid=group, st_mode=stat.S_IFDIR | found[1])

    monkeypatch.setattr("hutch.files.os.getuid", lambda: 0)
    monkeypatch.setattr("hutch.files.os.lstat", lstat)
    monkeypatch.setattr("hutch.files.os.readlink", lambda at: PLACES[str(at)])
    assert open_to_others(Path(path)) == (None if loose is None else Path(loose))
