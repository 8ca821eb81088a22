"""The shell that stays beside a machine, in the part that waits for its last words."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "src/hutch/backends/machine.sh"
STAGE = """
set -eu
close_links() { :; }
sleep() { command sleep 0.2; } # the patience that it has, in less time
main=$$ hearing= servers= watching=
. "$1"
"""


@pytest.mark.parametrize("shell", ["dash", "bash --posix"])
@pytest.mark.parametrize(("relay", "ended"), [("exec sleep 100", 137), ("exit 7", 7)], ids=["held open", "at its end"])
def test_whoever_holds_the_log_open_does_not_change_what_the_end_means(shell: str, relay: str, ended: int) -> None:
    """The shell goes on to judge the end, however the relay and the one that limits it have ended."""
    script = f"{STAGE}\n({relay}) &\nsaid=$!\nfinish\necho judged $awaited\ncommand sleep 0.5\necho goes on"
    argv = [*shell.split(), "-c", script, "sh", str(SCRIPT)]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout.splitlines()) == (0, [f"judged {ended}", "goes on"]), result.stderr
