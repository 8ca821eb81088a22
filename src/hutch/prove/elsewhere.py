"""Carries out the probes of a workspace that a server runs, by what it answers and what this host's ssh tells."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Collection

from hutch.engines import engine_of, observe_all
from hutch.prove.conversation import Conversation, Talk, observe_evidence
from hutch.prove.ground import subnet_address
from hutch.prove.known import probes_of
from hutch.prove.lacking import as_tried, ground_there, judge_there
from hutch.prove.local import CONVERSATION
from hutch.prove.model import Ground, ProbeResult
from hutch.prove.run import nameservers
from hutch.spec.names import Layout
from hutch.spec.record import Record, present
from hutch.state import read_records


def prove_elsewhere(
    layout: Layout, record: Record, target: tuple[str, int], only: Collection[str], talk: Talk
) -> tuple[ProbeResult, ...]:
    """Try the promises on a workspace that runs on a server. `target` is a public name and port; `only` is as in
    `probes_of`."""
    ground = observe_ground_there(layout, record, target)
    probes = tuple(map(as_tried, probes_of(ground, only)))
    if not probes:
        return ()
    evidence = observe_evidence(Conversation(ground, probes), talk)
    return tuple(judge_there(probe, ground, evidence) for probe in (*probes, CONVERSATION))


def observe_ground_there(layout: Layout, record: Record, target: tuple[str, int]) -> Ground:
    """The data from which the probes are made."""
    return ground_there(
        record,
        target=target,
        other=neighbour(layout, record),
        listeners=engine_of(layout, record).listeners(record),
        resolvers=nameservers(),
        hostname=socket.gethostname(),
        state=str(layout.state),
        token=secrets.token_hex(8),
        machine=os.uname().machine,
    )


def neighbour(layout: Layout, record: Record) -> tuple[str, str]:
    """(name, address) of another workspace at its place, of one that runs on its member if there is any; or of nobody's
    address there."""
    assert record.place is not None
    records = {
        name: each
        for name, each in present(read_records(layout)).items()
        if each.place is not None and each.place.identity == record.place.identity
    }
    seen = observe_all(layout, records)
    ips = {name: each.effective.ip for name, each in records.items() if each.effective.ip is not None}

    def is_beside(name: str) -> bool:
        return seen[name].state == "running" and seen[name].member == seen[record.name].member

    others = [(name, ips[name]) for name in sorted(ips, key=lambda name: not is_beside(name)) if name != record.name]
    return next(iter(others), ("nobody", subnet_address(record.place.subnet, set(ips.values()))))
