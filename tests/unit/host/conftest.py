"""A checkout of its own for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.host.checkouts import make_git_directory


@pytest.fixture
def top(tmp_path: Path) -> Path:
    make_git_directory(tmp_path / "top/.git")
    return tmp_path / "top"
