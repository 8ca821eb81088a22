"""What a guest may leave in a tree, and what it may do while somebody works there."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hutch.errors import HutchError
from hutch.trees import cursor as cursors
from hutch.trees.changing import give, set_back, take_setuid
from hutch.trees.cursor import Cursor, is_empty, open_strictly, opened, pinned, shown, walk
from hutch.trees.removing import remove_tree

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
DEEP = 10_000


def make_deep(top: Path, depth: int = DEEP, name: str = "d") -> None:
    """No path leads to the deepest of them."""
    descriptor = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=descriptor)
        following = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = following
    os.close(os.open("last", os.O_CREAT | os.O_WRONLY, dir_fd=descriptor))
    os.close(descriptor)


def make_fifo(top: Path) -> None:
    os.mkfifo(top / "fifo")


def make_socket(top: Path) -> None:
    os.mknod(top / "socket", stat.S_IFSOCK | 0o600)


def make_device_names(top: Path) -> None:
    for name in ("null", "sda", "con", "zero", "-rf", "--", "*", "~", "..."):
        (top / name).touch()


def make_sparse(top: Path) -> None:
    with (top / "sparse").open("wb") as file:
        file.truncate(1 << 40)


def make_names(top: Path) -> None:
    for name in (b"new\nline", b"\xff\xfe", b"n" * 255, b"\x1b[2J", b" ", b"\\", b"d\xc3"):
        (top / os.fsdecode(name)).mkdir()
        (top / os.fsdecode(name) / os.fsdecode(name)).touch()


def make_closed(top: Path) -> None:
    (top / "closed" / "inner").mkdir(parents=True)
    (top / "closed" / "inner" / "file").touch()
    for name in ("closed/inner/file", "closed/inner", "closed"):
        (top / name).chmod(0)


def make_read_only(top: Path) -> None:
    (top / "sealed").mkdir()
    (top / "sealed" / "file").touch(0o400)
    (top / "sealed").chmod(0o500)


def make_links(top: Path) -> None:
    (top / "out").symlink_to("/")
    (top / "loop").symlink_to("loop")
    (top / "dangling").symlink_to("nowhere")
    (top / "up").symlink_to("..")


def make_hard_links(top: Path) -> None:
    for number in range(3):
        (top / f"{number}").touch()
        for link in range(3_000):
            os.link(top / f"{number}", top / f"{number}-{link}")


def make_wide(top: Path) -> None:
    """More full directories than are kept in mind at once."""
    for number in range(500):
        (top / f"{number}" / "inner").mkdir(parents=True)


LEFT: list[Callable[[Path], None]] = [
    make_deep, make_fifo, make_socket, make_device_names, make_sparse, make_names, make_closed, make_read_only,
    make_links, make_hard_links, make_wide,
]  # fmt: skip


@pytest.mark.parametrize("make", LEFT, ids=lambda make: make.__name__)
def test_whatever_a_guest_left(make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can be walked, given, disarmed and deleted, in no time, and nothing beside it is touched."""
    if make in (make_closed, make_read_only) and os.geteuid() != 0:
        pytest.skip("needs root")
    for part in ("removing", "cursor"):
        monkeypatch.setattr(f"hutch.trees.{part}.BATCH", 100)
    top = tmp_path / "tree"
    top.mkdir()
    beside = tmp_path / "beside"
    beside.write_text("untouched")
    make(top)
    begun = time.monotonic()
    assert not is_empty(top)
    with opened(top) as descriptor:
        seen = sum(1 for _ in walk(descriptor))
        assert seen >= 1
        assert give(descriptor, (), 1, 1) == take_setuid(descriptor, ()) == 0
    remove_tree(top)
    assert not os.path.lexists(top)
    assert beside.read_text() == "untouched"
    assert time.monotonic() - begun < 60
    remove_tree(top)  # may be repeated


def test_a_deep_tree_takes_few_descriptors(tmp_path: Path) -> None:
    make_deep(tmp_path, 2000)
    before = len(os.listdir("/proc/self/fd"))
    with opened(tmp_path) as descriptor:
        for number, _ in enumerate(walk(descriptor)):
            if number == 1999:
                assert len(os.listdir("/proc/self/fd")) < before + cursors.MOST_OPEN + 6
    assert len(os.listdir("/proc/self/fd")) == before
    remove_tree(tmp_path / "d")


