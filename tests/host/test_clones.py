"""Clones: what goes into a workspace, what comes back, and what a hostile one gets done on the host: nothing."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

import hutch
from hutch.spec.names import Layout
from tests.host.clones import LIAR, Checkout, bomb, make_checkout
from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.support.world import World

NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def two(world: World, images: Path, workspace_type: str) -> Iterator[Instance]:
    with open_instance(world, images) as instance:
        instance.declare(workspace_type, web="", other="")
        instance.up()
        yield instance


def workspace(instance: Instance, name: str) -> hutch.Workspace:
    return hutch.Workspace(name, hutch.Hutch(Layout(instance.state, instance.run)))


@pytest.fixture
def web(two: Instance) -> Iterator[hutch.Workspace]:
    """With an empty home, and a git that tells the truth."""
    alice = two.world.accounts["alice"]
    yield workspace(two, "web")
    for name in ("web", "other"):
        script = "rm -rf /usr/local/bin/git /home/dev/* /home/dev/.gitconfig /tmp/* /home/dev/.hutch-clone"
        workspace(two, name).run(["sh", "-c", script], root=True, check=True)
    shutil.rmtree(alice.home / ".local", ignore_errors=True)


@pytest.fixture
def checkout(two: Instance) -> Iterator[Checkout]:
    made = make_checkout(two.world.accounts["alice"], f"shop{next(NUMBERS)}")
    yield made
    shutil.rmtree(made.top)


def inside(web: hutch.Workspace, checkout: Checkout, script: str) -> str:
    """The output of a shell in the clone."""
    done = web.run(["sh", "-ec", script], cwd=checkout.top.name, capture=True, text=True, check=True)
    return done.stdout.rstrip("\n")


def lie(web: hutch.Workspace, refs: str, pack: bytes) -> None:
    """Have the workspace's git answer with these."""
    web.run(["sh", "-c", "cat >/usr/local/bin/git && chmod 755 /usr/local/bin/git"], root=True, input=LIAR, check=True)
    web.run(["sh", "-c", "cat >/tmp/refs"], input=refs, check=True)
    web.run(["sh", "-c", "cat >/tmp/pack"], input=pack, check=True)


def pack_of(checkout: Checkout, *objects: str) -> bytes:
    """A pack of just these objects."""
    command = checkout.account.command("git", "-C", str(checkout.top), "pack-objects", "--stdout", "-q")
    told = "".join(f"{object}\n" for object in objects).encode()
    environment = checkout.account.environment()
    return subprocess.run(
        command, input=told, check=True, timeout=30, cwd="/", env=environment, stdout=subprocess.PIPE
    ).stdout


@pytest.mark.vm(slow=True)
def test_a_commit_comes_back(two: Instance, web: hutch.Workspace, checkout: Checkout) -> None:
    checkout.git("tag", "-a", "-m", "tag", "v1")
    before = checkout.git("rev-parse", "HEAD")
    made = web.clone(checkout.top)
    assert made == hutch.Clone("web", str(checkout.top), checkout.top.name, "main", before)
    assert web.clone(checkout.top / "src") == made  # it is there
    assert inside(web, checkout, "git status --porcelain; git describe; cat src/tool") == "v1\nsrc/tool"
    inside(web, checkout, "echo news >>README; git commit -qam news; echo more >>README; git branch fix/1 HEAD")
    said = two.hutch("diff", "web", as_user="alice").stdout
    assert "+news\n+more\n" in said and said.startswith("diff --git a/README b/README\n")
    assert "README | 2 ++" in two.hutch("diff", "--stat", "web").stdout
    table = two.hutch("fetch", "web", as_user="alice").stdout.splitlines()
    now = inside(web, checkout, "git rev-parse HEAD")
    assert table[0].split() == ["BRANCH", "BEFORE", "NOW", "REF"]
    assert [line.split() for line in table[1:]] == [
        ["fix/1", "-", now[:12], "refs/remotes/web/fix/1"],
        ["main", "-", now[:12], "refs/remotes/web/main"],
    ]
    assert checkout.refs("refs/remotes") == {"refs/remotes/web/main": now, "refs/remotes/web/fix/1": now}
    assert checkout.git("rev-parse", "HEAD") == before and checkout.git("status", "--porcelain") == ""
    assert checkout.git("show", "web/main:README") == "README\nnews"
    checkout.git("fsck", "--strict")
    found = json.loads(two.hutch("fetch", "web", "main", "--json").stdout)
    assert found == [{"name": "main", "ref": "refs/remotes/web/main", "before": now, "now": now}]
    assert inside(web, checkout, "git log --oneline --branches --not --remotes") == ""  # it counts as saved
    assert not list((checkout.top / ".git" / "objects").glob("tmp_*"))


