"""Kits: where each is found, how they join, and where problems with them are told."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from hutch import backends
from hutch.errors import ConfigError, HutchError, Problem
from hutch.files import kept_open
from hutch.spec import kit_files, loading
from hutch.spec.checkouts import Checkout
from hutch.spec.joining import join_scripts
from hutch.spec.kit_files import Kits, shelves
from hutch.spec.model import DEFAULT_PACKAGES, Config, Mount, WorkspaceSpec
from hutch.spec.names import Layout
from hutch.spec.reading import Judge, is_closed
from hutch.spec.refusing import refuse_files

Load = Callable[..., Config]
Problems = Callable[..., tuple[Problem, ...]]

LAYOUT = Layout(Path("/var/lib/hutch"), Path("/run/hutch"))
OWN = ("claude", "codex", "node", "python")


@pytest.fixture
def host_kits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's directory of kits."""
    directory = tmp_path / "etc"
    directory.mkdir()
    monkeypatch.setattr(kit_files, "HOST_KITS", directory)
    return directory


@pytest.fixture
def user_kits(home: Path, host_kits: Path) -> Path:
    """The directory of alice, who calls; the host's is empty."""
    directory = home / ".config" / "hutch" / "kits"
    directory.mkdir(parents=True)
    return directory


def owned_by(uid_of: Callable[[str], int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Open files belong to whom `uid_of` says, by their paths."""
    before = os.stat

    def fstat(descriptor: int) -> os.stat_result:
        fields = list(before(descriptor))
        fields[stat.ST_UID] = uid_of(os.readlink(f"/proc/self/fd/{descriptor}"))
        return os.stat_result(fields)

    monkeypatch.setattr("os.fstat", fstat)


@pytest.fixture(autouse=True)
def believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests, what lies in a person's home is alice's, and the rest is root's."""
    owned_by(lambda path: 1000 if "/.config/" in path else 0, monkeypatch)


def write(directory: Path, name: str, text: str, mode: int = 0o644) -> Path:
    file = directory / f"{name}.toml"
    file.write_text(text)
    file.chmod(mode)
    return file


def web(load: Load, text: str) -> WorkspaceSpec:
    return load(f"[workspaces.web]\ntype = 'container'\n{text}").workspaces["web"]


# Joining.


def test_lists_join_and_the_own_word_wins(load: Load, tmp_path: Path, host_kits: Path) -> None:
    config = load(
        """
        [defaults]
        use = ["one", "two"]
        env = { EDITOR = "vim" }
        [workspaces.web]
        type = "container"
        packages = ["git", "curl"]
        mounts = [{ source = "/srv/own", target = "/b" }]
        egress = ["own.example.org", "two.example.org"]
        setup = "own"
        [kits.one]
        packages = ["nodejs"]
        setup = "one"
        mounts = [{ source = "/srv/a", target = "/a" }, { source = "/srv/b", target = "/b" }]
        env = { EDITOR = "nano", PAGER = "more", LANG = "C" }
        egress = ["one.example.org"]
        [kits.two]
        packages = ["nodejs", "npm"]
        mounts = [{ source = "/srv/c", target = "/a" }]
        env = { PAGER = "less" }
        egress = ["two.example.org"]
        """
    )
    found = config.workspaces["web"]
    assert sorted(found.packages) == ["curl", "git", "nodejs", "npm"]
    assert found.mounts == (Mount("/srv/c", "/a").normalized(), Mount("/srv/own", "/b").normalized())
    assert found.env == (("EDITOR", "vim"), ("LANG", "C"), ("PAGER", "less"))
    assert found.egress == ("one.example.org", "own.example.org", "two.example.org")
    assert found.setup == join_scripts([("one", "one")], "own")
    assert found.use == ("one", "two")
    brought = config.brought["web"]
    assert {key: set(kits) for key, kits in brought.items()} == {
        "packages": {"two"},
        "setup": {"one"},
        "mounts": {"two"},
        "env": {"one", "two"},
        "egress": {"one"},
    }
    assert brought["mounts"]["two"] == [asdict(Mount("/srv/c", "/a").normalized())]
    assert brought["env"]["two"] == [["PAGER", "less"]]


def test_the_later_kit_wins(load: Load, host_kits: Path) -> None:
    kits = "\n[kits.a]\nenv = { X = 'a' }\n[kits.b]\nenv = { X = 'b' }"
    assert web(load, "use = ['a', 'b']" + kits).env == (("X", "b"),)
    assert web(load, "use = ['b', 'a']" + kits).env == (("X", "a"),)


def test_a_workspace_without_kits_is_as_it_was(load: Load, host_kits: Path) -> None:
    config = load("[workspaces.web]\ntype = 'container'\nsetup = 'x'\n[kits.a]\npackages = ['git']\nsetup = 'y'")
    assert config.workspaces["web"] == WorkspaceSpec(type="container", setup="x")
    assert config.brought["web"] == {}


def test_kits_join_the_packages_that_everybody_gets(load: Load, host_kits: Path) -> None:
    found = web(load, "use = ['a']\n[kits.a]\npackages = ['npm']").packages
    assert set(found) == {*DEFAULT_PACKAGES, "npm"}


@pytest.mark.parametrize(
    ("said", "egress"),
    [
        ("", ("kit.example.org",)),
        ("egress = []", ("kit.example.org",)),
        ("egress = ['own.example.org']", ("kit.example.org", "own.example.org")),
        ("egress = 'internet'", "internet"),
        ("egress = 'none'", "none"),
    ],
)
@pytest.mark.parametrize("table", ["defaults", "workspaces.web"])
def test_destinations_join_a_list_or_nothing(
    load: Load, host_kits: Path, said: str, egress: object, table: str
) -> None:
    kits = "[workspaces.web]\n" if table == "defaults" else ""
    text = f"[{table}]\ntype = 'vm'\nuse = ['a']\n{said}\n{kits}[kits.a]\negress = ['kit.example.org']"
    assert load(text).workspaces["web"].egress == egress


def test_a_kit_without_destinations_leaves_egress_alone(load: Load, host_kits: Path) -> None:
    assert web(load, "use = ['a']\n[kits.a]\npackages = ['git']").egress == "internet"


# Places.


def test_the_nearest_kit_counts(load: Load, user_kits: Path, host_kits: Path) -> None:
    text = "use = ['node']"
    assert "npm" in web(load, text).packages
    write(host_kits, "node", "packages = ['host']")
    assert "host" in web(load, text).packages
    write(user_kits, "node", "packages = ['user']")
    found = web(load, text).packages
    assert "user" in found and not {"host", "npm"} & set(found)
    assert "file" in web(load, text + "\n[kits.node]\npackages = ['file']").packages


def test_the_home_is_that_of_the_caller(load: Load, user_kits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(user_kits, "mine", "packages = ['user']")
    assert "user" in web(load, "use = ['mine']\nowner = 'bob'").packages
    monkeypatch.setenv("SUDO_UID", "1001")
    with pytest.raises(ConfigError, match="nothing was changed"):
        web(load, "use = ['mine']")
    monkeypatch.delenv("SUDO_UID")
    assert next(str(shelf.directory) for shelf in shelves({}, 0)) == "/root/.config/hutch/kits"
    assert [shelf.whose for shelf in shelves({}, 1002)] == ["host", "hutch"]


@pytest.mark.parametrize("name", OWN)
def test_kits_that_come_along_are_right(load: Load, host_kits: Path, name: str) -> None:
    found = web(load, f"use = ['{name}']")
    assert set(found.packages) > set(DEFAULT_PACKAGES)
    assert all(str(entry).endswith(":443") for entry in found.egress)


def test_all_that_come_along_are_tried() -> None:
    assert sorted(path.stem for path in kit_files.OWN_KITS.iterdir()) == list(OWN)
    assert set(OWN) <= set(Kits("/nowhere", {}).names())


def test_paths_are_meant_from_the_kits_file(load: Load, user_kits: Path, home: Path, tmp_path: Path) -> None:
    mounts = "mounts = [{ source = 'here', target = '/a' }, { source = '~/x', target = '/b' }]"
    write(user_kits, "mine", mounts)
    found = web(load, f"use = ['mine', 'local']\n[kits.local]\n{mounts.replace('/a', '/c').replace('/b', '/d')}")
    assert [mount.source for mount in found.mounts] == [
        f"{user_kits}/here",
        f"{home}/x",
        f"{tmp_path}/project/here",
        f"{home}/x",
    ]


def test_a_file_is_read_only_where_it_is_used(load: Load, user_kits: Path) -> None:
    write(user_kits, "broken", "packages = [")
    assert web(load, "").use == ()


# Problems.


def test_problems_name_the_kits_file_line_and_key(problems: Problems, user_kits: Path) -> None:
    file = write(user_kits, "mine", "packages = ['git',\n  'No']\nnesting = true\n[env]\nA = 1\n")
    found = problems("[workspaces.web]\ntype = 'container'\nuse = ['mine']\nvcpus = 0\n")
    assert [(Path(problem.file).name, problem.line, problem.key) for problem in found] == [
        ("hutch.toml", 4, "workspaces.web.vcpus"),
        (file.name, 2, "packages[1]"),
        (file.name, 3, "nesting"),
        (file.name, 5, "env.A"),
    ]
    assert found[1].file == str(file)
    assert found[2].message == "unknown key"


def test_problems_of_a_table(problems: Problems, host_kits: Path) -> None:
    found = problems("kits.a = 3\n[kits.B]\n[kits.c]\negress = 'internet'\n[kits.d]\negress = ['none']\n")
    assert [(problem.line, problem.key, problem.message) for problem in found] == [
        (1, "kits.a", "must be a table"),
        (2, "kits.B", "cannot name a kit"),
        (4, "kits.c.egress", "must be a list"),
        (6, "kits.d.egress[0]", "is not a destination"),
    ]


def test_names_that_lead_nowhere(problems: Problems, user_kits: Path) -> None:
    write(user_kits, "clauded", "")
    found = problems(
        "[defaults]\nuse = ['nod']\n[workspaces.a]\ntype = 'vm'\n[workspaces.b]\ntype = 'vm'\n"
        "[workspaces.c]\ntype = 'vm'\nuse = ['../x', 'node', 'node', 'zzz']\n"
    )
    assert [(problem.line, problem.key, problem.message) for problem in found] == [
        (2, "defaults.use[0]", "is no kit of this file, of yours, of the host's or of hutch's"),
        (9, "workspaces.c.use[0]", "cannot name a kit"),
        (9, "workspaces.c.use[2]", "is used already"),
        (9, "workspaces.c.use[3]", "is no kit of this file, of yours, of the host's or of hutch's"),
    ]
    assert found[0].hint == 'did you mean "node"?'
    assert found[3].hint == "known here: claude, clauded, codex, node, python"


def test_a_target_that_the_workspace_names_twice_is_wrong_with_kits_too(problems: Problems, host_kits: Path) -> None:
    own = "{ source = '/srv/a', target = '/a' }, { source = '/srv/b', target = '/a' }"
    kit = "[kits.a]\nmounts = [{ source = '/srv/c', target = '/a' }]"
    (problem,) = problems(f"[workspaces.web]\ntype = 'vm'\nuse = ['a']\nmounts = [{own}]\n{kit}")
    assert (problem.line, problem.key) == (4, "workspaces.web.mounts[1].target")


def test_findings_between_keys_are_told_in_the_kit(problems: Problems, user_kits: Path) -> None:
    file = write(user_kits, "mine", "[[mounts]]\nsource = '/var/lib'\ntarget = '/home'\n")
    text = (
        "[workspaces.web]\ntype = 'container'\nuse = ['here', 'mine']\n[kits.here]\nmounts = [{source='/',target='/x'}]"
    )
    found = problems(text)
    assert [(Path(problem.file).name, problem.line, problem.key) for problem in found] == [
        ("hutch.toml", 5, "kits.here.mounts[0].source"),
        (file.name, 2, "mounts[0].source"),
        (file.name, 3, "mounts[0].target"),
    ]


def test_what_a_backend_refuses_is_told_in_the_kit(problems: Problems, host_kits: Path) -> None:
    def check(name: str, workspace: WorkspaceSpec, network: object) -> list[Problem]:
        keys = ("packages", "egress", "setup", "mounts[0].source", "env.A", "env.B", "vcpus")
        return [Problem("no", f"workspaces.{name}.{key}") for key in keys]

    text = """[workspaces.web]
type = "container"
use = ["a"]
packages = ["git"]
env = { A = "1" }
[kits.a]
packages = ["npm"]
egress = ["x.example.org"]
setup = "x"
mounts = [{ source = "/a", target = "/a" }]
env = { B = "2" }
"""
    assert [(problem.line, problem.key) for problem in problems(text, check=check)] == [
        (1, "workspaces.web.vcpus"),
        (4, "workspaces.web.packages"),
        (5, "workspaces.web.env.A"),
        (8, "kits.a.egress"),
        (9, "kits.a.setup"),
        (10, "kits.a.mounts[0].source"),
        (11, "kits.a.env.B"),
    ]


def test_a_server_holds_no_list_of_a_kit(load: Load, problems: Problems, host_kits: Path) -> None:
    text = "[workspaces.web]\ntype = 'container'\nengine = 'incus'\nuse = ['claude']\n"
    (problem,) = problems(text, check=backends.check)
    assert (Path(problem.file).name, problem.key) == ("claude.toml", "egress")
    assert 'use "internet"' in problem.hint
    assert load(text + "egress = 'internet'", check=backends.check).workspaces


def test_a_workspace_must_not_rewrite_a_kit_that_it_uses(problems: Problems, load: Load, user_kits: Path) -> None:
    file = write(user_kits, "mine", "packages = ['git']")
    mounts = "mounts = [{ source = '~/.config', target = '/src' }]"
    (problem,) = problems(f"[workspaces.web]\ntype = 'vm'\nuse = ['mine']\n{mounts}")
    assert problem.message == f"would let the workspace rewrite {file}"
    assert web(load, mounts).mounts
    assert web(load, f"use = ['mine']\n{mounts.replace(' }', ', readonly = true }')}").mounts


# Files that are not believed.


@pytest.mark.parametrize("directory", ["user_kits", "host_kits"])
def test_a_kit_that_others_can_write(
    problems: Problems, directory: str, user_kits: Path, request: pytest.FixtureRequest
) -> None:
    file = write(request.getfixturevalue(directory), "mine", "packages = ['git']", 0o664)
    (problem,) = problems("[workspaces.web]\ntype = 'vm'\nuse = ['mine']\n")
    assert str(problem) == f"{file}: can be written by its group or by others (chmod go-w {file})"


def test_a_kit_that_is_no_file_or_no_toml(problems: Problems, user_kits: Path) -> None:
    (user_kits / "dir.toml").mkdir()
    os.mkfifo(user_kits / "fifo.toml")
    (user_kits / "link.toml").symlink_to("/nonexistent")
    write(user_kits, "wrong", "a = 1\npackages = [")
    found = problems("[workspaces.web]\ntype = 'vm'\nuse = ['dir', 'fifo', 'link', 'wrong']\n")
    assert [(Path(problem.file).name, problem.message.partition(":")[0]) for problem in found] == [
        ("dir.toml", "cannot be opened"),
        ("fifo.toml", "cannot be opened"),
        ("nonexistent", "cannot be opened"),
        ("wrong.toml", "is not valid TOML"),
    ]


@pytest.mark.parametrize(("uid", "refused"), [(1000, ["hosts.toml"]), (1001, ["mine.toml", "hosts.toml"])])
def test_kits_of_others_are_not_believed(
    problems: Problems,
    host_kits: Path,
    user_kits: Path,
    monkeypatch: pytest.MonkeyPatch,
    uid: int,
    refused: list[str],
) -> None:
    write(user_kits, "mine", "")
    write(host_kits, "hosts", "")
    owned_by(lambda path: uid, monkeypatch)
    found = problems("[workspaces.web]\ntype = 'vm'\nuse = ['mine', 'hosts']\n")
    assert [Path(problem.file).name for problem in found] == refused
    assert all("neither root nor you" in problem.message for problem in found)


@pytest.mark.parametrize(
    ("directory", "mode", "closed"), [(0o755, 0o600, True), (0o755, 0o644, False), (0o700, 0o644, True)]
)
def test_a_link_opens_nothing_that_is_closed_to_its_maker(directory: int, mode: int, closed: bool) -> None:
    """Errors quote what is in a file, so a person's link must not lead root to a secret."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as above:
        file = write(Path(above), "secret", "password = 'x'", mode)
        os.chmod(above, directory)
        with kept_open(os.open(above, os.O_PATH)) as opened:
            status = os.stat(file)
            assert is_closed(opened, status, status.st_uid + 1) is closed
            assert not is_closed(opened, status, status.st_uid)


def test_a_checkout_chooses_no_kit_of_a_persons(tmp_path: Path, user_kits: Path, host_kits: Path, home: Path) -> None:
    """Those may hold what is not a repository's to have. What other kits bring is judged like the file's own."""
    write(user_kits, "mine", "env = { TOKEN = 'secret' }")
    write(host_kits, "hosts", "mounts = [{ source = '/srv', target = '/x' }]\npackages = ['git']")
    text = "[workspaces.web]\ntype = 'vm'\nuse = ['node', 'own', 'mine', 'hosts']\n[kits.own]\npackages = ['git']"
    with pytest.raises(ConfigError) as caught:
        loading.config_of(
            f"{tmp_path}/hutch.toml",
            text,
            layout=LAYOUT,
            checkout=Checkout(str(tmp_path / "top"), str(tmp_path / "top")),
        )
    assert [(Path(problem.file).name, problem.line, problem.key) for problem in caught.value.problems] == [
        ("hutch.toml", 3, "workspaces.web.use[2]"),
        ("hosts.toml", 1, "mounts[0].source"),
    ]


def test_a_guest_that_writes_where_kits_lie_is_asked_about(load: Load, user_kits: Path, tmp_path: Path) -> None:
    """Each file that is used is shown to the caller's function first, by its path and the one that this leads to; and
    the directory in which it is opened to the judge."""
    real = write(tmp_path, "real", "packages = ['git']")
    (user_kits / "mine.toml").symlink_to(real)
    asked: list[tuple[str, str]] = []

    def judge(directory: int) -> None:
        assert os.path.samestat(os.fstat(directory), tmp_path.stat())
        raise HutchError("a guest wrote this")

    def believe(found: str, file: str) -> Judge:
        asked.append((found, file))
        return judge

    file = write(tmp_path, "hutch", "[workspaces.web]\ntype = 'vm'\nuse = ['mine', 'node']\n")
    with pytest.raises(HutchError, match="a guest wrote this"):
        loading.load(str(file), layout=LAYOUT, believe=believe)
    assert asked == [(f"{user_kits}/mine.toml", str(real))]


def test_what_the_host_finds_wrong_is_told_in_the_kit(tmp_path: Path, user_kits: Path) -> None:
    theirs = write(user_kits, "mine", "\nmounts = [{ source = '~/gone', target = '/a' }]\n")
    file = write(
        tmp_path,
        "hutch",
        "[workspaces.web]\ntype = 'vm'\nuse = ['mine', 'here']\n[kits.here]\n"
        "mounts = [{ source = '/lost', target = '/b' }]\n",
    )
    found = [
        (str(file), Problem("does not exist", f"workspaces.web.mounts[{index}].source", value))
        for index, value in enumerate(("/home/alice/gone", "/lost", "/elsewhere"))
    ]
    with pytest.raises(ConfigError) as caught:
        refuse_files(found, {"web": ("mine", "here")})
    assert caught.value.details.splitlines() == [
        f"{file}:1: workspaces.web.mounts[2].source = /elsewhere: does not exist",
        f"{file}:5: kits.here.mounts[0].source = /lost: does not exist",
        f"{theirs}:2: mounts[0].source = /home/alice/gone: does not exist",
    ]


# Scripts.


def test_scripts_without_company_are_left_alone(load: Load, host_kits: Path) -> None:
    assert web(load, "setup = 'x'\nuse = ['a']\n[kits.a]\npackages = ['git']").setup == "x"


def test_no_script_ends_another(load: Load) -> None:
    """A line that looks like the end of the text does not end it."""
    text = join_scripts([("a", "end of the script\necho a\n"), ("b", "end of the script\nend of the script 1")], "echo")
    assert text.count("<<'end of the script 2'") == 1
    assert text.count("<<'end of the script 1'") == 1
    assert text.count("<<'end of the script'") == 1
