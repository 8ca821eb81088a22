"""Installing. The Debian package is built, and in a Debian of its own, which is a workspace, it comes and goes; what
becomes of workspaces that run meanwhile is tried in the tier `systemd`.
"""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from hutch.cli import COMMANDS
from tests.host.instance import Completed, Instance
from tests.support.enclosure import OUTER_NETWORK
from tests.support.packages import CHECKOUT, build_package

MODULES = "/usr/lib/python3/dist-packages/hutch"
HOME = "/var/lib/hutch/workspaces/web/home"
# What belongs to nobody's package: what is mounted, logs, caches, and what dpkg and debconf remember.
OTHERS = ("/var/lib/dpkg", "/var/log", "/var/cache", "/var/tmp", "/home", "/root", "/tmp")
PRUNED = tuple(word for path in OTHERS for word in ("-o", "-path", path))
TREE = ("find", "/", "-xdev", "(", "-name", "__pycache__", *PRUNED, ")", "-prune", "-o", "-print")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two versions."""
    output = tmp_path_factory.mktemp("built")
    return [build_package(output, revision) for revision in ("1", "2")]


@pytest.fixture(scope="module")
def debian(shared: Instance, built: list[Path]) -> Instance:
    """With the packages in a home, and with click, which is all of Python's that most commands need."""
    shared.declare("container", debian="")
    shared.up()
    shared.hutch("cp", *map(str, built), str(Path(click.__file__).parent), "debian:")
    run(shared, "cp", "-r", "/home/dev/click", "/usr/lib/python3/dist-packages/")
    return shared


def run(debian: Instance, *argv: str, check: bool = True) -> Completed:
    return debian.inside("debian", *argv, root=True, check=check)


def dpkg(debian: Instance, *arguments: str, frontend: str = "noninteractive") -> str:
    """What the image lacks of what hutch needs is none of this test's business."""
    command = ("env", f"DEBIAN_FRONTEND={frontend}", "dpkg", "--force-depends", *arguments)
    result = run(debian, *command)
    return result.stdout + result.stderr


@pytest.mark.slow
def test_the_same_source_gives_the_same_bytes(built: list[Path], tmp_path: Path) -> None:
    umask = os.umask(0o077)
    try:
        again = build_package(tmp_path, "1")
    finally:
        os.umask(umask)
    assert again.name == built[0].name
    assert again.read_bytes() == built[0].read_bytes()


def test_what_is_in_it(built: list[Path], tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "--extract", built[0], tmp_path], check=True, timeout=60)
    names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert {f"usr/share/man/man1/hutch-{name}.1.gz" for name in COMMANDS} < names
    pages = gzip.decompress((tmp_path / "usr/share/man/man5/hutch.toml.5.gz").read_bytes())
    assert pages.startswith(b".TH ")
    source = {path.relative_to(CHECKOUT / "src") for path in (CHECKOUT / "src").rglob("*") if is_source(path)}
    assert {f"usr/lib/python3/dist-packages/{path}" for path in source} < names
    listed = subprocess.run(
        ["dpkg-deb", "--contents", built[0]], capture_output=True, text=True, check=True, timeout=60
    )
    kinds = {tuple(line.split()[:2]) for line in listed.stdout.splitlines()}
    assert kinds == {(mode, "root/root") for mode in ("drwxr-xr-x", "-rw-r--r--", "-rwxr-xr-x", "-r--r-----")}
    subprocess.run(["visudo", "-c", "-f", tmp_path / "etc/sudoers.d/hutch"], check=True, timeout=10)
    assert (tmp_path / "usr/lib/hutch/member").read_text().startswith("#!/usr/bin/python3 -I\n")


def is_source(path: Path) -> bool:
    return path.is_file() and path.suffix != ".pyc"


BEGIN = """
import importlib.util, sys, types
sys.path[:0] = sys.argv[1:]
from hutch.cli import member
for name in ("reset_streams", "reset_process", "take_place", "leave_cgroup", "reset_signals", "make_patient",
             "leave_directory", "ceiling_of_host"):
    assert hasattr(member, name), name
    setattr(member, name, lambda *words, **options: None)
member.behind_entry = lambda environ: types.SimpleNamespace(uid=1000)
found = {}
member.import_module = lambda name: found.update({name: importlib.util.find_spec(name).origin})
member.begin({})
print(found["tree_sitter"])
"""
"""The entry point of members as far as it finds the modules that they need, which it loads before it has their rights.
Those that the package brings are for Debian's own Python."""


def test_the_entry_point_finds_what_the_package_brings(built: list[Path], tmp_path: Path) -> None:
    subprocess.run(["dpkg-deb", "--extract", built[0], tmp_path / "tree"], check=True, timeout=60)
    others = tmp_path / "others"  # what Debian has packages of
    others.mkdir()
    for path in Path(click.__file__).parent.parent.iterdir():
        if not path.name.startswith(("tree_sitter", "hutch", "_hutch", "__editable__")):
            (others / path.name).symlink_to(path)
    modules = str(tmp_path / f"tree{Path(MODULES).parent}")
    begun = subprocess.run(
        [sys.executable, "-I", "-S", "-c", BEGIN, modules, str(others)], capture_output=True, text=True, timeout=60
    )
    assert begun.returncode == 0, begun.stderr
    assert begun.stdout.startswith(f"{modules}/hutch/vendor/")


