"""The files of examples/: each can be planned as it is, and what they mount inside the home comes up."""

from __future__ import annotations

import json
import socket
import tomllib
from pathlib import Path

import pytest

from tests.host.instance import Instance

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))


def adapted(path: Path, shared: Instance) -> str:
    """The example with directories of the test's in place of the user's."""
    return path.read_text().replace("~/", f"{shared.directory}/")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_can_be_planned(path: Path, shared: Instance) -> None:
    text = adapted(path, shared)
    shared.file.write_text(f'[network]\nsubnet = "{shared.subnet}"\n{text}')
    found = json.loads(shared.hutch("plan", "--json").stdout)["actions"]
    assert [(a["workspace"], a["action"]) for a in found] == [(n, "create") for n in tomllib.loads(text)["workspaces"]]


@pytest.mark.vm(slow=True)
def test_the_agents_mounts(shared: Instance, name: str, workspace_type: str) -> None:
    """Those inside the home need directories there, which a container's root cannot make."""
    declared = tomllib.loads(adapted(Path(EXAMPLES[0]), shared))["workspaces"]["agent"]["mounts"]
    fields = (", ".join(f"{key} = {json.dumps(value)}" for key, value in mount.items()) for mount in declared)
    shared.declare(workspace_type, **{name: f"mounts = [{', '.join('{' + text + '}' for text in fields)}]"})
    shared.up()
    inside = "touch /src/made && findmnt -n -o TARGET --target /home/dev/.config/agent && touch ~/.config/agent/x"
    assert shared.ssh(name, f"{inside} && touch ~/.config/own").stdout.strip() == "/home/dev/.config/agent"
    assert (shared.directory / "src/project/made").exists()
    assert not any((shared.directory / ".config/agent").iterdir())  # it is private

    home = Path(shared.status(name)["home"])
    assert (home / ".config").stat().st_uid == home.stat().st_uid
    shared.hutch("stop", name)
    (home / ".config" / "agent").rmdir()
    shared.hutch("start", name)  # the short way to a start notices as well
    shared.hutch("stop", name)
    (home / ".config" / "agent").rmdir()
    (home / ".config" / "agent").symlink_to("/etc")
    refused = shared.hutch("start", name, check=False)
    assert refused.returncode == 2
    assert f"workspaces.{name}.mounts[1].target" in refused.stderr
    assert "symbolic link" in refused.stderr


def test_a_port_of_a_program_of_the_host(shared: Instance, name: str, workspace_type: str) -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        shared.declare(workspace_type, **{name: f'publish = ["{port}:80"]'})
        refused = shared.hutch("up", check=False)
        assert refused.returncode == 2
        assert f"workspaces.{name}.publish[0]" in refused.stderr
        assert "python" in refused.stderr
        assert name not in shared.names()
