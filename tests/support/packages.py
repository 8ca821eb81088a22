"""Builds the Debian package of this checkout for tests, by script/package, with the machine's own network: what it
brings along of other people's comes from where uv looks.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from package.control import DEFAULT
from tests.support.enclosure import OUTER_NETWORK

CHECKOUT = Path(__file__).parents[2]


def build_package(output: Path, revision: str, distribution: str = DEFAULT) -> Path:
    """The file; what stands in it as the version has this `revision`."""
    outside = ("nsenter", f"--net={os.environ[OUTER_NETWORK]}", "--")
    told = (f"--output={output}", f"--revision={revision}", f"--for={distribution}")
    command = [*outside, str(CHECKOUT / "script/package"), *told]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return Path(result.stdout.strip())
