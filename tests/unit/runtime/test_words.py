"""What a service says of itself, and what is believed of it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hutch.errors import HutchError
from hutch.host.services.process import start_time
from hutch.runtime import observe as observing
from hutch.runtime.observe import observe
from hutch.runtime.status import Status, read_status
from hutch.spec.names import Layout
from hutch.spec.record import Observation, has_processes
from tests.support.statuses import words, write_status

CGROUP = "hutch.slice/hutch-ws_x.slice/hutch@x.service"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(tmp_path / "state", tmp_path / "run")
    found.runtime("web").mkdir(parents=True)
    return found


def own_start() -> int:
    started = start_time(os.getpid())
    assert started is not None
    return started


def see(layout: Layout, state: str, *, alive: bool = True, **more: Any) -> Observation:
    """By the words of a service whose main process is this very one, or was a process before it."""
    started = own_start() if alive else own_start() - 1
    said = {"started": started, "ready_seconds": 0.4, "leader": [7, 8], **more}
    write_status(layout, "web", state, **said)
    os.utime(layout.status("web"), (5.0, 5.0))
    return observe(layout, "web")


def test_nothing_was_ever_said(layout: Layout) -> None:
    assert observe(layout, "web") == Observation(cgroup=layout.cgroup("web"))
    assert not has_processes(Observation().state)
    layout.runtime("web").rmdir()
    assert observe(layout, "web") == Observation(cgroup=layout.cgroup("web"))


def test_running(layout: Layout) -> None:
    found = Observation("running", os.getpid(), 5.0, 0.4, (7, 8), "", CGROUP)
    assert see(layout, "running") == found
    assert see(layout, "running", cgroup="a.slice/b.service") == replace(found, cgroup="a.slice/b.service")


def test_an_older_hutch_had_its_workspaces_elsewhere(layout: Layout) -> None:
    """And did not say where."""
    assert see(layout, "running", cgroup="").cgroup == f"{layout.instance}/web"
    said = {key: value for key, value in words("running").items() if key != "cgroup"}
    layout.status("web").write_text(json.dumps({**said, "since": 5.0, "warnings": ["one"]}))
    found = observe(layout, "web")
    assert (found.state, found.cgroup, has_processes(found.state)) == ("running", f"{layout.instance}/web", True)


@pytest.mark.parametrize("state", ["starting", "running", "stopping"])
def test_a_living_main_process_is_believed(state: str, layout: Layout) -> None:
    found = see(layout, state)
    assert (found.state, found.pid, has_processes(found.state)) == (state, os.getpid(), True)


@pytest.mark.parametrize("state", ["starting", "running", "stopping"])
def test_a_dead_main_process_is_not(state: str, layout: Layout) -> None:
    """Its pid may be somebody else's by now: the start time tells."""
    found = see(layout, state, alive=False)
    assert (found.state, found.reason) == ("failed", "its main process was killed")
    assert (found.pid, found.leader, has_processes(found.state)) == (None, None, False)


def test_one_that_was_never_seen_to_begin_is_not_believed(layout: Layout) -> None:
    assert see(layout, "running", started=None).state == "failed"


def test_where_others_processes_are_not_shown_its_words_count(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observing, "are_shown", lambda: False)
    found = see(layout, "running", alive=False)
    assert (found.state, has_processes(found.state)) == ("running", True)


@pytest.mark.parametrize(("state", "reason"), [("stopped", ""), ("failed", "it ended with code 1")])
def test_last_words(state: str, reason: str, layout: Layout) -> None:
    found = see(layout, state, alive=False, reason=reason)
    assert (found.state, found.reason, found.pid, has_processes(found.state)) == (state, reason, None, False)
    assert (found.since, found.leader, found.ready_seconds) == (5.0, None, 0.4)


def test_no_leader_yet(layout: Layout) -> None:
    assert see(layout, "starting", leader=None).leader is None


def test_who_may_not_look_is_told_what_to_do(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: str) -> Status | None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(observing, "read_status", refused)
    with pytest.raises(HutchError, match="how web stands is not shown to you yet") as caught:
        observe(layout, "web")
    assert caught.value.resolution == "`sudo hutch up` does that"


def test_all_words(layout: Layout) -> None:
    """As runtime/unit.sh writes them."""
    path = layout.status("web")
    path.write_text(
        '{"state": "running", "pid": 7, "started": 42, "ready_seconds": 0.41, "leader": [8, 43], '
        '"reason": "a \\"b\\" \\\\ c\\nd", "cgroup": "hutch.slice/hutch-ws_a\\\\x2db.slice/hutch@a-b.service"}\n'
    )
    os.utime(path, (5.0, 5.0))
    cgroup = "hutch.slice/hutch-ws_a\\x2db.slice/hutch@a-b.service"
    assert read_status(str(path)) == Status("running", 7, 42, 5.0, 0.41, (8, 43), 'a "b" \\ c\nd', cgroup)


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in words("running").items() if name != key}


ODD: list[dict[str, object]] = [
    {"state": "runnjng"},
    {"state": None},
    {"state": []},
    {"pid": "1"},
    {"pid": 0},
    {"pid": -1},
    {"pid": True},
    {"pid": 1.0},
    {"started": "5"},
    {"started": True},
    {"ready_seconds": []},
    {"ready_seconds": "0.4"},
    {"leader": [1]},
    {"leader": [1, None]},
    {"leader": [1, True]},
    {"leader": {"1": 2}},
    {"leader": False},
    {"reason": None},
    {"cgroup": None},
    {"cgroup": ["a"]},
]
MISSING = ("state", "pid", "started", "ready_seconds", "leader", "reason")
WRONG = [*(words("running") | odd for odd in ODD), *map(without, MISSING)]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"state": "run', b"[]", b"{}", b"null", b"\xff", b"[" * 100000]
    + [json.dumps(wrong).encode() for wrong in WRONG],
)
def test_words_that_make_no_sense_are_a_failure(content: bytes, layout: Layout) -> None:
    """And never taken for a workspace that was never started."""
    path = layout.status("web")
    path.write_bytes(content)
    found = observe(layout, "web")
    assert (found.state, found.reason, found.pid, found.leader) == ("failed", f"{path} is damaged", None, None)
    assert found.since is not None
