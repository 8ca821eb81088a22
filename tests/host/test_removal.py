"""Removing: what is kept, what is refused, and that nothing of a guest's is trusted on the way."""

from __future__ import annotations

import subprocess

from tests.host.instance import Instance


def test_a_workspace_that_is_no_longer_declared(shared: Instance, name: str, workspace_type: str) -> None:
    shared.declare(workspace_type, **{name: "", f"{name}-b": ""})
    shared.up()
    shared.declare(workspace_type, **{name: ""})
    shared.up()
    assert set(shared.names()) == {name, f"{name}-b"}  # never removed by the way
    shared.hutch("up", "--prune")
    assert shared.names() == [name]
    assert (shared.state / "workspaces" / f"{name}-b" / "home").is_dir()  # its home is kept
    shared.hutch("rm", "--purge", "--force", f"{name}-b", check=False)


def test_rm_keeps_home_and_identity_until_purged(shared: Instance, name: str, workspace_type: str) -> None:
    shared.declare(workspace_type, **{name: "", f"{name}-b": ""})
    shared.up()
    shared.ssh(name, "echo kept > ~/kept")
    key = (shared.state / "known_hosts").read_text()
    before = shared.status(f"{name}-b")
    shared.hutch("rm", name)
    assert shared.names() == [f"{name}-b"]
    assert shared.ssh(name, check=False).returncode == 255
    assert (shared.state / "workspaces" / name / "home" / "kept").read_text() == "kept\n"
    shared.up(name)
    assert shared.ssh(name, "cat ~/kept").stdout == "kept\n"
    assert (shared.state / "known_hosts").read_text() == key
    shared.hutch("rm", "--purge", name)
    assert not (shared.state / "workspaces" / name).exists()
    assert shared.status(f"{name}-b") == before


def commit(shared: Instance, name: str) -> None:
    """A repository with one commit in the workspace's home."""
    script = (
        "git init -q ~/project && cd ~/project && git config user.email a@b.c && git config user.name a"
        " && echo x > file && git add file && git commit -q -m one"
    )
    shared.ssh(name, script)


def test_rm_refuses_while_git_work_would_be_lost(shared: Instance, name: str, workspace_type: str) -> None:
    shared.declare(workspace_type, **{name: ""})
    shared.up()
    commit(shared, name)
    unpushed = shared.hutch("rm", name, check=False)
    assert unpushed.returncode == 1
    assert "project" in unpushed.stderr
    push = "cd ~/project && git remote add origin ~/remote.git && git push -q -u origin HEAD"
    shared.ssh(name, f"git init -q --bare ~/remote.git && {push}")
    shared.ssh(name, "echo more >> ~/project/file")
    uncommitted = shared.hutch("rm", name, check=False)
    assert uncommitted.returncode == 1
    assert "project" in uncommitted.stderr
    assert shared.status(name)["state"] == "running"
    shared.ssh(name, "cd ~/project && git checkout -q file")
    shared.hutch("rm", name)
    assert shared.names() == []


def test_rm_runs_nothing_that_a_repository_names(shared: Instance, name: str, workspace_type: str) -> None:
    """Hooks, fsmonitor and filters of a repository in the home are not run by root on the host."""
    shared.declare(workspace_type, **{name: ""})
    shared.up()
    commit(shared, name)
    bait = shared.directory / "bait"
    script = f"cd ~/project && git config core.fsmonitor 'touch {bait}' && git config core.pager 'touch {bait}'"
    script += f" && git config diff.external 'touch {bait}' && git config filter.x.clean 'touch {bait}; cat'"
    shared.ssh(name, script + " && echo '* filter=x' > .gitattributes && touch file")
    shared.hutch("rm", name, check=False)
    shared.hutch("rm", "--force", name)
    assert not bait.exists()


def test_rm_refuses_while_somebody_is_logged_in(shared: Instance, name: str, workspace_type: str) -> None:
    shared.declare(workspace_type, **{name: ""})
    shared.up()
    account = shared.world.accounts["alice"]
    command = [
        "ssh",
        "-o",
        "BatchMode=yes",
        "-o",
        "StrictHostKeyChecking=yes",
        f"workspace-{name}",
        "echo in; exec sleep 60",
    ]
    session = subprocess.Popen(
        account.command(*command),
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=account.environment(),
        text=True,
    )
    assert session.stdout is not None
    try:
        assert session.stdout.readline() == "in\n"
        refused = shared.hutch("rm", name, check=False)
        assert refused.returncode == 1
        assert "ssh" in refused.stderr
        shared.hutch("rm", "--force", name)
        assert session.wait(15) == 255
    finally:
        session.kill()
        session.wait(10)
        session.stdout.close()
