"""Steps that bind what is held: for exactly one process, or not at all."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.host.services.cgroup import Cgroup
from hutch.runtime import pre_exec, sandbox
from hutch.runtime.pre_exec import decode_steps, encode_steps, halve_counts, run_pre_exec
from hutch.runtime.steps import StepFailed

STEPS = [("bind it", ("enter", "PID", "--", "echo PID", "PID")), ("see that it is bound", ("true",))]


class Frozen:
    """What has these pids is in it; `thawed` says when it was let go."""

    def __init__(self, *pids: int, comes: bool = True) -> None:
        self.pids, self.comes = pids, comes
        self.frozen: list[str] = []
        self.thawed: list[str] = []

    def processes(self, *parts: str) -> list[int]:
        return list(self.pids)

    def freeze(self, group: str) -> None:
        self.frozen.append(group)

    def await_process(self, group: str, patience: float, *, unless: int) -> bool:
        return self.comes

    def thaw(self, group: str) -> None:
        self.thawed.append(group)


@pytest.fixture
def ended() -> Iterator[tuple[int, int]]:
    """As a pidfd it can be read once the process has ended: once something is written to the other one."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def bind(group: Frozen, pidfd: int) -> int | None:
    return run_pre_exec(cast(Cgroup, group), "payload", STEPS, pidfd, 5.0)


@pytest.mark.parametrize("pids", [(), (7, 8)])
def test_it_is_one_process(ended: tuple[int, int], pids: tuple[int, ...]) -> None:
    group = Frozen(*pids)
    with pytest.raises(StepFailed, match=f"put {len(pids)} processes into"):
        bind(group, ended[0])
    assert group.thawed == []


def test_what_runs_without_coming_to_be_held_is_refused(ended: tuple[int, int]) -> None:
    group = Frozen(comes=False)
    with pytest.raises(StepFailed, match="systemd-nspawn put no process into its cgroup payload"):
        bind(group, ended[0])
    os.write(ended[1], b".")
    assert bind(group, ended[0]) is None  # it has said why
    assert group.thawed == []


