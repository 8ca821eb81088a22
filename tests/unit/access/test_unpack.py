"""What comes from a workspace as an archive is the attacker's: whatever it says, it stays where it is put."""

from __future__ import annotations

import errno
import io
import os
import stat
import tarfile
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hutch.access.pack import Packer
from hutch.access.unpack import BLOCK, DEPTH, EXTENSION, TOLD, TRAILER, Unpacker, stays_inside
from hutch.errors import HutchError

LIMIT = 1 << 20
KINDS = {
    "file": tarfile.REGTYPE,
    "directory": tarfile.DIRTYPE,
    "link": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
    "pipe": tarfile.FIFOTYPE,
    "device": tarfile.CHRTYPE,
    "disk": tarfile.BLKTYPE,
}


def member(name: str, kind: str = "file", content: bytes = b"", target: str = "", **fields: Any) -> bytes:
    """One member as tar writes it."""
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.size, made.mode = KINDS[kind], target, len(content), 0o644
    for key, value in fields.items():
        setattr(made, key, value)
    return made.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + content + bytes(-len(content) % BLOCK)


TREE = member("./", "directory", mode=0o755)
END = bytes(2 * BLOCK)


@contextmanager
def unpacker(directory: Path, limit: int = LIMIT) -> Iterator[Unpacker]:
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with closing(Unpacker(root, limit, "web")) as made:
            yield made
    finally:
        os.close(root)


def unpack(directory: Path, *pieces: bytes, limit: int = LIMIT) -> Unpacker:
    with unpacker(directory, limit) as made:
        for piece in pieces:
            made.feed(piece)
        return made


def tree_of(directory: Path) -> dict[str, Any]:
    """What is below a directory: content of files, targets of links, None for directories."""
    found: dict[str, Any] = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        found[name] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
    return found


def test_an_honest_tree(tmp_path: Path) -> None:
    long = "n" * 200
    made = unpack(
        tmp_path,
        TREE,
        member("./a", "directory", mode=0o775),
        member("./a/tool", content=b"#!\n", mode=0o6777, mtime=1_000_000_000),
        member("./a/secret", content=b"x", mode=0o400),
        member(f"./a/{long}/", "directory"),
        member(f"./a/{long}/{long}", content=b"long"),
        member("./a/up", "link", target="../a/tool"),
        member("./a/same", "hard link", target="./a/tool"),
        END,
    )
    assert made.is_complete
    assert (made.files, made.size, made.left_out) == (4, 8, [])
    assert tree_of(tmp_path / "item") == {
        "a": None,
        "a/tool": b"#!\n",
        "a/secret": b"x",
        f"a/{long}": None,
        f"a/{long}/{long}": b"long",
        "a/up": "../a/tool",
        "a/same": b"#!\n",
    }
    tool = (tmp_path / "item/a/tool").stat()
    assert (stat.S_IMODE(tool.st_mode), tool.st_mtime, tool.st_uid) == (0o755, 1_000_000_000, os.geteuid())
    assert stat.S_IMODE((tmp_path / "item/a/secret").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "item/a").stat().st_mode) == 0o755


def test_names_in_pax_headers(tmp_path: Path) -> None:
    made = unpack(
        tmp_path,
        TREE,
        member("./x", type=tarfile.XHDTYPE, content=b"17 path=./better\n10 size=4\n20 comment=whatever\n"),
        member("./worse", content=b"1234", size=4),
        member("./g", type=tarfile.XGLTYPE, content=b"9 path=z\n"),
        END,
    )
    assert (made.is_complete, tree_of(tmp_path / "item")) == (True, {"better": b"1234"})


def test_one_file(tmp_path: Path) -> None:
    """Whatever it is called there."""
    made = unpack(tmp_path, member("./any/name", content=b"one"), END)
    assert (made.is_complete, made.is_tree) == (True, False)
    assert tree_of(tmp_path) == {"item": b"one"}


