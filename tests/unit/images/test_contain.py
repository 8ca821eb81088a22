"""What runs contained, is limited before it begins."""

from __future__ import annotations

from typing import Any

import pytest

from hutch.images import contain
from hutch.images.contain import run_contained

GROUP = "hutch.slice/build.1"


class Began(Exception):
    pass


def test_it_is_limited_in_the_slice_that_leaves_a_reserve(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[str, str]] = []
    limited: dict[str, str] = {}

    class Told:
        def __init__(self, path: str) -> None:
            self.path = path

        def __getattr__(self, name: str) -> Any:
            return lambda *arguments: done.append((self.path, name))

        def open(self, group: str) -> int:
            raise Began

        def limit(self, limits: dict[str, str]) -> None:
            done.append((self.path, "limit"))
            limited.update(limits)

    monkeypatch.setattr(contain, "Cgroup", Told)
    with pytest.raises(Began):
        run_contained(["true"], group=GROUP, tasks=7, memory=1 << 20, cpus=1, on_line=print)
    assert done[:3] == [(GROUP, "make"), (GROUP, "limit"), ("hutch.slice", "keep_reserve")]
    assert (limited["pids.max"], limited["memory.max"], limited["memory.swap.max"]) == ("7", "1048576", "0")
    assert limited["cpu.max"] == "100000 100000"
