"""Fingerprints of rootfs sources: metadata only, nothing outside, nothing that is the host's or hutch's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.images.source import compression, observe_fingerprint
from hutch.spec.names import Layout


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "hutch" / "state").mkdir(parents=True)
    return Layout(tmp_path / "hutch" / "state", tmp_path / "run")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc" / "motd").write_text("hello")
    (tree / "etc" / "out").symlink_to(tmp_path / "outside")
    return tree


def test_the_same_tree_has_the_same_fingerprint(tree: Path, layout: Layout) -> None:
    assert observe_fingerprint(str(tree), layout) == observe_fingerprint(str(tree), layout)


def test_changes_show(tree: Path, layout: Layout) -> None:
    seen = {observe_fingerprint(str(tree), layout)}
    (tree / "etc" / "motd").chmod(0o4755)
    seen.add(observe_fingerprint(str(tree), layout))
    os.utime(tree / "etc" / "motd", ns=(0, 1))
    seen.add(observe_fingerprint(str(tree), layout))
    (tree / "new").touch()
    seen.add(observe_fingerprint(str(tree), layout))
    assert len(seen) == 4


def test_symbolic_links_are_not_followed(tree: Path, layout: Layout, tmp_path: Path) -> None:
    before = observe_fingerprint(str(tree), layout)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").touch()
    assert observe_fingerprint(str(tree), layout) == before


def test_names_that_are_no_text(tree: Path, layout: Layout) -> None:
    Path(os.fsdecode(os.fsencode(tree) + b"/\xff\n")).touch()
    assert observe_fingerprint(str(tree), layout).startswith("directory ")


def test_a_tarball_is_told_by_size_and_time(tmp_path: Path, layout: Layout) -> None:
    tarball = tmp_path / "tree.tar.gz"
    tarball.write_bytes(b"1234")
    os.utime(tarball, ns=(0, 7))
    assert observe_fingerprint(str(tarball), layout) == f"tarball {tarball} 4 7"


@pytest.mark.parametrize("path", ["/", "hutch", "hutch/state", "hutch/state/images", ".", "link"])
def test_neither_the_host_nor_hutchs_state(tmp_path: Path, layout: Layout, path: str) -> None:
    (tmp_path / "link").symlink_to("hutch")
    with pytest.raises(HutchError, match="cannot be an image"):
        observe_fingerprint(str(tmp_path / path), layout)


@pytest.mark.parametrize("path", ["absent", "file.txt"])
def test_what_is_no_source(tmp_path: Path, layout: Layout, path: str) -> None:
    (tmp_path / "file.txt").touch()
    with pytest.raises(HutchError, match=r"cannot be read|neither"):
        observe_fingerprint(str(tmp_path / path), layout)


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
