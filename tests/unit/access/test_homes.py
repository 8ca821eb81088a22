"""Homes on their way: what is in the archive, what is made of one, and what is refused."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hutch.access import homes
from hutch.access.homes import NOBODY, HomeUnpacker, Owners, calm, check_unchanged, measure, packing, unpack_home
from hutch.access.unpack import Unpacker
from hutch.errors import HutchError

BASE = 0x7000_0000
MINE = Owners(os.getuid(), os.getgid(), BASE, 1000)
NS = 1_700_000_000_123_456_789


def archive(home: Path, owners: Owners = MINE) -> bytes:
    with packing(str(home), owners) as packer:
        data = b"".join(packer.pieces())
    assert packer.is_handed_on
    assert packer.sent == len(data)
    return data


def entries(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as tar:
        return {member.name: member for member in tar}


def unpack(directory: Path, data: bytes, owners: Owners = MINE) -> Path:
    directory.mkdir(exist_ok=True)
    told: list[bool] = []

    def send(take: Callable[[bytes], None], is_whole: Callable[[], bool]) -> None:
        for at in range(0, len(data), 1000):
            take(data[at : at + 1000])
        told.append(is_whole())

    unpack_home(str(directory), owners, "web", send)
    assert told == [True]
    return directory / Unpacker.ITEM


@pytest.fixture
def home(tmp_path: Path) -> Path:
    top = tmp_path / "home"
    (top / "a" / "b").mkdir(parents=True)
    (top / "a" / "file").write_bytes(b"content")
    (top / "a" / "file").chmod(0o640)
    os.link(top / "a" / "file", top / "a" / "other")
    (top / "out").symlink_to("/etc/passwd")
    (top / "up").symlink_to("../../..")
    os.mkfifo(top / "pipe")
    with (top / "holes").open("wb") as file:
        file.truncate(3 << 20)
    (top / "a" / "b").chmod(0o3777)
    with open(os.fsencode(top) + b"/" + b"\xff" * 120, "wb") as file:
        file.write(b"odd")
    for path in (top / "a" / "file", top / "a" / "b", top / "a"):
        os.utime(path, ns=(NS, NS))
    os.utime(top / "out", ns=(NS, NS), follow_symlinks=False)
    return top


def test_the_last_entry_tells_the_end(home: Path) -> None:
    with packing(str(home), MINE, "the-end") as packer:
        found = entries(b"".join(packer.pieces()))
    *others, last = found
    assert (last, found[last].size, others) == ("./the-end", 0, list(entries(archive(home))))
    assert not (home / "the-end").exists()


def look(top: Path) -> dict[bytes, tuple[object, ...]]:
    found: dict[bytes, tuple[object, ...]] = {}
    for directory, folders, files in os.walk(os.fsencode(top)):
        for name in (*folders, *files):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            content: object = os.readlink(path) if stat.S_ISLNK(status.st_mode) else b""
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            time_of = None if stat.S_ISFIFO(status.st_mode) else status.st_mtime_ns
            found[path[len(os.fsencode(top)) :]] = (status.st_mode, status.st_nlink, time_of, content)
    return found


def test_there_and_back(home: Path, tmp_path: Path) -> None:
    came = unpack(tmp_path / "came", archive(home))
    assert look(came) == look(home)
    assert os.stat(came / "holes").st_blocks == 0
    assert look(unpack(tmp_path / "again", archive(came))) == look(home)


def test_the_archive_is_one_of_tars(home: Path) -> None:
    found = entries(archive(home))
    assert found["."].isdir()
    assert found["./a/other"].islnk()
    assert found["./a/other"].linkname == "./a/file"
    assert found["./pipe"].isfifo()
    assert (found["./a/file"].uid, found["./a/file"].gid, found["./a/file"].mode) == (1000, 1000, 0o640)
    assert float(found["./a/file"].pax_headers["mtime"]) == pytest.approx(NS / 1e9)
    assert "./" + os.fsdecode(b"\xff" * 120) in found


def test_programs_are_disarmed_on_both_ways(home: Path, tmp_path: Path) -> None:
    program = home / "program"
    program.write_text("")
    program.chmod(0o6755)
    assert entries(archive(home))["./program"].mode == 0o755
    member = tarfile.TarInfo("./program")
    member.mode = 0o7755
    came = unpack(tmp_path / "came", made(member))
    assert stat.S_IMODE((came / "program").stat().st_mode) == 0o1755


def test_owners() -> None:
    owners = Owners(1000, 100, BASE, 1001)

    def status(uid: int, gid: int) -> os.stat_result:
        return os.stat_result((0, 0, 0, 0, uid, gid, 0, 0, 0, 0))

    for (uid, gid), inside in (
        ((1000, 100), (1001, 1001)),
        ((BASE, BASE + 7), (0, 7)),
        ((0, 0), (NOBODY, NOBODY)),  # root of the host, who is nobody inside
        ((BASE + 1001, BASE + 65536), (NOBODY, NOBODY)),
    ):
        assert owners.going(status(uid, gid)) == inside
    assert owners.coming(1001, 1001) == (1000, 100)
    assert owners.coming(0, 65535) == (BASE, BASE + 65535)
    for number in (-1, 65536, 2**31):
        with pytest.raises(ValueError, match=str(number)):
            owners.coming(number, 0)


def made(*members: tarfile.TarInfo, content: bytes = b"") -> bytes:
    """An archive as somebody may send it; files are this caller's unless they say otherwise."""
    top = tarfile.TarInfo(".")
    top.type, top.mode = tarfile.DIRTYPE, 0o700
    data = b""
    for member in (top, *members):
        member.uid = member.uid or 1000
        member.gid = member.gid or 1000
        data += member.tobuf(tarfile.GNU_FORMAT) + (content if member.size else b"")
    return data + bytes(10240)


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", **keys: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    for key, value in keys.items():
        setattr(member, key, value)
    return member


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([entry("../x")], "a name that leads elsewhere"),
        ([entry("/x")], "a name that leads elsewhere"),
        ([entry("x", uid=65536)], "a file of somebody whom no guest knows"),
        ([entry("x", gid=2**21)], "a file of somebody whom no guest knows"),
        ([entry("l", tarfile.SYMTYPE, "/etc"), entry("l/x")], "cannot be written"),
        ([entry("x", tarfile.LNKTYPE, "../x")], "a name that leads elsewhere"),
        ([entry("d", tarfile.DIRTYPE), entry("x", tarfile.LNKTYPE, "d")], "a hard link whose target is no file"),
        ([entry("l", tarfile.SYMTYPE, "/etc"), entry("x", tarfile.LNKTYPE, "l/passwd")], "cannot be written"),
        ([entry("x"), entry("x")], "cannot be written"),
        ([entry("x", size=1 << 60)], "more than"),
    ],
    ids=range(10),
)
def test_what_no_honest_server_sends(members: list[tarfile.TarInfo], why: str, tmp_path: Path) -> None:
    with pytest.raises(HutchError, match=why):
        unpack(tmp_path / "came", made(*members))
    assert not (tmp_path / "x").exists()


