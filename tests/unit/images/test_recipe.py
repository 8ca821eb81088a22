"""What decides an image's id, and what does not."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from hutch.images.recipe import BASE_PACKAGES, DISTRIBUTIONS, Recipe, is_id, make_recipe
from hutch.spec.record import Booted, Record
from tests.unit.facts import workspace

PLAIN = make_recipe("debian:trixie", ("git", "vim"))
FIRST, SECOND, THIRD = (replace(PLAIN, edition=number).id for number in (1, 2, 3))
OTHER = make_recipe("debian:trixie", ("git",)).id


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


@pytest.mark.parametrize(
    "text", ["", ".", "..", "web", "../debian-0123456789ab", "debian-0123456789ab\n", ".build-x", "x-0123456789ab.lock"]
)
def test_what_is_no_id(text: str) -> None:
    assert not is_id(text)


def test_an_edition_is_of_the_same_recipe() -> None:
    assert f"{PLAIN.id}.2" == SECOND and is_id(SECOND)
    assert replace(PLAIN, edition=2).digest == PLAIN.digest
    assert [PLAIN.edition_of(id) for id in (FIRST, SECOND, THIRD, OTHER, f"{OTHER}.2", "junk", "")] == [
        1,
        2,
        3,
        *[0] * 4,
    ]
    assert PLAIN.newest([SECOND, f"{OTHER}.7", THIRD, FIRST]).id == THIRD
    assert PLAIN.newest([OTHER]).id == FIRST
    assert not is_id(f"{FIRST}.0") and not is_id(f"{FIRST}.02") and not is_id(f"{FIRST}.2.lock")


def remembered(image: str, booted: str | None = None, **keys: str) -> Record:
    """A record of a workspace that is to start from one image, and was started from another, or never."""
    own = workspace(**keys)
    return Record("web", "/f", own, image, 0, "", booted=Booted(own, booted) if booted else None)


@pytest.mark.parametrize(
    ("record", "cached", "chosen"),
    [
        (None, [], FIRST),  # nothing was built yet
        (None, [FIRST, SECOND], SECOND),
        (remembered(FIRST, FIRST), [FIRST, SECOND], SECOND),
        (remembered(SECOND, SECOND), [], SECOND),  # a lost image is built again under its own id
        (remembered(SECOND, SECOND), [FIRST], SECOND),
        (remembered(OTHER, OTHER), [OTHER, FIRST], FIRST),  # other packages
    ],
)
def test_a_workspace_starts_from_the_newest_edition(record: Record | None, cached: list[str], chosen: str) -> None:
    assert PLAIN.for_workspace(workspace(), record, cached).id == chosen


@pytest.mark.parametrize(
    ("record", "now", "chosen"),
    [
        (remembered(FIRST, FIRST, persist="all"), {"persist": "all"}, FIRST),
        (remembered(FIRST, persist="all"), {"persist": "all"}, SECOND),  # never started, so there is no root yet
        (remembered(FIRST, FIRST), {"persist": "all"}, SECOND),
        (remembered(FIRST, FIRST, persist="all"), {}, SECOND),
        (remembered(FIRST, FIRST, persist="all"), {"persist": "all", "type": "vm"}, SECOND),  # its root is made anew
        (remembered(OTHER, OTHER, persist="all"), {"persist": "all"}, SECOND),  # likewise
        (replace(remembered(FIRST, FIRST, persist="all"), removed=True), {"persist": "all"}, SECOND),
    ],
)
def test_a_kept_root_stays_on_what_it_lies_on(record: Record, now: dict[str, str], chosen: str) -> None:
    assert PLAIN.for_workspace(workspace(**now), record, [FIRST, SECOND]).id == chosen


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


@pytest.mark.parametrize(
    ("image", "line"),
    [
        ("debian:trixie", "deb http://security.debian.org/debian-security trixie-security main"),
        ("debian:bookworm", "deb http://security.debian.org/debian-security bookworm-security main"),
        ("ubuntu:noble", "deb http://archive.ubuntu.com/ubuntu noble-security main universe"),
    ],
)
def test_updates_have_an_archive_of_their_own(image: str, line: str) -> None:
    assert DISTRIBUTIONS[image].security_source("x86_64") == line


def test_the_base_lets_people_in() -> None:
    assert {"systemd-resolved", "openssh-server", "opendoas"} <= set(BASE_PACKAGES)