@pytest.mark.parametrize("batch", [1, 2, 7, 64, 50_000])
def test_a_wide_tree_is_seen_whole_with_few_names_in_mind(
    batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each name once, a directory before what is in it, however many times a directory is listed."""
    monkeypatch.setattr(cursors, "BATCH", batch)
    most = 0
    cut = cursors._Ahead._cut

    def counting(self: cursors._Ahead, room: int) -> None:
        nonlocal most
        most = max(most, len(self.names))
        cut(self, room)

    monkeypatch.setattr(cursors._Ahead, "_cut", counting)
    wanted = []
    for number in range(60):
        directory = tmp_path / f"{number}"
        for inner in range(3):
            (directory / f"{inner}" / "leaf").mkdir(parents=True)
            wanted += [f"{directory}/{inner}", f"{directory}/{inner}/leaf"]
        (directory / "file").touch()
        wanted += [str(directory), f"{directory}/file"]
    with opened(tmp_path) as top:
        seen = [f"{os.readlink(cursors.way_to(directory))}/{name}" for directory, name in walk(top)]
    assert sorted(seen) == sorted(wanted)
    assert all(os.path.dirname(path) in (*seen[:number], str(tmp_path)) for number, path in enumerate(seen))
    assert most <= max(2, batch)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES, errno.EIO, errno.ENOMEM])
def test_what_cannot_be_looked_into_is_no_success(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes setuid away would take what was not read for harmless, and unmount what guards it."""
    (tmp_path / "tree" / "a" / "b").mkdir(parents=True)
    real = open_strictly

    def failing(path: str, **options: Any) -> int:
        if path == "b" and "flags" not in options:
            raise OSError(code, os.strerror(code))
        return real(path, **options)

    monkeypatch.setattr(cursors, "open_strictly", failing)
    for work in (partial(take_setuid, makers=()), partial(give, makers=(), uid=1, gid=1)):
        with opened(tmp_path / "tree") as top, pytest.raises(OSError) as caught:
            work(top)
        assert caught.value.errno == code


def test_a_file_is_deleted_and_no_link_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").touch()
    (tmp_path / "link").symlink_to("there")
    remove_tree(tmp_path / "link")
    assert (tmp_path / "there" / "file").exists()
    remove_tree(tmp_path / "there" / "file")
    remove_tree(tmp_path / "nowhere" / "file")
    assert is_empty(tmp_path / "there")
    assert is_empty(tmp_path / "nowhere")


def test_no_way_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "there" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to("there")
    for path in (tmp_path / "link", tmp_path / "link" / "inner"):
        with pytest.raises(OSError) as caught, opened(path):
            pass
        assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR)
    with opened(tmp_path) as directory:
        for name in ("..", "/", "link/inner", "there/../.."):
            with pytest.raises(OSError):
                open_strictly(name, below=directory)
    with pytest.raises(ValueError, match="not absolute"):
        open_strictly("relative")


def test_what_is_mounted_inside_is_another_tree() -> None:
    with opened("/") as root:
        for name in ("proc", "dev"):
            with pytest.raises(OSError) as caught:
                open_strictly(name, below=root)
            assert caught.value.errno == errno.EXDEV


def test_a_directory_that_becomes_a_link_while_it_is_walked(tmp_path: Path) -> None:
    """The walk does not follow it; what it leads to is not seen."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").touch()
    for name in ("a", "b"):
        (tmp_path / "tree" / name).mkdir(parents=True)
    seen = []
    with opened(tmp_path / "tree") as top:
        for _, name in walk(top):
            seen.append(name)
            if len(seen) == 2:
                for swapped in ("a", "b"):
                    (tmp_path / "tree" / swapped).rmdir()
                    (tmp_path / "tree" / swapped).symlink_to("../secret")
    assert sorted(seen) == ["a", "b"]
    remove_tree(tmp_path / "tree")
    assert (tmp_path / "secret" / "key").exists()


def test_a_directory_that_is_moved_away_while_it_is_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not taken for another that is in its place by then."""
    monkeypatch.setattr(cursors, "MOST_OPEN", 1)
    (tmp_path / "tree" / "a" / "b").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    with opened(tmp_path / "tree") as top:
        walking = walk(top)
        assert [next(walking)[1], next(walking)[1]] == ["a", "b"]
        os.rename(tmp_path / "tree" / "a", tmp_path / "elsewhere" / "a")
        (tmp_path / "tree" / "a").mkdir()
        with pytest.raises(HutchError, match="moved while"):
            next(walking)


def test_directories_that_are_moved_while_they_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins again at the top, and deletes nothing outside."""
    monkeypatch.setattr(cursors, "MOST_OPEN", 1)
    (tmp_path / "tree" / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").touch()
    enter = Cursor.enter

    def moving(self: Cursor, name: str) -> None:
        enter(self, name)
        if name == "b":
            os.rename(tmp_path / "tree" / "a" / "b", tmp_path / "elsewhere" / "b")

    monkeypatch.setattr(Cursor, "enter", moving)
    remove_tree(tmp_path / "tree")
    assert not (tmp_path / "tree").exists()
    assert (tmp_path / "elsewhere" / "kept").exists()


def test_somebody_who_fills_it_while_it_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends all the same."""
    (tmp_path / "tree" / "a").mkdir(parents=True)
    (tmp_path / "tree" / "a" / "file").touch()
    leave = Cursor.leave

    def filling(self: Cursor) -> str:
        (tmp_path / "tree" / "a" / "again").touch()
        return leave(self)

    monkeypatch.setattr(Cursor, "leave", filling)
    with pytest.raises(HutchError, match=r"not all of .*/tree can be deleted"):
        remove_tree(tmp_path / "tree")
    with pytest.raises(HutchError, match="no end to it"):
        remove_tree(tmp_path / "tree", seconds=-1)


