"""The commands of a build, and what is made of their failures."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.images.build import (
    BuilderNetwork,
    Workshop,
    contain,
    explain_bootstrap,
    explain_finish,
    last_lines,
    mmdebstrap_command,
    nspawn_command,
    parse_sources,
    unpack,
)
from hutch.images.progress import Meter, no_progress
from hutch.images.recipe import make_recipe
from hutch.run import CommandFailed
from hutch.spec import member
from hutch.spec.member import Member
from hutch.spec.names import UID_COUNT, UID_FIRST, UID_RANGES
from tests.unit.facts import LAYOUT, SECOND

TRIXIE = make_recipe("debian:trixie", ("git", "less"))
SHOP = Workshop(Path("/state/images/.build-x"), "hutch.slice/build.x", LAYOUT.builder_uid, Meter(no_progress))


def failed(stderr: str, code: int = 1) -> CommandFailed:
    return CommandFailed(["mmdebstrap"], f"failed with code {code}", stderr, code)


def test_what_is_unpacked_is_what_was_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link that has come since is not followed; the mount is told from others by the identity."""
    contained: list[tuple[list[str], str]] = []

    def run_contained(argv: list[str], *, stdin: str, **more: object) -> None:
        contained.append((argv, os.path.realpath(stdin)))

    monkeypatch.setattr("hutch.images.build.run_contained", run_contained)
    monkeypatch.setattr("hutch.images.build.find_flags", lambda mounts: ["nsdelegate"])
    tree, tarball = tmp_path / "tree", tmp_path / "tree.tar"
    tree.mkdir()
    tarball.touch()

    def unpacked(path: Path) -> tuple[list[str], str]:
        scratch = tmp_path / f"scratch{len(list(tmp_path.iterdir()))}"
        scratch.mkdir()
        unpack(make_recipe(f"rootfs:{path}"), replace(SHOP, scratch=scratch))
        return contained[-1]

    argv, stdin = unpacked(tree)
    identity = f"{tree.stat().st_dev}:{tree.stat().st_ino}"
    assert (argv[3], argv[5:7], stdin) == ("rw,nsdelegate", [str(tree), identity], "/dev/null")
    argv, stdin = unpacked(tarball)
    assert (argv[5:7], stdin) == (["", ""], str(tarball))
    for path in (tree, tarball):
        path.rename(tmp_path / f"before-{path.name}")
        path.symlink_to(f"before-{path.name}")
        with pytest.raises(HutchError, match="a symbolic link on the way"):
            unpacked(path)
    assert len(contained) == 2


def test_builds_have_uids_that_no_workspace_has() -> None:
    for layout in (LAYOUT, SECOND):
        assert layout.builder_uid >= UID_FIRST + UID_RANGES * UID_COUNT
        assert layout.builder_uid + UID_COUNT <= 1 << 31
    assert LAYOUT.builder_uid != SECOND.builder_uid


def test_debian_leaves_mirrors_and_keys_to_mmdebstrap() -> None:
    command = mmdebstrap_command(TRIXIE, "x86_64")
    assert command[-2:] == ["trixie", "/tmp/root"]
    (include,) = [word for word in command if word.startswith("--include=")]
    packages = include.removeprefix("--include=").split(",")
    assert "git" in packages
    assert packages.count("less") == 1  # also in the base


def test_the_sources_and_their_dates() -> None:
    lists = (
        "deb.debian.org_debian_dists_trixie_InRelease:Date: Sat, 21 Nov 2026 09:15:44 UTC\n"
        "ports.ubuntu.com_ubuntu-ports_dists_noble-security_Release:Date: Wed, 25 Nov 2026 22:33:13 GMT\n"
    )
    assert parse_sources(lists) == (
        ("deb.debian.org/debian/dists/trixie", "2026-11-21T09:15:44+00:00"),
        ("ports.ubuntu.com/ubuntu-ports/dists/noble-security", "2026-11-25T22:33:13+00:00"),
    )
    assert parse_sources("") == ()


@pytest.mark.parametrize(("who", "seconds"), [(None, 3600), (Member(1002, 1002, "carol", None), 900)])
def test_a_member_s_setup_keeps_others_waiting_for_less_long(
    monkeypatch: pytest.MonkeyPatch, who: Member | None, seconds: int
) -> None:
    taken: list[float] = []
    monkeypatch.setattr(member, "acting", who)
    monkeypatch.setattr("hutch.images.build.run_contained", lambda argv, **options: taken.append(options["timeout"]))
    contain(SHOP, ["systemd-nspawn"])
    assert taken == [seconds]


def test_what_is_not_trusted_is_contained() -> None:
    command = nspawn_command(SHOP, SHOP.tree, None)
    assert f"--private-users={LAYOUT.builder_uid}:{UID_COUNT}" in command
    assert {"--private-users-ownership=off", "--settings=no", "--private-network"} <= set(command)


def test_a_lent_network_replaces_the_private_one() -> None:
    network = BuilderNetwork("/run/netns/hutch", "vi-build", (), (), "192.168.83.254/24", "192.168.83.1")
    command = nspawn_command(SHOP, SHOP.tree, network)
    assert "--network-interface=vi-build:host0" in command
    assert "--private-network" not in command


def test_unknown_packages_are_named() -> None:
    output = "E: Unable to locate package gti\nE: Package 'foo' has no installation candidate\n"
    assert explain_bootstrap(TRIXIE, failed(output)).brief == "debian:trixie has no package gti, foo"


def test_a_mirror_that_does_not_answer() -> None:
    error = explain_bootstrap(
        TRIXIE, failed("Err:1 http://deb.debian.org trixie\n  Could not resolve 'deb.debian.org'\n")
    )
    assert "mirror" in error.brief


def test_other_failures_keep_the_end_of_the_output() -> None:
    error = explain_bootstrap(TRIXIE, failed("\n".join(f"line {number}" for number in range(100)), 25))
    assert "code 25" in error.brief
    assert error.details.splitlines() == [f"line {number}" for number in range(80, 100)]


def test_a_setup_script_that_fails() -> None:
    error = explain_finish(TRIXIE, "running setup", failed("hutch: stage setup\nboom\n", 7))
    assert error.brief == "debian:trixie: its setup script failed with code 7"
    assert error.details == "boom"


def test_a_tree_that_lacks_what_a_guest_needs() -> None:
    error = explain_finish(make_recipe("rootfs:/srv/tree"), "adapting", failed("hutch: missing: sshd doas\n", 3))
    assert error.brief == "rootfs:/srv/tree cannot be a workspace's system: it lacks sshd doas"


def test_our_own_marks_are_not_shown() -> None:
    assert last_lines("hutch: stage setup\nhello\n") == "hello"
