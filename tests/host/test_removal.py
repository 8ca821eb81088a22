"""Removing: what is kept, what is refused, and that nothing of a guest's is trusted on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from hutch.host.services.cgroup import Cgroup
from hutch.host.services.process import start_time
from hutch.images.contain import run_contained
from hutch.run import CommandFailed
from hutch.spec.names import Layout
from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.support.world import World


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
    before, entry = shared.status(f"{name}-b"), shared.status(name)
    assert json.loads(shared.hutch("ls", "--kept", "--json").stdout) == []
    shared.hutch("rm", name)
    assert shared.names() == [f"{name}-b"]
    [kept] = json.loads(shared.hutch("ls", "--kept", "--json").stdout)
    assert {key: kept[key] for key in ("name", "type", "ip", "home", "file")} == {
        key: entry[key] for key in ("name", "type", "ip", "home", "file")
    }
    assert kept["size"] > 0 and kept["removed"] is not None
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


REF = "refs/remotes/origin/main"
PUSHED = f"cd ~/project && git remote add origin https://public.example/x.git && git update-ref {REF} HEAD"


@pytest.mark.vm(slow=True)
def test_rm_refuses_while_git_work_would_be_lost(shared: Instance, name: str, workspace_type: str) -> None:
    """Of several workspaces, the others stay too."""
    shared.declare(workspace_type, **{name: "", f"{name}-b": ""})
    shared.up()
    commit(shared, name)
    unpushed = shared.hutch("rm", f"{name}-b", name, check=False)
    assert unpushed.returncode == 1
    assert f"{name}: ./project" in unpushed.stderr
    shared.ssh(name, PUSHED)
    shared.ssh(name, "echo more >> ~/project/file")
    uncommitted = shared.hutch("rm", name, check=False)
    assert uncommitted.returncode == 1
    assert "project" in uncommitted.stderr
    assert shared.status(name)["state"] == "running"
    shared.ssh(name, "cd ~/project && git checkout -q file")
    assert shared.names() == [name, f"{name}-b"]
    shared.hutch("rm", name, f"{name}-b")
    assert shared.names() == []


def test_rm_sees_what_only_a_detached_head_holds(shared: Instance, name: str, workspace_type: str) -> None:
    shared.declare(workspace_type, **{name: ""})
    shared.up()
    commit(shared, name)
    shared.ssh(name, f"{PUSHED} && git init -q ~/empty")
    shared.ssh(name, "cd ~/project && git checkout -q --detach && git commit -q --allow-empty -m two")
    refused = shared.hutch("rm", name, check=False)
    assert refused.returncode == 1
    assert "project: commits that were not pushed" in refused.stderr
    assert "empty" not in refused.stderr  # a repository without commits has nothing to lose
    shared.ssh(name, f"cd ~/project && git checkout -q - && echo {'1' * 40} > ~/empty/.git/refs/heads/lost")
    refused = shared.hutch("rm", name, check=False)
    assert refused.returncode == 1
    assert "empty: " in refused.stderr  # what git complains of is not taken for nothing
    shared.ssh(name, "rm ~/empty/.git/refs/heads/lost")
    shared.hutch("rm", name)


OVERLOOKED = "changes that git was told to overlook"
QUOTED = (
    "touch 'a\tb' && git add . && git commit -qm two && git update-ref refs/remotes/origin/main HEAD"
    " && git update-index --skip-worktree 'a\tb'"
)
DOTFILES = (
    "git init -q --bare ~/x.git && dot() { git --git-dir=$HOME/x.git --work-tree=$HOME -c user.email=a@b.c "
    '-c user.name=a "$@"; } && cd && echo x > .kept && dot add .kept && dot commit -qm one'
    f" && dot remote add origin https://public.example/x.git && dot update-ref {REF} HEAD"
)
ANOTHER = (
    "git remote set-url back ~/x.git && git config remote.back.fetch '+refs/heads/*:refs/remotes/origin/*'"
    " && git fetch -q back"
)
SET_UP = (
    "cd ~/x.git && git config status.showUntrackedFiles no && git remote set-url origin https://public.example/x.git"
)
BY_FILE = "protocol.file.allow=always"
MORE = "git -c user.email=a@b.c -c user.name=a commit -q --allow-empty -m two && cd ~/project"
LOST = {
    "untracked": ("git config status.showUntrackedFiles no && touch new", "./project: uncommitted changes"),
    "skip-worktree": ("git update-index --skip-worktree file && echo y > file", f"./project: {OVERLOOKED}"),
    "assume-unchanged": ("git update-index --assume-unchanged file && echo y > file", f"./project: {OVERLOOKED}"),
    "a name in quotes": (f"{QUOTED} && echo y > 'a\tb'", f"./project: {OVERLOOKED}"),
    "a remote in the home": (
        "git init -q --bare ~/x.git && git remote set-url origin ~/x.git && git push -q origin HEAD",
        "./project: commits that were not pushed",
    ),
    "what is pushed elsewhere": (
        "git init -q --bare ~/x.git && git remote set-url --push origin ~/x.git && git push -q origin HEAD",
        "./project: commits that were not pushed",
    ),
    "a rewritten remote": (
        "git config url.$HOME/.insteadOf https://public.example/",
        "./project: commits that were not pushed",
    ),
    "a rewriting home": (
        "git config --global url.$HOME/.insteadOf https://public.example/",
        "./project: commits that were not pushed",
    ),
    "a remote on this machine": (
        "git remote set-url origin ssh://dev@localhost/~/x.git",
        "./project: commits that were not pushed",
    ),
    "another's name for what a remote in the home has": (
        f"git clone -q --bare . ~/x.git && git remote rename origin back && {ANOTHER}",
        "./project: commits that were not pushed",
    ),
    "notes": ("git notes add -m x", "./project: notes that were not pushed"),
    "patches that are half applied": (
        "git format-patch -q -1 -o ~ && ! git am -q ~/0001-one.patch 2>/dev/null",
        "./project: an unfinished rebase, or a series of patches",
    ),
    "what no branch has": (
        "git update-ref refs/wip/x $(git commit-tree -m x HEAD^{tree})",
        "./project: commits that were not pushed, at refs/wip/x",
    ),
    "the home's own files, by a clone": (
        f"git clone -q --separate-git-dir=$HOME/x.git . ~/x.tmp && rm -r ~/x.tmp && echo y > ~/file && {SET_UP}",
        "./x.git: uncommitted changes",
    ),
    "files of a repository elsewhere": (
        f"{DOTFILES} && dot config core.bare false && dot config core.worktree .. && echo y >> ~/.kept",
        "./x.git: uncommitted changes",
    ),
    "the head of a worktree that is gone": (
        f"git worktree add -q --detach /tmp/tree && cd /tmp/tree && {MORE} && rm -r /tmp/tree",
        "./project: commits that were not pushed",
    ),
    "a submodule that is not checked out": (
        f"git -c {BY_FILE} submodule -q add ~/.saved s && cd s && {MORE} && git submodule -q deinit -f .",
        "./project/.git/modules/s: commits that were not pushed",
    ),
    "the home's own files": (f"{DOTFILES} && echo y >> ~/.kept", "./x.git: uncommitted changes"),
    "the home's own files, stashed": (f"{DOTFILES} && echo y >> ~/.kept && dot stash -q", "./x.git: stashed changes"),
    "a bare repository": (
        "git clone -q --bare . ~/x.git && rm -rf ~/project",
        "./x.git: commits that were not pushed",
    ),
}


@pytest.fixture(scope="module")
def saved(world: World, images: Path) -> Iterator[Instance]:
    """`web` and its checkout, of which nothing would be lost."""
    with open_instance(world, images) as instance:
        instance.declare("container", web="")
        instance.up()
        commit(instance, "web")
        instance.ssh("web", f"{PUSHED} && mv ~/project ~/.saved")
        yield instance


@pytest.mark.parametrize("case", LOST)
def test_rm_sees_what_git_overlooks(saved: Instance, case: str) -> None:
    script, found = LOST[case]
    saved.ssh("web", f"rm -rf ~/project ~/x.git ~/.gitconfig && cp -a ~/.saved ~/project && cd ~/project && {script}")
    refused = saved.hutch("rm", "web", check=False)
    assert refused.returncode == 1
    assert f"web: {found}" in refused.stderr


OTHERS = f"""
set -eu
rm -rf ~/project ~/x.git
cp -a ~/.saved ~/project # with a file that git overlooks, and that is as it was
git -C ~/project update-index --skip-worktree file
cp -a ~/.saved ~/sparse # where it is not there
cd ~/sparse
git update-index --skip-worktree file
rm file
mkdir ~/.cargo
git clone -q --bare . ~/.cargo/x.git # a package manager's
git clone -q --mirror . ~/mirror
git -C ~/mirror remote set-url origin https://public.example/x.git
git clone -q --bare . x.git # for the tests of something
rm x.git/hooks/*
touch HEAD
git add x.git HEAD
git commit -qm two
git update-ref {REF} HEAD
git update-ref refs/pull/7/head $(git commit-tree -m other HEAD^{{tree}})
git config --add remote.origin.fetch '+refs/pull/*:refs/pull/*'
git config --global url.git@public.example:.insteadOf https://public.example/
git config --global core.excludesFile '~/.ignored everywhere'
echo '*.swp' > ~/'.ignored everywhere'
touch .x.swp
git config 'remote.my fork.url' https://public.example/fork.git
git remote set-url --push origin no_push
git notes add -m other
git config --add remote.origin.fetch '+refs/notes/*:refs/notes/*'
mkdir -p ~/public.example ~/gits
cp -a ~/.saved ~/public.example/project # a way that begins as an address does
git init -q --separate-git-dir ~/gits/other.git ~/public.example/project
git clone -q --bare ~/.saved ~/gits/.bare
echo 'gitdir: ./.bare' > ~/gits/.git # with worktrees beside it
git -C ~/gits/.bare remote set-url origin https://public.example/x.git
git -C ~/gits/.bare update-ref {REF} HEAD
{DOTFILES}
git init -q # of all that the home has, most is nobody's work
git config status.showUntrackedFiles no
git add .kept
git -c user.email=a@b.c -c user.name=a commit -qm one
git remote add origin https://public.example/home.git
git update-ref {REF} HEAD
"""


def test_rm_lets_go_what_others_have(saved: Instance) -> None:
    saved.ssh("web", OTHERS)
    saved.hutch("rm", "web")


DIES = """
import os, signal, sys
from hutch.images.contain import run_contained
run_contained(sys.argv[2:], group=sys.argv[1], tasks=10, on_line=lambda line: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_what_a_look_leaves_that_was_killed_goes_with_the_next_command(instance: Instance) -> None:
    layout = Layout(instance.state, instance.run)
    ours = layout.inspection_cgroup("web", os.getpid(), start_time(os.getpid()))
    with closing(Cgroup(ours)) as mine, closing(Cgroup(layout.cgroup_of_all)) as all_of_them:
        mine.make()
        killed = layout.inspection_cgroup("web", os.getpid(), 1)  # of one that had the same pid before us
        command = [sys.executable, "-c", DIES, killed, "sh", "-c", "echo said; exec sleep 600"]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
        assert {os.path.basename(each) for each in (ours, killed)} <= {*all_of_them.groups()}
        assert "there is no workspace web" in instance.hutch("rm", "web", check=False).stderr
        assert all_of_them.groups() == [os.path.basename(ours)]  # it may go on
        mine.remove()
        assert all_of_them.groups() == []


def test_a_look_that_never_stops_talking_ends(instance: Instance) -> None:
    layout = Layout(instance.state, instance.run)
    group = layout.inspection_cgroup("web", os.getpid(), start_time(os.getpid()))
    with pytest.raises(CommandFailed, match="did not end in time"):
        run_contained(["yes"], group=group, tasks=10, on_line=lambda line: None, timeout=1.0)


KILLER = """#!/bin/bash
# Kills all that looks from outside of git: whoever asks, up to the first process of the container.
p=$$
while [ "$p" -gt 2 ]; do
  IFS= read -r s </proc/$p/stat || exit
  s=${s##*) } && set -- $s && p=$2
  touch ~/ran 2>/dev/null
  [ "$p" -le 2 ] || kill -9 "$p"
done
"""


@pytest.mark.parametrize("place", ["--global", "--local"])
def test_rm_is_not_fooled_by_what_git_is_told_to_run(shared: Instance, name: str, place: str) -> None:
    shared.declare("container", **{name: ""})
    shared.up()
    commit(shared, name)
    shared.inside(name, "sh", "-c", "cat >~/clean && chmod +x ~/clean", stdin=KILLER)
    script = (
        "mkdir -p ~/.config/git && echo '* filter=x' >~/.config/git/attributes && cd ~/project"
        f" && cp ~/.config/git/attributes .git/info/ && git config {place} filter.x.clean /home/dev/clean"
        " && git config log.showSignature true && git config gpg.program /home/dev/clean && sleep 1 && touch file"
    )
    shared.ssh(name, script)
    refused = shared.hutch("rm", name, check=False)
    assert refused.returncode == 1
    assert "./project: " in refused.stderr
    assert ("filters of its own" in refused.stderr) == (place == "--local")
    shared.hutch("rm", "--purge", "--force", name)


def test_an_interrupted_purge_is_not_finished_by_another_command(
    shared: Instance, name: str, workspace_type: str
) -> None:
    shared.declare(workspace_type, **{name: "", f"{name}-b": ""})
    shared.hutch("up", "--no-start")
    home = shared.state / "workspaces" / name / "home"
    script = f"import sys; from pathlib import Path; home = Path({str(home)!r})\n"
    script += "for number in range(60000): (home / f'file-{number}').touch()"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
    (home.parent / "ssh" / "kept").touch()
    purge = shared.spawn("rm", "--purge", "--force", name, start_new_session=True)
    deadline = time.monotonic() + 30
    while (left := len(os.listdir(home))) == 60000 and time.monotonic() < deadline:
        time.sleep(0.001)
    os.killpg(purge.pid, signal.SIGINT)  # as a terminal does
    assert purge.wait(30) != 0
    assert 0 < left < 60000
    time.sleep(0.5)
    left = len(os.listdir(home))
    assert left > 0
    shared.hutch("start", f"{name}-b")
    assert len(os.listdir(home)) == left
    shared.hutch("rm", "--purge", "--force", name)
    assert not home.parent.exists()
    shared.hutch("rm", "--purge", "--force", f"{name}-b")


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


@pytest.mark.vm(slow=True)
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
