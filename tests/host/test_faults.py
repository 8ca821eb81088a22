"""`kill -9` of the command line at each of its effects, and errors of the disk at each of its writes, one by one.

Each fault is followed by the four checks of tests/host/faults. By default every command is struck at a few of its
effects, spread over all of them, and some commands only where slow tests run; `script/test --all` takes the effects
one by one.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.host.faults import (
    Guard,
    check_idle,
    check_ports,
    check_reconciled,
    count,
    fill_home,
    guarded,
    home_digest,
    layout_of,
    shape,
    strike,
)
from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.support.world import World

FEW = 2  # effects of each command that are struck by default
KINDS = ("kill", "ENOSPC", "EIO")
USUAL = ("create", "live", "rm")  # commands that are killed in every run; the others' turn comes where slow tests run
PLAIN = 'publish = ["18090:80"]\n'


@dataclass(frozen=True)
class Scenario:
    """`before` brings `web` to where the command begins; the next `up` is to lead to the file's state, whatever came.
    Where a change goes to and fro, `keys` are the two things that the file says of `web` in turn."""

    command: tuple[str, ...]
    before: tuple[tuple[str, ...], ...] = ()
    keys: tuple[str, str] = (PLAIN, PLAIN)


REMOVE = ("rm", "--force", "web")
SCENARIOS = {
    "create": Scenario(("up",), (REMOVE,)),
    "start": Scenario(("start", "web"), (("stop", "web"),)),
    "live": Scenario(("up",), keys=(PLAIN, 'publish = ["18091:80"]\n')),
    "restart-key": Scenario(("up",), keys=(PLAIN, PLAIN + 'shell = "/bin/sh"\n')),
    "recreate": Scenario(("up",), keys=(PLAIN, PLAIN + 'persist = "all"\n')),
    "restart": Scenario(("restart", "web")),
    "stop": Scenario(("stop", "web")),
    "rm": Scenario(REMOVE),
}


@pytest.fixture(scope="module")
def pair(world: World, images: Path, workspace_type: str) -> Iterator[Instance]:
    """A hutch with `web`, which is struck, and `lab`, which must not notice."""
    with open_instance(world, images) as instance:
        declare(instance, workspace_type, PLAIN)
        instance.up()
        for name in ("web", "lab"):
            fill_home(instance, name)
        yield instance


@pytest.fixture(scope="module")
def guard(pair: Instance) -> Iterator[Guard]:
    with guarded(pair) as guard:
        yield guard


def declare(instance: Instance, workspace_type: str, keys: str) -> None:
    instance.declare(workspace_type, web=keys, lab="")


def points(number: int, *, every_one: bool) -> list[int]:
    """Which of so many effects are struck."""
    step = 1 if every_one else -(-number // FEW)
    return list(range(1 + (step - 1) // 2, number + 1, step))


class Failures:
    """Goes on after a fault that did harm, so that one run tells of all."""

    def __init__(self, title: str) -> None:
        self.title, self.struck, self.effects, self.found = title, 0, 0, [""]

    def collect(self, what: str, check: Callable[[], None]) -> None:
        try:
            check()
        except AssertionError as error:
            self.found.append(f"{what}:\n{error}\n")

    def end(self) -> None:
        print(f"{self.title}: struck at {self.struck} of {self.effects}")
        assert self.found == [""], f"{len(self.found) - 1} of {self.struck}" + "\n".join(self.found)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """All commands with all kinds of faults, or each command and each kind at least once."""
    if "how" in metafunc.fixturenames:
        every_one = [pytest.param(name, how) for how in KINDS for name in SCENARIOS]
        rest = [*((name, "kill") for name in SCENARIOS if name not in USUAL), ("create", "ENOSPC"), ("recreate", "EIO")]
        few = [pytest.param(name, "kill") for name in USUAL]
        few += [pytest.param(*case, marks=pytest.mark.slow) for case in rest]
        metafunc.parametrize(("name", "how"), every_one if metafunc.config.getoption("--long") else few)


def test_a_fault_at_every_effect(
    pair: Instance, guard: Guard, workspace_type: str, name: str, how: str, request: pytest.FixtureRequest
) -> None:
    scenario, failures = SCENARIOS[name], Failures(f"{name} {how}")
    every_one = request.config.getoption("--long")
    wanted = {}
    for keys in dict.fromkeys(scenario.keys):
        declare(pair, workspace_type, keys)
        pair.up()
        wanted[keys] = shape(pair)
    homes = {name: home_digest(pair, name) for name in ("web", "lab")}
    turn = len(wanted) - 1

    def prepare() -> str:
        nonlocal turn
        turn += 1
        keys = scenario.keys[turn % 2]
        declare(pair, workspace_type, keys)
        for command in scenario.before:
            pair.hutch(*command)
        return keys

    def after(keys: str) -> None:
        guard.check()
        pair.up()
        guard.check()
        assert {name: home_digest(pair, name) for name in ("web", "lab")} == homes
        check_reconciled(pair, wanted[keys], "web", "lab")
        check_idle(pair)

    keys = prepare()
    effects = failures.effects = number_of(how, pair, *scenario.command)
    after(keys)
    for point in points(effects, every_one=every_one):
        keys = prepare()
        struck = strike(pair, how, point, *scenario.command)
        failures.struck += struck.is_struck
        if how != "kill" and struck.is_struck and struck.code not in (0, 1):
            failures.found.append(f"{struck.last}: code {struck.code}: {struck.stderr}")
        failures.collect(f"{struck.last} of {scenario.command}", lambda keys=keys: after(keys))  # type: ignore[misc]
        if len(failures.found) > 8:
            break
    failures.end()
    assert failures.struck > 0


def number_of(how: str, instance: Instance, *command: str) -> int:
    """How many effects, or writes, a command has here; it is run."""
    if how == "kill":
        return len(count(instance, *command))
    struck = strike(instance, how, 10**6, *command)
    assert struck.code == 0, struck.stderr
    return len((instance.directory / "report").read_text().splitlines())


# The first and the last workspace of a host.


@pytest.mark.slow
def test_a_kill_at_every_effect_of_the_first_up_and_of_the_last_rm(
    world: World, images: Path, workspace_type: str, request: pytest.FixtureRequest
) -> None:
    every_one = request.config.getoption("--long")
    failures = Failures("first up, last rm and purge")
    with open_instance(world, images) as instance:
        instance.declare(workspace_type, web=PLAIN)
        instance.up()
        fill_home(instance, "web")
        wanted, home = shape(instance), home_digest(instance, "web")

        def after() -> None:
            check_ports(instance)
            instance.up()
            assert home_digest(instance, "web") == home
            check_reconciled(instance, wanted, "web")
            check_idle(instance)

        for command, before in ((("up",), (REMOVE,)), (REMOVE, ())):
            for step in before:
                instance.hutch(*step)
            effects = number_of("kill", instance, *command)
            failures.effects += effects
            after()
            for point in points(effects, every_one=every_one):
                for step in before:
                    instance.hutch(*step)
                struck = strike(instance, "kill", point, *command)
                failures.struck += struck.is_struck
                failures.collect(f"{struck.last} of {command}", after)
    failures.end()


@pytest.mark.slow
def test_a_kill_at_every_effect_of_a_purge(
    world: World, images: Path, workspace_type: str, request: pytest.FixtureRequest
) -> None:
    """The home is whole, or as if it had never been; the other workspace's is whole."""
    every_one = request.config.getoption("--long")
    failures = Failures("purge")
    purge = ("rm", "--purge", "--force", "web")
    with open_instance(world, images) as instance:
        declare(instance, workspace_type, PLAIN)
        instance.up()
        fill_home(instance, "lab")
        fill_home(instance, "web")
        home, other = home_digest(instance, "web"), home_digest(instance, "lab")
        effects = failures.effects = number_of("kill", instance, *purge)
        for point in points(effects, every_one=every_one):
            instance.up()
            fill_home(instance, "web")
            struck = strike(instance, "kill", point, *purge)
            failures.struck += struck.is_struck

            def after() -> None:
                check_ports(instance)
                instance.up()
                left = home_digest(instance, "web")
                is_new = not any(layout_of(instance).home("web").glob("precious"))
                assert left == home or is_new
                assert home_digest(instance, "lab") == other
                check_idle(instance)

            failures.collect(f"{struck.last} of {purge}", after)
    failures.end()


