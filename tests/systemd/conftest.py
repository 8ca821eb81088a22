"""Fixtures of the systemd tier, which runs where the whole machine is the host under test, so that what tests do to it
is seen by those that follow: one without a kernel of its own (see tests/support/native), or an emulated one with
everything (see tests/support/stand).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.host.instance import Instance
from tests.host.opening import NUMBERS
from tests.host.residue import observe
from tests.support import machine
from tests.support.enclosure import IMAGES
from tests.support.leaving import leave_out, leave_unread
from tests.support.world import RESOLVERS, World
from tests.systemd.stand.start import ANOTHER

HAS_KERNEL = os.environ.get("HUTCH_STAND_KERNEL") != "shared"
PATIENCE = 5.0 if HAS_KERNEL else 1.5  # seconds; with what must not be reached, where the host may be emulated


def pytest_configure() -> None:
    if "HUTCH_STAND" not in os.environ:
        pytest.exit("these tests change the host that they run on: `script/test systemd` makes one for them", 4)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Of the smoke tests, only the files are read that have some: an emulated host takes seconds to do so."""
    if not config.getoption("--smoke") or not collection_path.match("test_*.py"):
        return None
    if "pytest.mark.smoke" in collection_path.read_text():
        return None
    leave_unread(config, collection_path)
    return True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Each boot of the stand has its own tests: the first one all that do not say which, and then those that do. They
    come last, since what they leave is for the next boot."""
    smoke, slow, long = (config.getoption(f"--{depth}") for depth in ("smoke", "slow", "long"))

    def is_left_out(item: pytest.Item) -> bool:
        marks = {mark.name for mark in item.iter_markers()}
        is_too_long = ("slow" in marks and not slow) or ("long" in marks and not long)
        return (smoke and "smoke" not in marks) or is_too_long or ("own_kernel" in marks and not HAS_KERNEL)

    leave_out(config, items, is_left_out)
    now = int(os.environ["HUTCH_STAND"])
    marks = {item: item.get_closest_marker("boot") for item in items}
    others = [item for item, mark in marks.items() if (mark.args[0] if mark else 1) != now]
    items[:] = sorted((item for item in items if item not in others), key=lambda item: marks[item] is not None)
    config.hook.pytest_deselected(items=others)


def ask_for_another_boot() -> None:
    """Have the stand boot again after the tests of this boot, unless one of them fails."""
    ANOTHER.touch()


@pytest.fixture(scope="session")
def world() -> Iterator[World]:
    """What is around this host, an Internet and a LAN; its resolver is asked by systemd-resolved,
    which the other host need not have."""
    world = World.build_around_a_host()
    try:
        if HAS_KERNEL:
            drop_in = Path("/etc/systemd/resolved.conf.d/world.conf")
            drop_in.parent.mkdir(exist_ok=True)
            drop_in.write_text(f"[Resolve]\nDNS={RESOLVERS[0]}\nDNSSEC=no\nDomains=~.\n")
            call("systemctl", "restart", "systemd-resolved")
        else:
            world.use_resolver(RESOLVERS[0])
        yield world
    finally:
        world.close()


@pytest.fixture
def instance(world: World) -> Iterator[Instance]:
    """A hutch for one test."""
    with open_instance(world) as instance:
        yield instance


@contextmanager
def open_instance(world: World, *, alone: bool = True) -> Iterator[Instance]:
    """A hutch that leaves the host as it was, which is to be seen where it is `alone`; apart from processes: this host
    has others, which come and go."""
    before = lasting()
    instance = Instance(world, next(NUMBERS), IMAGES)
    try:
        yield instance
    finally:
        instance.close()
    left = machine.difference(before, lasting()) if alone else ""
    assert not left, f"left on the host:\n{left}"


def lasting() -> machine.Snapshot:
    return {section: lines for section, lines in observe().items() if section != "processes"}


def call(*argv: str, check: bool = True, timeout: float = 120.0) -> str:
    """A command of the host's administrator."""
    result = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
    assert not check or result.returncode == 0, f"{' '.join(argv)}: {result.returncode}\n{result.stdout}{result.stderr}"
    return result.stdout
