"""The command line by itself: help, version, schema, completion, init, and what needs root."""

from __future__ import annotations

import json
import subprocess
import tomllib
from collections.abc import Iterator

import pytest

from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.support.world import World


@pytest.fixture(scope="module")
def bare(world: World) -> Iterator[Instance]:
    """A hutch without images or workspaces."""
    with open_instance(world, None) as instance:
        yield instance


def test_version(bare: Instance) -> None:
    result = bare.hutch("--version")
    assert result.stdout.split()[-1][0].isdigit()


COMMANDS = (
    "init plan up down start stop restart ls status ssh exec cp logs console rm explain prove image aliases schema"
    " completion"
)


def test_help_names_every_command(bare: Instance) -> None:
    text = bare.hutch("--help").stdout
    for command in COMMANDS.split():
        assert f" {command} " in text, command


@pytest.mark.parametrize("command", COMMANDS.split())
def test_every_command_has_help(bare: Instance, command: str) -> None:
    assert "Usage:" in bare.hutch(command, "--help").stdout


def test_schema_describes_every_key(bare: Instance) -> None:
    schema = json.loads(bare.hutch("schema").stdout)
    assert schema["$schema"].startswith("https://json-schema.org/")
    text = json.dumps(schema)
    for key in ("authorized_keys", "restart_if_changed", "publish", "nix_store", "uplink"):
        assert f'"{key}"' in text


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(bare: Instance, shell: str) -> None:
    script = bare.hutch("completion", shell).stdout
    assert "hutch" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True, timeout=10)


def test_init_writes_a_file_that_works_and_keeps_one_that_is_there(bare: Instance) -> None:
    bare.file.unlink(missing_ok=True)
    bare.hutch("init")
    document = tomllib.loads(bare.file.read_text())
    assert document["workspaces"]
    assert "#" in bare.file.read_text()
    assert bare.plan()
    written = bare.file.read_text()
    assert bare.hutch("init", check=False).returncode != 0
    assert bare.file.read_text() == written


@pytest.mark.parametrize("arguments", [("up",), ("start", "web"), ("rm", "web"), ("console", "web")])
def test_what_needs_root_says_so_in_one_line(bare: Instance, arguments: tuple[str, ...]) -> None:
    bare.declare("container", web="")
    result = bare.hutch(*arguments, check=False, as_user="alice")
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.strip().splitlines()) == 1
    assert "root" in result.stderr


@pytest.mark.parametrize("arguments", [("frobnicate",), ("up", "--frobnicate"), ("start",), ("ssh",), ("up", "absent")])
def test_a_wrong_command_line_is_2(bare: Instance, arguments: tuple[str, ...]) -> None:
    bare.declare("container", web="")
    result = bare.hutch(*arguments, check=False)
    assert result.returncode == 2
    assert result.stderr


def test_nothing_is_listed_where_nothing_is(bare: Instance) -> None:
    bare.file.unlink(missing_ok=True)
    assert json.loads(bare.hutch("ls", "--json").stdout) == []
    assert json.loads(bare.hutch("image", "ls", "--json").stdout) == []


def test_hutch_file_names_the_file(bare: Instance) -> None:
    bare.declare("container", elsewhere="")
    moved = bare.directory / "moved.toml"
    bare.file.rename(moved)
    result = bare.hutch("plan", "--json", env={"HUTCH_FILE": str(moved)})
    assert json.loads(result.stdout)["actions"][0]["workspace"] == "elsewhere"
    assert bare.hutch("-f", str(moved), "plan", "--json").stdout == result.stdout
