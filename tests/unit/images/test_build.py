"""The commands of a build, and what is made of their failures."""

from __future__ import annotations

from pathlib import Path

from hutch.images.build import (
    BuilderNetwork,
    Workshop,
    explain_bootstrap,
    explain_finish,
    last_lines,
    mmdebstrap_command,
    nspawn_command,
)
from hutch.images.progress import Meter, no_progress
from hutch.images.recipe import make_recipe
from hutch.run import CommandFailed
from hutch.spec.names import UID_COUNT, UID_FIRST, UID_RANGES
from tests.unit.facts import LAYOUT, SECOND

TRIXIE = make_recipe("debian:trixie", ("git", "less"))
SHOP = Workshop(Path("/state/images/.build-x"), "hutch/build.x", LAYOUT.builder_uid, Meter(no_progress))


def failed(stderr: str, code: int = 1) -> CommandFailed:
    return CommandFailed(["mmdebstrap"], f"failed with code {code}", stderr, code)


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
