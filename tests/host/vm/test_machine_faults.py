"""`kill -9` of the command line at some of its effects on a machine: the same checks as for containers, fewer points,
since each start takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.host.faults import check_idle, check_ports, check_reconciled, count, fill_home, home_digest, shape, strike
from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.support.world import World

REMOVE = ("rm", "--force", "lab")
COMMANDS = {
    "create": (("up",), REMOVE),
    "start": (("start", "lab"), ("stop", "lab")),
    "rm": (REMOVE, None),
}


@pytest.fixture(scope="module")
def machine(world: World, images: Path) -> Iterator[tuple[Instance, list[str], str]]:
    """A hutch with one machine, what it looks like, and what is in the home."""
    with open_instance(world, images) as instance:
        instance.declare("vm", lab='publish = ["18090:80"]')
        instance.up()
        fill_home(instance, "lab")
        yield instance, shape(instance), home_digest(instance, "lab")


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_kill_at_some_effects(
    machine: tuple[Instance, list[str], str], name: str, request: pytest.FixtureRequest
) -> None:
    instance, wanted, home = machine
    command, before = COMMANDS[name]

    def prepare() -> None:
        instance.up()
        if before is not None:
            instance.hutch(*before)

    prepare()
    effects = len(count(instance, *command))
    for share in (0.2, 0.35, 0.5, 0.65, 0.8, 0.95) if request.config.getoption("--long") else (0.35, 0.8):
        prepare()
        struck = strike(instance, "kill", round(effects * share), *command)
        assert struck.is_struck, struck
        check_ports(instance)
        instance.up()
        check_ports(instance)
        assert home_digest(instance, "lab") == home, struck.last
        check_reconciled(instance, wanted, "lab")
        check_idle(instance)