# The checks themselves.


def test_the_checks_see_what_they_are_for(world: World, images: Path) -> None:
    with open_instance(world, images) as instance:
        instance.declare("container", seen=PLAIN)
        instance.up()
        fill_home(instance, "seen")
        wanted, home = shape(instance), home_digest(instance, "seen")
        check_ports(instance)
        check_reconciled(instance, wanted, "seen")

        flush = ["ip", "netns", "exec", layout_of(instance).namespace, "nft", "flush", "ruleset"]
        subprocess.run(flush, check=True, timeout=10)
        with pytest.raises(AssertionError, match="up without filters"):
            check_ports(instance)
        instance.up()
        subprocess.run(["nft", "delete", "table", "inet", layout_of(instance).table], check=True, timeout=10)
        with pytest.raises(AssertionError, match="without the host's barrier"):
            check_ports(instance)
        instance.up()
        check_ports(instance)

        left = instance.state / "workspaces" / "seen" / ".workspace.json.hutch-new"
        left.touch()
        with pytest.raises(AssertionError, match="hutch-new"):
            check_reconciled(instance, wanted, "seen")
        left.unlink()
        instance.inside("seen", "sh", "-c", "echo other > ~/precious/file")
        assert home_digest(instance, "seen") != home
        instance.hutch("stop", "seen")
        with pytest.raises(AssertionError):
            check_reconciled(instance, wanted, "seen")
        with pytest.raises(AssertionError):
            check_idle(instance)