@pytest.mark.slow
def test_two_who_make_a_clone_at_once_have_the_same(web: hutch.Workspace, checkout: Checkout) -> None:
    checkout.write("README", "changed\n")
    with ThreadPoolExecutor() as pool:
        first, second = pool.map(web.clone, [checkout.top] * 2)
    assert first == second
    assert checkout.refs("refs/hutch") == {"refs/hutch/web/start": first.start}


@pytest.mark.slow
def test_several_clones_side_by_side(two: Instance, web: hutch.Workspace, checkout: Checkout) -> None:
    other = workspace(two, "other")
    for each in (web, other):
        each.clone(checkout.top)
        inside(each, checkout, f"echo {each.name} >>README; git commit -qam {each.name}")
        each.fetch()
    assert checkout.git("log", "--format=%s", "web/main") == "web\nfirst"
    assert checkout.git("log", "--format=%s", "other/main") == "other\nfirst"
    second = make_checkout(checkout.account, "elsewhere")
    try:
        with pytest.raises(hutch.HutchError, match="works on a clone of"):
            web.clone(second.top)
    finally:
        shutil.rmtree(second.top)


def test_uncommitted_work_goes_along(web: hutch.Workspace, checkout: Checkout) -> None:
    checkout.write(".gitignore", "*.o\n")
    checkout.write("staged", "staged\n")
    checkout.git("add", "staged", ".gitignore")
    checkout.write("README", "changed\n")
    checkout.write("src/tool", "src/tool\n", 0o755)
    checkout.write("new dir/un\ttracked", "new\n")
    checkout.write("ignored.o", "x")
    checkout.write("staged", "staged, then changed\n")
    (checkout.top / "link").symlink_to("/etc/passwd")
    os.mkfifo(checkout.top / "fifo")
    (checkout.top / "old").unlink()
    nested = make_checkout(checkout.account, f"{checkout.top.name}/nested")
    status = checkout.git("status", "--porcelain")
    made = web.clone(checkout.top)
    assert checkout.git("status", "--porcelain") == status
    assert checkout.git("rev-parse", f"{made.start}^") == checkout.git("rev-parse", "HEAD")
    assert (
        checkout.git("show", "--format=%an %s", "--raw", "--no-abbrev", made.start).splitlines()[0].endswith("was made")
    )
    changes = checkout.git("diff-tree", "-r", "--name-status", "HEAD", made.start).splitlines()
    assert changes == [
        "A\t.gitignore",
        "M\tREADME",
        "A\tlink",
        'A\t"new dir/un\\ttracked"',
        "D\told",
        "M\tsrc/tool",
        "A\tstaged",
    ]
    assert inside(
        web, checkout, "cat staged README; readlink link; find src -perm -u+x -name tool; ls; git status --porcelain"
    ) == ("staged, then changed\nchanged\n/etc/passwd\nsrc/tool\nREADME\nlink\nnew dir\nsrc\nstaged")
    assert nested.top.is_dir()


@pytest.mark.slow
def test_only_what_is_committed(web: hutch.Workspace, checkout: Checkout) -> None:
    checkout.write("README", "changed\n")
    assert web.clone(checkout.top, committed=True).start == checkout.git("rev-parse", "HEAD")