@pytest.mark.long  # a minute, and the stand does it for real
def test_it_comes_and_goes(debian: Instance, built: list[Path]) -> None:
    first, second = (f"/home/dev/{path.name}" for path in built)
    before = run(debian, *TREE).stdout

    dpkg(debian, "--install", first)
    assert run(debian, "hutch", "--version").stdout.startswith("hutch ")
    assert run(debian, "dpkg", "--verify", "hutch").stdout == ""
    run(debian, "test", "-e", f"{MODULES}/__pycache__/state.cpython-313.pyc")
    loaded = run(debian, "bash", "-c", ". /usr/share/bash-completion/completions/hutch; complete -p hutch").stdout
    assert "_hutch_completion" in loaded
    assert "hutch" in run(debian, "hutch", "completion", "bash").stdout
    lines = "from hutch.spec.positions import Positions as P; print(P('\\na = 1').find(('a',)).line)"
    assert run(debian, "python3", "-c", lines).stdout == "2\n"  # by tree-sitter, which lies beside hutch
    machines = "import sys; from hutch.apply.hardware import library; sys.path.append(library('qemu.qmp'))"
    assert run(debian, "python3", "-c", f"{machines}; import qemu.qmp as q; print(q.__file__)").stdout.startswith(
        f"{MODULES}/vendor/qemu"
    )

    run(debian, "mkdir", "-p", HOME)
    run(debian, "touch", f"{HOME}/precious")
    assert "stopping" not in dpkg(debian, "--install", second)
    assert run(debian, "dpkg-query", "-Wf", "${Version}", "hutch").stdout.endswith("-2")

    assert "stay in /var/lib/hutch" in dpkg(debian, "--remove", "hutch")
    assert run(debian, "test", "-e", MODULES, check=False).returncode == 1
    run(debian, "test", "-e", f"{HOME}/precious")

    refuse = "echo hutch hutch/delete-homes boolean false | debconf-set-selections"
    run(debian, "sh", "-c", refuse)
    assert "stays as it is" in dpkg(debian, "--purge", "hutch")
    run(debian, "test", "-e", f"{HOME}/precious")

    dpkg(debian, "--install", second)
    dpkg(debian, "--remove", "hutch")
    run(debian, "touch", "/var/lib/hutch/network.json")  # as by a hutch that pipx has installed meanwhile
    assert "installed in another way uses it" in dpkg(debian, "--purge", "hutch")
    run(debian, "rm", "/var/lib/hutch/network.json")

    dpkg(debian, "--install", second)
    dpkg(debian, "--remove", "hutch")
    run(debian, "sh", "-c", "echo PURGE | debconf-communicate hutch")
    assert "stays as it is" in dpkg(debian, "--purge", "hutch")  # the question fails, which is no answer
    run(debian, "test", "-e", f"{HOME}/precious")

    dpkg(debian, "--install", second)
    assert "stays as it is" in dpkg(debian, "--purge", "hutch", frontend="teletype")  # without a terminal to ask on
    run(debian, "test", "-e", f"{HOME}/precious")

    dpkg(debian, "--install", second)
    assert "deleting /var/lib/hutch" in dpkg(debian, "--purge", "hutch")
    assert run(debian, *TREE).stdout == before
    assert "hutch" not in run(debian, "debconf-show", "hutch").stdout


@pytest.mark.long
@pytest.mark.parametrize("installer", [("tool", "install"), ("tool", "run", "pipx", "install")], ids=["uv", "pipx"])
def test_a_tool_installs_it(installer: tuple[str, ...], tmp_path: Path) -> None:
    """In a virtual environment of its own, with the command elsewhere."""
    tools, programs, pages = tmp_path / "tools", tmp_path / "bin", tmp_path / "man"
    places = {"UV_TOOL_DIR": tools, "UV_TOOL_BIN_DIR": programs}
    places |= {"PIPX_HOME": tools, "PIPX_BIN_DIR": programs, "PIPX_MAN_DIR": pages}
    environment = {**os.environ, **{name: str(path) for name, path in places.items()}}
    uv = Path(sys.executable).with_name("uv")
    command = ["nsenter", f"--net={os.environ[OUTER_NETWORK]}", "--", str(uv), *installer, "--quiet", str(CHECKOUT)]
    subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=True, timeout=300)
    hutch = programs / "hutch"
    said = subprocess.run([hutch, "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.startswith("hutch ")
    pages = pages if pages.exists() else tools / "hutch/share/man"
    assert {path.name for path in pages.glob("man1/*")} > {f"hutch-{name}.1" for name in COMMANDS}
    assert (pages / "man5/hutch.toml.5").is_file()
    completion = subprocess.run([hutch, "completion", "zsh"], capture_output=True, text=True, check=True, timeout=60)
    assert completion.stdout.startswith("#compdef hutch")
