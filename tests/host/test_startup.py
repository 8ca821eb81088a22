"""Commands that only read records start fast, because they load nothing that they do not use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Each takes longer to import than all that `hutch ls` has to do.
HEAVY = frozenset({"pydantic", "rich", "tree_sitter", "asyncio", "email", "http", "importlib.metadata", "logging"})

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
