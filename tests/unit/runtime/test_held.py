"""Steps that bind what is held: for exactly one process, or not at all."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any, cast

import pytest

from hutch.host.services.cgroup import Cgroup
from hutch.runtime import bound, steps
from hutch.runtime.steps import StartFailed, bind_held, held_steps

STEPS: list[dict[str, Any]] = [{"argv": ["true"], "why": "bind it", "may_fail": False}]


class Group:
    def __init__(self, *pids: int) -> None:
        self.pids = pids

    def processes(self, *parts: str) -> list[int]:
        return list(self.pids)


@pytest.mark.parametrize("pids", [(), (7, 8)])
def test_it_is_one_process(pids: tuple[int, ...]) -> None:
    with pytest.raises(StartFailed, match=f"there are {len(pids)}"):
        held_steps(cast(Cgroup, Group(*pids)), "payload", STEPS)


class Frozen(Group):
    """What has these pids is in it; `thawed` says when it was let go."""

    def __init__(self, *pids: int) -> None:
        super().__init__(*pids)
        self.thawed: list[str] = []

    def freeze(self, group: str) -> None:
        pass

    def await_process(self, group: str, patience: float, *, unless: int) -> bool:
        return bool(self.pids)

    def thaw(self, group: str) -> None:
        self.thawed.append(group)


@pytest.fixture
def ended() -> Iterator[tuple[int, int]]:
    """As a pidfd it can be read once the process has ended: once something is written to the other one."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def bind(group: Frozen, pidfd: int) -> None:
    bind_held(cast(Cgroup, group), "payload", STEPS, pidfd, 0.0, 5.0)


def test_what_runs_without_coming_to_be_held_is_refused(ended: tuple[int, int]) -> None:
    with pytest.raises(StartFailed, match="nothing of the guest came to be held"):
        bind(Frozen(), ended[0])
    os.write(ended[1], b".")
    bind(Frozen(), ended[0])  # it has said why


def test_it_is_let_go_once_it_is_bound(ended: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    group = Frozen(7)
    failing = steps.SideBySide((), "cannot bind it")
    monkeypatch.setattr(steps, "held_steps", lambda cgroup, name, held: failing)
    with pytest.raises(StartFailed, match="cannot bind it"):
        bind(group, ended[0])
    assert group.thawed == []
    monkeypatch.setattr(steps, "held_steps", lambda cgroup, name, held: steps.SideBySide(()))
    bind(group, ended[0])
    assert group.thawed == ["payload"]


def test_a_setup_that_is_not_where_it_is_held_is_killed(
    ended: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An nspawn of another layout never puts anything into the group, and runs what it is to run elsewhere."""
    killed: list[tuple[int, int]] = []
    for name in ("leave_keyring", "forbid"):
        monkeypatch.setattr(bound, name, lambda *arguments: None)
    monkeypatch.setattr(bound, "own_group", lambda: "x")
    monkeypatch.setattr(bound, "Cgroup", lambda path: Frozen())
    monkeypatch.setattr(os, "posix_spawnp", lambda *arguments: 4242)
    monkeypatch.setattr(os, "pidfd_open", lambda pid: ended[0])
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
    with pytest.raises(SystemExit, match="so it is not run: nothing of the guest came to be held"):
        bound.main('{"forbidden": {}, "held": []}', "systemd-nspawn")
    assert killed == [(4242, signal.SIGKILL)]
