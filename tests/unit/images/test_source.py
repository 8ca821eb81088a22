"""Fingerprints of rootfs sources: metadata only, nothing outside, nothing that is the host's or hutch's own."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.images.source import compression, observe_fingerprint
from hutch.spec.names import Layout
from hutch.trees.removing import remove_tree


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "hutch" / "state" / "images").mkdir(parents=True)
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


def test_a_tree_may_be_as_deep_as_a_path_is_long(tree: Path, layout: Layout) -> None:
    try:
        deepen(tree, 1500)
        assert observe_fingerprint(str(tree), layout).startswith("directory ")
        deepen(tree, 3000)
        with pytest.raises(HutchError, match="File name too long"):
            observe_fingerprint(str(tree), layout)
    finally:
        remove_tree(tree)


def deepen(tree: Path, depth: int) -> None:
    """Make a directory in a directory and so on, each by its parent: no path is as long."""
    here = os.open(tree, os.O_RDONLY)
    for _ in range(depth):
        with suppress(FileExistsError):
            os.mkdir("d", dir_fd=here)
        here, above = os.open("d", os.O_RDONLY, dir_fd=here), here
        os.close(above)
    os.close(here)


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


@pytest.mark.parametrize("path", ["/", "hutch", "hutch/state", "hutch/state/images", "."])
def test_neither_the_host_nor_hutchs_state(tmp_path: Path, layout: Layout, path: str) -> None:
    with pytest.raises(HutchError, match="cannot be an image"):
        observe_fingerprint(str(tmp_path / path), layout)


@pytest.mark.parametrize("link", ["tree", "above/tree"])
def test_a_link_that_has_come_since_is_not_followed(tree: Path, layout: Layout, tmp_path: Path, link: str) -> None:
    """A file was judged by the real path of a tree."""
    (tmp_path / "real").mkdir()
    tree.rename(tmp_path / "real" / "tree")
    (tmp_path / link.partition("/")[0]).symlink_to("real" if "/" in link else "real/tree")
    assert observe_fingerprint(str(tmp_path / "real/tree"), layout)
    with pytest.raises(HutchError, match="a symbolic link on the way"):
        observe_fingerprint(str(tmp_path / link), layout)


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
