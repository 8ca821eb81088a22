"""What is mounted again, what is looked at once more, and what the watch makes of a look that fails."""

from __future__ import annotations

import errno
import os
import select
import threading
from pathlib import Path

import pytest

from hutch.failure import HutchError
from hutch.host.storage import protecting, protection_watch
from hutch.host.storage.protecting import LOOKS, Share, Way
from hutch.host.storage.protection_watch import AGAIN, SELDOM, Names, Watched, await_change, mount_missing, watch
from hutch.inotify import Inotify

SHARE = Share("/place", "/source", "1000", "1000", "/note", "web", "default")


@pytest.fixture
def mounts(monkeypatch: pytest.MonkeyPatch) -> list[list[Way]]:
    """The ways whose mounts were asked for, by each call."""
    called: list[list[Way]] = []

    def mount_missing(place: str, ways: list[Way], *, files_only: bool = False) -> bool:
        assert files_only == (len(called) % 2 == 0)
        called.append(ways)
        return ("vanishing",) not in ways

    monkeypatch.setattr(protection_watch, "mount_missing", mount_missing)
    return called


def look_with(monkeypatch: pytest.MonkeyPatch, found: Exception | list[Way]) -> None:
    def hold() -> list[Way]:
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(SHARE, "hold", hold)


def test_what_was_protected_comes_before_a_look(monkeypatch: pytest.MonkeyPatch, mounts: list[list[Way]]) -> None:
    """That follows what the guest writes: however it ends, this has been mounted."""
    watched = Watched(SHARE, Names())
    look_with(monkeypatch, [("a",)])
    assert watched.is_renewed()
    look_with(monkeypatch, [("vanishing",)])
    assert not watched.is_renewed()
    look_with(monkeypatch, RecursionError())
    with pytest.raises(RecursionError):
        watched.is_renewed()
    assert mounts == [[], [("a",)], [("a",)], [("vanishing",)], [("vanishing",)]]


def test_what_changes_meanwhile_is_looked_at_again(monkeypatch: pytest.MonkeyPatch, mounts: list[list[Way]]) -> None:
    look_with(monkeypatch, FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))
    assert not Watched(SHARE, Names()).is_renewed()


@pytest.mark.parametrize("error", [OSError(errno.EPERM, "no"), HutchError("no", resolution="do")])
def test_what_cannot_be_is_said(monkeypatch: pytest.MonkeyPatch, mounts: list[list[Way]], error: Exception) -> None:
    look_with(monkeypatch, error)
    with pytest.raises(SystemExit, match="no"):
        Watched(SHARE, Names()).is_renewed()


TOP = "20 1 0:1 / / rw - ext4 x rw\n30 20 0:1 /source /place rw - ext4 x rw\n"
A = "31 30 0:1 /source/.a /place/.a rw - ext4 x rw\n"
X = "32 31 0:1 /source/.a/x /place/.a/x ro - ext4 x rw\n"
GIT = "33 30 0:1 /source/.git /place/.git ro - ext4 x rw\n"
OVER = "34 31 0:1 /source/.a /place/.a rw - ext4 x rw\n"  # it hides what is mounted in the one below
WRITABLE = "33 30 0:1 /source/.git /place/.git rw - ext4 x rw\n"


@pytest.mark.parametrize(
    ("mounts", "failing", "mounted"),
    [
        ("", None, ""),
        (TOP + A + X + GIT, None, ""),
        (TOP, None, ".a .a/x .git"),
        (TOP + A + GIT, ".a/x", ""),
        (TOP, ".a/x", ".a .git"),
        (TOP, ".a", ".git"),  # .a/x would be hidden by .a later
        (TOP + A + X + OVER + GIT, None, ".a/x"),
        (TOP + GIT + X.replace("31 ", "30 ", 1), None, ".a .a/x"),
        (TOP + A + X + WRITABLE, None, ".git"),
    ],
    ids="taken away|all there|nothing there|a file vanishes|a new one vanishes|a directory vanishes|hidden|without its"
    " directory|writable".split("|"),
)
def test_what_is_missing_is_mounted(
    monkeypatch: pytest.MonkeyPatch, mounts: str, failing: str | None, mounted: str
) -> None:
    """A guest can have what sorts before the rest come and go."""
    found: list[str] = []

    def mount_pair(place: str, way: Way, *, is_readonly: bool) -> None:
        assert is_readonly == (way != (".a",))
        if "/".join(way) == failing:
            raise FileNotFoundError(errno.ENOENT, "it")
        found.append("/".join(way))

    monkeypatch.setattr(protection_watch, "mount_pair", mount_pair)
    monkeypatch.setattr(protection_watch, "observe_mountinfo", lambda: mounts)
    assert mount_missing("/place", [(".a", "x"), (".git",)]) is not bool(failing)
    assert " ".join(found) == mounted


