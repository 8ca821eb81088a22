"""Judgement of promises: from answers inside, counters of the firewalls and the host's own looks. Pure.

All answers are an attacker's. They are read line by line, with a limit, and the worst that a lie can do is to hold a
promise that the host has no way to see for itself. Silence, or a failure, breaks what was asked: "unknown" is for the
host alone to say, of itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field

from hutch.frozen import dataclass
from hutch.prove.model import Fact, Ground, Probe, ProbeResult, Verdict

ANSWER = re.compile(r"answer\t([a-z0-9.-]{1,64})\t([\x20-\x7e]{0,300})")
UNCOUNTED = -1
"""The count of a rule without a counter."""
SHARED = frozenset({"from-router/loopback-from-afar"})
"""Rules that are the same for every hutch of a host: that which was there first drops the packets, and counts them."""
WORST_FIRST: tuple[Verdict, ...] = ("broken", "unknown")
NOBODY_KNOWS = Fact("unknown", "this host cannot tell")


@dataclass(frozen=True)
class Sent:
    """The fate of a probe's packets: by how much its rule rose (None for one that is not loaded), where a packet came
    out, and why they were not sent."""

    counted: int | None = None
    seen: tuple[str, ...] = ()
    failure: str = ""


@dataclass(frozen=True)
class Evidence:
    """All evidence, by probe."""

    answers: Mapping[str, str] = field(default_factory=dict)
    sent: Mapping[str, Sent] = field(default_factory=dict)
    facts: Mapping[str, Fact] = field(default_factory=dict)
    cut_short: str = ""
    """The reason why the conversation inside did not end in order."""


def parse_answers(text: str) -> dict[str, str]:
    """The answers in the text from inside: the first to each question, and nothing that is not in their form."""
    found: dict[str, str] = {}
    for line in text.split("\n"):
        if match := ANSWER.fullmatch(line):
            found.setdefault(match[1], match[2].strip())
    return found


def parse_counters(listing: str, table: str, where: str) -> dict[str, int]:
    """The counters, "host inet to-router/forward-denied" -> packets, from `nft -j list ruleset`."""
    found: dict[str, int] = {}
    others: dict[str, int] = {}
    for entry in json.loads(listing)["nftables"]:
        rule = entry.get("rule")
        if rule is None:
            continue
        counts = [part["counter"]["packets"] for part in rule["expr"] if isinstance(part.get("counter"), dict)]
        name = f"{rule['chain']}/{rule.get('comment', '')}"
        key = f"{where} {rule['family']} {name}"
        if rule["table"] == table:
            found[key] = counts[0] if counts else UNCOUNTED
        elif name in SHARED and rule["table"].startswith("hutch"):
            others[key] = others.get(key, 0) + sum(counts)
    return {key: packets + others.get(key, 0) if packets != UNCOUNTED else packets for key, packets in found.items()}


def rounds(probes: Iterable[Probe]) -> list[list[Probe]]:
    """Rounds of the probes that send packets: in each round one probe at most meets a rule, so that its counter speaks
    of that probe."""
    found: list[list[Probe]] = []
    for probe in probes:
        if not probe.frame:
            continue
        place = next((r for r in found if not probe.rule or probe.rule not in {other.rule for other in r}), None)
        if place is None:
            found.append(place := [])
        place.append(probe)
    return found


def needed(probe: Probe) -> int:
    return probe.least or probe.copies


def judge(probe: Probe, ground: Ground, evidence: Evidence) -> ProbeResult:
    """The result of a probe. The host's own looks come before answers from inside; of all, the worst counts."""
    facts: list[Fact] = []
    if probe.name in evidence.facts:
        facts.append(evidence.facts[probe.name])
    elif not (probe.ask or probe.frame or probe.stands):
        facts.append(Fact("broken", evidence.cut_short) if evidence.cut_short else NOBODY_KNOWS)
    if probe.stands or probe.frame:
        facts.append(of_packets(probe, evidence.sent.get(probe.name)))
    if probe.ask:
        facts.append(of_answer(probe, evidence.answers.get(probe.name)))
    return result_of(probe, ground, facts)


def result_of(probe: Probe, ground: Ground, facts: Sequence[Fact]) -> ProbeResult:
    """The result of a probe of which these facts were found: the worst."""
    verdict: Verdict = next((v for v in WORST_FIRST if any(fact.verdict == v for fact in facts)), "held")
    detail = "; ".join(fact.detail for fact in facts if fact.detail and fact.verdict == verdict)
    return ProbeResult(
        ground.workspace, ground.type, probe.promise, probe.name, probe.says, probe.command, verdict, detail
    )


def of_answer(probe: Probe, answer: str | None) -> Fact:
    if answer is None:  # the guest was asked, and its silence proves nothing
        return Fact("broken", "no answer came from inside")
    return Fact("held" if re.fullmatch(probe.want, answer, re.ASCII) else "broken", answer)


def of_packets(probe: Probe, sent: Sent | None) -> Fact:
    """Whether a probe's packets were stopped, and by the rule that is there for it. Where they came out comes
    first: the sender may say that they were not sent."""
    if sent is None:  # the workspace did not let it come to that
        return Fact("broken", "its packets were not sent")
    wrong = []
    if sent.seen and not (probe.may_leave or probe.must_leave):
        wrong.append(f"its packets came out {', '.join(sent.seen)}")
    if sent.failure:
        wrong.append(sent.failure)
    if probe.rule and sent.counted is None:
        wrong.append(f"the rule {probe.rule} is not loaded")
    if wrong:
        return Fact("broken", "; ".join(wrong))
    if probe.stands:
        return Fact("held", f"{probe.rule} is loaded")
    if probe.must_leave:
        return Fact("held" if sent.seen else "broken", "its packets came out" if sent.seen else "none came out")
    if not probe.rule:
        return Fact("held", "none came out")
    if sent.counted == UNCOUNTED or sent.counted is None:
        return Fact("unknown", f"{probe.rule} has no counter")
    if sent.counted < needed(probe):
        return Fact("broken", f"{probe.rule} counted {sent.counted} of {probe.copies} packets")
    return Fact("held", f"{probe.rule} counted {sent.counted}")
