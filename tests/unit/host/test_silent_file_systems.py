"""No look at a shared checkout asks a file system that may not answer for what a guest names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.host.storage import guest_paths
from hutch.host.storage.protected import checkouts_around
from hutch.host.storage.share_checks import protected_around
from hutch.trees.cursor import open_strictly
from tests.unit.facts import workspace
from tests.unit.host.checkouts import NAMES, found, make_git_directory, make_worktree


@pytest.fixture
def net(top: Path) -> Iterator[Path]:
    """A directory that is taken for a server's. Afterwards, nobody has asked for it or what is in it, by any path."""
    place = top.parent / "net"
    (place / "evil").mkdir(parents=True)
    types = {top.parent: "autofs", top: "ext4", place: "nfs4"}
    mounts = "".join(f"1 0 0:{n} / {point} rw - {type} x rw\n" for n, (point, type) in enumerate(types.items()))
    asked: list[str] = []

    def recorded(ask: Callable[..., object], *, is_following: bool) -> Callable[..., object]:
        def recording(path: object, *more: object, **named: object) -> object:
            if isinstance(path, str):
                asked.append(f"{path}/." if is_following else path)
            return ask(path, *more, **named)

        return recording

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guest_paths, "observe_mountinfo", lambda: mounts)
        patch.setattr(guest_paths, "open_strictly", recorded(open_strictly, is_following=True))
        for name in ("stat", "lstat", "open", "scandir"):
            patch.setattr(os, name, recorded(getattr(os, name), is_following=name != "lstat"))
        yield place
    real = {os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)) for path in asked}
    assert str(top / ".git") in real
    assert [path for path in real if path.startswith((str(place), f"{top.parent}/unknown"))] == []


def test_what_may_not_answer_is_not_asked(top: Path, net: Path) -> None:
    """A guest names it in what git reads, by links, and in the place of what hutch looks for."""
    (top / ".vscode").symlink_to(f"{top.parent}/unknown/x")
    (top / ".git/hooks/pre-push").symlink_to(net / "evil")
    (top / ".git/config").write_text(f"[core] hooksPath = {net}/evil\n[a] b = {net}/evil/c\n")
    make_git_directory(top / ".git/modules/x", f"[core] worktree = {net}/evil\n")
    make_git_directory(top / ".git/modules/y", "[core] worktree = ../../../y\n")
    (top / "y").symlink_to(net / "evil")
    for part in ("objects", "refs"):
        (top / ".git/modules/z" / part).mkdir(parents=True)
    (top / ".git/modules/z/HEAD").symlink_to(net / "evil")
    (top / ".git/modules/w").symlink_to(net / "evil")
    own = top / ".git/worktrees/out"
    own.mkdir(parents=True)
    (own / "gitdir").write_text(f"{net}/evil/.git\n")
    (top / "link").mkdir()
    (top / "link/.git").symlink_to(net / "evil")
    own = top / ".git/worktrees/link"
    own.mkdir()
    (own / "gitdir").write_text(f"{top}/link/.git\n")
    for number in range(41):  # the last one of as many as no walk follows
        (top / f"l{number}").symlink_to(f"l{number + 1}" if number < 40 else net)
    own = top / ".git/worktrees/far"
    own.mkdir()
    (own / "gitdir").write_text(f"{top}/l0/.git\n")
    make_git_directory(top / ".git/modules/far", "[core] worktree = ../../../l0\n")
    seen = found(top)
    assert {".git/modules/x/config", ".git/worktrees/out/gitdir", ".vscode", "y", "link/.git"} <= seen.keys()


@pytest.mark.parametrize(
    "file",
    ["config", "commondir", "config.worktree", "worktrees/x/gitdir", "modules/x/config", "modules", "worktrees"],
)
def test_what_git_would_read_where_nothing_may_answer(top: Path, net: Path, file: str) -> None:
    """It would name what is to be protected, so nothing is left open on the quiet."""
    at = top / ".git" / file
    at.parent.mkdir(parents=True, exist_ok=True)
    if file == "config.worktree":
        (top / ".git/config").write_text(f"[extensions] worktreeConfig = true\n[include] path = {net}/evil/config\n")
    else:
        at.unlink(missing_ok=True)
        at.symlink_to(net / "evil/file")
    with pytest.raises(HutchError, match=rf"leads to {net}, a file system that may not answer \(nfs4\)") as caught:
        found(top)
    assert "protect_default = false" in caught.value.resolution


@pytest.mark.parametrize("part", ["objects", "refs"])
def test_parts_of_a_repository_where_nothing_may_answer(top: Path, net: Path, part: str) -> None:
    """They are not read for what git would run, so the rest counts as what it is."""
    bare = top / "bare"
    shutil.copytree(top / ".git", bare)
    (bare / part).rmdir()
    (bare / part).symlink_to(net / "evil")
    assert found(bare)["config"] == found(bare)["hooks"] == ""
    assert checkouts_around(f"{bare}/hooks/pre-push") == [str(bare), str(top)]
    assert protected_around(f"{bare}/hooks/pre-push", workspace()) == f"{bare}/hooks"