def test_a_directory_waits_for_the_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where the host has made one of a file, a part of it may be protected, and all else must be open to work."""
    found: list[str] = []
    (tmp_path / ".git").mkdir()
    (tmp_path / ".a").mkdir()
    (tmp_path / ".a/x").symlink_to(tmp_path)
    monkeypatch.setattr(protection_watch, "mount_pair", lambda place, way, **how: found.append("/".join(way)))
    monkeypatch.setattr(protection_watch, "observe_mountinfo", lambda: TOP.replace("/place", str(tmp_path)))
    assert mount_missing(str(tmp_path), [(".a", "x"), (".git",)], files_only=True)
    assert found == [".a", ".a/x"]


def test_no_link_is_followed_in_the_place_of_what_was_protected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It may lead to a file system that does not answer, and nothing would be mounted again meanwhile."""
    (tmp_path / "a").symlink_to(tmp_path)
    (tmp_path / ".git").symlink_to(tmp_path)
    found: list[str] = []
    monkeypatch.setattr(protection_watch, "mount_pair", lambda place, way, **how: found.append("/".join(way)))
    monkeypatch.setattr(protection_watch, "observe_mountinfo", lambda: TOP.replace("/place", str(tmp_path)))
    with monkeypatch.context() as patch:
        patch.delattr(os, "stat")  # it follows links
        mount_missing(str(tmp_path), [("a", "x"), (".git",)], files_only=True)
    assert found == [".git", "a", "a/x"]


def test_a_look_comes_again_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then only the end of the process counts: mounts change by the look itself."""
    process, looks, waited = os.pidfd_open(os.getpid()), iter((True, False)), []

    class Poll:
        def __init__(self) -> None:
            self.count = 0

        def register(self, what: object, events: int) -> None:
            self.count += 1

        def poll(self, timeout: int | None = None) -> list[tuple[int, int]]:
            waited.append((self.count, timeout))
            return [(process, 1)] if timeout is None else []

    def look(watched: Watched) -> bool:
        return not next(looks)

    monkeypatch.setattr("select.poll", Poll)
    monkeypatch.setattr(os, "pidfd_open", lambda pid: process)
    monkeypatch.setattr(Watched, "is_renewed", look)
    watch([SHARE], os.getpid())
    assert waited == [(1, AGAIN), (3, None)]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/config").touch()
    return tmp_path


def test_a_name_that_comes_or_goes_is_told_of(place: Path) -> None:
    """All others are the guest's daily work."""
    names = Names()
    names.follow(str(place), [(".git", "config"), (".envrc",), ("gone", "x")])
    assert names.patience is None
    (place / ".git/index").touch()
    (place / ".git/config").write_text("[a]")
    assert not names.has_changed()
    for change in (
        lambda: (place / ".git/config").rename(place / ".git/config~"),
        (place / ".git/config").touch,
        lambda: (place / ".git/config~").rename(place / ".git/config"),
        (place / ".envrc").mkdir,
        lambda: (place / ".git").rename(place / "elsewhere"),
    ):
        change()
        assert names.has_changed()
        assert not names.has_changed()


def test_it_waits_for_those_only(place: Path) -> None:
    names, poll = Names(), select.poll()
    names.follow(str(place), [(".git", "config")])
    assert names.told is not None
    poll.register(names.told, select.POLLIN)
    (place / ".git/index").touch()
    timer = threading.Timer(0.05, (place / ".git/config").unlink)
    timer.start()
    assert await_change(poll, names) == {names.told.fileno()}
    timer.join()
    assert not (place / ".git/config").exists()


@pytest.mark.parametrize(("call", "error"), [("__init__", errno.EMFILE), ("add", errno.ENOSPC)])
def test_where_the_kernel_tells_of_no_more(monkeypatch: pytest.MonkeyPatch, place: Path, call: str, error: int) -> None:
    """It looks now and then."""

    def refuse(*arguments: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(Inotify, call, refuse)
    names = Names()
    names.follow(str(place), [(".git", "config")])
    assert (names.patience, names.has_changed()) == (SELDOM, False)
    names.patience = 1
    assert await_change(select.poll(), names) == set()


@pytest.mark.parametrize("tries", [1, 2, LOOKS + 1])
def test_what_vanishes_is_looked_for_again(monkeypatch: pytest.MonkeyPatch, tries: int) -> None:
    """But not for ever, and then it is taken as it was."""
    seen: list[str] = []

    def find(source: str, more: object, *, is_default: bool) -> dict[str, str]:
        seen.append(source)
        return {f"/source/{len(seen)}": ""}

    monkeypatch.setattr(protecting, "find_protected", find)
    monkeypatch.setattr(protecting, "ensure_placeholders", lambda *arguments: len(seen) == tries)
    assert SHARE.hold() == [(str(min(tries, LOOKS)),)]
