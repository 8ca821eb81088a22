"""What the Debian package says of itself, and that nothing which hutch needs is left out."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from hutch.host.doctor.packages import REQUIREMENTS
from package.control import (
    BUNDLED,
    DEBIAN,
    ESSENTIAL,
    depends,
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


def test_control() -> None:
    check_golden("package/control", render_control({**PROJECT, "version": "1.2.3"}, "1.2.3-4", WHO, 5678))


def test_changelog() -> None:
    check_golden("package/changelog", render_changelog("1.2.3-4", WHO, 1_700_000_000))


def test_metadata_names_what_pip_would_install() -> None:
    lines = render_metadata(PROJECT).splitlines()
    assert [line for line in lines if line.startswith("Requires-Dist: ")] == [
        f"Requires-Dist: {dependency}" for dependency in PROJECT["dependencies"]
    ]
    assert f"Version: {PROJECT['version']}" in lines


def test_every_dependency_is_debians_or_bundled() -> None:
    names = {parse(dependency)[0] for dependency in PROJECT["dependencies"]}
    assert names == {*DEBIAN, *BUNDLED}


def test_every_program_is_needed_or_recommended() -> None:
    needed, recommended = depends(PROJECT["dependencies"])
    for item in REQUIREMENTS:
        if item.set == "runtime":
            assert set(item.apt) - ESSENTIAL <= {*needed, *(recommended if item.optional else ())}, item.purpose


def test_the_bundled_are_those_of_the_lock_file() -> None:
    lock = tomllib.loads((TOP / "uv.lock").read_text())
    lines = render_bundle(lock).splitlines()
    versions = {package["name"]: package["version"] for package in lock["package"] if "version" in package}
    assert [line.split()[0] for line in lines] == [f"{name}=={versions[name]}" for name in BUNDLED]
    assert all("--hash=sha256:" in line for line in lines)


@pytest.mark.parametrize("dependency", ["click", "click>=8,<9", "click[extra]>=8", "click>=8; python_version<'3.12'"])
def test_a_dependency_that_cannot_be_told_to_debian_is_refused(dependency: str) -> None:
    with pytest.raises(ValueError, match="tell package/control"):
        parse(dependency)
