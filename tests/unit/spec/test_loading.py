"""Loading as a whole: what a right file gives, which files are not believed, and everything at once."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

import hutch.spec
from hutch.errors import ConfigError, Problem, UsageError
from hutch.spec import loading, lookup, names
from hutch.spec.lookup import render_starter
from hutch.spec.model import (
    DEFAULT_PACKAGES,
    WORKSPACE_KEYS,
    Config,
    Idle,
    Incus,
    Mount,
    Network,
    Publish,
    WorkspaceSpec,
)
from hutch.spec.names import Layout
from tests.unit.spec.conftest import key_line

Load = Callable[..., Config]
Problems = Callable[..., tuple[Problem, ...]]

FULL = """
[network]
bridge = "br-test"
subnet = "10.83.0.0/16"
uplink = "100.64.0.0/30"

[defaults]
user = "someone"
memory = "512MiB"
packages = ["git"]

[workspaces.web]
type = "container"
engine = "local"
hypervisor = "qemu"
image = "rootfs:../tree"
packages = ["g++", "libstdc++6", "python3.13-venv"]
setup = '''
echo one
echo two'''
user = "dev"
shell = "/usr/bin/fish"
authorized_keys = ["KEY"]
owner = "bob"
ip = "10.83.1.2"
mac = "AA:00:00:00:00:01"
cid = 3
vsock = true
vcpus = 2
memory = "4096M"
disk = "8G"
autostart = true
auto_refresh = "weekly"
restart_if_changed = false
home = "~/homes/web"
persist = "all"
mounts = [{ source = "~/src", target = "/src", readonly = true }, { source = "sub/../x", target = "/home/dev/x" }]
share_with = ["alice", "@devs", "alice"]
protect = ["Makefile", "a b/c"]
protect_default = false
egress = ["*.Example.org", "api.example.com:443", "198.51.100.0/24"]
publish = ["8080:80", "127.0.0.1:5353:53/udp", "0.0.0.0:81:81/tcp"]
env = { B = "größe = 1; $x", A = "" }
nix_store = true
use = ["tools"]
gpu = true
nesting = true
learn = true
idle = { after = "30min", then = "suspend" }

[workspaces.lab]
type = "vm"

[engines.incus]
remote = "cluster"
target = "@gpu"
subnet = "10.84.0.0/20"

