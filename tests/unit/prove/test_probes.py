"""The probes as data: enough of them, each with a name of its own, and each range and rule with one."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from hutch.errors import UsageError
from hutch.host.network.firewall import router_tables
from hutch.prove import local
from hutch.prove.judge import Evidence, judge
from hutch.prove.known import check_known
from hutch.prove.link import link_probes
from hutch.prove.local import local_probes
from hutch.prove.model import PROMISES, Ground, Probe
from hutch.prove.network import RANGES, network_probes, stopped_by
from hutch.spec.model import Network
from hutch.spec.names import Layout
from hutch.spec.policy import Domain, Policy, Reach
from hutch.spec.ranges import NEVER, PRIVATE
from tests.unit.prove.ground import GROUND

LIST = Policy(
    "list", (Domain("public.example", False, 80),), (Reach("10.20.0.0/16", 5432), Reach("192.0.2.0/30", None))
)
POLICIES = [Policy(), Policy("all"), Policy("none"), LIST, replace(LIST, learn=True)]


def every(ground: Ground) -> list[Probe]:
    return [*network_probes(ground), *local_probes(ground)]


@pytest.mark.parametrize("is_machine", [False, True], ids=["container", "vm"])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: f"{policy.kind}{policy.learn or ''}")
def test_each_has_a_name_a_promise_and_a_way_to_be_judged(is_machine: bool, policy: Policy) -> None:
    probes = every(replace(GROUND, is_machine=is_machine, policy=policy))
    assert len(probes) > 100
    assert len({probe.name for probe in probes}) == len(probes)
    for probe in probes:
        assert re.fullmatch(r"[a-z0-9.-]{1,62}", probe.name), probe.name
        assert probe.promise in PROMISES
        assert not probe.ask or probe.want, probe.name
        assert not any("\t" in word or "\n" in word or not word.isascii() for word in probe.ask), probe.name
        assert probe.says
        assert probe.command.isprintable()


@pytest.mark.parametrize("is_machine", [False, True], ids=["container", "vm"])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: f"{policy.kind}{policy.learn or ''}")
def test_each_can_be_asked_for_by_its_name(is_machine: bool, policy: Policy) -> None:
    check_known([probe.name for probe in every(replace(GROUND, is_machine=is_machine, policy=policy))])


@pytest.mark.parametrize("word", ["bogus", "10", "", "host", "host-x", "3 ", "metadata\n"])
def test_what_nobody_knows_is_refused(word: str) -> None:
    with pytest.raises(UsageError, match="no promise and no probe"):
        check_known(["3", "metadata", word])


def test_positive_controls_come_first() -> None:
    names = [probe.name for probe in network_probes(GROUND)]
    first = ("gateway-ping", "dns-udp", "internet", "translated", "host-ssh", "host-listener")
    assert max(map(names.index, first)) < min(map(names.index, ("metadata", "host-ping", "spoof-mac")))


@pytest.mark.parametrize("range_", [*NEVER, *PRIVATE])
def test_each_range_has_a_probe_of_its_own(range_: str) -> None:
    name, _ = RANGES[range_]
    (probe,) = [probe for probe in network_probes(GROUND) if probe.name == name]
    assert probe.frame


def test_each_rule_that_drops_is_somebodys() -> None:
    """What a machine that runs shows by taking them out, in tests/host/test_prove."""
    network = replace(Network(), uplink="192.168.84.0/30")
    tables = router_tables(Layout(Path("/var/lib/hutch"), Path("/run/hutch")), network, (), ())
    drops = {
        f"router {table.family} {chain.name}/{rule.name}"
        for table in tables
        for chain in table.chains
        for rule in chain.rules
        if "counter" in rule.text
    }
    met = {probe.rule for policy in POLICIES for probe in every(replace(GROUND, policy=policy))}
    assert drops - met == set()


@pytest.mark.parametrize(
    ("policy", "ip", "rule"),
    [
        (Policy(), "10.1.2.3", "denied"),
        (Policy(), "203.0.113.9", None),
        (Policy(), "198.51.100.2", "host"),
        (Policy(), "192.168.77.1", "host"),
        (Policy("all"), "10.1.2.3", None),
        (Policy("all"), "169.254.169.254", "never"),
        (Policy("all"), "192.168.77.1", "host"),
        (Policy("none"), "203.0.113.9", "not-listed"),
        (Policy("none"), "10.1.2.3", "denied"),
        (LIST, "10.20.1.1", None),
        (LIST, "10.21.1.1", "denied"),
        (LIST, "192.0.2.2", None),
        (LIST, "203.0.113.9", "not-listed"),
        (replace(LIST, learn=True), "203.0.113.9", None),
    ],
)
def test_which_rule_is_to_stop_it(policy: Policy, ip: str, rule: str | None) -> None:
    found = stopped_by(replace(GROUND, policy=policy), ip)
    assert found == (rule and f"router inet forward/{rule}")


def test_what_the_file_asks_for_is_expected() -> None:
    def user_namespaces(nesting: bool) -> Probe:
        probes = local_probes(replace(GROUND, nesting=nesting))
        return next(probe for probe in probes if probe.name == "user-namespaces")

    assert re.fullmatch(user_namespaces(False).want, "EPERM")
    assert not re.fullmatch(user_namespaces(False).want, "ok")
    assert user_namespaces(True).want == "ok"


@pytest.mark.parametrize("answer", ["EAFNOSUPPORT", "ENODEV", "ECONNRESET"])
def test_a_machine_has_the_vsock_that_its_file_asks_for(answer: str) -> None:
    def listeners(vsock: bool) -> Probe:
        probes = local_probes(replace(GROUND, is_machine=True, vsock=vsock, vsock_port=4711))
        return next(probe for probe in probes if probe.name == "vsock-listeners")

    usual, asked = listeners(False), listeners(True)
    assert usual.ask == asked.ask == ("vsock", "2", "4711")
    assert [bool(re.fullmatch(probe.want, text)) for probe in (usual, asked) for text in (answer, "ok")] == [
        *(True, False),
        *(False, True),
    ]


def test_a_system_call_without_a_number_is_not_made() -> None:
    probes = local_probes(replace(GROUND, machine="riscv64"))
    assert next(probe for probe in probes if probe.name == "bpf").ask == ()
    assert all(set(numbers) == set(local.CALLS["x86_64"]) for numbers in local.CALLS.values())


def test_without_a_place_beyond_the_host_there_are_fewer() -> None:
    names = {probe.name for probe in network_probes(replace(GROUND, outside=None))}
    assert not names & {"translated", "outside-ssh", "new-host-address", "published-outside", "published-elsewhere"}
    assert "spoofed-inside" in names


def test_a_resolver_that_does_not_answer_by_tcp_proves_nothing() -> None:
    """Neither for hutch nor against it."""
    (probe,) = (probe for probe in network_probes(replace(GROUND, resolves_by_tcp=False)) if probe.name == "dns-tcp")
    assert judge(probe, GROUND, Evidence()).result == "unknown"


def test_every_packet_carries_the_name_of_its_probe() -> None:
    for probe in [*network_probes(GROUND), *link_probes(GROUND)]:
        if probe.frame:
            told = probe.frame.partition(f"{GROUND.token}:".encode())[2].partition(b";")[0].decode()
            assert told == probe.name


def test_the_promises_are_those_of_the_page() -> None:
    page = Path(__file__).parents[3] / "docs" / "threat-model.md"
    told = dict(re.findall(r"^### (\d+)\. (.*)$", page.read_text(), re.MULTILINE))
    assert {number: told[str(number)].lower() for number in PROMISES} == {
        n: text.lower() for n, text in PROMISES.items()
    }
