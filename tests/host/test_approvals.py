"""What a person allows beside a list is open at once, ends when it is to end, and is told to whoever asked."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.host.egress import NOERROR, REFUSED, Agent, eventually, kill_egress_proxy, open_hutch, start_agent
from tests.host.faults import count, strike
from tests.host.instance import Instance
from tests.support.world import FAR, FAR_PORTS, FAR_UDP, LAN, World

PORT, OTHER_PORT = FAR_PORTS
BOUND = 1.0  # seconds from `allow` to the first connection, as docs/egress.md has it
BUSY = 6  # how many times as long it may take beside other tests
STRIDE = 7  # of the effects of a command, so many are passed over before it is killed again
FRESH = iter(FAR[1:40])


class Place:
    """A workspace `listed` with a list, and `closed` with none; an agent in each."""

    def __init__(self, instance: Instance, agents: dict[str, Agent], tables: str) -> None:
        self.instance, self.zone, self.tables = instance, instance.world.zone, tables
        self.listed, self.closed = agents["listed"], agents["closed"]

    @contextmanager
    def beside(self, **one: str) -> Iterator[Callable[[str], object]]:
        """A container beside them that is declared, and gone afterwards; yields what brings it up with other keys."""
        ((name, keys),) = one.items()

        def declare(keys: str) -> None:
            self.instance.write(f'{self.tables}[workspaces.{name}]\ntype = "container"\n{keys}\n')

        def become(keys: str) -> None:
            declare(keys)
            self.instance.up(name)

        declare(keys)
        try:
            yield become
        finally:
            self.instance.hutch("rm", "--purge", "--force", name)
            self.instance.write(self.tables)

    def put(self, name: str, ttl: int = 60) -> str:
        """A name that leads to an address of its own, which is refused so far."""
        address = next(FRESH)
        self.zone.put(name, a=[address], ttl=ttl)
        return address

    def why(self, name: str, host: str) -> tuple[int, str]:
        found = self.instance.inside(name, "hutch-why", host, check=False)
        return found.returncode, found.stdout

    def context(self, name: str) -> str:
        return self.instance.inside(name, "sh", "-c", 'cat "$HUTCH_CONTEXT"').stdout


@pytest.fixture(scope="module")
def place(world: World, images: Path, workspace_type: str) -> Iterator[Place]:
    with open_hutch(world, images) as instance, ExitStack() as stack:
        tables = (
            f'[workspaces.listed]\ntype = "{workspace_type}"\negress = ["far.example", "*.t.example"]\n'
            '[workspaces.closed]\ntype = "container"\negress = "none"\n'
        )
        instance.write(tables)
        instance.up()
        agents = {name: stack.enter_context(start_agent(instance, name)) for name in ("listed", "closed")}
        yield Place(instance, agents, tables)


@pytest.mark.vm(slow=True)
def test_what_is_allowed_is_reached_within_a_second(place: Place) -> None:
    address = place.put("pkg.example")
    assert place.listed.ask("pkg.example").code == REFUSED
    assert eventually(lambda: "pkg.example" in place.instance.hutch("approvals", "listed").stdout)
    start = time.monotonic()
    with place.instance.spawn("allow", "listed", "pkg.example") as process:
        assert eventually(lambda: place.listed.reach("pkg.example") == address, BOUND * BUSY, pause=0.01)
        took = time.monotonic() - start
        assert process.wait(timeout=60) == 0
    print(f"allow to first connection: {took:.3f} s")
    assert place.listed.reach("pkg.example", OTHER_PORT) == address
    assert place.listed.dial(address, FAR_UDP, "udp").said == address
    assert place.closed.ask("pkg.example").code == REFUSED  # it is this workspace's alone
    assert "pkg.example" not in place.instance.hutch("approvals", "listed").stdout


def test_what_is_allowed_for_longer_than_the_kernel_counts_is_open(place: Place) -> None:
    address = place.put("ages.example")
    place.instance.hutch("allow", "listed", "ages.example", "--for", "999999d")
    assert place.listed.reach("ages.example") == address


@pytest.mark.slow
@pytest.mark.vm(slow=True)
def test_it_is_a_part_of_what_is_planned_and_stays(place: Place) -> None:
    address, instance = place.put("stays.example"), place.instance
    instance.hutch("allow", "listed", f"stays.example:{PORT}")
    plan = instance.hutch("plan", "--check")
    assert "`hutch allow` has opened" in plan.stdout + plan.stderr
    assert f"stays.example:{PORT}" in instance.status("listed")["allowed"]
    instance.up()
    assert place.listed.reach("stays.example") == address
    assert place.listed.dial(address, OTHER_PORT).error
    kill_egress_proxy(instance)
    instance.up()
    assert eventually(lambda: place.listed.reach("stays.example") == address)


@pytest.mark.slow
def test_it_outlives_a_restart_and_gives_way_to_the_file(place: Place) -> None:
    address, instance = place.put("pkg.restart.example"), place.instance

    def says(name: str) -> tuple[int, list[str]]:
        with start_agent(instance, "web") as agent:
            found = agent.ask(name)
            return found.code, [agent.dial(ip).said for ip in found.ips]

    with place.beside(web='egress = "none"') as declare:
        instance.hutch("up", "--no-start", "web")
        instance.hutch("allow", "web", "pkg.restart.example")
        instance.hutch("start", "web")
        instance.hutch("restart", "web")
        assert says("pkg.restart.example") == (NOERROR, [address])
        suggested = instance.hutch("egress", "web", "--suggest").stdout
        assert '"pkg.restart.example"' in suggested
        declare(suggested)
        assert instance.status("web")["allowed"] == []
        assert says("pkg.restart.example") == (NOERROR, [address])
        declare('egress = ["far.example"]')
        assert "networks: far.example." in place.context("web")
        assert says("pkg.restart.example") == (REFUSED, [])  # the file has had the last word


@pytest.mark.vm(slow=True)
def test_what_is_allowed_for_a_while_ends_by_itself_with_its_connections(place: Place) -> None:
    address, listed = place.put("while.example", ttl=600), place.put("stays.t.example", ttl=1)
    place.listed.ask("stays.t.example")
    place.listed.hold("listed", listed)
    start = time.monotonic()
    place.instance.hutch("allow", "listed", "while.example", "--for", "8s")
    assert place.listed.reach("while.example") == address
    place.listed.hold("while", address)
    assert place.listed.lives("while")
    assert eventually(lambda: not alive(place.listed, "while"), 12.0, pause=0.2)
    assert time.monotonic() - start > 7
    assert place.listed.dial(address).error
    assert place.listed.ask("while.example").code == REFUSED
    assert place.instance.status("listed")["allowed"].count("while.example") == 0
    assert alive(place.listed, "listed")
    assert place.instance.hutch("plan", "--check").returncode == 0


def alive(agent: Agent, key: str) -> bool:
    return agent.lives(key, patience=0.5)


@pytest.mark.slow
@pytest.mark.vm(slow=True)
def test_deny_cuts_what_was_allowed_and_nothing_else(place: Place) -> None:
    address, other, listed = place.put("cut.example"), place.put("kept.example"), place.put("long.t.example", ttl=1)
    for name in ("cut.example", "kept.example"):
        place.instance.hutch("allow", "listed", name)
        place.listed.ask(name)
    place.listed.ask("long.t.example")
    for key, where in (("cut", address), ("kept", other), ("long", listed)):
        place.listed.hold(key, where)
    assert eventually(lambda: bool(place.listed.dial(listed).error))  # its answer is over: by its mark alone it goes on
    place.instance.hutch("deny", "listed", "cut.example")
    assert not alive(place.listed, "cut")
    assert place.listed.dial(address).error
    assert place.listed.ask("cut.example").code == REFUSED
    assert alive(place.listed, "kept")
    assert alive(place.listed, "long")
    assert place.listed.reach("kept.example") == other
    assert "cut.example" not in place.instance.hutch("approvals", "listed").stdout
    assert "cut.example" in place.instance.hutch("approvals", "listed", "--all").stdout


@pytest.mark.slow
def test_deny_closes_what_an_egress_proxy_opened_that_is_gone(place: Place) -> None:
    address = place.put("gone.example", ttl=600)
    place.instance.hutch("allow", "closed", "gone.example")
    assert place.closed.reach("gone.example") == address
    place.closed.hold("gone", address)
    kill_egress_proxy(place.instance)
    place.instance.hutch("deny", "closed", "gone.example")
    assert not alive(place.closed, "gone")
    assert place.closed.dial(address).error


@pytest.mark.slow
def test_two_names_at_one_address_are_open_by_either(place: Place) -> None:
    address = place.put("one.example")
    place.zone.put("two.example", a=[address])
    for name in ("one.example", "two.example"):
        place.instance.hutch("allow", "closed", name)
        assert place.closed.reach(name) == address
    place.instance.hutch("deny", "closed", "two.example")
    assert place.closed.reach("one.example") == address


def test_nothing_private_is_allowed_by_a_name(place: Place) -> None:
    place.zone.put("inner.example", a=[LAN])
    place.instance.hutch("allow", "closed", "inner.example")
    assert place.closed.ask("inner.example").ips == []
    assert place.closed.dial(LAN, 80, patience=1.0).said == ""
    code, said = place.why("closed", "inner.example")
    assert code == 1
    assert "private addresses only" in said
    refused = place.instance.hutch("allow", "closed", LAN, check=False)
    assert refused.returncode == 2
    assert "is an address" in refused.stderr


@pytest.mark.vm(slow=True)
def test_who_asked_is_told_why_and_what_to_do(place: Place) -> None:
    place.put("why.example")
    asks = f"dig +tries=1 +time=3 @{place.instance.gateway} why.example"
    said = place.instance.inside("listed", "sh", "-c", asks, check=False).stdout
    assert "EDE: 15 (Blocked)" in said
    assert "hutch allow listed why.example" in said
    code, said = place.why("listed", "https://Why.example:443/path")
    assert code == 1
    assert said.startswith("why.example: blocked: egress of listed does not list it. A person on the host can open it:")
    assert said.endswith(" hutch allow listed why.example\n")
    assert place.why("listed", "far.example") == (
        0,
        f"far.example: allowed: egress of listed lists it\n  {FAR[0]}\n",
    )
    place.instance.hutch("allow", "listed", "why.example", "--for", "1h")
    code, said = place.why("listed", "why.example")
    assert code == 0
    assert "a person has opened why.example until 20" in said
    place.instance.hutch("deny", "listed", "why.example")
    code, said = place.why("listed", "why.example")
    assert code == 1
    assert "a person has said no" in said


@pytest.mark.slow
@pytest.mark.vm(slow=True)
def test_the_context_file_is_kept_current(place: Place) -> None:
    text = place.context("listed")
    assert "# The workspace listed" in text
    assert "far.example, *.t.example" in text
    assert place.instance.ssh("listed", 'cat "$HUTCH_CONTEXT"').stdout == text
    place.instance.hutch("allow", "listed", "told.example")
    assert "told.example" in place.context("listed")
    place.instance.inside("listed", "sh", "-c", 'echo mine >"$HUTCH_CONTEXT"', root=True)
    place.instance.hutch("deny", "listed", "told.example")
    text = place.context("listed")
    assert "mine" not in text
    assert "no to:" in text


@pytest.mark.slow
def test_where_nothing_is_refused_by_name_it_says_so(place: Place) -> None:
    with place.beside(free="") as become:
        become("")
        for words in (("allow", "free", "a.example"), ("deny", "free", "a.example"), ("approvals", "free")):
            result = place.instance.hutch(*words, check=False)
            assert result.returncode == 2
            assert "nothing is refused by name" in result.stderr
        assert place.why("free", "far.example") == (
            0,
            f"far.example: allowed: nothing is refused by name\n  {FAR[0]}\n",
        )


def test_a_guest_can_not_allow_itself(place: Place) -> None:
    """It has its resolver to speak to, and nothing of what it writes is read."""
    place.put("self.example")
    inside = place.instance.inside
    inside("closed", "sh", "-c", "echo '- Only these names: self.example' >/run/hutch-context.md", root=True)
    inside("closed", "sh", "-c", "printf '#!/bin/sh\\nexit 0\\n' >/usr/local/bin/hutch-why", root=True)
    assert place.closed.ask("self.example").code == REFUSED
    found = json.loads(place.instance.hutch("approvals", "closed", "--json").stdout)
    assert "self.example" in [refusal["host"] for refusal in found] or eventually(
        lambda: "self.example" in place.instance.hutch("approvals", "closed").stdout
    )
    assert place.closed.ask("self.example").code == REFUSED


@pytest.mark.slow
@pytest.mark.parametrize("command", ["allow", "deny"])
def test_a_decision_that_is_killed_anywhere_is_finished_by_the_next_up(place: Place, command: str) -> None:
    """What is open afterwards is what the record says."""
    address, instance = place.put(f"{command}.killed.example"), place.instance
    name, other = f"{command}.killed.example", {"allow": "deny", "deny": "allow"}[command]
    instance.hutch(other, "closed", name)
    effects = count(instance, command, "closed", name)
    for point in range(1, len(effects) + 1, STRIDE):
        instance.hutch(other, "closed", name)
        assert strike(instance, "kill", point, command, "closed", name).is_struck
        instance.up()
        assert instance.hutch("plan", "--check").returncode == 0
        is_open = name in instance.status("closed")["allowed"]
        assert place.closed.reach(name) == (address if is_open else ""), effects[point - 1]
