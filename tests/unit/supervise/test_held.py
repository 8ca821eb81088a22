"""Steps that bind what is held: for exactly one process, or not at all."""

from __future__ import annotations

from typing import Any, cast

import pytest

from hutch.host.cgroup import Cgroup
from hutch.supervise.steps import StartFailed, held_steps


class Group:
    def __init__(self, *pids: int) -> None:
        self.pids = pids

    def processes(self, *parts: str) -> list[int]:
        return list(self.pids)


@pytest.mark.parametrize("pids", [(), (7, 8)])
def test_it_is_one_process(pids: tuple[int, ...]) -> None:
    steps: list[dict[str, Any]] = [{"argv": ["true"], "why": "bind it", "may_fail": False}]
    with pytest.raises(StartFailed, match=f"there are {len(pids)}"):
        held_steps(cast(Cgroup, Group(*pids)), "payload", steps)