def test_devices_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "came").mkdir()
    data = made(entry("null", tarfile.CHRTYPE), entry("file"))
    told = unpack_home(str(tmp_path / "came"), MINE, "web", lambda take, is_whole: take(data))
    assert told.left_out == ["'null': a device or a pipe"]
    assert os.listdir(tmp_path / "came" / Unpacker.ITEM) == ["file"]


def test_half_a_home_is_none(home: Path, tmp_path: Path) -> None:
    data = archive(home)
    for size in (0, 512, len(data) // 2, len(data) - 10240):
        with pytest.raises(HutchError, match="has not sent all of the home"):
            unpack(tmp_path / f"came-{size}", data[:size])


def test_there_is_a_bound_on_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homes, "MOST_FILES", 3)
    with pytest.raises(HutchError, match="more than 3 files"):
        unpack(tmp_path / "came", made(*(entry(str(number)) for number in range(5))))


def test_the_home_itself_is_the_login_users(tmp_path: Path) -> None:
    top = entry(".", tarfile.DIRTYPE, mode=0o7077, uid=5)
    (tmp_path / "came").mkdir()
    data = top.tobuf(tarfile.GNU_FORMAT) + bytes(10240)
    unpack_home(str(tmp_path / "came"), MINE, "web", lambda take, is_whole: take(data))
    status = (tmp_path / "came" / Unpacker.ITEM).stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (os.getuid(), 0o777)


def test_damaged_times_are_refused(tmp_path: Path) -> None:
    record = b"18 mtime=12.x3456\n"
    header = entry("PaxHeaders", tarfile.XHDTYPE, size=len(record))
    data = made(header, entry("x"), content=record + bytes(512 - len(record)))
    with pytest.raises(HutchError, match="a damaged header"):
        unpack(tmp_path / "came", data)


def test_a_home_is_measured(home: Path, tmp_path: Path) -> None:
    found = measure(str(home))
    assert (found.files, found.size) == (9, 7 + 7 + (3 << 20) + 3)
    assert str(measure(str(tmp_path / "none"))) == "0 files, 0.0 MiB"


def test_a_change_meanwhile_makes_a_copy_stale(home: Path) -> None:
    since = calm()
    check_unchanged(str(home), since)
    (home / "a" / "b" / "new").write_text("x")
    with pytest.raises(HutchError, match="was changed while it was copied"):
        check_unchanged(str(home), since)


def test_an_unpacker_knows_that_it_is_not_finished(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(HutchError, match="has not sent all"):
            HomeUnpacker(descriptor, 1, "web", MINE).finish()
    finally:
        os.close(descriptor)
