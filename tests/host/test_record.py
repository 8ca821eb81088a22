"""The record of what a workspace did: who tells for it, and that nothing of it is lost, forged or pushed out unseen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from hutch.audit.events import Entry
from hutch.audit.reading import damages, read_record
from hutch.host.network.egress_proxy import views_file
from tests.host.egress import eventually
from tests.host.faults import layout_of
from tests.host.instance import Instance
from tests.host.ports import forwarding
from tests.host.processes import main_of, runner_of

LIFE = [
    *("plan", "created", "started", "exec", "exec-ended", "plan", "stopped", "plan", "started"),
    *("plan", "stopped", "started", "stopped", "removed", "undeleted"),
]
FOLD = [sys.executable, "-c", "from hutch.apply.boot import main; main('fold')"]  # as the timer does


def entries_of(instance: Instance, name: str) -> list[Entry]:
    return [line.entry for line in read_record(layout_of(instance), name)]


@pytest.mark.vm(slow=True)
def test_a_life(shared: Instance, name: str, workspace_type: str) -> None:
    """From creation to removal: each start and end once, with whoever asked, and what it took."""
    shared.declare(workspace_type, **{name: ""})
    shared.up(name)
    shared.inside(name, "sh", "-c", "exit 3", check=False)
    shared.hutch("stop", name)
    shared.hutch("start", name)
    shared.hutch("restart", name)
    shared.hutch("rm", name)
    shared.hutch("undelete", name)
    lines = list(read_record(layout_of(shared), name))
    assert [line.entry.event for line in lines] == LIFE
    assert damages(layout_of(shared), name) == []
    plan, created, started, ran, ended, *_ = [line.entry for line in lines]
    assert (
        plan.values["command"] == "up" and plan.values["action"] == "create" and plan.values["file"] == str(shared.file)
    )
    assert created.values["type"] == workspace_type
    assert started.values["start_kind"] == "cold" and started.values["seconds"] > 0
    assert ran.values["argv"] == ["sh", "-c", "exit 3"]
    assert ended.values["code"] == 3 and ended.values["session"] == ran.values["session"]
    stopped = next(line.entry for line in lines if line.entry.event == "stopped")
    assert stopped.values["reason"] == "" and stopped.values["seconds"] > 0 and stopped.values["cpu_seconds"] > 0
    assert {line.entry.by for line in lines} == {"root"}
    times = [line.entry.time for line in lines]
    assert times == sorted(times)
    shared.hutch("rm", "--purge", name)
    assert not list(layout_of(shared).audits.rglob(f"*{name}*"))


@pytest.mark.vm(slow=True)
def test_ends_that_nobody_asked_for(shared: Instance, name: str, workspace_type: str) -> None:
    """A guest that powers off, or whose main process is killed, tells how it ended, and so does a host where
    nothing is left that could: nobody has asked for it."""
    shared.declare(workspace_type, **{name: ""})
    shared.up(name)
    shared.inside(name, "systemctl", "--no-block", "poweroff", root=True, check=False)
    assert eventually(lambda: shared.status(name)["state"] == "stopped", 30.0)
    shared.hutch("start", name)
    os.kill(shared.status(name)["pid"], signal.SIGKILL)
    assert eventually(layout_of(shared).audit_ends(name).exists, 30.0)
    shared.hutch("restart", name)
    main, runner = main_of(shared, name).pid, runner_of(shared, name).pid
    os.kill(runner, signal.SIGKILL)
    assert eventually(lambda: shared.status(name)["state"] == "failed", 30.0)
    shared.hutch("start", name)
    assert main != main_of(shared, name).pid
    ends = [entry for entry in entries_of(shared, name) if entry.event in ("stopped", "failed", "restarted")]
    assert [(end.event, end.by) for end in ends] == [("stopped", None), ("failed", None), ("failed", None)]
    assert ends[2].values["reason"] == "its main process was killed"
    assert ends[0].values["reason"] == "it powered off by itself"
    assert "SIGKILL" in ends[1].values["reason"]
    assert damages(layout_of(shared), name) == []


def test_who_had_it_started_and_stopped_is_told_whoever_folds_that_in(shared: Instance, name: str) -> None:
    """Another process of root's reads the record all the time, and an end that nobody asked for is nobody's."""
    shared.declare("container", **{name: ""})
    shared.up(name)
    alice = {"SUDO_UID": str(shared.world.accounts["alice"].uid)}
    with shared.spawn("events", "-f", stdout=subprocess.DEVNULL) as follower:
        try:
            shared.hutch("stop", name, env=alice)
            shared.hutch("start", name, env=alice)
            shared.inside(name, "systemctl", "--no-block", "poweroff", root=True, check=False)
            assert eventually(lambda: shared.status(name)["state"] == "stopped", 30.0)
            assert eventually(lambda: kinds_by(shared, name)[-1] == ("stopped", None), 30.0)
        finally:
            follower.kill()
    found = [each for each in kinds_by(shared, name) if each[0] in ("started", "stopped")]
    assert found == [("started", "root"), ("stopped", "alice"), ("started", "alice"), ("stopped", None)]


def kinds_by(instance: Instance, name: str) -> list[tuple[str, str | None]]:
    return [(entry.event, entry.by) for entry in entries_of(instance, name)]


@pytest.mark.vm(slow=True)
def test_accounts_tell_for_themselves_and_root_for_whom_it_stands(
    shared: Instance, name: str, workspace_type: str
) -> None:
    """Commands, sessions and forwards of an owner without root are folded in by root's next command, as the owner's."""
    shared.declare(workspace_type, **{name: 'owner = "alice"\negress = ["public.example"]'})
    shared.up(name)
    alice, box = shared.world.accounts["alice"], layout_of(shared).inboxes(name)
    assert shared.hutch("exec", name, "--", "sh", "-c", "exit 4", as_user="alice", check=False).returncode == 4
    assert shared.hutch("ssh", name, "--", "true", as_user="alice").returncode == 0
    with forwarding(shared, "3000", as_user="alice", name=name) as forward:
        forward.says(rf"127\.0\.0\.1:3000 -> {name}:3000")
    forged = json.dumps({"time": "2026-11-28T12:00:00.000Z", "event": "removed", "by": "root", "kept": None})
    command = alice.command("sh", "-c", 'printf "%s\\n" "$1" >>"$2"', "sh", forged, str(box / str(alice.uid)))
    subprocess.run(command, check=True, timeout=10)
    assert entries_of(shared, name)[-1].event == "started"
    subprocess.run(FOLD, env=shared.environment(), check=True, timeout=30)
    assert "cut" in {entry.event for entry in entries_of(shared, name)}
    shared.hutch("allow", name, "more.example", env={"SUDO_UID": str(alice.uid)})
    found = [entry for entry in entries_of(shared, name) if entry.event != "connected"]
    *_, ran, ended, ssh, opened, closed, cut, allowed = found
    assert (ran.event, ran.by, ran.values["argv"]) == ("exec", "alice", ["sh", "-c", "exit 4"])
    assert (ended.event, ended.by, ended.values["code"]) == ("exec-ended", "alice", 4)
    assert (ssh.event, ssh.by, ssh.values["argv"]) == ("ssh", "alice", ["true"])
    assert (opened.event, opened.values["ports"], closed.event) == ("forward", [3000], "forward-ended")
    assert (cut.event, cut.by, cut.values["count"]) == ("cut", "alice", 1)
    assert (allowed.event, allowed.by, allowed.values["host"]) == ("allowed", "alice", "more.example")
    assert damages(layout_of(shared), name) == []


def test_plain_ssh_is_seen_by_the_router(shared: Instance, name: str) -> None:
    """Each connection once, however often somebody looks, with its time."""
    shared.declare("container", **{name: 'owner = "alice"'})
    shared.up(name)
    began = time.time()
    for _ in range(2):
        shared.ssh(name, as_user="alice")
    for _ in range(3):
        subprocess.run(FOLD, env=shared.environment(), check=True, timeout=30)
    shared.ssh(name, as_user="alice")
    subprocess.run(FOLD, env=shared.environment(), check=True, timeout=30)
    found = [entry for entry in entries_of(shared, name) if entry.event == "connected"]
    assert len(found) == 3
    assert len({entry.values["port"] for entry in found}) == 3
    assert all(began - 5 < entry.time < time.time() + 5 for entry in found)


def test_a_full_disk_stops_no_command(shared: Instance, name: str) -> None:
    """It warns, and the record tells later how much is missing."""
    shared.declare("container", **{name: ""})
    shared.up(name)
    audits = layout_of(shared).audits
    audits.rename(audits.with_name("log-aside"))
    audits.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "hutch-test", audits], check=True, timeout=10)
        try:
            (audits / "all-of-it").write_bytes(b"x" * 4096)
            for command in (("stop", name), ("start", name), ("exec", name, "--", "true")):
                shared.hutch(*command)
            assert shared.status(name)["state"] == "running"
            assert "its record could not be written" in shared.hutch("restart", name).stderr
        finally:
            subprocess.run(["umount", audits], check=True, timeout=10)
    finally:
        audits.rmdir()
        audits.with_name("log-aside").rename(audits)
    shared.hutch("stop", name)
    cut = next(entry for entry in entries_of(shared, name) if entry.event == "cut")
    assert (cut.values["why"], cut.values["kinds"]) == ("they could not be written", ["plan"])
    assert cut.values["count"] == 3
    assert damages(layout_of(shared), name) == []


def test_a_record_that_is_a_link_keeps_no_decision_from_its_force(shared: Instance, name: str) -> None:
    """It is refused by whoever writes it, with a warning, and the workspace is as usable as before."""
    shared.declare("container", **{name: 'egress = ["public.example"]'})
    shared.up(name)
    path = layout_of(shared).audit(name)
    path.rename(path.with_name("aside"))
    path.symlink_to("aside")
    try:
        assert "its record could not be written" in shared.hutch("allow", name, "more.example").stderr
        assert "more.example" in views_file(layout_of(shared)).read_text()
        shared.hutch("stop", name)
        subprocess.run(FOLD, env=shared.environment(), check=True, timeout=30)
    finally:
        path.with_name("aside").rename(path)
    shared.hutch("start", name)
    assert [each for each in kinds_by(shared, name) if each[0] in ("started", "stopped")] == [
        *(("started", "root"), ("stopped", "root"), ("started", "root")),
    ]
    assert damages(layout_of(shared), name) == []


def test_doctor_tells_of_damage(shared: Instance, name: str) -> None:
    shared.declare("container", **{name: ""})
    shared.hutch("up", "--no-start", name)
    path = layout_of(shared).audit(name)
    path.write_bytes(path.read_bytes().replace(b"container", b"CONTAINER", 1))
    found = json.loads(shared.hutch("doctor", "--json", check=False).stdout)
    (finding,) = [each for each in found if each["name"] == f"record of {name}"]
    assert "does not follow from the one before it" in finding["means"]
