"""Runs Nix for tests: it evaluates and parses, with a store and a configuration of its own, and changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

CHECKOUT = Path(__file__).parents[2]
PROGRAM = "nix-instantiate"
FILES = [
    *sorted((CHECKOUT / "nix").glob("*.nix")),
    *sorted((CHECKOUT / "tests/host/nix").glob("*.nix")),
    CHECKOUT / "flake.nix",
    CHECKOUT / "examples/nixos.nix",
]


@dataclass(frozen=True)
class Nix:
    """The evaluator, which finds package sets where `NIX_PATH` says."""

    directory: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        places = {f"NIX_{name}_DIR": str(self.directory / name.lower()) for name in ("CONF", "LOG", "STATE", "STORE")}
        environment = {**places, "HOME": str(self.directory), "PATH": os.environ["PATH"], "NIX_PATH": package_sets()}
        return subprocess.run(
            [PROGRAM, *arguments],
            cwd=CHECKOUT,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def evaluate(self, expression: str) -> Any:
        """The value of an expression, whose paths are relative to the checkout."""
        result = self.run("--eval", "--strict", "--json", "--readonly-mode", "--expr", expression)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    def refuse(self, expression: str) -> str:
        """Why an expression has no value."""
        result = self.run("--eval", "--strict", "--json", "--readonly-mode", "--expr", expression)
        assert result.returncode != 0, result.stdout
        return result.stderr

    def module(self, configuration: str) -> dict[str, Any]:
        """The options of the module, and what it configures for the configuration in a file."""
        value = self.evaluate(f"import ./tests/host/nix/evaluate.nix {{ configuration = {configuration}; }}")
        assert isinstance(value, dict)
        return value


def package_sets() -> str:
    """What the person who runs the tests has of nixpkgs."""
    return os.environ.get("NIX_PATH", "")


@contextmanager
def open_nix() -> Iterator[Nix]:
    with TemporaryDirectory(prefix="hutch-nix-") as directory:
        nix = Nix(Path(directory))
        (nix.directory / "conf").mkdir()
        (nix.directory / "conf" / "nix.conf").write_text("build-users-group =\n")  # there is no such group
        yield nix


def is_here() -> bool:
    return shutil.which(PROGRAM) is not None


def told(module: Mapping[str, Any]) -> Any:
    """The content of hutch.toml."""
    return module["config"]["environment"]["etc"]["hutch/hutch.toml"]["source"]
