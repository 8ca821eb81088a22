"""Tests that a run has no time for: they are dropped, and the run names them at its end (see tests/conftest)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

LEFT_OUT = pytest.StashKey[list[str]]()


def leave_unread(config: pytest.Config, file: Path) -> None:
    """Name a file that is not even read."""
    config.stash.setdefault(LEFT_OUT, []).append(str(file.relative_to(config.rootpath)))


def leave_out(config: pytest.Config, items: list[pytest.Item], is_left_out: Callable[[pytest.Item], bool]) -> None:
    """Drop these from `items`. Where nothing stays of a file, or of a test with parameters, it is named as a whole."""
    dropped = {item: None for item in items if is_left_out(item)}
    items[:] = [item for item in items if item not in dropped]
    staying = {name for item in items for name in _whole(item)}
    names: dict[str, dict[str, None]] = {}
    for item in dropped:
        file, test = _whole(item)
        names.setdefault(file, {})[item.name if test in staying else item.name.partition("[")[0]] = None
    lines = config.stash.setdefault(LEFT_OUT, [])
    lines += [f"{file}: {', '.join(names[file])}" if file in staying else file for file in names]
    if dropped:
        config.hook.pytest_deselected(items=list(dropped))


def _whole(item: pytest.Item) -> tuple[str, str]:
    """The file of a test, and the test without its parameters."""
    return item.nodeid.partition("::")[0], item.nodeid.partition("[")[0]
