"""Whose a workspace is, and who is asked before it is stopped: by the command line, with real files."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.instance import SSH_OPTIONS, Completed, Instance


@pytest.fixture
def other(shared: Instance, name: str) -> Iterator[Path]:
    """Another project's file, which declares a workspace of the same name."""
    directory = shared.directory / "other"
    directory.mkdir()
    shared.declare("container", **{name: 'env = { FROM = "other" }'})
    shutil.copy(shared.file, directory / "hutch.toml")
    shared.declare("container", **{name: ""})
    yield directory / "hutch.toml"
    shared.remove_all()
    shutil.rmtree(directory, ignore_errors=True)


def test_another_file_has_to_adopt(shared: Instance, name: str, other: Path) -> None:
    shared.up()
    before = shared.status(name)
    shared.inside(name, "touch", "here")
    for command in ("plan", "up"):
        refused = shared.hutch("-f", str(other), command, check=False)
        assert refused.returncode == 1
        assert f"{name} belongs to {shared.file}" in refused.stderr
        assert "--adopt" in refused.stderr
    shared.hutch("-f", str(other), "up", "--adopt")
    after = shared.status(name)
    assert (after["file"], after["pid"], after["ip"]) == (str(other), before["pid"], before["ip"])
    assert shared.inside(name, "sh", "-c", "ls; echo $FROM").stdout == "here\nother\n"
    assert shared.hutch("plan", check=False).returncode == 1  # it is the first file's no more
    assert shared.hutch("-f", str(other), "plan", "--check").returncode == 0


def test_a_project_that_is_moved_takes_its_workspaces_along(shared: Instance, name: str, other: Path) -> None:
    def plan(file: Path, *options: str) -> Completed:
        return shared.hutch("-f", str(file), "plan", *options, check=False)

    shared.hutch("-f", str(other), "up")
    before = shared.status(name)
    moved = other.parent.rename(shared.directory / "moved")
    renamed = (moved / "hutch.toml").rename(moved / "machines.toml")
    try:
        assert "file: " in plan(renamed).stdout
        shared.hutch("-f", str(renamed), "up")
        assert plan(renamed, "--check").returncode == 0
        after = shared.status(name)
        assert (after["file"], after["pid"], after["ip"]) == (str(renamed), before["pid"], before["ip"])
        again = renamed.rename(shared.directory / "third.toml")
        shared.hutch("-f", str(again), "up")
        again.write_text(again.read_text().partition("[workspaces")[0])
        assert name in shared.hutch("-f", str(again), "up").stderr  # it is declared no more, and still this file's
        shared.hutch("-f", str(again), "up", "--prune")
        assert shared.names() == []
    finally:
        shutil.rmtree(moved, ignore_errors=True)
        (shared.directory / "third.toml").unlink(missing_ok=True)


def test_a_directory_that_is_shared_moves_along(shared: Instance, name: str, other: Path) -> None:
    """Its guard is a mount on it; neither that nor the old directory is left behind."""
    mount = 'mounts = [{ source = "work", target = "/work", create = true }]'
    other.write_text(f"{other.read_text()}{mount}\n")
    shared.hutch("-f", str(other), "up")
    (other.parent / "work" / "file").write_text("here\n")
    moved = other.parent.rename(shared.directory / "moved")
    try:
        shared.hutch("-f", str(moved / "hutch.toml"), "up")
        assert not other.parent.exists()
        assert shared.inside(name, "cat", "/work/file").stdout == "here\n"
        shared.hutch("rm", "--purge", "--force", name)
        assert str(shared.directory) not in Path("/proc/self/mountinfo").read_text()
    finally:
        shutil.rmtree(moved, ignore_errors=True)


def test_prune_is_for_ones_own(shared: Instance, name: str, other: Path) -> None:
    other.write_text(other.read_text().replace(f"workspaces.{name}]", f"workspaces.{name}x]"))
    shared.hutch("up", "--no-start")
    shared.hutch("-f", str(other), "up", "--no-start")
    shared.declare("container")
    shared.hutch("up", "--prune")
    assert shared.names() == [f"{name}x"]


def test_who_is_at_work_is_asked_first(shared: Instance, name: str) -> None:
    shared.declare("container", **{name: ""})
    shared.up()
    pid = shared.status(name)["pid"]
    with at_work(shared, name):
        shared.declare("container", **{name: 'shell = "/bin/sh"'})
        (action,) = json.loads(shared.hutch("plan", "--json").stdout)["actions"]
        assert action["affected"]["sessions"] == ["1 open ssh connection"]
        assert action["affected"]["since"] == shared.status(name)["since"]
        assert [reason["weight"] for reason in action["reasons"]] == ["restart"]
        code, said = on_a_terminal(shared, "n\n", "up")
        assert code == 1
        assert "nothing was changed" in said
        assert f"somebody is at work in {name}" in said
        assert shared.status(name)["pid"] == pid
        assert on_a_terminal(shared, "y\n", "up")[0] == 0
        assert shared.status(name)["pid"] != pid
    pid = shared.status(name)["pid"]
    shared.declare("container", **{name: ""})
    with at_work(shared, name):
        code, said = on_a_terminal(shared, "", "up", "--yes")
        assert (code, "at work" in said) == (0, False)
        assert shared.status(name)["pid"] != pid


class at_work:  # noqa: N801 - reads as what it is
    """Somebody with a session in a workspace."""

    def __init__(self, shared: Instance, name: str) -> None:
        command = ["ssh", *SSH_OPTIONS, f"workspace-{name}", "echo in; cat"]
        pipe = subprocess.PIPE
        self.session = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=shared.environment())

    def __enter__(self) -> None:
        assert self.session.stdout is not None
        assert self.session.stdout.readline() == b"in\n"

    def __exit__(self, *exception: object) -> None:
        self.session.communicate(timeout=30)


def on_a_terminal(shared: Instance, answer: str, *arguments: str) -> tuple[int, str]:
    """The exit code, and all that stood on the terminal."""
    ours, theirs = pty.openpty()
    process = shared.spawn(*arguments, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.write(ours, answer.encode())
    said = b""
    while select.select([ours], [], [], 60)[0]:
        try:
            said += os.read(ours, 4096)
        except OSError:  # nobody has it open any more
            break
    os.close(ours)
    return process.wait(60), said.decode()
