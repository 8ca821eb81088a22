"""`hutch run`: a workspace for a directory in one command, which only its first start needs root for."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.host.instance import HUTCH, Completed, Instance
from tests.host.opening import open_instance
from tests.support.world import World

SUDO = {"SUDO_UID": "1000"}
"""The environment of root behind sudo, called by alice."""


class Alice:
    """alice, her checkouts, and what she types: with sudo, or without."""

    def __init__(self, instance: Instance, workspace_type: str) -> None:
        self.instance = instance
        self.account = instance.world.accounts["alice"]
        self.home = self.account.home
        self.kind = workspace_type
        self.options = ["--vm"] if workspace_type == "vm" else []
        self.files = self.home / ".config/hutch/run"
        more = "vcpus = 1\n" if workspace_type == "vm" else ""
        self.write(self.home / ".config/hutch/run.toml", f"{more}{instance.defaults}")

    def write(self, path: Path, text: str) -> Path:
        """A file of hers, in directories of hers."""
        for parent in [*reversed(path.parents)]:
            if not parent.exists():
                parent.mkdir()
                os.chown(parent, self.account.uid, self.account.uid)
        path.write_text(text)
        os.chown(path, self.account.uid, self.account.uid)
        return path

    def checkout(self, name: str) -> Path:
        return self.write(self.home / "src" / name / ".git" / "HEAD", "ref: refs/heads/main\n").parent.parent

    def git(self, *words: str) -> None:
        own = ["-c", "user.name=alice", "-c", "user.email=alice@example.org", "-c", "init.defaultBranch=main"]
        command = self.account.command("git", *own, *words)
        subprocess.run(command, check=True, timeout=30, capture_output=True, env=self.account.environment(), cwd="/")

    def run(self, cwd: Path, *words: str, sudo: bool = False, **options: Any) -> Completed:
        who = {"env": SUDO} if sudo else {"as_user": "alice"}
        return self.instance.hutch("run", *words, cwd=cwd, **who, **options)

    def spawn(self, cwd: Path, *words: str, sudo: bool = False) -> subprocess.Popen[str]:
        argv = [*HUTCH, "run", *words]
        if not sudo:
            argv = self.account.command(*argv)
        env = self.instance.environment(SUDO if sudo else {}, "root" if sudo else "alice")
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(argv, cwd=cwd, env=env, text=True, **streams)  # type: ignore[call-overload,no-any-return]


@pytest.fixture(scope="module")
def hutch(world: World, images: Path) -> Iterator[Instance]:
    """A hutch whose network is not the default one: a file of root's says so."""
    with open_instance(world, images) as instance:
        instance.declare("container", anchor="")
        instance.hutch("up", "--no-start")
        yield instance


@pytest.fixture
def alice(hutch: Instance, workspace_type: str) -> Iterator[Alice]:
    alice = Alice(hutch, workspace_type)
    yield alice
    for kept in set((hutch.state / "workspaces").iterdir()) - {hutch.state / "workspaces" / "anchor"}:
        hutch.hutch("rm", "--purge", "--force", kept.name)
    subprocess.run(["rm", "-rf", *alice.home.glob("src"), *alice.home.glob(".config")], check=True, timeout=30)


