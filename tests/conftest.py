"""For all tiers. What a tier allows its tests to do is said in its own conftest."""

from __future__ import annotations

import pytest
from hypothesis import settings

# The same examples on every run, and none kept on disk: a test that fails here fails everywhere. No deadline,
# because the machine may be busy with something else.
settings.register_profile("hutch", derandomize=True, database=None, deadline=None)
settings.load_profile("hutch")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--boundary", choices=["container", "vm"], default="container", help="what workspaces are made of")
    parser.addoption("--long", action="store_true", help="with the tests that take minutes")
