"""Git work outside of the home: what stops a workspace does not throw it away unasked; and a removed one comes back."""

from __future__ import annotations

import json
import subprocess

import pytest

from tests.host.instance import Instance

SAVE = "git config user.email a@b.c && git config user.name a && echo x > file && git add file && git commit -q -m one"


def check_out(shared: Instance, name: str, place: str = "/srv/x") -> None:
    """A repository with one commit outside of the home, the login user's."""
    shared.inside(name, "install", "-d", "-o", "dev", place, root=True)
    shared.inside(name, "sh", "-c", f'git init -q "$1" && cd "$1" && {SAVE}', "sh", place)


def refused(shared: Instance, *command: str) -> str:
    result = shared.hutch(*command, check=False)
    assert result.returncode == 1, result.stderr
    return result.stderr


@pytest.mark.vm(slow=True)
def test_what_would_go_with_the_root_is_in_the_way(shared: Instance, name: str, workspace_type: str) -> None:
    shared.declare(workspace_type, **{name: ""})
    shared.up()
    check_out(shared, name)
    work = "/srv/x: commits that were not pushed"
    for command in (("stop", name), ("down",), ("restart", name)):
        said = refused(shared, *command)
        assert said.startswith(f"hutch: nothing was stopped\n  {name}: {work}\n")
        assert "--force" in said
    assert f"{name}: {work}" in refused(shared, "rm", name)
    shared.declare(workspace_type, **{name: 'shell = "/bin/sh"'})
    action = shared.plan()[name]
    assert (action["action"], action["affected"]["unsaved"]) == ("restart", [work])
    assert f"in the way: {work}" in shared.hutch("plan").stdout
    assert f"{name}: {work}" in refused(shared, "up")
    assert shared.inside(name, "cat", "/srv/x/file").stdout == "x\n"  # all of this has stopped nothing
    shared.hutch("up", "--force")
    assert shared.inside(name, "test", "-e", "/srv/x", check=False).returncode == 1
    check_out(shared, name)
    shared.inside(name, "sh", "-c", "git init -q --bare ~/x.git && cd /srv/x && git remote add origin ~/x.git")
    shared.inside(name, "git", "-C", "/srv/x", "push", "-q", "origin", "HEAD")
    shared.hutch("stop", name)  # nothing is lost with it any more
    shared.hutch("stop", name)
    if workspace_type == "container":
        shared.hutch("start", name)
        shared.inside(name, "install", "-d", "-o", "dev", "/srv/y.git", root=True)
        shared.inside(name, "sh", "-c", "git clone -q --bare ~/x.git /srv/y.git")
        assert f"{name}: /srv/y.git: commits that were not pushed" in refused(shared, "stop", name)
        shared.hutch("stop", "--force", name)


@pytest.mark.slow
def test_a_kept_root_is_in_the_way_of_its_deletion_alone(shared: Instance, name: str) -> None:
    shared.declare("container", **{name: 'persist = "all"'})
    shared.up()
    check_out(shared, name)
    shared.hutch("restart", name)
    work = f"{name}: /srv/x: commits that were not pushed"
    assert work in refused(shared, "rm", name)
    shared.hutch("stop", name)
    assert work in refused(shared, "rm", name)
    shared.write(f'[workspaces.{name}]\ntype = "container"\npersist = "home"\n')
    assert work in refused(shared, "up")
    shared.hutch("rm", "--force", name)


@pytest.mark.slow
def test_shared_directories_are_not_looked_at(shared: Instance, name: str) -> None:
    source = shared.directory / "checkout"
    shared.declare("container", **{name: f'mounts = [{{ source = "{source}", target = "/srv/x", create = true }}]'})
    shared.up()
    shared.inside(name, "sh", "-c", f"git init -q /srv/x && cd /srv/x && {SAVE}")
    shared.hutch("stop", name)
    assert (source / "file").read_text() == "x\n"


ME = "GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b.c GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b.c"
HOSTS = (
    "git config status.showUntrackedFiles no && git remote add origin https://public.example/x.git"
    " && echo s > file && git stash -q && touch other 'one two'"
    " && echo y > file && git worktree add -q --detach ../tree && cd ../tree && git commit -q --allow-empty -m there"
)
"""What the host has not saved: a commit, one that only a worktree has, a stash and files."""
BLOB = "echo staged | git hash-object -w --stdin"