@pytest.mark.vm(slow=True)
def test_a_directory_becomes_a_workspace_and_is_found_again(alice: Alice) -> None:
    shop = alice.checkout("shop")
    inner = alice.write(shop / "a" / "file", "of alice's").parent
    first = alice.run(inner, *alice.options, "--", "sh", "-c", "pwd; id -un; cat file", sudo=True)
    assert first.stdout == f"{inner}\ndev\nof alice's"
    assert first.stderr.startswith(f"shop: shares {shop}\n")
    assert first.stderr.count("\n") == 1 or alice.kind == "vm"  # a machine tells that it is emulated
    file = alice.files / "shop.toml"
    assert file.stat().st_uid == alice.account.uid
    assert alice.instance.status("shop")["file"] == str(file)
    assert alice.instance.status("shop")["type"] == alice.kind

    # From now on without root, by whom it belongs to.
    again = alice.run(shop, "sh", "-c", "cat; touch made; echo $0 >&2; exit 7", "a b", check=False, stdin="given")
    assert (again.returncode, again.stdout, again.stderr) == (7, "given", "a b\n")
    assert (shop / "made").stat().st_uid == alice.account.uid
    assert json.loads(alice.instance.hutch("status", "shop", "--json", as_user="alice").stdout)[0]["name"] == "shop"
    planned = alice.instance.hutch("plan", "-f", str(file), "--json", as_user="alice").stdout
    assert [action["action"] for action in json.loads(planned)["actions"]] == ["no change"]
    assert alice.instance.hutch("ssh", "shop", "pwd", as_user="alice").stdout == "/home/dev\n"

    # A change of the file is a change of the workspace, which is root's to make.
    file.write_text(f'{file.read_text()}egress = "none"\n')
    refused = alice.run(shop, "true", check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "this needs root" in refused.stderr
    alice.run(shop, "true", sudo=True)
    assert alice.instance.status("shop")["egress"] == "none"
    alice.run(shop, "true")


def test_signals_and_a_terminal_are_the_commands(alice: Alice) -> None:
    shop = alice.checkout("shop")
    alice.run(shop, "true", sudo=True)
    for sudo in (True, False):
        script = "trap 'exit 33' TERM; echo ready; while :; do sleep 0.1; done"
        with alice.spawn(shop, "sh", "-c", script, sudo=sudo) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 33
    refused = alice.run(shop, check=False)
    assert (refused.returncode, "a shell needs a terminal" in refused.stderr) == (2, True)
    said = on_terminal(alice, shop, "tty; shopt -q login_shell && echo $((6 * 7)) in $PWD; exit 5\n", 5)
    assert f"42 in {shop}" in said
    assert "/dev/pts/" in said


def on_terminal(alice: Alice, cwd: Path, typed: str, code: int) -> str:
    """What a shell says on a terminal, to which this is typed."""
    outer, inner = pty.openpty()
    env = alice.instance.environment({"TERM": "dumb"}, "alice")
    streams = {"stdin": inner, "stdout": inner, "stderr": inner}
    argv = alice.account.command(*HUTCH, "run")
    process = subprocess.Popen(argv, cwd=cwd, env=env, start_new_session=True, **streams)  # type: ignore[call-overload]
    os.close(inner)
    said, has_typed = b"", False
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and (process.poll() is None or select.select([outer], [], [], 0)[0]):
        if not has_typed and said.rstrip().endswith(b"$"):
            os.write(outer, typed.encode())
            has_typed = True
        if select.select([outer], [], [], 0.1)[0]:
            try:
                said += os.read(outer, 4096)
            except OSError:
                break
    os.close(outer)
    assert process.wait(10) == code, said
    return said.decode()


@pytest.mark.slow
@pytest.mark.vm(slow=True)
def test_a_directory_in_tmp_is_shared_too(alice: Alice) -> None:
    place = Path("/tmp/hutch-test-run")
    place.mkdir()
    try:
        os.chown(place, alice.account.uid, alice.account.uid)
        said = alice.run(place, *alice.options, "sh", "-c", "pwd; touch made; stat -c %a /tmp", sudo=True)
        assert said.stdout == f"{place}\n1777\n"
        assert (place / "made").exists()
    finally:
        alice.instance.hutch("rm", "--purge", "--force", place.name)
        subprocess.run(["rm", "-rf", place], check=True, timeout=10)


@pytest.mark.slow
def test_it_goes_again_unless_there_is_unsaved_work(alice: Alice) -> None:
    shop = alice.checkout("shop")
    result = alice.run(shop, "--rm", "sh", "-c", "touch made; exit 3", sudo=True, check=False)
    assert (result.returncode, result.stderr) == (3, f"shop: shares {shop}\n")
    assert (shop / "made").exists()
    assert "shop" not in alice.instance.names()
    assert list(alice.files.iterdir()) == []
    script = "cd; git init -q work; touch work/unsaved"
    kept = alice.run(shop, "--rm", "sh", "-c", script, sudo=True)
    assert kept.returncode == 0
    assert "nothing was removed" in kept.stderr
    assert "shop: it was not removed, and stays" in kept.stderr
    assert alice.instance.status("shop")["state"] == "running"
    alice.run(shop, "--rm", "sh", "-c", "rm -r ~/work", sudo=True)
    home = Path(alice.instance.state / "workspaces" / "shop" / "home")
    assert home.is_dir()  # it was there before that run, so its home is kept
    assert "shop" not in alice.instance.names()


@pytest.mark.slow
@pytest.mark.vm(slow=True)
def test_git_works_in_a_worktree(alice: Alice) -> None:
    shop, fix = alice.home / "src" / "shop", alice.home / "src" / "fix"
    alice.write(shop / "readme", "")
    alice.git("init", "-q", str(shop))
    alice.git("-C", str(shop), "commit", "-q", "--allow-empty", "-m", "first")
    alice.git("-C", str(shop), "worktree", "add", "-q", str(fix))
    script = "git rev-parse --show-toplevel && git log --format=%s && git commit -q --allow-empty -m second"
    who = ["env", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b"]
    said = alice.run(fix, *alice.options, *who, "sh", "-ec", script, sudo=True)
    assert said.stdout == f"{fix}\nfirst\n"
    alice.git("-C", str(shop), "merge", "-q", "fix")
    assert alice.run(fix, "ls", str(shop), check=False).stdout == ""  # of the repository, its .git alone


@pytest.mark.slow
def test_a_workspace_of_a_file_begins_in_its_home_where_it_does_not_share(alice: Alice) -> None:
    shop = alice.checkout("shop")
    text = f'[defaults]\n{alice.instance.defaults}\n[workspaces.web]\ntype = "container"\n'
    file = alice.write(shop / "hutch.toml", text)
    untrusted = alice.run(shop, "pwd", sudo=True, check=False)
    assert (untrusted.returncode, untrusted.stdout) == (1, "")
    assert f"`hutch trust {file}`" in untrusted.stderr
    assert alice.run(shop, "pwd", check=False).stderr == untrusted.stderr  # nobody is asked to become root for that
    alice.instance.hutch("trust", "--yes", str(file), env=SUDO)
    said = alice.run(shop, "pwd", sudo=True)
    assert said.stdout == "/home/dev\n"
    line = f'mounts = [{{ source = ".", target = "{shop}" }}]'
    assert said.stderr == (
        f"hutch: warning: web: {shop} is not shared, so this begins in the home; in {file}: {line}\n"
    )
    assert alice.run(shop, "pwd").stdout == "/home/dev\n"
    file.write_text(f'{file.read_text()}[workspaces.lab]\ntype = "container"\n')
    several = alice.run(shop, "true", check=False)
    assert (several.returncode, "declares several workspaces: web, lab" in several.stderr) == (2, True)
    alice.instance.hutch("trust", "--yes", str(file), env=SUDO)
    assert alice.run(shop, "--name", "web", "hostname", sudo=True).stdout == "web\n"
    assert alice.run(shop, "--ignore-file", "pwd", sudo=True).stdout == f"{shop}\n"
    os.chown(file, 1001, 1001)
    assert "belongs to uid 1001" in alice.run(shop, "true", sudo=True, check=False).stderr


@pytest.mark.slow
def test_a_kit_is_added(alice: Alice) -> None:
    shop = alice.checkout("shop")
    kit = alice.write(alice.home / ".config/hutch/kits/mine.toml", 'env = { FROM_KIT = "one" }\n')
    alice.run(shop, "true", sudo=True)
    file = alice.files / "shop.toml"
    before = file.read_text()
    refused = alice.run(shop, "--with", "mien", "true", sudo=True, check=False)
    assert (refused.returncode, file.read_text()) == (2, before)
    said = alice.run(shop, "--with", "mine", "sh", "-lc", "echo $FROM_KIT", sudo=True)
    assert said.stdout == "one\n"
    assert 'use = ["mine"]' in file.read_text()
    assert alice.run(shop, "printenv", "FROM_KIT").stdout == "one\n"
    kit.write_text('env = { FROM_KIT = "another" }\n')
    assert "this needs root" in alice.run(shop, "true", check=False).stderr
    assert alice.run(shop, "printenv", "FROM_KIT", sudo=True).stdout == "another\n"


@pytest.mark.slow
def test_without_root_nothing_is_left_of_a_first_run(alice: Alice) -> None:
    shop = alice.checkout("shop")
    result = alice.run(shop, "true", check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert "this needs root" in result.stderr
    assert list(alice.files.iterdir()) == []
    for directory in (alice.home, Path("/"), alice.files):
        refused = alice.run(directory, "true", check=False)
        assert (refused.returncode, "is not shared with a workspace" in refused.stderr) == (2, True)


@pytest.mark.slow
def test_runs_at_once_make_one_workspace_for_each_directory(alice: Alice) -> None:
    """Two in one new directory, and one in another of the same name."""
    here, there = alice.checkout("shop"), alice.checkout("other/shop")
    processes = [alice.spawn(directory, "pwd", sudo=True) for directory in (here, there, here)]
    for process, directory in zip(processes, (here, there, here), strict=True):
        said, errors = process.communicate(timeout=120)
        assert (process.returncode, said) == (0, f"{directory}\n"), errors
    names = {path.stem for path in alice.files.glob("*.toml")}
    assert names == set(alice.instance.names()) - {"anchor"}
    assert len(names) == 2
    assert "shop" in names


@pytest.mark.slow
def test_root_writes_in_a_home_with_its_owners_rights_only(alice: Alice, tmp_path: Path) -> None:
    shop = alice.checkout("shop")
    closed = Path("/run/closed-to-alice")
    closed.mkdir(mode=0o755)
    try:
        (alice.home / ".config/hutch/run").symlink_to(closed)
        result = alice.run(shop, "true", sudo=True, check=False)
        assert result.returncode == 1
        assert "shop.toml cannot be written: Permission denied" in result.stderr
        assert list(closed.iterdir()) == []
    finally:
        closed.rmdir()


def test_the_second_time_loads_little(alice: Alice) -> None:
    """Neither a plan nor pydantic stands between a person and a workspace that runs."""
    shop = alice.checkout("shop")
    alice.run(shop, "true", sudo=True)
    program = (
        "import os, sys\nsys.argv[0] = 'hutch'\nfrom hutch.api.workspace import Workspace\n"
        "Workspace.attach = lambda *words, **more: print(*sorted(sys.modules)) or 0\n"
        "from hutch.cli import main\nmain()"
    )
    argv = alice.account.command(sys.executable, "-c", program, "run", "true")
    env = alice.instance.environment(as_user="alice")
    loaded = subprocess.run(argv, capture_output=True, text=True, timeout=30, cwd=shop, env=env, check=True).stdout
    assert {"pydantic", "rich", "tree_sitter", "hutch.apply.planning"}.isdisjoint(loaded.split())


def test_a_clone_is_worked_on_and_its_commits_are_fetched(alice: Alice) -> None:
    top = alice.home / "src" / "cloned"
    alice.git("init", "-q", str(top))
    alice.write(top / "README", "first\n")
    alice.git("-C", str(top), "add", ".")
    alice.git("-C", str(top), "commit", "-q", "-m", "first")
    alice.write(top / "README", "not committed\n")
    alice.write(top / "sub" / "new", "new\n")
    seen = alice.run(top / "sub", "--clone", "--name", "one", "--", "sh", "-c", "pwd; cat README sub/new", sudo=True)
    assert seen.stdout == "/home/dev/cloned\nnot committed\nnew\n"
    script = "test ! -e /home/dev/src && echo more >>README && git commit -qam inside && echo later >>README"
    alice.run(top, "--", "sh", "-c", script)
    assert "+more\n+later\n" in alice.instance.hutch("diff", "one", cwd=top, as_user="alice").stdout
    alice.instance.hutch("fetch", "one", cwd=top, as_user="alice")
    alice.git("-C", str(top), "merge-base", "--is-ancestor", "HEAD", "one/main")
    assert (top / "README").read_text() == "not committed\n"
    alice.run(top, "--clone", "--committed", "--name", "two", "--", "grep", "first", "README", sudo=True)
    refused = alice.run(top, "--committed", "--", "true", check=False)
    assert (refused.returncode, "--clone" in refused.stderr) == (2, True)
    kept = alice.run(top, "--rm", "--name", "one", "--", "true", sudo=True)
    assert "uncommitted changes" in kept.stderr
    gone = alice.run(top, "--rm", "--name", "one", "--", "git", "checkout", "-q", "README", sudo=True)
    assert gone.returncode == 0 and "one" not in alice.instance.names()


@pytest.mark.slow
def test_a_workspace_of_a_file_works_on_a_clone(alice: Alice) -> None:
    top = alice.home / "src" / "declared"
    alice.git("init", "-q", str(top))
    alice.git("-C", str(top), "commit", "-q", "--allow-empty", "-m", "first")
    network = f'[network]\nsubnet = "{alice.instance.subnet}"\n'
    text = f'{network}[defaults]\n{alice.instance.defaults}\n[workspaces.agent]\ntype = "container"\n'
    file = str(alice.write(alice.home / "own.toml", text))
    words = ("-f", file, "--clone", "--", "sh", "-c", "pwd; git log --format=%s")
    assert alice.run(top, *words, sudo=True).stdout == "/home/dev/declared\nfirst\n"
    assert alice.run(top, *words).stdout == "/home/dev/declared\nfirst\n"
    alice.run(top, "-f", file, "--clone", "--", "git", "commit", "-q", "--allow-empty", "-m", "second")
    (branch,) = json.loads(alice.instance.hutch("fetch", "agent", "--json", as_user="alice").stdout)
    assert branch["ref"] == "refs/remotes/agent/main"