@pytest.mark.slow
def test_a_merge_that_is_not_done_and_a_detached_head(web: hutch.Workspace, checkout: Checkout) -> None:
    checkout.git("checkout", "-q", "-b", "side")
    checkout.write("README", "side\n")
    checkout.git("commit", "-qam", "side")
    checkout.git("checkout", "-q", "--detach", "main")
    checkout.write("README", "main\n")
    checkout.git("commit", "-qam", "main")
    checkout.git("merge", "side", check=False)
    made = web.clone(checkout.top)
    assert made.branch == "web"
    assert "<<<<<<<" in checkout.git("show", f"{made.start}:README")
    inside(web, checkout, "git checkout -q --detach; git commit -q --allow-empty -m loose")
    assert {branch.name for branch in web.fetch().branches} == {"HEAD", "web"}
    assert checkout.git("log", "-1", "--format=%s", "web/HEAD") == "loose"


@pytest.mark.slow
def test_a_repository_without_a_commit_and_with_longer_hashes(web: hutch.Workspace, two: Instance) -> None:
    empty = make_checkout(two.world.accounts["alice"], "empty", empty=True, format="sha256")
    try:
        with pytest.raises(hutch.HutchError, match="has no commit yet"):
            web.clone(empty.top)
        empty.write("file", "content\n")
        made = web.clone(empty.top)
        assert inside(web, empty, "cat file; git log --format=%s").splitlines()[0] == "content"
        assert empty.git("rev-list", "--count", made.start) == "1" and len(made.start) == 64
        inside(web, empty, "git commit -q --allow-empty -m inside")
        web.fetch()
        assert empty.git("log", "-1", "--format=%s", "web/main") == "inside"
        assert web.diff() == ""
    finally:
        shutil.rmtree(empty.top)


@pytest.mark.slow
def test_worktrees_shallow_clones_and_submodules(web: hutch.Workspace, two: Instance, checkout: Checkout) -> None:
    other = workspace(two, "other")
    checkout.write("README", "second\n")
    checkout.git("commit", "-qam", "second")
    tree, shallow = (Checkout(checkout.account, checkout.top.with_name(name)) for name in ("tree", "shallow"))
    try:
        checkout.git("worktree", "add", "-q", str(tree.top), "-b", "tree")
        tree.write("new", "new\n")
        web.clone(tree.top)
        inside(web, tree, "git commit -q --allow-empty -m inside")
        web.fetch()
        assert checkout.git("log", "-1", "--format=%s", "web/tree") == "inside"
        checkout.git("clone", "-q", "--depth=1", f"file://{checkout.top}", str(shallow.top))
        other.clone(shallow.top)
        assert inside(other, shallow, "git log --format=%s; git fsck") == "second"
        inside(other, shallow, "git commit -q --allow-empty -m inside")
        other.fetch()
        assert shallow.git("log", "--format=%s", "other/main") == "inside\nsecond"
        web.run(["rm", "-rf", tree.top.name], check=True)
        shutil.rmtree(checkout.account.home / ".local")
        checkout.git("-c", "protocol.file.allow=always", "submodule", "add", "-q", f"file://{checkout.top}", "part")
        part = Checkout(checkout.account, checkout.top / "part")
        part.write("new", "new\n")
        made = web.clone(part.top)
        assert (made.directory, inside(web, part, "cat new")) == ("part", "new")
        assert part.refs("refs/hutch") == {"refs/hutch/web/start": made.start}
    finally:
        for each in (tree, shallow):
            shutil.rmtree(each.top, ignore_errors=True)


