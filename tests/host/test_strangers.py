"""What an account of the host that owns no workspace can read of those that run: not what they may reach, nor more."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.support.world import PUBLIC_NAME, World

WALK = """
import os, sys
TOPS, WORDS = sys.argv[1:-1], sys.argv[-1].split()
for top in TOPS:
    for directory, _, files in os.walk(top):
        for name in files:
            path = os.path.join(directory, name)
            try:
                with open(path, "rb") as file:
                    content = file.read(1 << 20)
            except OSError:
                continue
            print("listed" if any(word.encode() in content for word in WORDS) else "readable", path)
"""


PUBLIC = {"known_hosts", *(f"{service}.pid" for service in ("egress", "host", "router", "watch"))}
"""The files that are everybody's: whoever uses ssh reads whom it is to trust, and processes are seen anyway."""


@pytest.fixture(scope="module")
def hers(world: World, images: Path) -> Iterator[Instance]:
    with open_instance(world, images) as instance:
        keys = f'owner = "alice"\negress = ["{PUBLIC_NAME}:80"]\nenv = {{ SECRET = "x" }}\n'
        instance.declare("container", web=keys)
        instance.up()
        yield instance


def test_a_stranger_reads_no_list(hers: Instance) -> None:
    account = hers.world.accounts["bob"]
    argv = account.command("python3", "-c", WALK, str(hers.state), str(hers.run), f"{PUBLIC_NAME} SECRET")
    said = subprocess.run(argv, env=account.environment(), capture_output=True, text=True, timeout=120, check=True)
    found = [line.split(" ", 1) for line in said.stdout.splitlines()]
    assert [path for kind, path in found if kind == "listed"] == []
    assert {Path(path).name for _, path in found} <= PUBLIC, said.stdout
