"""What the Debian package says of itself, and that nothing which hutch needs is left out."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from hutch.host.doctor.packages import REQUIREMENTS
from package.control import (
    DEFAULT,
    DISTRIBUTIONS,
    ESSENTIAL,
    Distribution,
    bundled,
    depends,
    distribution_of,
    parse,
    render_bundle,
    render_changelog,
    render_control,
    render_metadata,
)
from tests.unit.facts import check_golden

TOP = Path(__file__).parents[3]
PROJECT = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
WHO = "Ada <ada@example.org>"


LOCK = tomllib.loads((TOP / "uv.lock").read_text())
each_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)


@each_distribution
def test_control(distribution: Distribution) -> None:
    control = render_control({**PROJECT, "version": "1.2.3"}, distribution, f"1.2.3-4{distribution.mark}", WHO, 5678)
    check_golden(f"package/control{distribution.mark}", control)


def test_changelog() -> None:
    check_golden("package/changelog", render_changelog("1.2.3-4", WHO, 1_700_000_000))


def test_metadata_names_what_pip_would_install() -> None:
    lines = render_metadata(PROJECT).splitlines()
    assert [line for line in lines if line.startswith("Requires-Dist: ")] == [
        f"Requires-Dist: {dependency}" for dependency in PROJECT["dependencies"]
    ]
    assert f"Version: {PROJECT['version']}" in lines


def test_what_is_bundled() -> None:
    debian = ["qemu-qmp", "tree-sitter", "tree-sitter-toml"]
    assert bundled(LOCK, DISTRIBUTIONS[DEFAULT]) == debian
    others = {"dnspython", "idna", "pydantic", "pydantic-core", "annotated-types", "typing-extensions"}
    assert {*debian, *others, "typing-inspection"} == {*bundled(LOCK, DISTRIBUTIONS["ubuntu24.04"])}


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ({"ID": "ubuntu", "VERSION_CODENAME": "noble", "UBUNTU_CODENAME": "noble"}, "ubuntu24.04"),
        ({"ID": "linuxmint", "VERSION_CODENAME": "wilma", "UBUNTU_CODENAME": "noble"}, "ubuntu24.04"),
        ({"ID": "debian", "VERSION_CODENAME": "trixie"}, "debian13"),
        ({"ID": "fedora", "VERSION_CODENAME": ""}, DEFAULT),
        ({}, DEFAULT),
    ],
)
def test_a_package_is_for_the_host_that_builds_it(host: dict[str, str], name: str) -> None:
    assert distribution_of(host) == name


@each_distribution
def test_every_program_is_needed_or_recommended(distribution: Distribution) -> None:
    needed, recommended = depends(PROJECT["dependencies"], distribution)
    for item in REQUIREMENTS:
        if item.set == "runtime":
            assert set(item.apt) - ESSENTIAL <= {*needed, *(recommended if item.optional else ())}, item.purpose


@each_distribution
def test_the_bundled_are_those_of_the_lock_file(distribution: Distribution) -> None:
    lines = render_bundle(LOCK, distribution).splitlines()
    versions = {package["name"]: package["version"] for package in LOCK["package"] if "version" in package}
    names = bundled(LOCK, distribution)
    assert [line.split()[0] for line in lines] == [f"{name}=={versions[name]}" for name in names]
    assert all("--hash=sha256:" in line for line in lines)


@pytest.mark.parametrize("dependency", ["click", "click>=8,<9", "click[extra]>=8", "click>=8; python_version<'3.12'"])
def test_a_dependency_that_cannot_be_told_to_debian_is_refused(dependency: str) -> None:
    with pytest.raises(ValueError, match="tell package/control"):
        parse(dependency)
