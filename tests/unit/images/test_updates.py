"""Questions to archives of security updates: their time, their content, and the reading of the answers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hutch.images.updates import (
    ask_command,
    is_due,
    parse_answer,
    plain_status,
    read_status,
    render_file,
    still_valid,
)
from hutch.spec.record import Age

MONDAY, TUESDAY, WEDNESDAY = (f"2026-11-{day}T12:00:00+00:00" for day in (23, 24, 25))
STATUS = """\
Package: libssl3t64
Status: install ok installed
Architecture: amd64
Multi-Arch: same
Version: 3.5.4-1~deb13u1
Description: cryptography
 Package: not-a-field
Conffiles:
 /etc/x 0123

Package: g++
Status: hold ok installed
Architecture: amd64
Version: 4:14.2.0-1

Package: gone
Status: deinstall ok config-files
Architecture: all
Version: 1

Package: half
Status: install ok half-installed
Architecture: all
Version: 1

Package: ../../etc
Status: install ok installed
Architecture: amd64
Version: 1

Package: hostile
Status: install ok installed
Architecture: amd64
Version: 1 [x]

Package: lacks-a-version
Status: install ok installed
Architecture: amd64
"""


def test_what_is_installed() -> None:
    """No other text of the list reaches apt, which root runs."""
    found = plain_status(STATUS)
    assert found == (
        "Package: libssl3t64\nStatus: install ok installed\nArchitecture: amd64\nVersion: 3.5.4-1~deb13u1\n\n"
        "Package: g++\nStatus: install ok installed\nArchitecture: amd64\nVersion: 4:14.2.0-1\n\n"
    )
    assert plain_status(found) == found
    assert plain_status("") == ""


@pytest.mark.parametrize(
    "hostile",
    [
        f"Package: big\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1.{'9' * 70_000}\n",
        f"Package: {'a' * 5000}\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n",
        f"Package: long\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1\n{'Tag: x' * 20_000}\n",
        "\n" * 1_000_000,
        "Package: a\n" * 500_000,
    ],
    ids=["version", "name", "entry", "empty lines", "one entry"],
)
def test_what_apt_could_not_read_is_left_out(hostile: str) -> None:
    assert plain_status(f"{hostile}\n{STATUS}") == plain_status(STATUS)


def test_a_kernel_s_package_by_its_file() -> None:
    assert render_file("busybox-static_1%3a1.37.0-6+b3_amd64.deb") == (
        "Package: busybox-static\nStatus: install ok installed\nArchitecture: amd64\nVersion: 1:1.37.0-6+b3\n\n"
    )


def test_what_apt_answers() -> None:
    answer = (
        "Listing...\n"
        "libssl3t64/stable-security 3.5.7-1~deb13u3 amd64 [upgradable from: 3.5.4-1~deb13u1]\n"
        "linux-image-virtual/noble-security 6.8.0-90.91 amd64 [upgradable from: 6.8.0-31.31]\n"
        "libssl3t64/stable-security 3.5.7-1~deb13u3 i386 [upgradable from: 3.5.4-1~deb13u1]\n"
        "zlib1g/stable-security 1:1.3.dfsg-1 amd64 [upgradable from: 1:1.3.dfsg-1]\n"
    )
    assert parse_answer(answer) == ("libssl3t64", "linux-image-virtual")
    assert parse_answer("Listing...\n") == ()


@pytest.mark.parametrize(
    ("age", "due"),
    [
        (Age(MONDAY), True),
        (Age(MONDAY, TUESDAY), False),
        (Age(MONDAY, "2026-11-23T12:00:01+00:00"), True),  # a day ago
        (Age(MONDAY, "2026-11-22T12:00:00+00:00"), True),  # before it was built
        (Age(MONDAY, MONDAY, packed=TUESDAY), True),  # before its kernel came
        (Age(MONDAY, "2026-12-24T12:00:00+00:00"), True),  # the clock was wrong
    ],
)
def test_an_answer_is_good_for_a_day(age: Age, due: bool) -> None:
    assert is_due(age, "2026-11-24T12:00:01+00:00") is due


def test_an_answer_is_about_one_tree_and_one_kernel() -> None:
    known = Age(MONDAY, WEDNESDAY, ("bash",), MONDAY, ("linux-image-amd64",))
    assert still_valid(known, MONDAY, MONDAY) == known
    assert still_valid(known, MONDAY, TUESDAY) == Age(MONDAY, WEDNESDAY, ("bash",), TUESDAY)
    assert still_valid(known, TUESDAY, MONDAY) == Age(TUESDAY, packed=MONDAY)
    assert still_valid(None, MONDAY, "") == Age(MONDAY)


def test_the_archive_of_updates_alone_is_asked() -> None:
    command = ask_command("debian:trixie", "x86_64")
    assert {"--variant=custom", "--format=null"} <= set(command)
    assert command[-3:] == [
        "trixie",
        "/dev/null",
        "deb http://security.debian.org/debian-security trixie-security main",
    ]


def test_a_list_of_packages_is_read_through_no_link(tmp_path: Path) -> None:
    """A setup script may have put anything there."""
    list = tmp_path / "tree/var/lib/dpkg/status"
    list.parent.mkdir(parents=True)
    assert read_status(tmp_path / "tree") == ""
    (tmp_path / "secret").write_text("secret")
    list.symlink_to(tmp_path / "secret")
    assert read_status(tmp_path / "tree") == ""
    list.unlink()
    os.mkfifo(list)
    assert read_status(tmp_path / "tree") == ""
    list.unlink()
    list.write_bytes(b"Package: a\xff\n")
    assert read_status(tmp_path / "tree") == "Package: a\N{REPLACEMENT CHARACTER}\n"