def test_nothing_that_the_host_s_repository_configures_runs(web: hutch.Workspace, checkout: Checkout) -> None:
    """A workspace that shares the checkout may have written it."""
    ran = checkout.account.home / "ran"
    bad = checkout.write(".git/bad", f"#!/bin/sh\necho $0 $* >>{ran}\ncat\n", 0o755)
    checkout.write(".gitattributes", "* filter=bad diff=bad merge=bad\n")
    checkout.git("add", ".gitattributes")
    checkout.git("commit", "-qm", "attributes")
    sub = make_checkout(checkout.account, f"{checkout.top.name}/sub")
    checkout.git("-c", "advice.addEmbeddedRepo=false", "add", "sub")
    checkout.git("commit", "-qm", "a gitlink")
    hooks = checkout.top / ".git" / "hooks"
    names = (
        "reference-transaction",
        "pre-commit",
        "post-commit",
        "post-index-change",
        "post-checkout",
        "update",
        "pre-auto-gc",
    )
    for name in (*names, "fsmonitor-watchman", "prepare-commit-msg", "commit-msg", "post-rewrite", "proc-receive"):
        checkout.write(f".git/hooks/{name}", bad.read_text(), 0o755)
    keys = {
        **dict.fromkeys(
            ("core.fsmonitor", "core.alternateRefsCommand", "core.sshCommand", "core.pager", "core.editor"), bad
        ),
        **dict.fromkeys(("filter.bad.clean", "filter.bad.smudge", "filter.bad.process"), bad),
        **dict.fromkeys(("diff.bad.command", "diff.bad.textconv", "diff.external", "merge.bad.driver"), bad),
        **dict.fromkeys(("gpg.program", "credential.helper", "uploadpack.packObjectsHook", "core.gitProxy"), bad),
        "core.hooksPath": hooks,
        "commit.gpgSign": "true",
        "filter.bad.required": "true",
        "gc.auto": "1",
        f"url.ext::{bad}.insteadOf": "/",
        "log.showSignature": "true",
        "diff.submodule": "diff",
    }
    for key, value in keys.items():
        checkout.git("config", "--file", ".git/more", key, str(value))
    for config in (checkout.top / ".git" / "config", sub.top / ".git" / "config"):
        config.write_text(config.read_text() + f"[include]\n\tpath = {checkout.top}/.git/more\n")
    checkout.write("README", "changed\n")
    (sub.top / "README").write_text("changed in the submodule\n")
    ran.unlink(missing_ok=True)
    made = web.clone(checkout.top)
    inside(web, checkout, "echo x >>README; git commit -qam inside")
    assert "+x\n" in web.diff()
    web.fetch()
    assert not ran.exists(), ran.read_text()
    listed = (checkout.top / ".git" / "refs" / "remotes" / "web" / "main").read_text()
    assert listed.strip() == inside(web, checkout, "git rev-parse HEAD") != made.start


@pytest.mark.slow
def test_an_lfs_file_goes_as_git_has_it(web: hutch.Workspace, checkout: Checkout) -> None:
    """Its filter is not run; whether it has changed is told by size and times."""
    checkout.write(".gitattributes", "*.bin filter=lfs\n")
    filters = ("-c", "filter.lfs.clean=sed s/BIG/pointer/", "-c", "filter.lfs.smudge=sed s/pointer/BIG/")
    checkout.write("a.bin", "BIG\n")
    checkout.write("b.bin", "BIG\n")
    checkout.git(*filters, "add", ".")
    checkout.git(*filters, "commit", "-qm", "lfs")
    assert checkout.git("show", "HEAD:a.bin") == "pointer"
    checkout.write("b.bin", "BIG, changed\n")
    made = web.clone(checkout.top)
    assert checkout.git("show", f"{made.start}:a.bin") == "pointer"
    assert checkout.git("show", f"{made.start}:b.bin") == "BIG, changed"


@pytest.mark.slow
def test_a_configuration_that_leads_elsewhere_is_refused(web: hutch.Workspace, checkout: Checkout) -> None:
    for key, value in (("core.worktree", str(checkout.account.home / ".ssh")), ("extensions.partialClone", "origin")):
        checkout.git("config", key, value)
        with pytest.raises(hutch.HutchError, match="partial clone" if "partial" in key else "cannot be read"):
            web.clone(checkout.top)
        checkout.git("--git-dir", str(checkout.top / ".git"), "config", "--unset", key)
    private = make_checkout(checkout.account, "private")
    (checkout.top / "fake").mkdir()
    (checkout.top / "fake" / ".git").write_text(f"gitdir: {private.top}/.git\n")
    (checkout.top / "link").mkdir()
    (checkout.top / "link" / ".git").symlink_to(private.top / ".git")
    for name in ("fake", "link"):
        for path in (checkout.top / name, checkout.top / name / ".git"):
            os.chown(path, checkout.account.uid, checkout.account.uid, follow_symlinks=False)
        with pytest.raises(hutch.HutchError, match="does not know it"):
            web.clone(checkout.top / name)
    shutil.rmtree(private.top)
    checkout.git("remote", "add", "web", "https://example.org/web")
    with pytest.raises(hutch.HutchError, match="has a remote called web"):
        web.clone(checkout.top)
    with pytest.raises(hutch.UsageError, match="is in no checkout"):
        web.clone(checkout.account.home)
    assert checkout.refs("refs/hutch") == {}


