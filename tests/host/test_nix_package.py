"""The Nix package: what it is made of, and what it changes in hutch. It is not built: that takes nixpkgs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from hutch.host.doctor import packages
from tests.host import nix_eval
from tests.host.nix_eval import CHECKOUT, Nix

pytestmark = pytest.mark.skipif(not nix_eval.is_here(), reason=f"{nix_eval.PROGRAM} is not installed")


@pytest.fixture(scope="module")
def nix() -> Iterator[Nix]:
    with nix_eval.open_nix() as nix:
        yield nix


def test_the_package_has_what_hutch_needs(nix: Nix) -> None:
    runtime = [item for item in packages.REQUIREMENTS if item.set == "runtime"]
    known = set(nix.evaluate("builtins.attrNames (import ./nix/host.nix { })"))
    assert known == {"essential", *(name for item in runtime for name in item.apt)}


def test_the_package_has_the_dependencies_of_the_project(nix: Nix) -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    wanted = [re.split("[<>=]", dependency)[0] for dependency in project["dependencies"]]
    listed = " ".join(json.dumps(name) for name in [*wanted, "hatchling", "setuptools", "setuptools-scm"])
    found = nix.evaluate(
        f"""
        let
          python = builtins.listToAttrs (map (name: {{ inherit name; value = name; }}) [ {listed} ]);
          package = import ./nix/package.nix {{
            lib = import ./tests/host/nix/lib.nix;
            buildEnv = environment: environment.name;
            fetchurl = source: source;
            installShellFiles = "installShellFiles";
            pkgs = {{ }};
            systemd = "/systemd";
            python3 = {{
              sitePackages = "lib";
              pkgs = python // {{
                tree-sitter-grammars = python;
                buildPythonApplication = package: package;
                buildPythonPackage = package: package // {{ outPath = "/${{package.pname}}"; }};
              }};
            }};
          }};
          nameOf = dependency: dependency.pname or dependency;
          own = builtins.filter builtins.isAttrs package.dependencies;
        in {{
          inherit (package) pname version;
          dependencies = builtins.sort (a: b: a < b) (map nameOf package.dependencies);
          own = map (dependency: dependency.src) own;
        }}
        """
    )
    locked = tomllib.loads((CHECKOUT / "uv.lock").read_text())["package"]
    source = next(package["sdist"] for package in locked if package["name"] == "qemu-qmp")
    assert found == {
        "pname": project["name"],
        "version": project["version"],
        "dependencies": sorted(wanted),
        "own": [{"url": source["url"], "sha256": source["hash"].removeprefix("sha256:")}],
    }


def test_what_the_package_changes_in_hutch(nix: Nix, tmp_path: Path) -> None:
    """Every text is still there to be changed, and then leads into the store: this host's programs take the place of
    nixpkgs' here."""
    tools = tmp_path / "tools"
    for program in ("bin/virtiofsd", "share/qemu/qboot.rom", "share/keyrings/debian-archive-keyring.pgp"):
        (tools / program).parent.mkdir(parents=True, exist_ok=True)
        (tools / program).touch(0o755)
    changes = nix.evaluate(f'import ./nix/paths.nix {{ tools = "{tools}"; systemd = "/systemd"; }}')
    source = tmp_path / "hutch"
    subprocess.run(["cp", "-r", CHECKOUT / "src" / "hutch", source], check=True, timeout=30)
    for change in changes:
        file = source / change["file"]
        text = file.read_text()
        assert change["from"] in text, change
        file.write_text(text.replace(change["from"], change["to"]))
    left = [
        f"{file.relative_to(source)}: {line.strip()}"
        for file in sorted(source.rglob("*.py"))
        for line in file.read_text().splitlines()
        if "incus" not in line and re.search(r'"/usr/(lib|share)|"--(ro-bind|bind-ro=)?", "/usr"|bind-ro=/usr', line)
    ]
    assert left == []
    look = """
import hutch.search_path, hutch.runtime.steps, hutch.backends.jail
from hutch.host.doctor.abilities import is_met
from hutch.host.doctor.packages import REQUIREMENTS
from hutch.host.doctor.tools import VIRTIOFSD, find_program
from hutch.images.build import find_keyring
from hutch.images.machine import find_firmware
print(find_program(VIRTIOFSD), find_firmware(), *find_keyring("debian-archive-keyring"))
paths = (hutch.search_path.SEARCH_PATH, hutch.runtime.steps.ENVIRONMENT["PATH"])
print(*{path.partition(":")[0] for path in paths})
print(*hutch.backends.jail.PROGRAMS[:8])
print(all(is_met(item) for item in REQUIREMENTS if VIRTIOFSD in item.proof))
"""
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    shown = subprocess.run(
        [sys.executable, "-c", look],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout.splitlines()
    assert shown == [
        f"{tools}/bin/virtiofsd {tools}/share/qemu/qboot.rom {tools}/share/keyrings/debian-archive-keyring.pgp",
        f"{tools}/bin",
        f"--dir /nix --ro-bind /nix/store /nix/store --symlink {tools}/bin /bin",
        "True",
    ]


def test_the_flake_offers_module_and_package(nix: Nix) -> None:
    """What is in it, without the inputs that it takes."""
    found = nix.evaluate(
        """
        let
          flake = import ./flake.nix;
          hutch = { name = "hutch"; tools = "tools"; };
          outputs = flake.outputs {
            self = outputs;
            nixpkgs.legacyPackages.x86_64-linux = {
              callPackage = file: _: hutch // { inherit file; };
              mkShell = shell: shell.packages;
              python3 = "python3";
              uv = "uv";
            };
            nixpkgs.lib.nixosSystem = system: {
              config.systemd.units."hutch.service".unit = map toString system.modules;
              config.environment.etc."hutch/hutch.toml".source = "hutch.toml";
            };
          };
          final.callPackage = file: _: toString file;
        in {
          inputs = builtins.attrNames flake.inputs;
          module = toString outputs.nixosModules.default;
          package = toString outputs.packages.x86_64-linux.default.file;
          overlay = (outputs.overlays.default final { }).hutch;
          checks = outputs.checks.x86_64-linux // { hutch = null; };
          shell = outputs.devShells.x86_64-linux.default;
        }
        """
    )
    module, package = (str(CHECKOUT / "nix" / name) for name in ("module.nix", "package.nix"))
    assert found == {
        "inputs": ["nixpkgs"],
        "module": module,
        "package": package,
        "overlay": package,
        "checks": {"hutch": None, "unit": [module, str(CHECKOUT / "examples/nixos.nix")], "file": "hutch.toml"},
        "shell": ["python3", "uv", "tools"],
    }