[kits.tools]
"""


def test_every_key(load: Load, tmp_path: Path) -> None:
    config = load(FULL.replace("KEY", key_line(1, "me@there")))
    assert config.file == str(tmp_path / "project" / "hutch.toml")
    assert config.network == Network(bridge="br-test", subnet="10.83.0.0/16", uplink="100.64.0.0/30")
    assert config.incus == Incus(remote="cluster", project="hutch", target="@gpu", subnet="10.84.0.0/20")
    assert list(config.workspaces) == ["web", "lab"]
    assert config.workspaces["lab"] == WorkspaceSpec(type="vm", user="someone", memory=2**29, packages=("git",))
    web = config.workspaces["web"]
    assert web == WorkspaceSpec(  # noqa: S604 - the key is called shell
        type="container",
        engine="local",
        hypervisor="qemu",
        image=f"rootfs:{tmp_path}/tree",
        packages=("g++", "libstdc++6", "python3.13-venv"),
        setup="echo one\necho two",
        user="dev",
        shell="/usr/bin/fish",
        authorized_keys=(key_line(1, "me@there"),),
        owner=1001,
        share_with=("1000", "@1200"),
        ip="10.83.1.2",
        mac="aa:00:00:00:00:01",
        cid=3,
        vsock=True,
        vcpus=2,
        memory=4 * 2**30,
        disk=8 * 2**30,
        autostart=True,
        auto_refresh="weekly",
        restart_if_changed=False,
        home="/home/bob/homes/web",
        persist="all",
        mounts=(
            Mount(source="/home/bob/src", target="/src", mode="readonly", readonly=True),
            Mount(source=f"{tmp_path}/project/x", target="/home/dev/x", mode="writable", readonly=False),
        ),
        protect=("Makefile", "a b/c"),
        protect_default=False,
        egress=("*.example.org", "api.example.com:443", "198.51.100.0/24"),
        publish=(Publish("", 8080, 80, "tcp"), Publish("127.0.0.1", 5353, 53, "udp"), Publish("", 81, 81, "tcp")),
        env=(("A", ""), ("B", "größe = 1; $x")),
        nix_store=True,
        use=("tools",),
        gpu=True,
        nesting=True,
        learn=True,
        idle=Idle(after="30min", then="suspend"),
    )
    assert all(key in FULL for key in WORKSPACE_KEYS)


def test_nothing_but_a_type(load: Load, home: Path) -> None:
    (home / ".ssh" / "id.pub").write_text(key_line(7) + "\n")
    config = load("[workspaces.web]\ntype = 'vm'")
    assert config.network == Network()
    assert config.incus is None
    assert config.workspaces["web"] == WorkspaceSpec(type="vm")
    assert config.workspaces["web"].packages == DEFAULT_PACKAGES


def test_an_owner_without_keys_is_told_from_no_keys(load: Load) -> None:
    config = load("[workspaces.a]\ntype = 'vm'\n[workspaces.b]\ntype = 'vm'\nauthorized_keys = []")
    assert config.workspaces["a"].authorized_keys is None
    assert config.workspaces["b"].authorized_keys == ()


def test_no_workspaces_are_fine(load: Load) -> None:
    assert load("").workspaces == {}


def test_type_may_come_from_defaults(load: Load) -> None:
    assert load("[defaults]\ntype = 'vm'\n[workspaces.web]").workspaces["web"].type == "vm"


def test_byte_order_mark_and_crlf(load: Load, problems: Problems) -> None:
    text = b"\xef\xbb\xbf# caf\xc3\xa9\r\n[workspaces.web]\r\ntype = 'vm'\r\nsetup = '''\r\na\r\nb'''\r\n"
    assert load(text).workspaces["web"].setup == "a\nb"
    assert [problem.line for problem in problems(text + b"vcpus = 0\r\n")] == [7]


def test_everything_at_once(problems: Problems) -> None:
    text = """
        [network]
        uplink = "8.8.8.8/30"
        [defaults]
        vcpus = "two"
        [workspaces.a]
        type = "container"
        ip = "192.168.83.9"
        mounts = [
          { source = "/", target = "/x" },
          { source = "/var/lib", target = "/home", create = "no" },
        ]
        [workspaces.b]
        ip = "192.168.83.9"
        env = { A = 1, "B C" = "x" }
        [workspaces.C]
        type = "vm"
        egress = ["ok.example.org", "all"]
        """
    assert [(problem.line, problem.key, problem.value) for problem in problems(text)] == [
        (3, "network.uplink", '"8.8.8.8/30"'),
        (5, "defaults.vcpus", '"two"'),
        (10, "workspaces.a.mounts[0].source", '"/"'),
        (11, "workspaces.a.mounts[1].create", '"no"'),
        (11, "workspaces.a.mounts[1].source", '"/var/lib"'),
        (11, "workspaces.a.mounts[1].target", '"/home"'),
        (13, "workspaces.b.type", ""),
        (14, "workspaces.b.ip", '"192.168.83.9"'),
        (15, 'workspaces.b.env."B C"', '"x"'),
        (15, "workspaces.b.env.A", "1"),
        (16, "workspaces.C", ""),
        (18, "workspaces.C.egress[1]", '"all"'),
    ]


def test_a_wrong_subnet_blames_no_address(problems: Problems) -> None:
    found = problems("[network]\nsubnet = '10.0.0.1/24'\n[workspaces.a]\ntype = 'vm'\nip = '10.0.0.7'")
    assert [problem.key for problem in found] == ["network.subnet"]


def test_long_values_are_shortened(problems: Problems) -> None:
    (problem,) = problems(f"[workspaces.a]\ntype = '''{'x' * 50}\n{'y' * 500}'''")
    assert len(problem.value) == 60
    assert problem.value.endswith("…")


def test_check_speaks_of_the_files_own_lines(load: Load, problems: Problems) -> None:
    seen: list[str] = []

    def check(name: str, workspace: WorkspaceSpec, network: Network) -> Iterable[Problem]:
        seen.append(name)
        assert network == Network()
        if workspace.egress != "internet":
            yield Problem("not supported yet", f"workspaces.{name}.egress", hint="leave it out")
        if workspace.mounts:
            yield Problem("too many", f"workspaces.{name}.mounts[0].source")
        if workspace.type == "vm":
            yield Problem("no engine", f"workspaces.{name}.engine")

    text = """[defaults]
egress = "none"
[workspaces.a]
type = "container"
[workspaces.b]
type = "vm"
mounts = [3,
  { source = "/srv", target = "/srv" }]
