"""A guest cannot make the host run anything by what it writes in a shared checkout: as root inside, by any way."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.egress import eventually
from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.host.processes import ended, kill_processes, main_of
from tests.support.world import World

pytestmark = pytest.mark.vm(slow=True)

SETTINGS = ("-c", "user.name=Alice", "-c", "user.email=alice@example.org", "-c", "protocol.file.allow=always")
TARGET = "/srv/shop"
PART = ".git/worktrees/worktree/modules/lib/part"
"""The git directory of the submodule in the linked worktree."""


class Checkout:
    """A checkout of alice's, with a submodule, a worktree, and hooks in the working tree."""

    def __init__(self, instance: Instance, name: str) -> None:
        self.instance, self.top = instance, instance.directory / f"hers/{name}"

    def sh(self, script: str) -> str:
        """Run a script as alice, on the host, in the checkout."""
        account = self.instance.world.accounts["alice"]
        command = account.command("env", "GIT_CONFIG_NOSYSTEM=1", "sh", "-euc", script)
        found = subprocess.run(
            command, cwd=self.top, env=account.environment(), capture_output=True, text=True, timeout=60
        )
        assert found.returncode == 0, f"{script}: {found.stdout}{found.stderr}"
        return found.stdout

    def git(self, words: str) -> str:
        return self.sh(f"git {' '.join(SETTINGS)} {words}")

    def make(self) -> None:
        self.top.mkdir(parents=True)
        for path in (self.top.parent, self.top):
            os.chown(path, 1000, 1000)
        self.git("init --quiet --initial-branch=main .")
        self.sh("mkdir .githooks lib; echo true > .githooks/pre-commit; chmod +x .githooks/pre-commit; echo 1 > file")
        self.sh("ln -s ../../lib/post.sh .git/hooks/post-commit; echo true > lib/post.sh; chmod +x lib/post.sh")
        self.git("init --quiet ../part")
        self.git("-C ../part commit --quiet --allow-empty -m part")
        self.git("submodule --quiet add ../part lib/part")
        self.sh("echo '[core]' > lib/included")
        for words in ("add .", "commit --quiet -m first", "worktree add --quiet ../worktree -b other"):
            self.git(words)
        self.git("-C ../worktree submodule --quiet update --init")
        self.git("config core.hooksPath .githooks")
        self.git("config include.path ../lib/included")

    def clear(self) -> None:
        """Remove what attacks have left, which may be the guest's own."""
        left = ("e", "x", "hard", ".git/worktrees/odd", ".git/modules/evil", ".git/config~")
        subprocess.run(["rm", "-rf", *left], cwd=self.top, check=True, timeout=10)

    def state(self) -> str:
        """All that the host would run, as text."""
        held = (
            ".git/config .git/hooks .git/modules/lib/part/config .git/modules/lib/part/hooks lib/part/.git lib/post.sh"
        )
        held += (
            " .githooks lib/included .git/commondir .git/worktrees/worktree/commondir .git/worktrees/worktree/gitdir"
            f" {PART}/config {PART}/hooks"
        )
        texts = ".git/config .gitmodules lib/included lib/post.sh"
        return self.sh(f"find {held} | sort | xargs stat -c '%n %F %i %s'; cat {texts}")


@pytest.fixture(scope="module")
def checkouts(world: World, images: Path, workspace_type: str) -> Iterator[tuple[Instance, Checkout, Checkout]]:
    with open_instance(world, images) as instance:
        shop, worktree = Checkout(instance, "shop"), Checkout(instance, "worktree")
        shop.make()
        mounts = (
            f'{{ source = "{shop.top}", target = "{TARGET}" }}, {{ source = "{worktree.top}", target = "/srv/tree" }}'
        )
        instance.declare(workspace_type, web=f'mounts = [{mounts}]\nprotect = ["Makefile"]')
        instance.up()
        yield instance, shop, worktree


