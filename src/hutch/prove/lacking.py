"""What can be told of a workspace that an Incus server runs, where hutch has no router and this host sees nothing of it
but its answers. Pure.

A probe there has one of three ends: it is judged as on this host, an answer speaks for or against what is promised, or
nobody can tell, which is "unknown" with the thing that is lacking. Nothing that docs/incus.md says not to hold there is
"held".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address
from typing import Literal

from hutch.backends import is_machine
from hutch.backends.identity import guest_uid
from hutch.backends.incus import API_PORT
from hutch.frozen import dataclass
from hutch.prove.judge import Evidence, judge, of_answer, result_of
from hutch.prove.known import SAMPLE
from hutch.prove.model import Fact, Ground, Need, Probe, ProbeResult
from hutch.prove.network import CLOSED
from hutch.spec import names
from hutch.spec.policy import policy_of
from hutch.spec.record import Record


@dataclass(frozen=True)
class Lack:
    """A thing that hutch does not have there: the `reason` why a result is unknown. The answer from inside says nothing
    without it, so that nobody asks; or it still speaks "against" a promise, or "for" one that is not made there."""

    reason: str
    answer: Literal["nothing", "against", "for"] = "nothing"


LACKING: Mapping[Need, Lack] = {
    "router": Lack("the member's network is Incus's: hutch has no router and no counters there", "against"),
    "rules": Lack("hutch has no rules on the member: the network there does not fail closed, and nothing is capped"),
    "gateway": Lack("the gateway is the member's, and hutch does not know the right answers", "for"),
    "resolver": Lack("the member's resolver answers the names in the member's own /etc/hosts, and is the same for all"),
    "host": Lack("another machine runs it: addresses, ports and files of this host are not beside it"),
    "ports": Lack("published ports listen on the member that runs it, not on this host"),
    "processes": Lack("its processes are the member's, and hutch does not see them from outside"),
    "filter": Lack("Incus filters its system calls, not hutch", "for"),
    "files": Lack("its home is a volume of the server's, and hutch does not see it from outside"),
    "limits": Lack("its limits are the server's to hold: hutch sees no cgroups, no quotas and no logs there"),
    "key": Lack("whoever administers the server or the project can read its host key"),
}
"""The things that probes need -> what their lack means. A probe that needs none of them is judged as on this host."""


def ground_there(
    record: Record,
    *,
    target: tuple[str, int],
    other: tuple[str, str],
    listeners: Iterable[tuple[str, int]],
    resolvers: tuple[str, ...],
    hostname: str,
    state: str,
    token: str,
    machine: str,
) -> Ground:
    """The data for the probes of a workspace of a server, which listens at these (address, port); the rest is as in
    Ground. SAMPLE stands for what hutch has on its own host alone: no packet is made of that, nor a question."""
    booted, place = record.effective, record.place
    outside = tuple(listener for listener in listeners if is_elsewhere(listener[0]))
    assert place is not None and booted.ip and booted.mac and isinstance(booted.owner, int)
    return replace(
        SAMPLE,
        workspace=record.name,
        type=booted.type,
        is_machine=is_machine(booted),
        ip=booted.ip,
        mac=booted.mac,
        user=booted.user,
        uid=guest_uid(booted.owner),
        token=token,
        gateway=names.gateway(place.subnet),
        host_listeners=outside,
        host_port=next((port for _, port in outside), API_PORT),
        resolvers=resolvers,
        hostname=hostname,
        state=state,
        target=target,
        other=other,
        builder=names.builder_address(place.subnet),
        published=tuple(item for item in booted.publish if item.protocol == "tcp"),
        policy=policy_of(booted),
        nesting=booted.nesting,
        machine=machine,
    )


def is_elsewhere(address: str) -> bool:
    """Whether an address leads out of the workspace; a server that listens on its loopback tells that, too."""
    parsed = IPv4Address(address)
    return not (parsed.is_loopback or parsed.is_unspecified)


def as_tried(probe: Probe) -> Probe:
    """A probe as it is tried there: no packets are sent, and no question is put whose answer says nothing."""
    needs = probe.needs or ("router" if probe.frame or probe.stands else "")
    says_nothing = needs in LACKING and LACKING[needs].answer == "nothing"
    return replace(probe, needs=needs, ask=() if says_nothing else probe.ask, frame=b"", rule="", stands=False)


def judge_there(probe: Probe, ground: Ground, evidence: Evidence) -> ProbeResult:
    """The result of a probe that was tried there. Silence breaks what was asked, as everywhere."""
    lack = LACKING.get(probe.needs)
    if lack is None:
        return judge(probe, ground, evidence)
    return result_of(probe, ground, facts_of(probe, lack, evidence.answers.get(probe.name)))


def facts_of(probe: Probe, lack: Lack, answer: str | None) -> list[Fact]:
    unknown = Fact("unknown", lack.reason)
    if not probe.ask:
        return [unknown]
    if lack.answer == "against":  # who is refused, and by whom, shows in no answer
        return [unknown, of_answer(replace(probe, want=CLOSED), answer)]
    said = of_answer(probe, answer)
    if answer is not None and said.verdict == "broken":
        return [Fact("unknown", f"{answer}: {lack.reason}")]
    return [said]