@pytest.mark.slow
def test_a_foreign_repository_and_a_missing_git(two: Instance, web: hutch.Workspace, checkout: Checkout) -> None:
    foreign = make_checkout(two.world.accounts["bob"], "his")
    two.world.accounts["bob"].home.chmod(0o755)
    with pytest.raises(hutch.HutchError, match="cannot be read as a repository"):
        web.clone(foreign.top)
    shutil.rmtree(foreign.top)
    two.world.accounts["bob"].home.chmod(0o750)
    result = two.hutch("fetch", "web", check=False)
    assert (result.returncode, "no clone that you have made" in result.stderr) == (2, True)
    web.run(["sh", "-c", "mv /usr/bin/git /usr/bin/git-away"], root=True, check=True)
    try:
        with pytest.raises(hutch.HutchError, match="has no git inside"):
            web.clone(checkout.top)
    finally:
        web.run(["sh", "-c", "mv /usr/bin/git-away /usr/bin/git"], root=True, check=True)
    web.run(["mkdir", checkout.top.name], check=True)
    with pytest.raises(hutch.HutchError, match="has something else at"):
        web.clone(checkout.top)
    assert checkout.refs("refs/hutch") == {}


@pytest.mark.vm(slow=True)
def test_a_guest_s_git_configuration_runs_nothing_on_the_host(
    two: Instance, web: hutch.Workspace, checkout: Checkout
) -> None:
    web.clone(checkout.top)
    ran = checkout.account.home / "ran-by-guest"
    bad = f"sh -c 'echo ran >>{ran}; cat'"
    inside(
        web,
        checkout,
        f'''
        printf '* filter=bad diff=bad\\n' >.gitattributes
        for key in core.fsmonitor filter.bad.clean filter.bad.smudge diff.bad.textconv diff.external; do
          git config $key "{bad}"
        done
        printf '[submodule "x"]\\n\\tpath = x\\n\\turl = https://example.org/x\\n' >.gitmodules
        printf '\\033]0;title\\007\\033[31mred\\r\\n' >README
        mkdir -p .git/hooks; printf '#!/bin/sh\\necho ran >>{ran}\\n' >.git/hooks/post-checkout; chmod +x .git/hooks/*
        git -c core.fsmonitor=false add -A; git commit -qm bad
        ''',
    )
    assert "\x1b" in web.diff()
    said = two.hutch("diff", "web").stdout
    assert "\x1b" not in said and "\x07" not in said and "red\n" in said.replace("\r\n", "\n")
    web.fetch()
    assert not ran.exists()


@pytest.mark.slow
def test_lies_about_refs(two: Instance, web: hutch.Workspace, checkout: Checkout) -> None:
    web.clone(checkout.top)
    head, tree = checkout.git("rev-parse", "HEAD"), checkout.git("rev-parse", "HEAD^{tree}")
    empty = pack_of(checkout)
    lie(
        web,
        f"{head} refs/heads/ok\n{head} refs/heads/../../heads/main\n{head} refs/heads/-x\n{head} refs/tags/v2\n",
        empty,
    )
    before = checkout.refs()
    found = two.hutch("fetch", "web", as_user="alice")
    assert found.stderr.count("left out: the branch") == 3
    assert checkout.refs() == {**before, "refs/remotes/web/ok": head}
    state = checkout.state()
    lies = {
        f"{tree} refs/heads/main\n": "no commit",
        f"{'a' * 40} refs/heads/main\n": "no commit, or that is missing",
        f"{head} refs/heads/a\n{head} refs/heads/a/b\n": "one below it",
        "nonsense\n": "an invalid list of branches",
    }
    for refs, why in lies.items():
        lie(web, refs, empty)
        with pytest.raises(hutch.HutchError, match=why):
            web.fetch()
        assert checkout.state() == state


