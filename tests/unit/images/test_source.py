"""Fingerprints of rootfs sources: metadata only, nothing outside, nothing that is the host's or hutch's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.images.source import compression, observe_fingerprint
from hutch.spec.names import Places


@pytest.fixture
def places(tmp_path: Path) -> Places:
    (tmp_path / "hutch" / "state").mkdir(parents=True)
    return Places(tmp_path / "hutch" / "state", tmp_path / "run")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "motd").write_text("hello")
    (tree / "etc" / "out").symlink_to(tmp_path / "outside")
    return tree


def test_the_same_tree_has_the_same_fingerprint(tree: Path, places: Places) -> None:
    assert observe_fingerprint(str(tree), places) == observe_fingerprint(str(tree), places)


def test_changes_show(tree: Path, places: Places) -> None:
    seen = {observe_fingerprint(str(tree), places)}
    (tree / "etc" / "motd").chmod(0o4755)
    seen.add(observe_fingerprint(str(tree), places))
    os.utime(tree / "etc" / "motd", ns=(0, 1))
    seen.add(observe_fingerprint(str(tree), places))
    (tree / "new").touch()
    seen.add(observe_fingerprint(str(tree), places))
    assert len(seen) == 4


def test_symbolic_links_are_not_followed(tree: Path, places: Places, tmp_path: Path) -> None:
    before = observe_fingerprint(str(tree), places)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").touch()
    assert observe_fingerprint(str(tree), places) == before


def test_names_that_are_no_text(tree: Path, places: Places) -> None:
    Path(os.fsdecode(os.fsencode(tree) + b"/\xff\n")).touch()
    assert observe_fingerprint(str(tree), places).startswith("directory ")


def test_a_tarball_is_told_by_size_and_time(tmp_path: Path, places: Places) -> None:
    tarball = tmp_path / "tree.tar.gz"
    tarball.write_bytes(b"1234")
    os.utime(tarball, ns=(0, 7))
    assert observe_fingerprint(str(tarball), places) == f"tarball {tarball} 4 7"


@pytest.mark.parametrize("path", ["/", "hutch", "hutch/state", "hutch/state/images", ".", "link"])
def test_neither_the_host_nor_hutchs_state(tmp_path: Path, places: Places, path: str) -> None:
    (tmp_path / "link").symlink_to("hutch")
    with pytest.raises(HutchError, match="cannot be an image"):
        observe_fingerprint(str(tmp_path / path), places)


@pytest.mark.parametrize("path", ["absent", "file.txt"])
def test_what_is_no_source(tmp_path: Path, places: Places, path: str) -> None:
    (tmp_path / "file.txt").touch()
    with pytest.raises(HutchError, match=r"cannot be read|neither"):
        observe_fingerprint(str(tmp_path / path), places)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("a.tar", ""),
        ("a.tar.gz", "--gzip"),
        ("a.tgz", "--gzip"),
        ("a.tar.xz", "--xz"),
        ("a.tar.zst", "--zstd"),
        ("a.zip", None),
    ],
)
def test_compressions(name: str, option: str | None) -> None:
    assert compression(name) == option