[workspaces.c]
[workspaces.D]
type = "vm"
"""
    found = problems(text, check=check)
    assert seen == ["a", "b"]
    assert [(problem.line, problem.key, problem.message) for problem in found] == [
        (2, "defaults.egress", "not supported yet"),
        (5, "workspaces.b.engine", "no engine"),
        (7, "workspaces.b.mounts[0]", "must be a table"),
        (8, "workspaces.b.mounts[1].source", "too many"),
        (9, "workspaces.c.type", "is missing"),
        (10, "workspaces.D", "cannot name a workspace"),
    ]
    assert found[0].hint == "leave it out"
    assert found[0].value == '"none"'


@pytest.mark.parametrize("uid", [names.UID_FIRST, 3_000_000_000])
def test_a_default_owner_that_cannot_be(problems: Problems, monkeypatch: pytest.MonkeyPatch, uid: int) -> None:
    monkeypatch.setenv("SUDO_UID", str(uid))
    (problem,) = problems("[workspaces.a]\ntype = 'container'\n[workspaces.b]\ntype = 'container'\nowner = 'bob'\n")
    assert (problem.line, problem.key) == (1, "workspaces.a.owner")
    assert problem.message.startswith(f"is not said, and the default, uid {uid}, has uid {uid}, which")


def test_links_to_the_runtime_directory_are_seen(problems: Problems, tmp_path: Path) -> None:
    (tmp_path / "run").symlink_to("/run/hutch")
    (problem,) = problems(f"[workspaces.a]\ntype = 'vm'\nmounts = [{{source='{tmp_path}/run/dns', target='/a'}}]")
    assert problem.message == "is in hutch's own runtime directory /run/hutch"


def test_links_to_the_state_and_to_the_root_are_seen(problems: Problems, tmp_path: Path) -> None:
    (tmp_path / "state").symlink_to("/var/lib/hutch/images")
    (tmp_path / "root").symlink_to("/")
    mounts = f"mounts = [{{source='{tmp_path}/state', target='/a'}}, {{source='{tmp_path}/root', target='/b'}}]"
    found = problems(f"[workspaces.a]\ntype = 'vm'\n{mounts}")
    assert [problem.message for problem in found] == ["is in hutch's own state /var/lib/hutch", "is the whole host"]


def test_a_guest_may_read_the_file_but_not_write_it(load: Load, problems: Problems) -> None:
    assert load("[workspaces.a]\ntype='vm'\nmounts=[{source='.', target='/s', readonly=true}]").workspaces
    (problem,) = problems("[workspaces.a]\ntype='vm'\nhome='..'")
    assert "rewrite" in problem.message


# Which files are believed.


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666])
def test_a_file_that_others_can_write(problems: Problems, mode: int) -> None:
    (problem,) = problems("", mode=mode)
    assert "written by its group or by others" in problem.message
    assert problem.hint.startswith("chmod go-w /")


def test_a_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "hutch.toml")
    with pytest.raises(ConfigError, match="nothing was changed") as caught:
        loading.load(str(tmp_path / "hutch.toml"), layout=Layout(tmp_path, tmp_path / "run"))
    assert caught.value.problems[0].message == "cannot be opened: it is not a regular file"


def test_a_directory_and_nothing_at_all(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path, "cannot be opened: it is not"),
        (tmp_path / "x", "cannot be opened: No such file"),
    ):
        with pytest.raises(ConfigError) as caught:
            loading.load(str(path), layout=Layout(tmp_path, tmp_path / "run"))
        assert caught.value.problems[0].message.startswith(message)


def test_a_large_file_and_one_that_is_not_text(problems: Problems) -> None:
    assert problems(b"#" * (2**20 + 1))[0].message == "is larger than 1 MiB"
    assert str(problems(b"a = 1\nb = '\xff'\n")[0]).endswith("hutch.toml:2: is not UTF-8 text")


def test_a_path_that_leads_elsewhere_by_now_is_not_followed(tmp_path: Path, load: Load) -> None:
    """Whoever judged it judged a path without links."""
    file = Path(load("").file)
    (tmp_path / "link.toml").symlink_to(file)
    (tmp_path / "link").symlink_to(file.parent)
    for path, message in (
        (tmp_path / "link.toml", "cannot be opened: Too many levels of symbolic links"),
        (tmp_path / "link/hutch.toml", "cannot be opened: Too many levels of symbolic links"),
    ):
        with pytest.raises(ConfigError) as caught:
            loading.load(str(path), layout=Layout(tmp_path, tmp_path / "run"))
        assert [problem.message for problem in caught.value.problems] == [message]


def test_where_the_file_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lookup, "SYSTEM_FILE", tmp_path / "system.toml")
    monkeypatch.delenv("HUTCH_FILE", raising=False)
    with pytest.raises(UsageError, match="there is no hutch") as caught:
        lookup.find_file(None)
    assert "hutch init" in caught.value.resolution
    (tmp_path / "system.toml").touch()
    assert lookup.find_file(None) == tmp_path / "system.toml"
    (tmp_path / "hutch.toml").touch()
    assert lookup.find_file(None) == Path("hutch.toml")
    (tmp_path / "other.toml").touch()
    monkeypatch.setenv("HUTCH_FILE", "other.toml")
    assert lookup.find_file(None) == Path("other.toml")
    assert lookup.find_file(tmp_path / "system.toml") == tmp_path / "system.toml"
    with pytest.raises(UsageError, match="no such file"):
        lookup.find_file(Path("missing.toml"))


def test_a_file_that_merely_lies_here_is_believed_of_root_and_the_caller_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Load
) -> None:
    """Its owner is looked at where it is read: between two looks by its name, another file could take its place."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HUTCH_FILE", raising=False)
    file = Path(load("").file)
    here, uid = Path("hutch.toml"), file.stat().st_uid
    here.symlink_to(file)
    assert lookup.believed_owners(None, here) == frozenset({0, 1000})
    assert lookup.believed_owners(None, lookup.SYSTEM_FILE) is lookup.believed_owners(here, here) is None
    monkeypatch.setenv("HUTCH_FILE", "hutch.toml")
    assert lookup.believed_owners(None, here) is None
    layout = Layout(tmp_path, tmp_path / "run")
    assert loading.load(str(file), layout=layout, owners={uid}).file == str(file)
    with pytest.raises(ConfigError) as caught:
        loading.load(str(file), layout=layout, owners={uid + 1})
    (problem,) = caught.value.problems
    assert problem.message == f"belongs to uid {uid}, who is neither root nor you"
    assert problem.hint == f"read it, and if you trust it name it: --file {file}"