@as_root
def test_what_is_immutable_is_named_and_the_rest_goes(tmp_path: Path) -> None:
    make_deep(tmp_path, 300)
    descriptor = os.open(tmp_path / "fixed", os.O_CREAT | os.O_RDONLY)
    other = tmp_path / "d" / "d" / "d" / "fixed"
    inner = os.open(other, os.O_CREAT | os.O_RDONLY)
    with closing(os.fdopen(descriptor)), closing(os.fdopen(inner)):
        if not (set_immutable(descriptor, True) and set_immutable(inner, True)):
            pytest.skip("this file system has no such flag")
        try:
            with pytest.raises(HutchError, match="not all of") as caught:
                remove_tree(tmp_path)
            assert "'d/d/d/fixed': it is marked immutable" in caught.value.details
            assert sorted(os.listdir(tmp_path)) == ["d", "fixed"]
            assert os.listdir(tmp_path / "d" / "d" / "d") == ["fixed"]
        finally:
            set_immutable(descriptor, False)
            set_immutable(inner, False)
    remove_tree(tmp_path)
    assert not tmp_path.exists()


def set_immutable(descriptor: int, flag: bool) -> bool:
    import fcntl

    try:
        fcntl.ioctl(descriptor, 0x40086602, (0x10 if flag else 0).to_bytes(8, "little"))  # FS_IOC_SETFLAGS
    except OSError:
        return False
    return True


@as_root
def test_only_what_is_the_guests_changes_hands(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name, owner in (("guest", 70_000), ("a/root", 70_001), ("foreign", 5), ("owner", 1000)):
        (tmp_path / name).touch()
        os.chown(tmp_path / name, owner, owner)
    (tmp_path / "bait").symlink_to("foreign")
    os.chown(tmp_path / "bait", 70_000, 5, follow_symlinks=False)
    os.mkfifo(tmp_path / "fifo")
    os.chown(tmp_path / "fifo", 70_000, 70_000)
    with opened(tmp_path) as top:
        assert give(top, range(70_000, 70_100), 1000, 1001) == 4
        assert give(top, range(70_000, 70_100), 1000, 1001) == 0
    owners = {name: owner_of(tmp_path / name) for name in ("guest", "a/root", "foreign", "owner", "bait", "fifo")}
    assert owners == {
        "guest": (1000, 1001), "a/root": (1000, 1001), "foreign": (5, 5), "owner": (1000, 1000), "bait": (1000, 5),
        "fifo": (1000, 1001),
    }  # fmt: skip


def owner_of(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_uid, status.st_gid


@as_root
def test_setuid_goes_from_what_the_guest_made_only(tmp_path: Path) -> None:
    modes = {"guest": (70_000, 0o6755), "owner": (1000, 0o4711), "foreign": (5, 0o4755), "plain": (1000, 0o644)}
    for name, (owner, mode) in modes.items():
        (tmp_path / name).touch()
        os.chown(tmp_path / name, owner, owner)
        (tmp_path / name).chmod(mode)
    (tmp_path / "link").symlink_to("foreign")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o2775)
    os.chown(tmp_path / "shared", 1000, 1000)
    with opened(tmp_path) as top:
        assert take_setuid(top, {1000, 70_000}) == 2
    found = {name: (tmp_path / name).stat().st_mode & 0o7777 for name in (*modes, "shared")}
    assert found == {"guest": 0o755, "owner": 0o711, "foreign": 0o4755, "plain": 0o644, "shared": 0o2775}


def test_what_is_pinned_stays_what_it_was(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("one")
    with opened(tmp_path) as directory, pinned(directory, "file") as descriptor:
        os.rename(tmp_path / "file", tmp_path / "moved")
        os.mkfifo(tmp_path / "file")
        assert Path(cursors.way_to(descriptor)).read_text() == "one"


def test_a_way_for_people() -> None:
    assert shown([]) == "'.'"
    assert shown(["a", "b\n\x1b"]) == r"'a/b\n\x1b'"
    assert len(shown(["d"] * DEEP)) < 300


def test_what_changed_since_is_set_back(tmp_path: Path) -> None:
    """Directories and links are set back too, targets of links are not."""
    outside, top = tmp_path / "outside", tmp_path / "top"
    outside.touch()
    (top / "directory").mkdir(parents=True)
    for name in ("old", "new", "directory/file"):
        (top / name).touch()
    (top / "link").symlink_to(outside)
    os.utime(top / "old", (500, 500))
    before = outside.stat().st_mtime
    with opened(top) as descriptor:
        set_back(descriptor, 1000, 900)
    found = {path.name: path.lstat().st_mtime for path in (top, *top.rglob("*"))}
    assert found == {"top": 900, "directory": 900, "file": 900, "new": 900, "link": 900, "old": 500}
    assert outside.stat().st_mtime == before