def test_what_is_kept_of_a_private_mount_is_in_the_way(shared: Instance, name: str) -> None:
    """What the host has not saved is the host's, and goes with nobody."""
    source = shared.directory / "checkout-private"
    source.mkdir()
    subprocess.run(["sh", "-c", f"git init -q && {SAVE} && {HOSTS}"], cwd=source, check=True)
    subprocess.run(["chown", "-R", "1000:1000", source], check=True)
    shared.declare("container", **{name: f'mounts = [{{ source = "{source}", target = "/srv/x", mode = "private" }}]'})
    shared.up()
    look = ("rm", "--purge", name)
    for work, way_back, found in (
        ("touch made", "rm made", "uncommitted changes"),
        ("touch 'made here'", "rm 'made here'", "uncommitted changes"),
        ("git commit -qam two", "git reset -q HEAD^", "commits that were not pushed"),
        (f"git update-index --cacheinfo 100644,$({BLOB}),file", "git reset -q", "uncommitted changes"),
        ("git stash -q", "git stash pop -q", "stashed changes"),
    ):
        shared.inside(name, "sh", "-c", f"cd /srv/x && {ME} {work}")
        assert f"{name}: /srv/x: {found}" in refused(shared, *look)
        shared.inside(name, "sh", "-c", f"cd /srv/x && {ME} {way_back}")
    assert f"{name}: /srv/x: uncommitted changes\n  →" in refused(shared, *look)  # it has a copy of the file
    shared.inside(name, "git", "-C", "/srv/x", "checkout", "-q", ".")
    shared.hutch(*look)


@pytest.mark.slow
def test_what_a_guest_makes_of_its_root_runs_nowhere(shared: Instance, name: str) -> None:
    """Names of directories, what git would run, links, and a repository that was deleted."""
    shared.declare("container", **{name: ""})
    shared.up()
    odd = "/srv/$(touch ran)'\" -exec"
    check_out(shared, name, odd)
    shared.inside(name, "sh", "-c", 'cd "$1" && git config filter.x.clean "touch /srv/ran"', "sh", odd)
    script = (
        "mkdir -p /srv/gone/.git /opt/fifo/.git && rm -r /srv/gone/.git && mkfifo /opt/fifo/.git/config"
        " && ln -s /proc/1/root /srv/root"
    )
    shared.inside(name, "sh", "-c", script, root=True)
    said = refused(shared, "stop", name)
    assert "git would run filters of its own to look into it" in said
    assert "/opt/fifo: git would wait for ever" in said
    assert "gone" not in said
    assert shared.inside(name, "ls", "/srv").stdout.count("ran") == odd.count("ran")
    shared.hutch("stop", "--force", name)


@pytest.mark.slow
@pytest.mark.vm(slow=True)
def test_a_removed_one_comes_back(shared: Instance, name: str, workspace_type: str) -> None:
    other = f"{name}-b"
    shared.declare(workspace_type, **{name: ""})
    shared.up()
    shared.ssh(name, "echo kept > ~/kept")
    trusted, before = (shared.state / "known_hosts").read_text(), shared.status(name)
    shared.hutch("rm", name)
    assert shared.names() == []
    assert f"{name} " in shared.hutch("ls", "--all").stdout
    assert "`hutch ls --all`" in refused_usage(shared, "undelete", other)
    shared.hutch("undelete", name)  # it was the last one: the network comes back with it
    now = shared.status(name)
    assert {key: now[key] for key in ("state", "ip", "mac", "file")} == {
        **{key: before[key] for key in ("ip", "mac", "file")},
        "state": "stopped",
    }
    assert json.loads(shared.hutch("ls", "--kept", "--json").stdout) == []
    shared.hutch("start", name)
    assert shared.ssh(name, "cat ~/kept").stdout == "kept\n"
    assert (shared.state / "known_hosts").read_text() == trusted
    assert shared.plan()[name]["action"] == "no change"
    shared.hutch("rm", name)
    shared.hutch("rm", "--purge", name)
    assert json.loads(shared.hutch("ls", "--all", "--json").stdout)[0]["removed"] is None  # it is only declared
    assert "no home is kept" in refused_usage(shared, "undelete", name)


def refused_usage(shared: Instance, *command: str) -> str:
    result = shared.hutch(*command, check=False)
    assert result.returncode == 2, result.stderr
    return result.stderr
