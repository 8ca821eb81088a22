"""What decides an image's id, and what does not."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from hutch.images.recipe import BASE_PACKAGES, DISTRIBUTIONS, Recipe, is_id, make_recipe

PLAIN = make_recipe("debian:trixie", ("git", "vim"))


def test_the_id_names_the_image_and_ends_in_twelve_digits() -> None:
    assert re.fullmatch(r"debian-trixie-[0-9a-f]{12}", PLAIN.id)
    assert PLAIN.digest.startswith(PLAIN.id.rpartition("-")[2])


def test_order_and_repetition_of_packages_do_not_matter() -> None:
    assert make_recipe("debian:trixie", ("vim", "git", "vim")) == PLAIN


@pytest.mark.parametrize(
    "other",
    [
        make_recipe("debian:bookworm", ("git", "vim")),
        make_recipe("debian:trixie", ("git",)),
        make_recipe("debian:trixie", ("git", "vim"), "true"),
        make_recipe("debian:trixie", ("git", "vim"), fingerprint="x"),
        replace(PLAIN, base="another base or adaptation"),
    ],
)
def test_every_part_matters(other: Recipe) -> None:
    assert other.digest != PLAIN.digest


@pytest.mark.parametrize(
    ("path", "start"),
    [
        ("/srv/My Tree.tar.zst", "rootfs-my-tree-tar-zst-"),
        ("/srv/..", "rootfs-"),
        ("/srv/" + "long" * 60, "rootfs-long"),
        ("/srv/\u00fcmlaut", "rootfs-mlaut-"),
    ],
)
def test_any_path_makes_an_id_that_is_safe_in_a_path(path: str, start: str) -> None:
    recipe = make_recipe(f"rootfs:{path}")
    assert recipe.rootfs == path
    assert recipe.id.startswith(start)
    assert is_id(recipe.id)


@pytest.mark.parametrize("text", ["", ".", "..", "web", "../debian-0123456789ab", "debian-0123456789ab\n", ".build-x"])
def test_what_is_no_id(text: str) -> None:
    assert not is_id(text)


@pytest.mark.parametrize(
    ("recipe", "wanted"),
    [
        (PLAIN, False),  # mmdebstrap downloads from outside the tree
        (make_recipe("debian:trixie", (), "true"), True),
        (make_recipe("rootfs:/srv/tree"), False),
        (make_recipe("rootfs:/srv/tree", ("git",)), True),
    ],
)
def test_a_network_is_wanted_for_what_runs_in_the_tree(recipe: Recipe, wanted: bool) -> None:
    assert recipe.wants_network is wanted


def test_ubuntu_is_updated_and_comes_from_the_right_mirror() -> None:
    noble = DISTRIBUTIONS["ubuntu:noble"]
    assert noble.sources("x86_64") == (
        "deb http://archive.ubuntu.com/ubuntu noble main universe",
        "deb http://archive.ubuntu.com/ubuntu noble-updates main universe",
        "deb http://archive.ubuntu.com/ubuntu noble-security main universe",
    )
    assert all("ports.ubuntu.com" in line for line in noble.sources("aarch64"))


def test_the_base_lets_people_in() -> None:
    assert {"systemd-resolved", "openssh-server", "opendoas"} <= set(BASE_PACKAGES)