REFUSED = {
    "an absolute name": [TREE, member("/tmp/evil", content=b"x")],
    "a name that climbs": [TREE, member("./../evil", content=b"x")],
    "a name that climbs later": [TREE, member("./a", "directory"), member("./a/../../evil", content=b"x")],
    "through a link": [TREE, member("./a", "link", target="."), member("./a/evil", content=b"x")],
    "over a link": [TREE, member("./a", "link", target="b"), member("./a", content=b"x")],
    "a directory over a link": [TREE, member("./a", "link", target="."), member("./a", "directory")],
    "the top again, as a file": [TREE, member("./", content=b"x")],
    "twice": [TREE, member("./a", content=b"x"), member("./a", content=b"y")],
    "below a file": [TREE, member("./a", content=b"x"), member("./a/b", content=b"y")],
    "a directory that was not announced": [TREE, member("./a/b/c", content=b"x")],
    "too long a name": [TREE, member(f"./{'n' * 300}", content=b"x")],
    "too deep": [TREE, member("./" + "d/" * (DEPTH + 1), "directory")],
    "a hard link to the host": [TREE, member("./a", "hard link", target="/etc/passwd")],
    "a hard link that climbs": [TREE, member("./a", "hard link", target="../evil")],
    "a hard link to a link": [TREE, member("./l", "link", target="x"), member("./a", "hard link", target="./l")],
    "a hard link to the top": [TREE, member("./a", "hard link", target="./")],
    "a hard link to nothing": [TREE, member("./a", "hard link", target="./b")],
    "a device for a file": [member("./a", "device")],
    "a link for a file": [member("./a", "link", target="/etc/passwd")],
    "a second file": [member("./a", content=b"x"), member("./b", content=b"y")],
    "another tree": [member("./a/", "directory")],
    "content of a link's": [TREE, member("./a", "pipe", content=b"x" * BLOCK)],
    "more than allowed": [TREE, member("./a", content=b""), member("./b", size=LIMIT + 1)],
    "a terabyte of nothing": [TREE, member("./a", size=1 << 40)],
    "a size below nothing": [TREE, member("./a", size=-(1 << 40))],
    "a sparse file": [TREE, member("./a", type=tarfile.GNUTYPE_SPARSE)],
    "what nobody knows": [TREE, member("./a", type=b"Z")],
    "no archive": [b"x" * BLOCK],
    "a long name without end": [TREE, member("././@LongLink", type=tarfile.GNUTYPE_LONGNAME, size=1 << 40)],
    "a long name of nothing": [TREE, member("././@LongLink", type=tarfile.GNUTYPE_LONGNAME, size=0)],
    "a pax header without end": [TREE, member("./x", type=tarfile.XHDTYPE, size=1 << 40)],
    "a long pax header": [TREE, member("./x", type=tarfile.XHDTYPE, content=b"6 a=b\n" * (EXTENSION // 6 + 1))],
    "headers without end": [TREE, *[member("./x", type=tarfile.XHDTYPE, content=b"6 a=b\n" * 10_000)] * 20],
    "a damaged pax header": [TREE, member("./x", type=tarfile.XHDTYPE, content=b"99 path=x\n")],
    "a pax header that is none": [TREE, member("./x", type=tarfile.XHDTYPE, content=b"path\n")],
    "a pax size that is none": [
        *(TREE, member("./x", type=tarfile.XHDTYPE, content=b"11 size=-1\n"), member("./a", content=b"x")),
    ],
    "a pax name that climbs": [
        *(TREE, member("./x", type=tarfile.XHDTYPE, content=b"19 path=../../evil\n"), member("./a", content=b"x")),
    ],
    "a pax sparse file": [TREE, member("./x", type=tarfile.XHDTYPE, content=b"22 GNU.sparse.major=1\n")],
    "endless nothing after the end": [TREE, END, bytes(TRAILER), b"x"],
}


@pytest.mark.parametrize("pieces", REFUSED.values(), ids=REFUSED)
def test_refused(pieces: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    with pytest.raises(HutchError):
        unpack(tmp_path / "root", *pieces, END)
    assert {path.name for path in tmp_path.iterdir()} == {"root"}
    assert {path.name for path in (tmp_path / "root").iterdir()} <= {"item"}


@pytest.mark.parametrize(
    ("name", "kind", "target"),
    [
        ("./d", "device", ""),
        ("./d", "disk", ""),
        ("./d", "pipe", ""),
        ("./d", "link", "/etc/passwd"),
        ("./d", "link", ".."),
        ("./d", "link", "a/../../x"),
        ("./a/d", "link", "../../x"),
        ("./", "link", "x"),
        ("./d", "link", ""),
    ],
)
def test_left_out(name: str, kind: str, target: str, tmp_path: Path) -> None:
    made = unpack(tmp_path, TREE, member("./a", "directory"), member(name, kind, target=target), END)
    assert made.is_complete
    assert len(made.left_out) == 1
    assert tree_of(tmp_path) == {"item": None, "item/a": None}


def test_small_records_take_no_time(tmp_path: Path) -> None:
    """As many as there may be in one feed: neither a deadline nor a cancellation is looked at meanwhile."""
    header = member("./x", type=tarfile.XHDTYPE, content=b"6 a=b\n" * (EXTENSION // 6))
    begun = time.process_time()
    assert unpack(tmp_path, TREE, *[header] * 10, END).is_complete
    assert time.process_time() - begun < 3  # where all of the rest was copied for each record: 20 s


def test_headers_count_towards_the_limit(tmp_path: Path) -> None:
    pieces = [TREE, member("./x", type=tarfile.XHDTYPE, content=b"9 path=b\n"), member("./a", content=b"1234567"), END]
    for limit in (15, 16):
        (tmp_path / str(limit)).mkdir()
    with pytest.raises(HutchError, match="more than 15 bytes"):
        unpack(tmp_path / "15", *pieces, limit=15)
    assert (unpack(tmp_path / "16", *pieces, limit=16).size, tree_of(tmp_path / "16" / "item")) == (
        7,
        {"b": b"1234567"},
    )


def test_what_is_left_out_is_told_of_up_to_a_number(tmp_path: Path) -> None:
    made = unpack(tmp_path, TREE, *(member(f"./{number}", "pipe") for number in range(TOLD + 3)), END)
    assert len(made.left_out) == TOLD + 1
    assert made.left_out[-1] == "and 3 more"


def test_an_archive_that_breaks_off_is_not_complete(tmp_path: Path) -> None:
    assert not unpack(tmp_path, TREE, member("./a", content=b"x" * 5000)[:3000]).is_complete


@pytest.mark.parametrize(
    ("target", "depth", "inside"),
    [
        ("x", 0, True),
        ("./x/y", 0, True),
        ("..", 1, True),
        ("../x", 1, True),
        ("../../x", 2, True),
        ("..", 0, False),
        ("../../x", 1, False),
        ("x/..", 5, False),
        ("../x/../y", 5, False),
        ("/x", 5, False),
        ("", 5, False),
    ],
)
def test_where_a_link_leads(target: str, depth: int, inside: bool) -> None:
    assert stays_inside(target, depth) is inside


# Any archive at all: what is made lies in the directory, and what is reached from it does too.

NAMES = st.lists(st.sampled_from(["a", "b", "c", ".", "..", "", "n" * 120]), min_size=1, max_size=4).map("/".join)
MEMBERS = st.builds(
    lambda name, kind, content, target, mode: member(
        name, kind, content if kind == "file" else b"", target=target, mode=mode
    ),
    st.one_of(NAMES, NAMES.map(lambda name: f"./{name}")),
    st.sampled_from(sorted(KINDS)),
    st.binary(max_size=600),
    st.one_of(NAMES, NAMES.map(lambda name: f"/{name}")),
    st.integers(0, 0o7777),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(members=st.lists(MEMBERS, max_size=12), sizes=st.lists(st.integers(1, 2000), min_size=1, max_size=5))
def test_nothing_leads_out(members: list[bytes], sizes: list[int], tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside")
    root = outside / "root"
    root.mkdir()
    data = TREE + b"".join(members) + END
    with unpacker(root) as made, suppress(HutchError):
        for piece in cut(data, sizes):
            made.feed(piece)
    assert [path.name for path in outside.iterdir()] == ["root"]
    top = os.path.realpath(root / "item")
    for path in root.rglob("*"):
        status = path.lstat()
        assert stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode) or stat.S_ISLNK(status.st_mode)
        assert stat.S_ISLNK(status.st_mode) or not status.st_mode & 0o7022
        try:
            real = os.path.realpath(path, strict=True)
        except OSError:  # it leads nowhere, or in a circle
            continue
        assert real == top or real.startswith(f"{top}/"), f"{path} leads to {real}"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_is_refused_or_harmless(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = bytearray(TREE + member("./a", "directory") + member("./a/b", content=b"x" * 700) + END)
    for _ in range(data.draw(st.integers(1, 20))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    outside = tmp_path_factory.mktemp("outside")
    (outside / "root").mkdir()
    with suppress(HutchError):
        unpack(outside / "root", bytes(whole))
    assert [path.name for path in outside.iterdir()] == ["root"]


def cut(data: bytes, sizes: Iterable[int]) -> Iterator[bytes]:
    at = 0
    for size in sizes:
        yield data[at : at + size]
        at += size
    yield data[at:]


# What goes in.


def packed(path: Path, name: str = "top") -> tuple[tarfile.TarFile, Packer]:
    with closing(Packer(str(path))) as packer:
        data = b"".join(packer.pieces(name))
    assert len(data) % 10240 == 0
    return tarfile.open(fileobj=io.BytesIO(data)), packer


def test_what_is_packed(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "sub").mkdir(parents=True)
    (top / "sub" / "file").write_bytes(b"content")
    (top / "sub" / "file").chmod(0o4755)
    (top / "link").symlink_to("/etc/shadow")
    os.mkfifo(top / "pipe")
    (top / ("n" * 200)).write_bytes(b"x" * 1000)
    archive, packer = packed(top)
    assert {m.name: (m.type, m.mode if m.isfile() else m.linkname) for m in archive} == {
        "top": (tarfile.DIRTYPE, ""),
        "top/link": (tarfile.SYMTYPE, "/etc/shadow"),
        f"top/{'n' * 200}": (tarfile.REGTYPE, 0o644),
        "top/sub": (tarfile.DIRTYPE, ""),
        "top/sub/file": (tarfile.REGTYPE, 0o755),
    }
    assert (packer.files, packer.size) == (2, 1007)
    assert packer.left_out == ["'top/pipe': a device, a pipe or a socket"]
    assert [m.name for m in packed(top, "")[0] if m.name.startswith("sub")] == ["sub", "sub/file"]


def test_what_is_packed_is_unpacked(tmp_path: Path) -> None:
    top = tmp_path / "top"
    (top / "sub").mkdir(parents=True)
    (top / "sub" / "file").write_bytes(os.urandom(300_000))
    (top / "sub" / "up").symlink_to("../sub/file")
    with closing(Packer(str(top))) as packer:
        pieces = [TREE, *packer.pieces("")]
    (tmp_path / "root").mkdir()
    assert unpack(tmp_path / "root", *pieces).is_complete
    assert tree_of(tmp_path / "root" / "item") == tree_of(top)


def test_a_link_that_is_put_in_the_way_is_not_followed(tmp_path: Path) -> None:
    """Somebody changes the tree while it is read."""
    top = tmp_path / "top"
    (top / "a").mkdir(parents=True)
    (top / "b").write_text("harmless")
    (tmp_path / "secret").write_text("the secret itself")
    with closing(Packer(str(top))) as packer:
        pieces = packer.pieces("top")
        head = [next(pieces), next(pieces)]  # the directory is listed by now
        (top / "b").unlink()
        (top / "b").symlink_to(tmp_path / "secret")
        data = b"".join([*head, *pieces])
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert {m.name: m.type for m in archive}["top/b"] == tarfile.SYMTYPE
    assert b"the secret itself" not in data


@pytest.mark.parametrize("number", [errno.ELOOP, errno.ENXIO, errno.ENOTDIR, errno.EIO, errno.EACCES])
@pytest.mark.parametrize("name", ["directory", "file"])
def test_what_is_another_thing_when_it_is_opened(
    name: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has just been changed is left out; what cannot be read is not passed over."""
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").write_text("x")
    true_open = os.open

    def fail(path: Any, flags: int, *arguments: Any, **values: Any) -> int:
        if path == name:
            raise OSError(number, os.strerror(number), path)
        return true_open(path, flags, *arguments, **values)

    with closing(Packer(str(tmp_path))) as packer:
        monkeypatch.setattr("hutch.access.pack.os.open", fail)
        if number in (errno.EIO, errno.EACCES):
            with pytest.raises(HutchError, match=f"'{name}' cannot be read: {os.strerror(number)}"):
                list(packer.pieces(""))
            assert not packer.is_handed_on
        else:
            with tarfile.open(fileobj=io.BytesIO(b"".join(packer.pieces("")))) as archive:
                assert {m.name for m in archive} == {"directory", "file"} - {name}
            assert packer.left_out == [f"'{name}': it has just gone"]


def test_a_link_that_comes_between_looking_and_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to("/etc/shadow")
    true_stat = os.stat
    with closing(Packer(str(tmp_path))) as packer:
        monkeypatch.setattr(
            "hutch.access.pack.os.stat", lambda path, dir_fd, follow_symlinks: true_stat(path, dir_fd=dir_fd)
        )
        list(packer.pieces(""))
    assert packer.left_out == ["'link': it has just gone"]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: None], ids=["pipe", "nothing"])
def test_what_cannot_be_packed(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(HutchError):
        Packer(str(tmp_path / "x"))