HELD = (".vscode", ".idea", ".cursor", ".envrc", "hutch.toml", ".husky", ".github/hooks", ".claude/settings.json")
FILES = f".git/config lib/included lib/post.sh lib/part/.git {PART}/config"
RENAMED = "mv .git/config .git/config~; { cat .git/config~; echo '[hutch] seen = yes'; } > .git/config"
ALL = f"{FILES} .git/hooks {PART}/hooks .githooks .vscode .envrc Makefile .git/commondir"
ATTACKS = {
    "write": f"for f in {FILES} .git/hooks/post-commit .git/commondir; do echo EVIL >> $f; done",
    "make": f"for d in .git/hooks {PART}/hooks .githooks .vscode .idea Makefile; do"
    " echo EVIL > $d/pre-commit; mkdir $d/x; done",
    "make what is absent": "for f in .envrc hutch.toml Makefile .vscode .idea .husky .github/hooks .husky/pre-commit"
    " .github/hooks/x .claude/settings.json .claude/settings.local.json .gitmodules; do echo EVIL > $f; done;"
    " mv --no-copy .claude x; mv --no-copy .github x; rm -rf .claude .github",
    "truncate": f"truncate --size=0 {FILES}",
    "mode and owner": "chmod -R 777 .git/hooks .git/config .githooks; chown -R root .githooks .git/config",
    "delete": f"rm -rf {ALL}",
    "rename": f"for f in {ALL}; do mv $f x; done",
    "rename a parent": f"for d in .git lib .git/modules .git/modules/lib/part .git/worktrees {PART} lib/part; do"
    " mv --no-copy $d x; mv --no-copy $d ${d%/*}/x; done",
    "rename onto": f"for f in {ALL}; do echo EVIL > e; mv -fT e $f; done",
    "exchange": "mkdir -p e/hooks; mv --exchange e .git; mv --exchange e/hooks .git/hooks",
    "hard link": f"for f in {FILES}; do ln $f hard && echo EVIL >> hard; echo EVIL > e; ln -f e $f; done",
    "symbolic link": f"mkdir -p e; for f in {ALL} .git; do ln -sfnT $PWD/e $f; done",
    "bind mount": "mkdir -p e; echo EVIL > e/pre-commit; for d in .githooks .git/hooks; do mount --bind e $d; done",
    "unmount": f"for f in {FILES} .githooks lib .git; do umount -l $f && echo EVIL >> .git/config; done",
    "unmount in a namespace": "unshare -m sh -c 'umount -l .git/config .git; echo EVIL >> .git/config; mv .git x'",
    "mount anew": "mount -o remount,bind,rw .git/config; mount -o remount,rw .; echo EVIL >> .git/config",
    "mount what is below": "mkdir -p /tmp/b; mount --bind . /tmp/b && echo EVIL >> /tmp/b/.git/config; umount /tmp/b",
    "git": "export HOME=/root; git config --global safe.directory '*'; git config core.fsmonitor ./evil;"
    " git config --worktree a.b c; git submodule set-url lib/part /e; git remote add x y",
    "git's own links": "mkdir -p e; echo ../e > .git/commondir; echo gitdir: e > .git; echo ../e > lib/part/.git;"
    " cd .git/worktrees/worktree && echo ../../../e > commondir; echo /srv/shop/e > gitdir",
    "the worktree": "cd /srv/tree && { echo gitdir: /srv/shop/e > .git; rm -f .git; mv .git x; mkdir .vscode/x; }",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_guest_cannot_change_what_the_host_runs(attack: str, checkouts: tuple[Instance, Checkout, Checkout]) -> None:
    instance, shop, worktree = checkouts
    before, status = shop.state(), worktree.sh("cat .git")
    script = f"cd {TARGET} && {{ {ATTACKS[attack]}; }} 2>&1; true"
    said = instance.inside("web", "sh", "-c", script, root=True).stdout
    assert shop.state() == before, said
    assert worktree.sh("cat .git") == status
    for top in (shop.top, worktree.top):
        for path in (*HELD, "Makefile"):
            assert os.listdir(top / path) == [], said
    assert "EVIL" not in shop.sh(f"grep -r EVIL {ALL} || true")
    shop.clear()


def test_work_goes_on_inside(checkouts: tuple[Instance, Checkout, Checkout]) -> None:
    instance, shop, _ = checkouts
    script = "echo 2 > file && git add file && git -c user.name=a -c user.email=a@b commit --quiet -m inside"
    instance.ssh("web", f"cd {TARGET} && {script} && git switch --quiet -c topic && git stash && git status")
    assert shop.git("log -1 --format=%s").strip() == "inside"
    assert shop.git("status --porcelain").strip() == ""
    shop.git("commit --quiet --allow-empty -m outside")
    log = f"git -C {TARGET} log -1 --format=%s"
    assert eventually(lambda: instance.ssh("web", log).stdout.strip() == "outside")  # a machine remembers for a second


def test_nothing_of_the_guests_runs_on_the_host(checkouts: tuple[Instance, Checkout, Checkout]) -> None:
    """git of the host's, after all that the guest has tried, with each of its attempts once more beside it."""
    instance, shop, _ = checkouts
    instance.inside(
        "web", "sh", "-c", f"printf '#!/bin/sh\\ntouch {shop.top}/owned\\n' > {TARGET}/evil; chmod 755 {TARGET}/evil"
    )
    for attack in ATTACKS.values():
        script = f"cd {TARGET} && {{ {attack.replace('echo EVIL', 'cat evil')}; }} >/dev/null 2>&1; true"
        instance.inside("web", "sh", "-c", script, root=True)
    shop.clear()
    for words in (
        "status",
        "diff",
        "commit --quiet --allow-empty -m more",
        "fetch --all",
        "submodule status",
        "log -1",
    ):
        shop.git(words)
    assert not (shop.top / "owned").exists()


@pytest.mark.parametrize("way", ["git config hutch.seen yes", RENAMED], ids=["replaced", "renamed"])
def test_what_the_host_replaces_is_protected_again(way: str, checkouts: tuple[Instance, Checkout, Checkout]) -> None:
    """git puts a new file in the place of its configuration, whose mount goes with the old one; an editor that keeps a
    copy renames the old one, whose mount goes along. What the guest writes where hutch looks for more to protect is not
    in the way of that."""
    instance, shop, _ = checkouts
    odd, evil = f"{TARGET}/.git/worktrees/odd", f"{TARGET}/.git/modules/evil"
    script = f"mkdir {odd} {evil}; printf '../../../lib/a\\0/.git\\n' > {odd}/gitdir"
    script += f"; printf '[include]\\npath = config\\npath = config\\n' > {evil}/config"
    instance.inside("web", "sh", "-c", script, root=True)
    try:
        shop.sh(way)
        check_protected_again(instance)
        assert "EVIL" not in shop.sh("cat .git/config")
        assert instance.ssh("web", f"git -C {TARGET} config hutch.seen").stdout == "yes\n"
    finally:
        shop.clear()


def check_protected_again(instance: Instance) -> None:
    write = f"cd {TARGET} && echo EVIL >> .git/config"
    awaited = f"for i in $(seq 50); do [ -w {TARGET}/.git/config ] || break; sleep 0.1; done"
    script = f"{awaited}; {write}; umount {TARGET}/.git/config; {write}"
    found = instance.inside("web", "sh", "-c", script, root=True, check=False)
    assert (found.returncode, found.stderr.count("Read-only file system")) == (2, 2), found.stderr


def test_they_are_listed(checkouts: tuple[Instance, Checkout, Checkout]) -> None:
    instance, shop, worktree = checkouts
    found = instance.status("web")["protected"]
    assert {f"{shop.top}/{name}" for name in (".git/config", ".git/hooks", ".githooks", ".vscode", "Makefile")} <= set(
        found
    )
    assert f"{worktree.top}/.git" in found
    assert f"{shop.top}/.git/hooks" in instance.hutch("status", "web").stdout


def test_the_guest_ends_with_what_keeps_them_protected(checkouts: tuple[Instance, Checkout, Checkout]) -> None:
    """And begins anew, with another."""
    instance, _, _ = checkouts
    guest = os.pidfd_open(main_of(instance, "web").pid)
    assert kill_processes(lambda command: "protection_watch" in " ".join(command)) == 1
    ended(guest)
    instance.up()
    check_protected_again(instance)


def test_the_checkout_stays_clean(checkouts: tuple[Instance, Checkout, Checkout]) -> None:
    """It is the last test of this file: the workspace is stopped."""
    instance, shop, worktree = checkouts
    for top in (shop, worktree):
        changed = {line.strip() for line in top.git("status --porcelain").splitlines()}
        assert changed <= {"?? evil"}
    instance.hutch("stop", "web")
    for top in (shop, worktree):
        assert not {".vscode", ".envrc", ".github", ".claude", "Makefile"} & set(os.listdir(top.top))
    assert not (instance.state / "placeholders.json").exists()
