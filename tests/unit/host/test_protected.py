"""Which paths of a shared checkout are protected: what git, editors and direnv would run on the host."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import pwd
import signal
import stat
import threading
from pathlib import Path

import pytest

from hutch.errors import HutchError
from hutch.host.storage import guest_paths
from hutch.host.storage.git_config import parse_config
from hutch.host.storage.guest_paths import is_open_to
from hutch.host.storage.protected import checkouts_around, find_protected, protected_paths
from hutch.spec.model import Mount
from tests.unit.facts import workspace
from tests.unit.host.checkouts import GIT, NAMES, WAYS, all_found, found, make_git_directory, make_worktree

CONFIG = r"""
; a comment
[core]
	repositoryformatversion = 0
	hooksPath = "quoted # not a comment" # a comment
	bare
[remote "a \"b\" \\ c"] url = one \
two   ; the end
[includeIf "gitdir:~/Work/"]
	Path = ../x
[alias] x = "!sh -c \"a\tb\"" y
nonsense here
= nothing
[broken
[section.SUB] a-b = 1
"""


def test_a_configuration() -> None:
    assert list(parse_config(CONFIG)) == [
        ("core.repositoryformatversion", "0"),
        ("core.hookspath", "quoted # not a comment"),
        ("core.bare", "true"),
        ('remote.a "b" \\ c.url', "one two"),
        ("includeif.gitdir:~/Work/.path", "../x"),
        ("alias.x", '!sh -c "a\tb" y'),
        ("section.sub.a-b", "1"),
    ]


@pytest.mark.parametrize("text", ["", "\ufeff[a]\r\nb=c\r\n", "[a] b = c", "[a]\nb=\\\nc", "[a]\nb=c\\"])
def test_a_configuration_of_one_line(text: str) -> None:
    assert list(parse_config(text)) == ([("a.b", "c")] if text else [])


def test_a_value_ends_with_a_nul() -> None:
    """To git, which follows what comes before it."""
    assert list(parse_config('[a]\nb = "c\0d"\n[e]\nf=1')) == [("a.b", "c"), ("e.f", "1")]


def test_a_checkout(top: Path) -> None:
    assert all_found(top) == {**NAMES, **WAYS, **GIT}
    (top / ".envrc").touch()
    (top / ".vscode").mkdir()
    (top / ".git/hooks").rmdir()
    assert found(top) == {**NAMES, **GIT, ".envrc": "", ".vscode": "", ".git/hooks": "directory"}


def test_a_directory_that_is_no_checkout(tmp_path: Path) -> None:
    (tmp_path / ".envrc").touch()
    assert found(tmp_path) == {".envrc": ""}
    assert found(tmp_path, is_default=False) == {}
    assert all_found(tmp_path, "a/b", ".envrc") == {"a": "way", "a/b": "directory", ".envrc": ""}


def test_a_list_of_the_users(top: Path) -> None:
    (top / "a").mkdir()
    assert found(top, "a/b/c", "Makefile") == {**NAMES, **GIT, "a/b/c": "directory", "Makefile": "directory"}
    assert found(top, "a", is_default=False) == {"a": ""}
    assert found(top, ".git") == {**NAMES, ".git": ""}  # what is in it needs nothing of its own
    (top / "f").touch()
    assert found(top, "f/b/c", is_default=False) == {"f": ""}  # while it stays, nothing comes there


def test_what_git_reads_where_it_is(top: Path) -> None:
    """git and git-lfs do not bear a directory in the place of these files."""
    for name in (".gitattributes", ".gitmodules", ".lfsconfig"):
        (top / name).touch()
    assert found(top) == {**NAMES, **GIT, ".gitattributes": "", ".gitmodules": "", ".lfsconfig": ""}


def test_a_way_that_is_there(top: Path) -> None:
    (top / ".github").mkdir()
    (top / ".claude").touch()
    claude = (".claude/settings.json", ".claude/settings.local.json")
    others = {name: hold for name, hold in NAMES.items() if name not in claude}
    assert all_found(top) == {**others, **GIT, ".claude": ""}  # while the file stays, nothing comes there


@pytest.mark.parametrize("words", [("a", "a/b"), ("a/b", "a")])
def test_what_is_protected_is_not_just_a_way(top: Path, words: tuple[str, str]) -> None:
    assert all_found(top, *words, is_default=False) == {"a": "directory"}
    (top / ".git/config").write_text("[core] hooksPath = .claude\n")
    assert all_found(top)[".claude"] == "directory"


def test_what_the_configuration_names(top: Path) -> None:
    (top / ".git/config").write_text(
        '[include] path = ../git/inc\n[includeIf "gitdir:/x"] path = other\n'
        "[core] fsmonitor = tools/watch --all\n sshCommand = ssh -F /etc/ssh\n"
        '[alias] x = "!\'./tools/x\' y"\n[filter "y"] clean = tools/absent\n'
    )
    (top / "tools").mkdir()
    (top / "tools/watch").touch()
    (top / "tools/x").touch()
    (top / "git").mkdir()
    (top / "git/inc").write_text("[core] hooksPath = .githooks\n[include] path = inc\n")
    assert found(top) == {
        **NAMES, **GIT, ".git/other": "file", "git/inc": "", ".githooks": "directory", "tools/watch": "", "tools/x": "",
        "tools/absent": "directory",
    }  # fmt: skip


def test_a_worktrees_own_configuration(top: Path) -> None:
    (top / ".git/config").write_text("[extensions] worktreeConfig = True\n")
    assert found(top) == {**NAMES, **GIT, ".git/config.worktree": "file"}
    (top / ".git/config.worktree").write_text("[core] hooksPath = /elsewhere\n")
    assert found(top) == {**NAMES, **GIT, ".git/config.worktree": ""}


def test_links_and_what_they_lead_to(top: Path) -> None:
    (top / "scripts").mkdir()
    (top / "scripts/hook").touch()
    (top / ".git/hooks/pre-commit").symlink_to("../../scripts/hook")
    (top / ".git/hooks/pre-push").symlink_to("/usr/bin/true")
    (top / ".idea").symlink_to("editor")
    assert found(top) == {**NAMES, **GIT, ".idea": "", "editor": "directory", "scripts/hook": ""} | {".idea": ""}
    (top / "editor").symlink_to(".idea")  # a loop
    assert found(top)["editor"] == ""


def test_where_a_link_leads_nothing_is_made(top: Path) -> None:
    """What another branch has there would be run: git takes an empty file for no hook, and bears no directory."""
    (top / ".git/hooks/pre-push").symlink_to("../../scripts/hook")
    assert all_found(top) == {**NAMES, **WAYS, **GIT, "scripts": "way", "scripts/hook": "file"}


def test_a_link_that_goes_is_looked_for_again(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is among what was found, and so it is missed."""
    (top / ".idea").symlink_to("editor")

    def gone(path: str) -> str:
        raise FileNotFoundError(errno.ENOENT, path)

    monkeypatch.setattr(os, "readlink", gone)
    assert found(top)[".idea"] == ""


def test_names_that_nothing_can_have(top: Path) -> None:
    """To git a path ends with its NUL; and no name is longer than 255 bytes."""
    (top / ".git/config").write_text(f"[include] path = {'a' * 300}/b\n[core] hooksPath = hooks\0/x\n")
    own = top / ".git/worktrees/x"
    own.mkdir(parents=True)
    (own / "gitdir").write_bytes(b"../../../tree/.git\0b/.git\n")
    (own / "commondir").write_bytes(b"../..\0\n")
    (top / "tree").mkdir()
    (top / "tree/.git").write_bytes(b"gitdir: ../.git/worktrees/x\0y\n")
    theirs = {".git/worktrees/x/commondir": "", ".git/worktrees/x/gitdir": "", "tree/.git": ""}
    assert found(top) == {**NAMES, **GIT, "hooks": "directory", "tree/hooks": "directory", **theirs}
    assert found(top / "tree") == {**NAMES, ".git": "", "hooks": "directory"}


def test_submodules(top: Path) -> None:
    make_git_directory(top / ".git/modules/libs/one", "[core] worktree = ../../../../libs/one\n hooksPath = hooks\n")
    make_git_directory(top / ".git/modules/libs/one/modules/in")
    (top / "libs/one").mkdir(parents=True)
    (top / "libs/one/.git").write_text("gitdir: ../../.git/modules/libs/one\n")
    one = ".git/modules/libs/one"
    assert found(top) == {
        **NAMES, **GIT, f"{one}/config": "", f"{one}/hooks": "", "libs/one/.git": "", "libs/one/hooks": "directory",
        f"{one}/modules/in/config": "", f"{one}/modules/in/hooks": "", f"{one}/commondir": "itself",
    }  # fmt: skip


def test_a_worktree_and_the_directory_that_it_has_in_common(top: Path, tmp_path: Path) -> None:
    (top / ".git/config").write_text("[core] hooksPath = .githooks\n")
    own = top / ".git/worktrees/other"
    own.mkdir(parents=True)
    (own / "commondir").write_text("../..\n")
    (own / "gitdir").write_text(f"{tmp_path}/other/.git\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/.git").write_text(f"gitdir: {own}\n")
    theirs = {".git/worktrees/other/commondir": "", ".git/worktrees/other/gitdir": ""}
    hooks = {".githooks": "directory"}
    assert found(tmp_path / "other") == {**NAMES, ".git": "", **hooks}
    assert found(top) == {**NAMES, **GIT, **theirs, **hooks}
    inner = {path.removeprefix(".git/"): hold for path, hold in {**GIT, **theirs}.items()}
    assert found(top / ".git") == inner
    assert found(own) == {"commondir": "", "gitdir": ""}


def test_each_working_tree_has_a_configuration_of_its_own(top: Path) -> None:
    (top / ".git/config").write_text("[extensions] worktreeConfig = true\n")
    (top / ".git/config.worktree").write_text("[core] hooksPath = mine\n")
    own = make_worktree(top, "x", top / "x")
    (own / "config.worktree").write_text("[core] hooksPath = theirs\n[include] path = more\n")
    seen = found(top)
    assert {path: hold for path, hold in seen.items() if path.endswith(("mine", "theirs", "more"))} == {
        "mine": "directory", "x/theirs": "directory", ".git/worktrees/x/more": "file",
    }  # fmt: skip
    assert seen[".git/worktrees/x/config.worktree"] == ""
    (top / ".git/config").write_text("")
    assert not {"mine", "x/theirs"} & found(top).keys()


@pytest.mark.parametrize("is_below", [False, True], ids=["beside", "below"])
def test_submodules_of_a_linked_working_tree(top: Path, is_below: bool) -> None:
    """git keeps what it makes there apart from the main tree's, and the directory that is shared may be either."""
    tree = (top if is_below else top.parent) / "x"
    own = make_worktree(top, "x", tree)
    make_git_directory(own / "modules/one", f"[core] worktree = {tree}/one\n hooksPath = hooks\n")
    (tree / "one").mkdir()
    (tree / "one/.git").write_text(f"gitdir: {own}/modules/one\n")
    seen = found(top)
    one = ".git/worktrees/x/modules/one"
    assert seen[f"{one}/config"] == seen[f"{one}/hooks"] == ""
    assert {f"{tree}/one/.git", f"{tree}/one/hooks"} <= find_protected(str(tree)).keys()


def test_a_submodule_is_known_by_its_configuration(top: Path) -> None:
    """A guest may take away what else tells of it."""
    make_git_directory(top / ".git/modules/libs/one", "[core] worktree = ../../../../libs/one\n")
    (top / ".git/modules/libs/one/HEAD").unlink()
    make_git_directory(top / ".git/modules/libs")  # as if there were one above it
    (top / "libs/one").mkdir(parents=True)
    (top / "libs/one/.envrc").touch()
    seen = found(top)
    assert {".git/modules/libs/one/config", ".git/modules/libs/config", "libs/one/.envrc"} <= seen.keys()


def test_working_trees_within_a_checkout(top: Path) -> None:
    (top / ".git/config").write_text("[core] hooksPath = .husky/_\n[extensions] worktreeConfig = true\n")
    own = top / ".git/worktrees/x"
    own.mkdir(parents=True)
    (own / "gitdir").write_text(f"{top}/.worktrees/x/.git\n")
    tree = top / ".worktrees/x"
    (tree / ".vscode").mkdir(parents=True)
    (tree / ".git").write_text(f"gitdir: {own}\n")
    seen = found(top)
    assert seen[".git/worktrees/x/config.worktree"] == "file"
    assert seen[".worktrees/x/.git"] == seen[".worktrees/x/.vscode"] == ""
    assert seen[".worktrees/x/.husky"] == seen[".husky"] == "directory"


@pytest.mark.parametrize("value", [".husky/sub/x", ".github/hooks/x/y", ".gitattributes/x", ".worktrees/x/.envrc/y"])
def test_what_was_made_for_one_look_changes_nothing_for_the_next(top: Path, value: str) -> None:
    """Else what is protected would be other paths as soon as a workspace runs, or another one starts."""
    (top / ".git/config").write_text(f"[core] hooksPath = {value}\n")
    own = top / ".git/worktrees/x"
    own.mkdir(parents=True)
    (own / "gitdir").write_text(f"{top}/.worktrees/x/.git\n")
    (top / ".worktrees/x").mkdir(parents=True)
    first = all_found(top)
    for path, hold in first.items():
        if hold in ("way", "directory"):
            (top / path).mkdir(parents=True, exist_ok=True)
        elif hold:
            (top / path).touch()
    second = all_found(top)
    assert {path for path, hold in first.items() if hold != "way"} == second.keys()


@pytest.mark.parametrize(
    ("value", "held"),
    [
        ("front/.husky/_", "front/.husky"),
        ("front/.husky/_/", "front/.husky"),
        ("front/.husky/_/.", "front/.husky"),
        ("{top}/front/.husky/_", "front/.husky"),
        ("_", "_"),
        ("front/../_", "_"),
        ("front/_/hooks", "front/_/hooks"),
        ("front/link/_", "_"),
    ],
)
def test_the_scripts_that_huskys_hooks_run(top: Path, value: str, held: str) -> None:
    (top / "front").mkdir()
    (top / "front/link").symlink_to(top)
    (top / ".git/config").write_text(f"[core] hooksPath = {value.format(top=top)}\n")
    seen = found(top)
    assert seen[held] == "directory"
    assert ("front" in seen) == (".." in value)


@pytest.mark.parametrize("file", ["config", "config.worktree"])
def test_what_is_around_a_working_tree_is_not_held(top: Path, file: str) -> None:
    """As if it were husky's: nobody could work there, nor in the trees beside it."""
    (top / ".git/config").write_text("[extensions] worktreeConfig = true\n")
    with open(top / ".git" / file, "a", encoding="utf-8") as config:
        config.write("[core] hooksPath = _\n[init] templateDir = x/_\n")
    make_worktree(top, "x", top / "trees/x")
    (top / "x").mkdir()
    seen = found(top)
    assert seen["_"] == seen["x/_"] == "directory"
    assert not {"x", "trees", "trees/x"} & seen.keys()
    assert ("trees/x/_" in seen) == (file == "config")


@pytest.mark.parametrize("path", ["/{top}/x/y", "{top}/../way/x/y", "~alice/top/x/y", "~/top/x/y", "{top}/z/../x/y"])
def test_it_goes_as_the_kernel_does(top: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    account = pwd.struct_passwd(("alice", "x", top.stat().st_uid, 0, "", str(top.parent), "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: account)
    (top.parent / "way").symlink_to(top)
    for name in ("x", "z"):
        (top / name).mkdir()
    (top / ".git/config").write_text(f"[include] path = {path.format(top=top)}\n")
    assert found(top) == {**NAMES, **GIT, "x/y": "file"} | ({"z": ""} if "z" in path else {})


@pytest.mark.parametrize(
    ("path", "held"),
    [
        ("a/../b", {"a": "", "b": "file"}),  # a link in the place of `a` would lead elsewhere
        ("a/b/../../c", {"a/b": "", "c": "file"}),
        ("a/d/../../c/d", {"a/d/f": "", "c/d": "file"}),  # something in it is protected: it stays what it is
        ("link/../c", {"link": "", "a/b": "", "a/c": "file"}),
        ("gone/../c", {"gone": "file"}),  # from which nothing leads on
    ],
)
def test_what_two_dots_leave(top: Path, path: str, held: dict[str, str]) -> None:
    (top / "a/b").mkdir(parents=True)
    (top / "a/d").mkdir()
    (top / "link").symlink_to("a/b")
    if "a/d/f" in held:
        (top / "a/d/f").write_text("[core] hooksPath = /x\n")
    more = "[include] path = ../a/d/f\n" if "a/d/f" in held else ""
    (top / ".git/config").write_text(f"[include] path = {top}/{path}\n{more}")
    assert found(top) == {**NAMES, **GIT, **held}


def test_a_file_is_read_once_by_whatever_path(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (top / ".git/config").write_text("[include] path = ./config\n path = hooks/../config\n path = ../.git//config\n")
    monkeypatch.setattr(guest_paths, "MOST_LOOKED", 40)
    assert found(top) == {**NAMES, **GIT}


def test_a_worktree_by_a_link_from_elsewhere(top: Path) -> None:
    """As its path was when somebody made it."""
    (top.parent / "way").symlink_to(top)
    own = top / ".git/worktrees/x"
    own.mkdir(parents=True)
    (own / "gitdir").write_text(f"{top.parent}/way/tree/.git\n")
    (top / "tree").mkdir()
    (top / "tree/.git").write_text(f"gitdir: {top.parent}/way/.git/worktrees/x\n")
    assert found(top)["tree/.git"] == ""


def test_a_part_of_a_checkout(top: Path) -> None:
    (top / "src").mkdir()
    (top / ".git/config").write_text("[core] hooksPath = src/hooks\n")
    assert found(top / "src") == {"hooks": "directory"}


def test_too_much_to_look_through(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        (top / f".git/modules/{number}").mkdir(parents=True)
    monkeypatch.setattr(guest_paths, "MOST_LOOKED", 3)
    with pytest.raises(HutchError, match=r"more than 3 files to look through") as caught:
        found(top)
    assert "protect_default = false" in caught.value.resolution
    monkeypatch.undo()
    monkeypatch.setattr(guest_paths, "MOST", 3)
    with pytest.raises(HutchError, match=r"more than 3 paths to protect"):
        found(top)
    monkeypatch.undo()
    monkeypatch.setattr(guest_paths, "MOST_SECONDS", 0.0)
    with pytest.raises(HutchError, match=r"takes more than 0 s of a processor"):
        found(top)
    monkeypatch.undo()
    for letter in ("#", "\N{EURO SIGN}"):  # bytes count: what is not read might be a variable
        (top / ".git/config").write_text(f"#{letter * guest_paths.LARGEST}"[: guest_paths.LARGEST])
        with open(top / ".git/config", "ab") as file:
            file.truncate(guest_paths.LARGEST)
        assert found(top)
        (top / ".git/config").write_bytes((top / ".git/config").read_bytes() + b"#")
        with pytest.raises(HutchError, match=r"larger than 1 MiB"):
            found(top)


def test_the_directories_on_the_way_count(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them is a mount."""
    (top / "a/b/c").mkdir(parents=True)
    monkeypatch.setattr(guest_paths, "MOST", 3)
    assert found(top, "a/b/c", is_default=False) == {"a/b/c": ""}
    monkeypatch.setattr(guest_paths, "MOST", 2)
    with pytest.raises(HutchError, match=r"more than 2 paths to protect"):
        found(top, "a/b/c", is_default=False)


def test_a_path_that_is_too_deep(top: Path) -> None:
    """Or too long, which nothing opens by its path."""
    parts = ["d"] * guest_paths.DEEPEST_PATH
    (top / Path(*parts)).mkdir(parents=True)
    assert found(top, "/".join(parts), is_default=False)
    with pytest.raises(HutchError, match=r"more than 64 directories deep"):
        found(top, "/".join((*parts, "x")), is_default=False)
    long = ["l" * 250] * 17
    at = os.open(top, os.O_PATH)
    for part in long:
        os.mkdir(part, dir_fd=at)
        inner = os.open(part, os.O_PATH, dir_fd=at)
        os.close(at)
        at = inner
    os.symlink("x", "link", dir_fd=at)
    os.close(at)
    assert len("/".join(long)) > guest_paths.LONGEST_PATH
    (top / ".git/config").write_text(f"[core] hooksPath = {'/'.join(long)}/hooks\n")
    assert found(top) == {**NAMES, **GIT}
    (top / long[0]).rename(top / ".git/modules")
    assert found(top) == {**NAMES, **GIT}


def test_a_file_that_includes_itself(top: Path) -> None:
    """By any way, as often as it likes. Each doubles what there is to read."""
    make_git_directory(top / ".git/modules/evil", "[include]\npath = config\npath = ../evil/config\npath = other\n" * 2)
    (top / ".git/modules/evil/other").write_text("[include]\npath = config\npath = other\n[core]\nhooksPath = mine\n")
    assert found(top)[".git/modules/evil/mine"] == "directory"


def test_a_long_row_of_includes(top: Path) -> None:
    for number in range(2000):
        (top / f".git/{number}").write_text(f"[include]\npath = {number + 1}\n")
    (top / ".git/config").write_text("[include]\npath = 0\n")
    assert found(top)[".git/2000"] == "file"


def test_many_working_trees_with_many_variables(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each variable counts in each tree."""
    (top / ".git/config").write_text("[a]\nb = c/d\n" * 1000)
    for number in range(100):
        own = top / f".git/worktrees/{number}"
        own.mkdir(parents=True)
        (own / "gitdir").write_text(f"../../../{number}/.git\n")
        (top / str(number)).mkdir()
    ticks = itertools.count()
    monkeypatch.setattr("time.thread_time", lambda: next(ticks))
    monkeypatch.setattr(guest_paths, "MOST_SECONDS", 10_000)
    with pytest.raises(HutchError, match="of a processor to look through"):
        found(top)
    (top / ".git/config").write_text("[a]\nb = c/d\n" * 10)
    found(top)
    assert next(ticks) < 20_000


def test_a_long_name_of_a_section(top: Path) -> None:
    """It is in the key of each variable, so a file of less than a mebibyte has gigabytes of them."""
    make_git_directory(top / ".git/modules/evil", f'[a "{"s" * 500_000}"]\n' + "b=c\n" * 130_000)
    with pytest.raises(HutchError, match="more than 16 MiB of variables"):
        found(top)


def test_what_is_not_there_takes_little_memory(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guest makes as many git directories as it likes."""
    (top / ".git/config").write_text(f"[a]\nb = {'c' * 4000}\n")
    for number in range(100):
        (top / f".git/worktrees/{number}").mkdir(parents=True)
    assert found(top)
    monkeypatch.setattr(guest_paths, "MOST_LETTERS", 5000)
    with pytest.raises(HutchError, match="MiB of variables and paths"):
        found(top)


@pytest.mark.parametrize("file", ["worktrees/odd/gitdir", "modules/odd/config"])
def test_a_tree_with_a_git_directory_of_its_own(top: Path, file: str) -> None:
    """What says so may be the guest's, and old: all of .git would be read-only for everybody who shares it."""
    (top / f".git/{file}").parent.mkdir(parents=True)
    is_module = file.startswith("modules")

    def say(tree: str) -> None:
        text = f"[core]\nworktree = ../../../{tree}\n" if is_module else f"../../../{tree}/.git\n"
        (top / f".git/{file}").write_text(text)

    say(".")
    assert ".git" not in found(top)
    say("sub")
    make_git_directory(top / "sub/.git")
    seen = found(top)
    assert {"sub/.git/config", "sub/.git/hooks"} <= seen.keys()
    assert not {"sub", "sub/.git"} & seen.keys()
    (top / "sub/.git").rename(top / "elsewhere")
    (top / "sub/.git").symlink_to("../elsewhere")
    assert found(top)["sub/.git"] == ""


def test_nothing_that_waits_is_opened(top: Path) -> None:
    (top / ".git/config").unlink()
    os.mkfifo(top / ".git/config")
    assert found(top) == {**NAMES, **GIT}


def test_nothing_is_opened_that_is_no_file(top: Path, tmp_path: Path) -> None:
    """Nor where a guest's link leads to it: who waits at a fifo for a reader would go on, and a device may do more."""
    os.mkfifo(tmp_path / "fifo")
    (top / ".git/modules/x").mkdir(parents=True)
    for name in ("config", "commondir", "gitdir"):
        (top / ".git/modules/x" / name).symlink_to(tmp_path / "fifo")
    opened = threading.Event()

    def wait() -> None:
        os.close(os.open(tmp_path / "fifo", os.O_WRONLY))
        opened.set()

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    try:
        assert found(top).keys() > {".git/modules/x/config"}
        assert not opened.wait(0.2)
    finally:
        os.close(os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK))
        waiting.join()


def test_what_cannot_be_read_for_a_lease_is_not_passed_over(top: Path) -> None:
    """A guest may have one on its files: what it hides so would not be protected."""
    (top / ".git/config").write_text("[core]\nhooksPath = mine\n")
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    holder = os.open(top / ".git/config", os.O_RDWR)
    try:
        fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        with pytest.raises(HutchError, match=r"\.git/config cannot be read"):
            found(top)
    finally:
        os.close(holder)
        signal.signal(signal.SIGIO, before)
    assert "mine" in found(top)


def test_a_link_is_followed_to_what_the_owner_may_read(
    top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what is protected, a guest would be told what is in a file of root's."""
    (tmp_path / "elsewhere").write_text("[core]\nhooksPath = mine\n")
    (top / "config").write_text("[core]\nhooksPath = mine\n")
    config = top / ".git/config"
    for target, is_told in ((tmp_path / "elsewhere", False), (top / "config", True)):
        config.unlink()
        config.symlink_to(target)
        monkeypatch.setattr(guest_paths, "is_open_to", lambda uid, found: True)
        assert "mine" in found(top)
        monkeypatch.setattr(guest_paths, "is_open_to", lambda uid, found: False)
        assert ("mine" in found(top)) is is_told


@pytest.mark.parametrize(
    ("reader", "uid", "mode", "is_open"),
    [
        (0, 5, 0o000, True),
        (5, 5, 0o000, True),
        (5, 0, 0o604, True),
        (5, 0, 0o600, False),
        (1 << 30, 0, 0o640, False),  # who has no account is in no group
    ],
)
def test_whose_a_file_is_to_read(reader: int, uid: int, mode: int, is_open: bool) -> None:
    assert is_open_to(reader, os.stat_result((stat.S_IFREG | mode, 1, 1, 1, uid, 0, 1, 0, 0, 0))) is is_open


def test_the_paths_of_a_workspace(top: Path) -> None:
    mounts = (Mount(str(top), "/a"), Mount(str(top), "/b", mode="readonly"), Mount("/gone", "/c"))
    assert protected_paths(workspace(mounts=mounts, protect=("x",))) == sorted(
        f"{top}/{name}" for name in {**NAMES, **GIT, "x": ""}
    )
    assert protected_paths(workspace(mounts=mounts, protect_default=False)) == []


def test_what_is_closed_to_the_caller_is_not_listed(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> os.stat_result:
        raise PermissionError(errno.EACCES, "closed", path)

    monkeypatch.setattr(os, "lstat", refuse)
    assert protected_paths(workspace(mounts=(Mount(str(top), "/a"),))) == []


@pytest.mark.parametrize("name", ["lstat", "scandir", "read"])
def test_what_is_closed_to_root_is_told(top: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """As on NFS: neither passed over, nor a traceback. What is around a share is none of its own."""

    def refuse(path: object, *more: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, name, refuse)
    with pytest.raises(HutchError, match=r"cannot be looked at \(Permission denied\): the protected paths of"):
        found(top)
    if name == "lstat":
        assert checkouts_around(f"{top}/src") == []


@pytest.mark.parametrize("closed", [".git/modules/closed/", ".git/worktrees/closed/", ".claude/"])
def test_what_is_closed_to_the_caller_hides_nothing_else(
    top: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    """From who lists it; and root is not told that it is all."""
    for name in ("closed", "open"):
        make_git_directory(top / ".git/modules" / name)
        make_worktree(top, name, top / name)
    (top / ".claude").mkdir()
    look_at = os.lstat

    def refuse(path: str) -> os.stat_result:
        if closed in path:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return look_at(path)

    monkeypatch.setattr(os, "lstat", refuse)
    listed = protected_paths(workspace(mounts=(Mount(str(top), "/a"),)))
    assert {f"{top}/.git/modules/open/config", f"{top}/.git/worktrees/open/gitdir"} <= set(listed)
    with pytest.raises(HutchError, match="cannot be looked at"):
        found(top)
