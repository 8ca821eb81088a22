"""What this host finds wrong is said with the line of the file, as what is wrong in the file itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from hutch.errors import ConfigError, Problem
from hutch.spec.refusing import refuse_files

TOML = """[workspaces.web]
type = "container"

[[workspaces.web.mounts]]
source = "/gone"
target = "/srv"
"""
PROBLEMS = (
    Problem("does not exist", "workspaces.web.mounts[0].source", "/gone"),
    Problem("belongs to somebody else", "workspaces.web.home", "/home"),
)


def refused(file: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        refuse_files((str(file), problem) for problem in PROBLEMS)
    return caught.value.details.splitlines()


def test_each_has_its_line_or_that_of_the_table(tmp_path: Path) -> None:
    file = tmp_path / "hutch.toml"
    file.write_text(TOML)
    assert refused(file) == [
        f"{file}:1: workspaces.web.home = /home: belongs to somebody else",
        f"{file}:5: workspaces.web.mounts[0].source = /gone: does not exist",
    ]


@pytest.mark.parametrize("content", [None, "no = ["])
def test_a_file_that_is_gone_or_broken_by_now_has_no_lines(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "hutch.toml"
    if content is not None:
        file.write_text(content)
    assert refused(file)[0] == f"{file}: workspaces.web.mounts[0].source = /gone: does not exist"


def test_nothing_wrong_is_nothing_raised() -> None:
    refuse_files(())
