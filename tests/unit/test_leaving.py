"""What a run of the tests leaves out, it names: as little as says it, and nothing that is not left out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.leaving import LEFT_OUT, leave_out


class Item:
    def __init__(self, nodeid: str) -> None:
        self.nodeid, self.name = nodeid, nodeid.partition("::")[2]


@pytest.mark.parametrize(
    ("dropped", "told"),
    [
        ([], []),
        (["b.py::three"], ["b.py"]),
        (["a.py::one[x]"], ["a.py: one[x]"]),
        (["a.py::one[x]", "a.py::one[y]"], ["a.py: one"]),
        (["a.py::two", "b.py::three"], ["a.py: two", "b.py"]),
    ],
)
def test_names(dropped: list[str], told: list[str]) -> None:
    heard: list[Any] = []

    def pytest_deselected(items: list[Any]) -> None:
        heard.extend(items)

    config: Any = SimpleNamespace(stash=pytest.Stash(), hook=SimpleNamespace(pytest_deselected=pytest_deselected))
    items: list[Any] = [Item(nodeid) for nodeid in ("a.py::one[x]", "a.py::one[y]", "a.py::two", "b.py::three")]
    everything = list(items)
    leave_out(config, items, lambda item: item.nodeid in dropped)
    assert config.stash[LEFT_OUT] == told
    assert [item.nodeid for item in heard] == dropped
    assert [item for item in everything if item not in heard] == items
