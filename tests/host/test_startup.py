"""What people wait for starts fast, because it loads nothing that it does not use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hutch.spec.names import Layout
from hutch.spec.record import Record
from hutch.state import write_record
from tests.unit.facts import workspace

# Each takes longer to import than all that `hutch ls` has to do, or is for workspaces that others run.
HEAVY = frozenset(
    {
        *("pydantic", "rich", "tree_sitter", "asyncio", "email", "http", "importlib.metadata", "logging"),
        *(
            "hutch.engines.incus",
            "hutch.engines.incus.client",
            "hutch.engines.protocols",
            "concurrent.futures",
            "hutch.backends.incus",
        ),
    }
)

PROGRAM = """
import sys
sys.argv[0] = "hutch"
from hutch.cli import main
try:
    code = main()
except SystemExit as end:
    code = end.code
print("loaded:", *sorted(sys.modules), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize("command", [["ls"], ["ls", "--json"], ["status"], ["status", "--json"]], ids=" ".join)
def test_reading_commands_load_little(command: list[str], tmp_path: Path) -> None:
    """With workspaces of this host alone, nothing is loaded that is for those of others."""
    layout = Layout(tmp_path / "state", tmp_path / "run")
    for name in ("web", "lab"):
        declared = workspace(name, home=str(layout.home(name)))
        write_record(layout, Record(name, "/srv/hutch.toml", declared, "debian-trixie-0123456789ab", 1 << 16, "0" * 32))
    environment = {
        "PATH": os.environ["PATH"],
        "HUTCH_STATE_DIR": str(tmp_path / "state"),
        "HUTCH_RUN_DIR": str(tmp_path / "run"),
    }
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, *command],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=30,
    )
    assert result.returncode == 0, result.stderr
    loaded = next(line for line in result.stderr.splitlines() if line.startswith("loaded: ")).split()[1:]
    assert HEAVY.isdisjoint(loaded), sorted(HEAVY & set(loaded))


# Each takes milliseconds, most of them since they bring the others with them.
NOT_BEFORE_A_GUEST = frozenset(
    {"collections", "enum", "functools", "inspect", "re", "typing", "dataclasses", "socket", "json", "signal"}
)
PROGRAMS = ("hutch.runtime.runner", "hutch.runtime.pre_exec", "hutch.seccomp.install")
LOADED = """
import sys
sys.path.insert(0, sys.argv[1])
__import__(sys.argv[2])
print(*sys.modules)
"""


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_runs_before_a_guest_loads_next_to_nothing(program: str) -> None:
    source = Path(__file__).parents[2] / "src"
    argv = [sys.executable, "-I", "-S", "-c", LOADED, str(source), program]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert result.returncode == 0, result.stderr
    loaded = set(result.stdout.split())
    assert NOT_BEFORE_A_GUEST.isdisjoint(loaded), sorted(NOT_BEFORE_A_GUEST & loaded)
