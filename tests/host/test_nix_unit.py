"""The commands of NixOS's unit, run here: what a boot and a switch do to real workspaces."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host import nix_eval
from tests.host.instance import Instance, explain
from tests.host.nix_eval import Nix

MISSING = [program for program in (nix_eval.PROGRAM, "jq") if shutil.which(program) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} is not installed")

TYPE = 'type = "container"\n'
BOOT = f"[workspaces.nix-boot]\n{TYPE}autostart = true\n"
HAND, REST = f"[workspaces.nix-hand]\n{TYPE}", f"[workspaces.nix-rest]\n{TYPE}"


@pytest.fixture(scope="module")
def nix() -> Iterator[Nix]:
    with nix_eval.open_nix() as nix:
        yield nix


def run_unit(instance: Instance, nix: Nix, *, prune: bool = False) -> None:
    """What `systemctl start` and `systemctl reload` run there, with this instance's file."""
    script = nix.evaluate(
        f'(import ./nix/workspaces.nix).reconcile {{ file = "{instance.file}"; prune = {str(prune).lower()}; '
        f"told = builtins.fromTOML (builtins.readFile {instance.file}); }}"
    )
    environment = instance.environment()
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    command = ["bash", "-e", "-c", script]
    result = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/", timeout=300
    )
    assert result.returncode == 0, explain(command, result)


def states(instance: Instance) -> dict[str, str]:
    return {name: instance.status(name)["state"] for name in instance.names()}


@pytest.mark.slow
def test_a_boot_a_switch_and_another_one(instance: Instance, nix: Nix) -> None:
    instance.write(BOOT + HAND + REST)
    run_unit(instance, nix)
    assert states(instance) == {"nix-boot": "running", "nix-hand": "stopped", "nix-rest": "stopped"}

    instance.hutch("start", "nix-hand")
    since = {name: instance.status(name)["since"] for name in ("nix-boot", "nix-hand")}
    instance.write(BOOT + HAND + 'shell = "/bin/sh"\n' + REST + 'shell = "/bin/sh"\n')
    run_unit(instance, nix)
    assert states(instance) == {"nix-boot": "running", "nix-hand": "running", "nix-rest": "stopped"}
    assert instance.inside("nix-hand", "getent", "passwd", "dev").stdout.strip().endswith(":/bin/sh")
    assert instance.status("nix-boot")["since"] == since["nix-boot"]
    assert instance.status("nix-hand")["since"] != since["nix-hand"]

    instance.write(BOOT + HAND + 'shell = "/bin/sh"\nrestart_if_changed = false\nuser = "somebody"\n')
    since = {name: instance.status(name)["since"] for name in ("nix-boot", "nix-hand")}
    run_unit(instance, nix)
    assert "nix-rest" in instance.names()
    run_unit(instance, nix, prune=True)
    assert states(instance) == {"nix-boot": "running", "nix-hand": "running"}
    assert instance.status("nix-hand")["pending"] == "restart"
    assert {name: instance.status(name)["since"] for name in since} == since
