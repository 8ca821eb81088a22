"""What a copy does on the host when it has come, and what it makes of a tar that does not listen."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import pytest

from hutch.access.piped import Take
from hutch.api.copying import Side, get, put
from hutch.errors import HutchError


def sender(*paths: str) -> Side:
    """A workspace that sends a tree: names, those that end with a slash are directories."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for path in ("./", *paths):
            member = tarfile.TarInfo(path.rstrip("/"))
            member.type = tarfile.DIRTYPE if path.endswith("/") else tarfile.REGTYPE
            member.size = 0 if path.endswith("/") else 3
            archive.addfile(member, io.BytesIO(b"new"))

    def carry(argv: Sequence[str], output: Take, errors: Take, stdin: Iterable[bytes | None]) -> int:
        output(file.getvalue())
        return 0

    return Side("web", carry)


def look(top: Path) -> dict[str, str | None]:
    return {str(path.relative_to(top)): path.read_text() if path.is_file() else None for path in sorted(top.rglob("*"))}


@pytest.mark.parametrize("into", [False, True])
@pytest.mark.parametrize("wrong", ["taken", "d/taken", "file/", "d/file/"])
def test_nothing_is_kept_of_what_does_not_fit(wrong: str, into: bool, tmp_path: Path) -> None:
    """A file for a directory, a directory for a file, whatever else there is and in whatever order."""
    place = tmp_path / "tree" if into else tmp_path
    for name in ("taken", "d/taken"):
        (place / name).mkdir(parents=True)
        (place / name / "kept").write_text("old")
    for name in ("file", "d/file", "a", "z"):
        (place / name).write_text("old")
    before = look(tmp_path)
    with pytest.raises(HutchError, match=r"cannot be written: .* \('(taken|file)'\)"):
        get(sender("a", "d/", wrong, "z"), "tree", tmp_path, limit=100, into=into)
    assert look(tmp_path) == before
    get(sender("a", "d/", "d/new", "z"), "tree", tmp_path, limit=100, into=into)
    after = {str(place.joinpath(name).relative_to(tmp_path)): "new" for name in ("a", "d/new", "z")}
    assert look(tmp_path) == before | after


def reader(most: int | None) -> Side:
    """A workspace whose tar reads so many pieces, and is content."""

    def carry(argv: Sequence[str], output: Take, errors: Take, stdin: Iterable[bytes | None]) -> int:
        output(b"directory\n")
        list(islice((piece for piece in stdin if piece is not None), most))
        return 0

    return Side("web", carry)


@pytest.mark.parametrize(("owner", "file"), [(4242, False), (4242, True), (0, True)])
@pytest.mark.skipif(os.geteuid() != 0, reason="takes root: a directory of another account")
def test_a_directory_that_somebody_put_in_the_place_of_ours_is_theirs(
    owner: int, file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.mkdir

    def mkdir(name: str, mode: int, *, dir_fd: int) -> None:
        real(name, mode, dir_fd=dir_fd)
        if file:
            (tmp_path / name / "theirs").touch()
        os.chown(tmp_path / name, owner, owner)

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(HutchError, match="somebody put another directory in the place"):
        get(sender("a"), "/src/.", tmp_path, limit=1 << 20)
    assert [path.name for path in tmp_path.glob("*/*")] == ["theirs"] * file


def test_a_tar_that_does_not_read_all_has_copied_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(1000))
    for most in (0, 1, 2):
        with pytest.raises(HutchError, match=r"web: tar ended before it had read all of /.*/file"):
            put(reader(most), tmp_path / "file", "x")
    assert put(reader(None), tmp_path / "file", "x").size == 1000
