"""What is said of others' firewalls, by what nft lists."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hutch.host.network.foreign_firewalls import Obstacle, check_foreign_firewalls, unknown_droppers, who_filters

UPLINK, HOST_END = "hutch-up", "192.168.84.1"
ACCEPT = {"accept": None}
COMES = {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": UPLINK}}
GOES = {"match": {"op": "==", "left": {"meta": {"key": "oifname"}}, "right": UPLINK}}
COMES_NOT = {"match": {"op": "!=", "left": {"meta": {"key": "iifname"}}, "right": UPLINK}}
ELSEWHERE = {"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "docker0"}}
COUNTER = {"counter": {"packets": 0, "bytes": 0}}


def chain(name: str, policy: str = "", table: str = "ip filter", hook: str = "") -> dict[str, Any]:
    family, table = table.split()
    base = {key: value for key, value in (("policy", policy), ("hook", hook)) if value}
    return {"chain": {"family": family, "table": table, "name": name, **base}}


def rule(name: str, *expressions: dict[str, Any], table: str = "ip filter") -> dict[str, Any]:
    family, table = table.split()
    return {"rule": {"family": family, "table": table, "chain": name, "expr": [*expressions]}}


def jump(name: str) -> dict[str, Any]:
    return {"jump": {"target": name}}


def check(*entries: dict[str, Any]) -> tuple[Obstacle, ...]:
    return check_foreign_firewalls(json.dumps({"nftables": [{"metainfo": {}}, *entries]}), UPLINK, HOST_END)


FORWARD, INPUT = chain("FORWARD", "drop"), chain("INPUT", "drop")
DOCKER = (FORWARD, chain("DOCKER-USER"), rule("FORWARD", COUNTER, jump("DOCKER-USER")))
UFW = (FORWARD, INPUT, chain("ufw-before-input"), rule("INPUT", COUNTER, jump("ufw-before-input")))
FIREWALLD = (
    chain("filter_FORWARD", "accept", "inet firewalld"),
    rule("filter_FORWARD", {"reject": {}}, table="inet firewalld"),
)


def commands(found: tuple[Obstacle, ...]) -> list[str]:
    return [str(step) for obstacle in found for step in obstacle.repair]


def test_nobody() -> None:
    assert check() == ()
    assert check(chain("FORWARD", "accept"), chain("INPUT", "accept")) == ()


def test_docker_after_it_has_turned_forwarding_on() -> None:
    assert commands(check(*DOCKER)) == [
        "iptables --wait -I DOCKER-USER -o hutch-up -m conntrack --ctstate RELATED,ESTABLISHED,DNAT -j ACCEPT",
        "iptables --wait -I DOCKER-USER -i hutch-up -j ACCEPT",
    ]
    (found,) = check(*DOCKER)
    assert str(found).startswith("Docker drops forwarded traffic")
    assert "`hutch doctor --fix` lets it pass, with `iptables --wait -I DOCKER-USER" in str(found)
    assert not found.lasts


def test_ufw_stops_questions_as_well() -> None:
    assert commands(check(*UFW)) == [
        "ufw route allow out on hutch-up",
        "ufw route allow in on hutch-up",
        "ufw allow in on hutch-up to 192.168.84.1 port 40",
    ]


def test_a_rule_for_another_port_lets_no_question_pass() -> None:
    """The rule for port 53, where an older hutch asked, say."""
    passing = tuple(rule("ufw-user-forward", way, ACCEPT) for way in (COMES, GOES))

    def rules_for(port: Any, op: str = "==") -> tuple[Obstacle, ...]:
        asked = {"match": {"op": op, "left": {"payload": {"protocol": "udp", "field": "dport"}}, "right": port}}
        return check(*UFW, *passing, rule("ufw-user-input", COMES, asked, ACCEPT))

    assert len(rules_for(53)) == len(rules_for(40, "!=")) == len(rules_for({"set": [53, 54]})) == 1
    assert rules_for(40) == rules_for(53, "!=") == rules_for({"set": [53, {"range": [30, 50]}]}) == ()


def test_with_ufw_the_policy_is_ufws_and_not_dockers() -> None:
    assert {found.who for found in check(*UFW, *DOCKER)} == {"ufw"}


def test_firewalld() -> None:
    assert commands(check(*FIREWALLD)) == [
        "firewall-cmd --permanent --zone=trusted --add-interface=hutch-up",
        "firewall-cmd --zone=trusted --add-interface=hutch-up",
    ]
    assert check(*FIREWALLD, rule("filter_FORWARD_ZONES", COMES, jump("x"), table="inet firewalld")) == ()


@pytest.mark.parametrize(
    ("added", "left"),
    [
        ((COMES, COUNTER, ACCEPT), 0),
        ((COMES, COUNTER), 1),
        ((COMES_NOT, ACCEPT), 1),
        ((ELSEWHERE, ACCEPT), 1),
    ],
)
def test_what_is_let_pass_is_no_obstacle(added: tuple[dict[str, Any], ...], left: int) -> None:
    assert len(check(*DOCKER, rule("DOCKER-USER", *added))) == left
    assert len(check(FORWARD, rule("FORWARD", *added))) == left
    out = rule("ufw-user-forward", GOES, ACCEPT)
    assert len(check(*UFW, out, rule("ufw-user-forward", *added), rule("ufw-user-input", *added))) == 2 * left


def test_ufw_has_to_let_others_come_to_published_ports() -> None:
    asks = rule("ufw-user-input", COMES, ACCEPT)
    both = (rule("ufw-user-forward", COMES, ACCEPT), rule("ufw-user-forward", GOES, ACCEPT))
    assert [len(check(*UFW, asks, *there)) for there in (both[:1], both[1:], both)] == [1, 1, 0]


def test_what_is_half_repaired_is_still_an_obstacle() -> None:
    for added, words in (((GOES, ACCEPT), "-o"), ((COMES, ACCEPT), "-i")):
        left = check(*DOCKER, rule("DOCKER-USER", *added))
        last = check(*DOCKER)[0].repair[-1]
        assert (left == ()) == (words in last.make)


def test_other_tables_of_these_names_are_not_meant() -> None:
    assert check(chain("FORWARD", "drop", "ip6 filter"), chain("INPUT", "drop", "inet filter")) == ()


@pytest.mark.parametrize("scene", [DOCKER, UFW, FIREWALLD, (FORWARD, INPUT)])
def test_each_step_can_be_tested_and_taken_back(scene: tuple[dict[str, Any], ...]) -> None:
    for obstacle in check(*scene):
        for step in obstacle.repair:
            assert len({step.make, step.undo, step.test}) == 3
            if not step.line:  # they differ by what is to be done, and by nothing else
                words = [set(argv) for argv in (step.make, step.undo, step.test)]
                common = set.intersection(*words)
                assert all(len(argv - common) <= 3 for argv in words), step
            assert UPLINK in " ".join(step.undo)


def test_ufw_is_asked_for_its_rules_by_the_commands_that_made_them() -> None:
    forward, ask = (obstacle.repair[-1] for obstacle in check(*UFW))
    assert forward.undo == ("ufw", "route", "delete", "allow", "in", "on", UPLINK)
    assert ask.undo == ("ufw", "delete", "allow", "in", "on", UPLINK, "to", HOST_END, "port", "40")
    assert (forward.test, forward.line) == (("ufw", "show", "added"), f"ufw route allow in on {UPLINK}")


def test_who_is_there() -> None:
    def there(*entries: dict[str, Any]) -> tuple[str, ...]:
        return who_filters(json.dumps({"nftables": [*entries]}))

    assert there() == ()
    assert there(*DOCKER) == ("Docker",)
    assert there(*UFW, *FIREWALLD) == ("ufw", "firewalld")
    assert there(chain("guest_input", table="ip libvirt_network")) == ("libvirt",)


def test_rules_of_somebody_unknown_are_named() -> None:
    def droppers(*entries: dict[str, Any]) -> tuple[str, ...]:
        return unknown_droppers(json.dumps({"nftables": [*entries]}), UPLINK)

    theirs = chain("fwd", "drop", "inet filter", "forward")
    assert droppers(theirs) == ("inet filter fwd",)
    assert droppers(theirs, rule("fwd", COMES, ACCEPT, table="inet filter")) == ()
    assert (
        droppers(chain("fwd", "accept", "inet filter", "forward"), chain("out", "drop", "inet filter", "output")) == ()
    )
    assert droppers(chain("FORWARD", "drop", hook="forward")) == ()  # that is iptables', and has a finding of its own