def test_keys_are_not_looked_for_in_all_of_the_host(problems: Problems) -> None:
    (problem,) = problems('[workspaces.a]\ntype = "container"\nauthorized_keys = ["/*/*/*/*/*/*/*/*.pub"]\n')
    assert (problem.key, problem.line) == ("workspaces.a.authorized_keys[0]", 3)
    assert problem.message.startswith("takes a look at more than 10000 files")


# What else is promised.


@pytest.mark.parametrize(
    ("name", "mac", "cid"),
    [
        ("web", "02:4b:5e:57:f6:eb", 4939451),
        ("lab", "02:a5:11:46:d3:80", 10817962),
        ("my-project", "02:1c:7c:d9:44:c2", 1867069),
    ],
)
def test_vectors(name: str, mac: str, cid: int) -> None:
    assert names.mac(name) == mac
    assert names.cid(name) == cid


def test_the_starter_loads(load: Load) -> None:
    assert list(load(render_starter("my-project")).workspaces) == ["my-project"]


def test_every_hint_of_the_starter_is_right(load: Load) -> None:
    lines = render_starter("web").splitlines()
    commented = [
        line.removeprefix("# ") if " = " in line or line.startswith(("# '''", "# apt")) else line for line in lines
    ]
    text = "\n".join(line for line in commented if "authorized_keys" not in line)
    workspace = load(text).workspaces["web"]
    assert workspace.memory == 4 * 2**30
    assert "python3-venv" in workspace.setup


def test_models_do_without_what_is_slow_to_import(monkeypatch: pytest.MonkeyPatch) -> None:
    # The modules are imported anew where pydantic and tree-sitter cannot be; monkeypatch brings the old ones back.
    monkeypatch.setattr(hutch, "spec", hutch.spec)
    for module in [name for name in sys.modules if name.split(".")[:2] == ["hutch", "spec"]]:
        monkeypatch.delitem(sys.modules, module)
    for module in ("pydantic", "pydantic_core", "tree_sitter", "tree_sitter_toml"):
        monkeypatch.setitem(sys.modules, module, None)
    for module in ("model", "names", "owner", "loading", "lookup", "schema", "positions"):
        importlib.import_module(f"hutch.spec.{module}")