def test_it_is_let_go_once_it_is_bound(ended: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    group = Frozen(7)
    done: list[tuple[str, list[str]]] = []

    def fail(why: str, argv: list[str], seconds: float) -> None:
        raise StepFailed(f"cannot {why}")

    def do(why: str, argv: list[str], seconds: float) -> None:
        assert group.thawed == [] and 0 < seconds <= 5.0
        done.append((why, argv))

    monkeypatch.setattr(pre_exec, "do", fail)
    with pytest.raises(StepFailed, match="cannot bind it"):
        bind(group, ended[0])
    assert group.thawed == []
    monkeypatch.setattr(pre_exec, "do", do)
    assert bind(group, ended[0]) == 7
    assert group.thawed == ["payload"]
    assert done == [("bind it", ["enter", "7", "--", "echo PID", "7"]), ("see that it is bound", ["true"])]


def test_counts_are_halved_by_name(tmp_path: Path) -> None:
    (tmp_path / "max_user_namespaces").write_text("127\n")
    (tmp_path / "max_inotify_watches").write_text("192530\n")
    assert halve_counts(str(tmp_path)) == ["max_inotify_watches=96265", "max_user_namespaces=63"]


def test_a_step_is_told_them_as_words(ended: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[list[str]] = []
    monkeypatch.setattr(pre_exec, "halve_counts", lambda: ["a=1", "b=2"])
    monkeypatch.setattr(pre_exec, "do", lambda why, argv, seconds: done.append(argv))
    steps = [("bound it", ("set", "HALVES", "PID"))]
    assert run_pre_exec(cast(Cgroup, Frozen(7)), "payload", steps, ended[0], 5.0) == 7
    assert done == [["set", "a=1", "b=2", "7"]]


@pytest.mark.parametrize("text", [None, "", "many"])
def test_without_counts_it_is_not_let_go(
    ended: tuple[int, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None
) -> None:
    if text is not None:
        (tmp_path / "max_user_namespaces").write_text(text)
    group = Frozen(7)
    monkeypatch.setattr(pre_exec, "halve_counts", lambda: halve_counts(str(tmp_path)))
    with pytest.raises(StepFailed, match="cannot bound it: "):
        run_pre_exec(cast(Cgroup, group), "payload", [("bound it", ("true", "HALVES"))], ended[0], 5.0)
    assert group.thawed == []


def test_its_steps_share_one_deadline(ended: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 101.0, 104.0])
    left: list[float] = []
    monkeypatch.setattr("hutch.runtime.pre_exec.time.monotonic", lambda: next(clock))
    monkeypatch.setattr(pre_exec, "do", lambda why, argv, seconds: left.append(seconds))
    assert bind(Frozen(7), ended[0]) == 7
    assert left == [4.0, 1.0]


words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=9) | st.sampled_from(
    ["2", "PID"]
)


@given(st.lists(st.tuples(words, st.lists(words, max_size=5)), max_size=5))
def test_steps_travel_as_words(steps: list[tuple[str, list[str]]]) -> None:
    assert decode_steps(encode_steps(steps)) == steps


def hold_with(monkeypatch: pytest.MonkeyPatch, group: Frozen, pidfd: int) -> list[list[str]]:
    """As the program runs that holds a container; returns the commands that it has run, once it has."""
    done: list[list[str]] = []
    monkeypatch.setattr(os, "pidfd_open", lambda pid: pidfd if pid == 4242 else pytest.fail(str(pid)))
    monkeypatch.setattr(pre_exec, "Cgroup", lambda path: group if path == "a.slice/b.service" else pytest.fail(path))
    monkeypatch.setattr(pre_exec, "do", lambda why, argv, seconds: done.append(argv))
    pre_exec.main("60", *encode_steps(STEPS), "a.slice/b.service", "4242")
    return done


def test_the_program_says_who_is_pid_1(
    ended: tuple[int, int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    group = Frozen(7)
    assert hold_with(monkeypatch, group, ended[0]) == [["enter", "7", "--", "echo PID", "7"], ["true"]]
    assert capfd.readouterr().out == "7"
    assert group.thawed == ["machine/payload"]


def test_the_program_says_why_it_holds_nothing(ended: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing, where nspawn has ended, which has said why."""
    with pytest.raises(SystemExit, match="systemd-nspawn put no process into its cgroup payload"):
        hold_with(monkeypatch, Frozen(comes=False), ended[0])
    os.write(ended[1], b".")
    with pytest.raises(SystemExit) as silent:
        hold_with(monkeypatch, Frozen(comes=False), ended[0])
    assert silent.value.code == 1


def test_a_setup_that_is_not_where_it_is_held_is_killed(
    ended: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An nspawn of another layout never puts anything into the group, and runs what it is to run elsewhere."""
    killed: list[tuple[int, int]] = []
    for name in ("leave_keyring", "leave_counts", "install_seccomp"):
        monkeypatch.setattr(sandbox, name, lambda *arguments: None)
    monkeypatch.setattr(sandbox, "own_group", lambda: "x")
    group = Frozen(comes=False)
    monkeypatch.setattr(sandbox, "Cgroup", lambda path: group)
    monkeypatch.setattr(os, "posix_spawnp", lambda *arguments: 4242)
    monkeypatch.setattr(os, "pidfd_open", lambda pid: ended[0])
    monkeypatch.setattr(os, "kill", lambda pid, number: killed.append((pid, number)))
    with pytest.raises(SystemExit, match="so it is not run: systemd-nspawn put no process into its cgroup payload"):
        sandbox.main('{"seccomp": {}, "pre_exec": []}', "systemd-nspawn")
    assert killed == [(4242, signal.SIGKILL)]
    assert (group.frozen, group.thawed) == (["payload"], [])