@pytest.mark.slow
def test_lies_about_objects(web: hutch.Workspace, checkout: Checkout) -> None:
    web.clone(checkout.top)
    blob = checkout.git("hash-object", "-w", "--stdin", stdin=b"../../etc/passwd")
    modules = checkout.git(
        "hash-object", "-w", "--stdin", stdin=b'[submodule "../../x"]\n\turl = -u./evil\n\tpath = x\n'
    )
    head = checkout.git("rev-parse", "HEAD")

    def commit(entries: str, parent: str = head) -> tuple[str, str]:
        raw = b"".join(
            mode.encode() + b" " + name.encode() + b"\0" + bytes.fromhex(object)
            for mode, object, name in (line.split(" ", 2) for line in entries.splitlines())
        )
        tree = checkout.git("hash-object", "-w", "-t", "tree", "--literally", "--stdin", stdin=raw)
        text = f"tree {tree}\nparent {parent}\nauthor A <a@b> 0 +0000\ncommitter A <a@b> 0 +0000\n\nx\n".encode()
        return checkout.git("hash-object", "-w", "-t", "commit", "--literally", "--stdin", stdin=text), tree

    evil = {
        f"120000 {blob} .gitmodules": (blob,),
        f"100644 {modules} .gitmodules": (modules,),
        f"100644 {blob} .git": (blob,),
        f"100644 {blob} ..": (blob,),
        f"100644 {blob} a/b": (blob,),
        f"100644 {'b' * 40} gone": (),
    }
    packs = []
    for entries, more in evil.items():
        made, tree = commit(entries)
        packs.append((made, pack_of(checkout, made, tree, *more)))
    made, tree = commit(f"100644 {blob} fine", parent="c" * 40)
    packs.append((made, pack_of(checkout, made, tree, blob)))
    good, tree = commit(f"100644 {blob} fine")
    whole = pack_of(checkout, good, tree, blob)
    packs += [
        (good, whole[:-10]),
        (good, whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]),
        (good, b""),
        (good, b"x" * 99),
    ]
    checkout.git("-c", "gc.reflogExpire=now", "gc", "--prune=now", "-q")
    state = checkout.state()
    for number, (made, pack) in enumerate(packs):
        lie(web, f"{made} refs/heads/main\n", pack)
        with suppress(hutch.HutchError):
            web.fetch()
            pytest.fail(f"taken: pack {number}")
        assert checkout.state() == state, number
    lie(web, f"{good} refs/heads/main\n", bomb(3 << 30))
    with pytest.raises(hutch.HutchError) as refused:
        web.fetch()
    assert "memory" in refused.value.details.lower() and checkout.state() == state
    lie(web, f"{good} refs/heads/main\n", whole)
    with pytest.raises(hutch.HutchError) as refused:
        web.fetch(limit=100)
    assert "maximum allowed size" in refused.value.details and "--limit" in refused.value.resolution
    assert checkout.state() == state
    web.fetch()
    assert checkout.refs("refs/remotes") == {"refs/remotes/web/main": good}


@pytest.mark.slow
def test_branches_that_are_gone_stay_until_they_are_pruned(
    two: Instance, web: hutch.Workspace, checkout: Checkout
) -> None:
    web.clone(checkout.top)
    inside(web, checkout, "git branch topic; git branch keep")
    web.fetch()
    inside(web, checkout, "git branch -D -q topic; git branch topic/two")
    refused = two.hutch("fetch", "web", check=False)
    assert refused.returncode == 1 and "--prune" in refused.stderr
    assert "refs/remotes/web/topic" in checkout.refs()
    two.hutch("fetch", "--prune", "web")
    assert set(checkout.refs("refs/remotes")) == {f"refs/remotes/web/{name}" for name in ("keep", "main", "topic/two")}
    with pytest.raises(hutch.HutchError, match="has no branch nothing"):
        web.fetch("nothing")
    with pytest.raises(hutch.UsageError):
        web.fetch("../x")
    checkout.git("symbolic-ref", "refs/remotes/web/keep", "refs/heads/main")
    inside(web, checkout, "git checkout -q keep; git commit -q --allow-empty -m more")
    before = checkout.git("rev-parse", "main")
    web.fetch("keep")
    assert checkout.git("rev-parse", "main") == before  # no symbolic ref is followed