def test_what_an_automounter_has_above_a_share_is_not_asked(top: Path, net: Path) -> None:
    """Where it has a home, it would look for a home of the name .git."""
    assert checkouts_around(str(top)) == []
    assert found(top)


@pytest.mark.parametrize("type", ["ext4", "nfs4"])
def test_a_repository_on_another_disk(top: Path, monkeypatch: pytest.MonkeyPatch, type: str) -> None:
    """Its configuration counts for the working tree that is shared."""
    monkeypatch.setattr(guest_paths, "observe_mountinfo", lambda: f"1 0 0:1 / {top} rw - {type} x rw\n")
    (top / ".git/config").write_text("[core] hooksPath = .githooks\n")
    tree = top.parent / "tree"
    make_worktree(top, "x", tree)
    if type == "ext4":
        assert found(tree) == {**NAMES, ".git": "", ".githooks": "directory"}
    else:
        with pytest.raises(HutchError, match="may not answer"):
            found(tree)


@pytest.mark.parametrize("name", ["config", "commondir"])
def test_the_files_of_the_kernel_are_not_read(top: Path, name: str) -> None:
    """That may have effects; and of /proc, git would see another part."""
    (top / ".git" / name).unlink(missing_ok=True)
    (top / ".git" / name).symlink_to("/proc/self/environ")
    with pytest.raises(HutchError, match=r"leads to /proc, a file system that may not answer \(proc\)"):
        found(top)


def test_a_file_of_the_kernel_in_a_share_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such files say that they are empty, and then give what is not, wait, or do something."""
    monkeypatch.setattr(os, "read", lambda descriptor, most: pytest.fail("it has been read"))
    assert guest_paths.Paths("/proc/sys").read("/proc/sys/kernel/ostype") == ""


@pytest.mark.parametrize(
    ("types", "is_asked"),
    [
        ("ext4", True),
        ("autofs ext4", True),
        ("ext4 autofs", False),
        ("nfs ext4", False),
        ("autofs nfs", False),
        ("fuse.sshfs", False),
    ],
)
def test_mounts_over_each_other(top: Path, monkeypatch: pytest.MonkeyPatch, types: str, is_asked: bool) -> None:
    """Which of them a path finds is not known by their order alone."""
    disk = top.parent / "disk"
    (disk / "hooks").mkdir(parents=True)
    lines = "".join(
        f"{number} 0 0:{number} / {disk} rw - {type} x rw\n" for number, type in enumerate(types.split(), 1)
    )
    monkeypatch.setattr(guest_paths, "observe_mountinfo", lambda: lines)
    assert guest_paths.Paths(str(top)).is_directory(f"{disk}/hooks") is is_asked


def test_what_an_automounter_has_beside_the_share(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lies between: it is asked for each name that is not mounted yet."""
    lines = f"1 0 0:1 / {top.parent.parent} rw - autofs x rw\n"
    monkeypatch.setattr(guest_paths, "observe_mountinfo", lambda: lines)
    (top.parent / "beside").mkdir()
    look = guest_paths.Paths(str(top))
    assert look.is_directory(str(top.parent))
    assert not look.is_directory(f"{top.parent}/beside")


@pytest.mark.parametrize("place", ["net/", "", "top/.git/"], ids=["silent", "automounter", "large"])
def test_what_is_said_is_short_and_plain(top: Path, net: Path, place: str) -> None:
    """The guest wrote the name."""
    name = f"\x1b[2J{'y' * (200 if place.startswith('top') else 600_000)}"
    (top / ".git/config").write_text(f"[include] path = {net.parent}/{place}{name}\n")
    if place.startswith("top"):
        (top / ".git" / name).write_text(" " * (guest_paths.LARGEST + 1))
    with pytest.raises(HutchError, match=r"may not answer|larger than 1 MiB") as caught:
        found(top)
    assert len(str(caught.value)) < 1000
    assert "\x1b" not in str(caught.value)


def test_what_the_share_lies_on_has_answered(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a home on NFS, each shared directory is a mount of it over itself; but for what an automounter has below."""
    home = top.parent
    lines = f"1 0 0:1 / {home.parent} rw - autofs x rw\n2 1 0:2 / {home} rw - nfs4 x rw\n"
    monkeypatch.setattr(guest_paths, "observe_mountinfo", lambda: f"{lines}3 2 0:2 /top {top} rw - nfs4 x rw\n")
    (top / ".git/config").write_text("[core] hooksPath = src/hooks\n")
    make_worktree(top, "x", home / "x")
    (top / "src").mkdir()
    assert found(home / "x").keys() > {"src/hooks", ".git"}
    monkeypatch.setattr(
        guest_paths, "observe_mountinfo", lambda: f"{lines}3 2 0:2 /top/.git {top}/.git rw - nfs4 x rw\n"
    )
    assert found(top / "src") == {"hooks": "directory"}
    assert checkouts_around(f"{top}/src") == [str(top)]
