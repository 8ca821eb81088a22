"""Judging: what the host saw comes before what was said, and of all the worst counts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.prove.judge import UNCOUNTED, Evidence, Sent, judge, parse_answers, parse_counters, rounds
from hutch.prove.local import CONVERSATION
from hutch.prove.model import Fact, Probe
from tests.unit.prove.ground import GROUND

RULE = "router inet forward/denied"
BLOCKED = Probe(3, "metadata", "out of reach", "nc", ("tcp", "169.254.169.254", "80"), "timeout", b"frame", rule=RULE)


def verdict(probe: Probe, evidence: Evidence) -> tuple[str, str]:
    found = judge(probe, GROUND, evidence)
    return found.result, found.detail


def blocked(answer: str | None = "timeout", **sent: object) -> tuple[str, str]:
    answers = {} if answer is None else {BLOCKED.name: answer}
    what = Sent(**{"counted": 3, **sent})  # type: ignore[arg-type]
    return verdict(BLOCKED, Evidence(answers, {BLOCKED.name: what}, {}))


def test_blocked_is_no_answer_and_every_packet_counted() -> None:
    assert blocked() == ("held", "router inet forward/denied counted 3; timeout")
    assert blocked(counted=7)[0] == "held"


@pytest.mark.parametrize(
    ("answer", "sent", "detail"),
    [
        (None, {}, "no answer came from inside"),
        ("open", {}, "open"),
        ("ECONNREFUSED", {}, "ECONNREFUSED"),
        ("timeout", {"counted": 2}, f"{RULE} counted 2 of 3 packets"),
        ("timeout", {"counted": 0}, f"{RULE} counted 0 of 3 packets"),
        ("timeout", {"counted": None}, f"the rule {RULE} is not loaded"),
        ("timeout", {"seen": ("beyond the host",)}, "its packets came out beyond the host"),
        # What the workspace says of its own failures proves nothing, and hides nothing that was seen.
        ("unknown: no process can be made", {}, "unknown: no process can be made"),
        ("timeout", {"failure": "EPERM"}, "EPERM"),
        ("timeout", {"failure": "EPERM", "seen": ("there",)}, "its packets came out there; EPERM"),
        ("open", {"counted": None}, f"the rule {RULE} is not loaded; open"),
        ("timeout", {"counted": None, "seen": ("x",)}, f"its packets came out x; the rule {RULE} is not loaded"),
    ],
)
def test_any_sign_of_the_contrary_breaks_it(answer: str | None, sent: dict[str, object], detail: str) -> None:
    assert blocked(answer, **sent) == ("broken", detail)


def test_a_lie_does_not_count_against_what_the_host_saw() -> None:
    assert blocked("timeout", counted=0)[0] == "broken"


def test_what_the_host_cannot_see_is_unknown() -> None:
    assert blocked("timeout", counted=UNCOUNTED)[0] == "unknown"


def test_broken_is_worse_than_unknown() -> None:
    assert blocked("open", counted=UNCOUNTED) == ("broken", "open")


def test_a_conversation_that_was_cut_short_proves_nothing() -> None:
    """Whatever was not come to is broken, also what the host would have looked at by itself."""
    cut = Evidence(cut_short="cut short")
    assert verdict(Probe(7, "host-key", "root's", "ls"), cut) == ("broken", "cut short")
    assert verdict(replace(BLOCKED, ask=()), cut) == ("broken", "its packets were not sent")
    assert verdict(Probe(4, "second", "stands", "nft", rule=RULE, stands=True), cut)[0] == "broken"
    assert verdict(CONVERSATION, replace(cut, facts={"conversation": Fact("broken", "cut short")}))[0] == "broken"


def test_a_packet_that_no_rule_counts_must_come_out_nowhere() -> None:
    probe = replace(BLOCKED, ask=(), rule="")
    assert verdict(probe, Evidence({}, {probe.name: Sent()}, {})) == ("held", "none came out")
    assert verdict(probe, Evidence({}, {probe.name: Sent(seen=("there",))}, {}))[0] == "broken"
    assert verdict(probe, Evidence({}, {}, {})) == ("broken", "its packets were not sent")


def test_what_must_leave() -> None:
    probe = replace(BLOCKED, ask=(), rule="", must_leave=True)
    assert verdict(probe, Evidence({}, {probe.name: Sent()}, {})) == ("broken", "none came out")
    assert verdict(probe, Evidence({}, {probe.name: Sent(seen=("there",))}, {}))[0] == "held"
    assert verdict(probe, Evidence({}, {probe.name: Sent(failure="EPERM")}, {}))[0] == "broken"


def test_of_a_flood_some_may_pass() -> None:
    probe = replace(BLOCKED, ask=(), copies=60, least=20)
    assert verdict(probe, Evidence({}, {probe.name: Sent(20)}, {}))[0] == "held"
    assert verdict(probe, Evidence({}, {probe.name: Sent(19)}, {}))[0] == "broken"


def test_a_rule_that_is_behind_another_must_be_loaded() -> None:
    probe = Probe(4, "second", "stands", "nft", rule=RULE, stands=True)
    assert verdict(probe, Evidence({}, {"second": Sent(0)}, {})) == ("held", f"{RULE} is loaded")
    assert verdict(probe, Evidence({}, {"second": Sent(None)}, {}))[0] == "broken"


def test_a_fact_is_the_hosts() -> None:
    probe = Probe(7, "host-key", "root's", "ls")
    assert verdict(probe, Evidence(facts={"host-key": Fact("broken", "mode 644")})) == ("broken", "mode 644")
    assert verdict(probe, Evidence()) == ("unknown", "this host cannot tell")
    with_answer = replace(probe, ask=("seen", "2f"), want="ENOENT")
    lies = Evidence({"host-key": "ENOENT"}, {}, {"host-key": Fact("broken", "it is there")})
    assert verdict(with_answer, lies) == ("broken", "it is there")


def test_json() -> None:
    shown = judge(Probe(7, "host-key", "root's", "ls"), GROUND, Evidence()).as_json()
    assert shown["promise"] == "7: keys"
    assert {"workspace", "type", "probe", "command", "result", "detail", "says"} < set(shown)


# What comes from inside.


def test_answers() -> None:
    text = "answer\ta\topen\nanswer\tb.c-1\tE \nanswer\ta\tanother\ndone\nnoise\nanswer\tno tab\n"
    assert parse_answers(text) == {"a": "open", "b.c-1": "E"}


@pytest.mark.parametrize(
    "line",
    [
        "answer\tA\topen",
        "answer\ta\t\x1b[31mred",
        "answer\ta\t" + "x" * 301,
        "answer\ta\tüber",
        " answer\ta\topen",
        "answer\ta\topen\r",
        "answer\t" + "a" * 65 + "\topen",
    ],
)
def test_what_is_no_answer_is_none(line: str) -> None:
    assert parse_answers(f"{line}\n") == {}


@given(st.text())
def test_whatever_comes_is_printable(text: str) -> None:
    assert all(answer.isascii() and answer.isprintable() for answer in parse_answers(text).values())


# What the kernel counts.


def test_counters() -> None:
    rules = [
        {
            "family": "inet",
            "table": "hutch",
            "chain": "forward",
            "comment": "denied",
            "expr": [{"counter": {"packets": 4}}],
        },
        {"family": "inet", "table": "hutch", "chain": "forward", "comment": "open", "expr": [{"accept": None}]},
        {"family": "inet", "table": "other", "chain": "forward", "comment": "x", "expr": []},
    ]
    listing = json.dumps({"nftables": [{"metainfo": {}}, *({"rule": rule} for rule in rules)]})
    assert parse_counters(listing, "hutch", "router") == {RULE: 4, "router inet forward/open": UNCOUNTED}


def test_a_rule_that_all_hutches_have_is_counted_by_the_first_of_them() -> None:
    def rule(table: str, comment: str, packets: int) -> dict[str, object]:
        found = {"family": "inet", "table": table, "chain": "from-router", "comment": comment}
        return {"rule": {**found, "expr": [{"counter": {"packets": packets}}]}}

    shared, own = "loopback-from-afar", "resolver-from-afar"
    rules = [rule("hutch-1a2b3c", shared, 3), rule("hutch-1a2b3c", own, 3), rule("other", shared, 3)]
    listing = json.dumps({"nftables": [*rules, rule("hutch", shared, 1), rule("hutch", own, 1)]})
    assert parse_counters(listing, "hutch", "host") == {
        f"host inet from-router/{shared}": 4,
        f"host inet from-router/{own}": 1,
    }
    assert parse_counters(json.dumps({"nftables": rules}), "hutch", "host") == {}


def test_in_a_round_every_rule_is_met_once() -> None:
    probes = [replace(BLOCKED, name=str(number)) for number in range(3)]
    other = replace(BLOCKED, name="other", rule="host inet from-router/host")
    silent = [replace(BLOCKED, name=f"silent{number}", rule="") for number in range(2)]
    fact = Probe(7, "host-key", "root's", "ls")
    found = [[probe.name for probe in group] for group in rounds([*probes, other, *silent, fact])]
    assert found == [["0", "other", "silent0", "silent1"], ["1"], ["2"]]
