"""What can be told of a workspace on an Incus server: what may be held there, what may break, and what nobody knows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.backends.incus import LIMITS
from hutch.prove.judge import Evidence
from hutch.prove.known import SAMPLE, check_known, probes_of
from hutch.prove.lacking import LACKING, as_tried, ground_there, is_elsewhere, judge_there
from hutch.prove.local import CONVERSATION
from hutch.prove.model import Fact, Probe, ProbeResult, Verdict
from hutch.spec.entries import Publish
from tests.unit.engines.incus.cluster import record

GROUND = ground_there(
    record("far", 7, publish=(Publish("", 8080, 4242, "tcp"), Publish("", 53, 53, "udp"))),
    target=("public.example", 80),
    other=("lab", "10.83.0.8"),
    listeners=(
        *(("10.99.0.1", port) for port in (8443, 9443)),
        ("127.0.0.1", 1),
        ("0.0.0.0", 2),
        ("198.51.100.9", 10443),
    ),
    resolvers=("10.53.0.1", "8.8.8.8"),
    hostname="host.example",
    state="/var/lib/hutch",
    token="0123456789abcdef",
    machine="x86_64",
)
PROBES = {probe.name: as_tried(probe) for probe in probes_of(GROUND)}
SSH = {"ssh", "ssh-changed-key", "ssh-strict", "ssh-agent", "ssh-x11", "ssh-ports", "ssh-passwords"}
"""Facts of this host's ssh, which reaches a server's workspaces, too."""
BY_ANSWER = {
    *("dns-udp", "internet", "ipv6-address", "device-in-home", "host-key-user"),
    *("uid-map", "device", "finit-module", "kexec-load", "swapon", "clock-settime", "acct"),
    *("mount-debugfs", "mount-tracefs", "mount-securityfs"),
    *("core-pattern", "modprobe", "sysrq", "uevent-helper", "kernel-memory"),
}
"""Answers from inside decide these: its own range of uids, its network and its user are as promised there."""
FOR = {
    *("gateway-arp", "gateway-ping", "dns-tcp"),
    *("bpf", "perf-event-open", "add-key", "keyctl", "io-uring-setup", "open-by-handle-at", "syslog"),
    *("vsock", "user-namespaces"),
}
"""Nobody promises these there."""
AGAINST = {
    *("metadata", "resolver-1", "host-10.99.0.1", "host-ssh-10.99.0.1", "host-198.51.100.9", "host-ssh-198.51.100.9"),
    *("host-10.99.0.1-9443", "gateway-9443", "gateway-10443"),
    *("gateway-22", "gateway-111", "gateway-8443", "other-ssh", "other-port", "other-ping", "builder"),
}
"""What must not be reached: that it is shows from inside, and that it is not does not."""


def result(name: str, answer: str | None = None, **facts: Fact) -> ProbeResult:
    answers = {} if answer is None else {name: answer}
    return judge_there(PROBES[name], GROUND, Evidence(answers, {}, facts))


def verdict(name: str, answer: str | None = None) -> tuple[Verdict, str]:
    found = result(name, answer)
    return found.result, found.detail


def good_answer(probe: Probe) -> str:
    """An answer that would hold a probe."""
    known = {
        "gateway-arp": f"is at {SAMPLE.gateway_mac}",
        "gateway-ping": "pong",
        "internet": "open",
        "dns-udp": "rcode 0 192.0.2.1",
        "dns-tcp": "rcode 0 192.0.2.1",
        "ipv6-address": "lines",
        "uid-map": "lines          0    1000000      65536",
    }
    return known.get(probe.name, "EPERM")


def test_none_is_left_out() -> None:
    """It has each probe that a container of this host has, but for those of addresses."""
    here = {probe.name for probe in probes_of(replace(SAMPLE, host_listeners=(), published=GROUND.published))}
    assert here - PROBES.keys() == {"gateway-40000"}  # a port of this host's
    assert PROBES.keys() - here == {name for name in AGAINST if name.startswith("host-")} | {
        f"gateway-{port}" for port in (8443, 9443, 10443)
    }


def test_each_is_of_one_kind() -> None:
    asked = {name for name, probe in PROBES.items() if probe.ask}
    kinds = {name: LACKING[probe.needs].answer if probe.needs else "" for name, probe in PROBES.items()}
    assert {name for name, kind in kinds.items() if kind == ""} == BY_ANSWER | SSH
    assert {name for name, kind in kinds.items() if kind == "for"} == FOR
    assert {name for name, kind in kinds.items() if kind == "against" and name in asked} == AGAINST
    assert asked == BY_ANSWER | FOR | AGAINST


def test_nothing_that_only_this_host_has_is_asked_for() -> None:
    """SAMPLE stands for it, and its addresses are somebody's."""
    assert SAMPLE.outside is not None
    absent = {*SAMPLE.uplink, SAMPLE.outside.ip, SAMPLE.outside.gate, *SAMPLE.host_addresses, SAMPLE.other[1]}
    for probe in PROBES.values():
        assert not absent & set(probe.ask), probe.name
        assert not (probe.frame or probe.rule or probe.stands), probe.name


