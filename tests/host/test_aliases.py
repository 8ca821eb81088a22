"""Aliases in real shells: those that `hutch aliases` prints, and those that the installed files make by themselves."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.support.world import World

NAMES = ("web", "my-project")
COMMAND = Path(sys.executable).parent
ETC = [Path("/etc") / name for name in ("profile.d", "zsh", "fish", "bash.bashrc")]
DEFINED = {
    "bash": "alias | sed 's/^alias //; s/=.*//'",
    "sh": "alias | sed 's/^alias //; s/=.*//'",
    "zsh": "print -l ${(k)aliases}",
    "fish": "functions -a | string match 'workspace_*'; true",
}


@pytest.fixture(scope="module")
def made(world: World, images: Path) -> Iterator[Instance]:
    """Two workspaces of alice's and one of bob's, none of which runs."""
    with open_instance(world, images) as instance:
        instance.declare("container", **dict.fromkeys(NAMES, 'owner = "alice"'), his='owner = "bob"')
        instance.hutch("up", "--no-start")
        yield instance


def wanted(names: tuple[str, ...]) -> set[str]:
    return {f"workspace_{name}{verb}" for name in names for verb in ("", "_start", "_stop", "_restart", "_status")}


def ask(made: Instance, shell: str, script: str, as_user: str = "alice") -> str:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    account = made.world.accounts[as_user]
    interactive = {"zsh": ["-i", "-c"], "fish": ["-i", "-c"], "bash": ["-l", "-i", "-c"]}.get(shell, ["-c"])
    result = subprocess.run(
        account.command(shell, *interactive, script),
        capture_output=True, text=True, timeout=30, env=made.environment(as_user=as_user), stdin=subprocess.DEVNULL,
        cwd="/",
    )  # fmt: skip
    said = [line for line in result.stderr.splitlines() if "job control" not in line and "ioctl" not in line]
    assert (result.returncode, said) == (0, []), result
    return result.stdout


def defined(made: Instance, shell: str, before: str = "true", as_user: str = "alice") -> set[str]:
    said = ask(made, shell, f"{before}\n{DEFINED[shell]}", as_user).split()
    return {name for name in said if name.startswith("workspace_")}


@pytest.mark.parametrize("shell", ["bash", "sh", "zsh", "fish"])
def test_what_is_printed_is_understood(made: Instance, shell: str, tmp_path: Path) -> None:
    printed = made.hutch("aliases", "bash" if shell == "sh" else shell, as_user="alice").stdout
    file = made.directory / f"aliases.{shell}"
    file.write_text(printed)
    assert defined(made, shell, f". {file}") == wanted(NAMES)


@pytest.mark.parametrize("shell", ["bash", "sh", "zsh", "fish"])
def test_installed_they_follow_what_is_there_without_hutch(made: Instance, shell: str) -> None:
    before = snapshot()
    made.hutch("aliases", "--install")
    written = snapshot()
    assert "nothing to do" in made.hutch("aliases", "--install").stderr
    script = {"sh": f". /etc/profile.d/{instance_name(made)}.sh"}.get(shell, "true")
    try:
        assert defined(made, shell, script) == wanted(NAMES)
        assert defined(made, shell, script, as_user="bob") == wanted(("his",))
        made.hutch("rm", "--force", "web")
        assert defined(made, shell, script) == wanted(("my-project",))
        (made.state / "shown").rename(made.state / "hidden")
        assert defined(made, shell, script) == set()
        (made.state / "hidden").rename(made.state / "shown")
        assert snapshot() == written
    finally:
        made.hutch("up", "--no-start")
        made.hutch("aliases", "--remove")
    assert snapshot() == before


def test_an_alias_does_what_it_says(made: Instance) -> None:
    printed = made.hutch("aliases", "bash", as_user="alice").stdout
    assert "alias workspace_my-project='ssh workspace-my-project'\n" in printed
    assert f"HUTCH_STATE_DIR={made.state} HUTCH_RUN_DIR={made.run} hutch start web'\n" in printed


@pytest.mark.parametrize("shell", ["bash", "sh", "zsh", "fish"])
def test_an_alias_can_be_called(made: Instance, shell: str) -> None:
    file = made.directory / f"called.{shell}"
    file.write_text(made.hutch("aliases", "bash" if shell == "sh" else shell).stdout)
    path = f"set -x PATH {COMMAND} $PATH" if shell == "fish" else f"PATH={COMMAND}:$PATH"
    calls = ("workspace_web_start", "workspace_web uname -n", "workspace_web_status", "workspace_web_stop")
    said = ask(made, shell, "\n".join((path, f". {file}", *(f"eval {call} 2>&1" for call in calls))), "root")
    assert said.startswith("web: ready") and "\nweb\n" in said and "state  running\n" in said, said
    assert said.rstrip().endswith("web: stopped"), said
    assert made.status("web")["state"] == "stopped"


def test_they_cost_a_shell_next_to_nothing(made: Instance) -> None:
    """Of hutch, less than a tenth of a second; of the installed script, less than that of many workspaces."""
    made.hutch("aliases", "--install", "bash")
    script = f"/etc/profile.d/{instance_name(made)}.sh"
    try:
        times = []
        for _ in range(5):
            begun = time.monotonic()
            subprocess.run(["sh", "-c", f". {script}"], check=True, timeout=10)
            times.append(time.monotonic() - begun)
        assert min(times) < 0.05
    finally:
        made.hutch("aliases", "--remove", "bash")


def test_the_last_purge_takes_them_away(made: Instance) -> None:
    before = snapshot()
    made.hutch("aliases", "--install")
    made.remove_all()
    assert snapshot() == before


def instance_name(made: Instance) -> str:
    import zlib

    return f"hutch-{zlib.crc32(str(made.state).encode()) & 0xFFFFFF:06x}"


def snapshot() -> dict[Path, bytes]:
    files = [file for path in ETC for file in (path.rglob("*") if path.is_dir() else [path])]
    return {file: file.read_bytes() for file in files if file.is_file()}
