"""docs/up.md happens as it says."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.host.instance import Instance
from tests.host.pages import Story, check_page

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def begin(instance: Instance) -> Iterator[Callable[[list[str]], None]]:
    """Starts an ssh session that goes on until its workspace stops."""
    begun: list[subprocess.Popen[bytes]] = []

    def start(argv: list[str]) -> None:
        assert argv[0] == "ssh"
        name = argv[1].removeprefix("workspace-")
        null = subprocess.DEVNULL
        process = subprocess.Popen(argv, stdin=null, stdout=null, stderr=null, env=instance.environment())
        begun.append(process)
        deadline = time.monotonic() + 20
        while instance.inside(name, "pgrep", "-u", "dev", "-x", argv[2], check=False).returncode:
            assert time.monotonic() < deadline and process.poll() is None

    yield start
    for process in begun:
        process.kill()
        process.wait(timeout=10)


def test_up(instance: Instance, begin: Callable[[list[str]], None]) -> None:
    check_page(DOCS / "up.md", Story(instance, begin))