def test_the_best_that_can_be() -> None:
    """All that is held, and a reason for each that is not."""
    answers = {name: good_answer(probe) for name, probe in PROBES.items()}
    facts = dict.fromkeys(SSH, Fact("held"))
    results = {name: judge_there(probe, GROUND, Evidence(answers, {}, facts)) for name, probe in PROBES.items()}
    assert {name for name, found in results.items() if found.result == "held"} == BY_ANSWER | FOR | SSH
    reasons = {lack.reason for lack in LACKING.values()}
    unknown = {name: found.detail for name, found in results.items() if found.result == "unknown"}
    assert set(unknown.values()) <= reasons
    assert len(unknown) > 80


@given(st.dictionaries(st.sampled_from(sorted(PROBES)), st.text(st.characters(min_codepoint=32, max_codepoint=126))))
def test_whatever_a_guest_says_no_more_is_held(answers: dict[str, str]) -> None:
    found = [judge_there(probe, GROUND, Evidence(answers)) for probe in PROBES.values()]
    assert {each.probe for each in found if each.result == "held"} <= BY_ANSWER | FOR


LACKS = {
    "egress lists": {"open", "over"},
    "the network does not fail closed": {"as-written", "watch", "barrier-host", "second-between"},
    "whoever administers": {"host-key"},
    "published ports": {"listen-4242", "published-here", "published-outside", "published-elsewhere"},
    "the member's resolver": {"dns-host-name", "dns-localhost", "dns-other-name", "dns-own-name", "dns-host-address"},
    "a member's own": {"host-10.99.0.1", "host-ssh-198.51.100.9", "gateway-22"},
    "`disk` holds": {"root-size"},
    "log volume and connections": {"log-size", "connection-cap", "packet-cap"},
}


def test_what_the_page_says_not_to_hold_is_never_held() -> None:
    for limit in LIMITS:
        [names] = [names for start, names in LACKS.items() if limit.startswith(start)]
        assert {verdict(name, good_answer(PROBES[name]))[0] for name in names} == {"unknown"}


@pytest.mark.parametrize("name", sorted(AGAINST))
def test_what_is_reached_is_broken_and_what_is_not_is_unknown(name: str) -> None:
    assert verdict(name, "pong" if name == "other-ping" else "open")[0] == "broken"
    for refused in ("timeout", "ECONNREFUSED", "EHOSTUNREACH"):
        assert verdict(name, refused) == ("unknown", LACKING["router"].reason)
    assert verdict(name, "no such probe") == ("broken", "no such probe")


@pytest.mark.parametrize("name", sorted(FOR))
def test_what_nobody_promises_there_breaks_nothing(name: str) -> None:
    assert verdict(name, good_answer(PROBES[name]))[0] == "held"
    assert verdict(name, "ok") == ("unknown", f"ok: {LACKING[PROBES[name].needs].reason}")


@pytest.mark.parametrize("name", sorted(BY_ANSWER))
def test_what_answers_decide_is_judged_as_on_this_host(name: str) -> None:
    assert verdict(name, good_answer(PROBES[name]))[0] == "held"
    assert verdict(name, "ok") == ("broken", "ok")


@pytest.mark.parametrize("name", sorted(BY_ANSWER | FOR | AGAINST))
def test_silence_breaks_what_was_asked(name: str) -> None:
    assert verdict(name) == ("broken", "no answer came from inside")


@pytest.mark.parametrize(
    ("range_", "expected"),
    [
        ("0 1000000 65536", "held"),
        ("0 0 4294967295", "broken"),
        ("0 0 65536", "broken"),
        ("0 1000000 65536 | 65536 0 1", "broken"),
        ("1 1000000 65536", "broken"),
    ],
)
def test_a_range_of_uids_that_is_no_unprivileged_one(range_: str, expected: str) -> None:
    assert verdict("uid-map", f"lines {range_}")[0] == expected


def test_ssh_is_this_hosts_to_tell() -> None:
    assert result("ssh", ssh=Fact("broken", "code 255")).result == "broken"
    assert result("ssh", ssh=Fact("held")).result == "held"
    cut = Evidence(facts={CONVERSATION.name: Fact("broken", "cut short")}, cut_short="cut short")
    assert judge_there(PROBES["ssh"], GROUND, cut).result == "broken"
    assert judge_there(CONVERSATION, GROUND, cut).result == "broken"


def test_each_address_is_tried_at_the_ports_where_it_is_said_to_listen() -> None:
    asked = {name: PROBES[name].ask for name in AGAINST if name.startswith("host-1")}
    assert {name: (ask[1], int(ask[2])) for name, ask in asked.items()} == {
        "host-10.99.0.1": ("10.99.0.1", 8443),
        "host-10.99.0.1-9443": ("10.99.0.1", 9443),
        "host-198.51.100.9": ("198.51.100.9", 10443),
    }
    check_known(asked)


def test_the_ground_is_the_servers() -> None:
    assert (GROUND.gateway, GROUND.builder) == ("10.83.0.1", "10.83.255.254")
    assert GROUND.host_addresses == ("10.99.0.1", "198.51.100.9")
    assert [item.guest_port for item in GROUND.published] == [4242]
    assert (GROUND.type, GROUND.is_machine, GROUND.uid) == ("container", False, 1000)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.0.1", "0.0.0.0"])
def test_an_address_that_is_the_workspaces_own_is_none_of_the_servers(address: str) -> None:
    assert not is_elsewhere(address)
