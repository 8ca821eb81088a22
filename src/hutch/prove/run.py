"""Carries out the probes of a workspace that this host runs: sends packets and reads counters while it talks with the
program inside.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from hutch.backends import is_machine
from hutch.backends.identity import guest_uid
from hutch.engines import here
from hutch.errors import HutchError
from hutch.files import read_or_none
from hutch.frozen import dataclass
from hutch.host.hardware.clock import read_boot
from hutch.host.network import router
from hutch.host.network.namespace import RULES, inside
from hutch.host.network.neighbours import RESOLV_CONF, parse_servers
from hutch.prove.conversation import Conversation, Talk, observe_evidence
from hutch.prove.facts import gather_facts, opened_home
from hutch.prove.ground import ALONE, AT_PORT, PLAIN, Sockets, mac_of, open_sockets, outside_of, subnet_address
from hutch.prove.judge import UNCOUNTED, Sent, judge, needed, parse_answers, parse_counters, rounds
from hutch.prove.known import probes_of
from hutch.prove.local import CONVERSATION, MADE, PREFIX
from hutch.prove.model import Ground, Probe, ProbeResult
from hutch.prove.reach import answers_by_tcp, host_facts
from hutch.prove.subject import Subject
from hutch.run import gather
from hutch.runtime.observe import observe_cid
from hutch.spec import names
from hutch.spec.model import Network
from hutch.spec.names import Layout
from hutch.spec.policy import policy_of
from hutch.spec.record import Record
from hutch.state import read_records
from hutch.trees.removing import remove_below

SWEEPING = 10.0  # seconds for each thing of ours in a home
COUNT_SECONDS = 1.5  # that a packet may take until it is counted
NETWORK, LOCAL = {3, 4}, {1, 2, 6, 7, 11}  # promises that facts of the host are about


@dataclass(frozen=True)
class Scene:
    """All means of trying one workspace."""

    subject: Subject
    ground: Ground
    network: Network
    sockets: Sockets
    probes: tuple[Probe, ...]


@dataclass(frozen=True)
class Task:
    """A task: `target` is a public name and port. `only` are the numbers of promises and the names of probes, all
    unless given. `is_ours` is for a workspace that is there for this alone."""

    network: Network
    outside: tuple[str, str] | None
    target: tuple[str, int]
    is_ours: bool = False
    only: tuple[str, ...] = ()


def prove(subject: Subject, task: Task, talk: Talk) -> tuple[ProbeResult, ...]:
    """Try the promises on a workspace that runs."""
    port, token = names.port(subject.name, subject.booted.type), secrets.token_hex(8)
    try:
        marker_of(subject.layout, subject.name, token).touch(0o600)
        with open_sockets(subject.layout, port, task.outside, with_vsock=is_machine(subject.booted)) as sockets:
            ground = observe_ground(subject, task, sockets, token)
            probes = probes_of(ground, task.only)
            if not probes:
                return ()
            scene = Scene(subject, ground, task.network, sockets, probes)
            evidence = observe_evidence(CountedConversation(scene), talk)
            return tuple(judge(probe, ground, evidence) for probe in (*probes, CONVERSATION))
    finally:
        sweep(subject.layout, subject.record)


def marker_of(layout: Layout, name: str, token: str) -> Path:
    """The path of the marker, among the files that go when the workspace stops."""
    return layout.runtime(name) / f"marker.{token}"


def sweep(layout: Layout, record: Record) -> None:
    """Remove the files of a run for a workspace, or of one that was killed, or that the workspace did not clean up
    after. In its home there may be anything under our names by now; that of a server's workspace is none of this
    host's."""
    for marker in layout.runtime(record.name).glob("marker.*"):
        marker.unlink(missing_ok=True)
    specs = [record.wanted, *([record.booted.workspace] if record.booted else [])]
    for workspace in (spec for spec in specs if spec.home is not None):
        with suppress(FileNotFoundError, NotADirectoryError), opened_home(workspace) as home:
            for name in MADE:
                with suppress(HutchError):
                    remove_below(home, PREFIX + name, seconds=SWEEPING)


def observe_ground(subject: Subject, task: Task, sockets: Sockets, token: str) -> Ground:
    """The data from which the probes are made."""
    booted, network = subject.booted, task.network
    layout = subject.layout
    assert booted.ip and booted.mac and isinstance(booted.owner, int)
    records = here(read_records(layout))
    ips = {name: record.wanted.ip for name, record in records.items() if record.wanted.ip is not None}
    others = [(name, ip) for name, ip in sorted(ips.items()) if name != subject.name]
    nobody = ("nobody", subnet_address(network.subnet, set(ips.values())))
    beyond = outside_of(layout, task.outside, sockets)
    addresses = router.observe_host().addresses(without=layout.uplink_host)
    resolvers = nameservers()
    return Ground(
        workspace=subject.name,
        type=booted.type,
        is_machine=is_machine(booted),
        ip=booted.ip,
        mac=booted.mac,
        user=booted.user,
        uid=guest_uid(booted.owner),
        token=token,
        table=layout.table,
        bridge=network.bridge,
        gateway=names.gateway(network.subnet),
        gateway_mac=mac_of(layout.namespace, network.bridge),
        uplink=names.uplink_addresses(network.uplink),
        uplink_macs=(mac_of("", layout.uplink_host), mac_of(layout.namespace, layout.uplink_router)),
        host_listeners=tuple((ip, sockets.port) for ip in addresses if beyond is None or ip != beyond.gate),
        host_port=sockets.port,
        resolvers=resolvers,
        resolves_by_tcp=any(answers_by_tcp(ip, task.target[0]) for ip in resolvers),
        hostname=socket.gethostname(),
        state=str(layout.state),
        marker=str(marker_of(layout, subject.name, token)),
        target=task.target,
        other=next(iter(others), nobody),
        builder=names.builder_address(network.subnet),
        alone=mac_of(layout.proof_namespace, ALONE),
        plain=mac_of(layout.proof_namespace, PLAIN),
        outside=beyond,
        published=tuple(item for item in booted.publish if item.protocol == "tcp"),
        is_ours=task.is_ours,
        policy=policy_of(booted),
        nesting=booted.nesting,
        vsock=booted.vsock and bool(observe_cid(layout, subject.name)),
        vsock_port=sockets.vsock_port,
        machine=os.uname().machine,
        boot_id=read_boot(),
    )


def nameservers() -> tuple[str, ...]:
    """The host's own IPv4 resolvers."""
    found = parse_servers((read_or_none(RESOLV_CONF) or b"").decode("ascii", "replace"))
    return tuple(dict.fromkeys(ip for ip in found if ip.replace(".", "").isdigit()))


class CountedConversation(Conversation):
    """A conversation beside which packets are sent and counted, and this host looks at everything by itself."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene.ground, scene.probes)
        self.scene = scene

    def look_around(self) -> Iterator[bytes | None]:
        scene, promises = self.scene, {probe.promise for probe in self.probes}
        if promises & NETWORK:
            self.facts.update(host_facts(scene.subject, self.ground, scene.network, scene.sockets))
        self.facts.update(gather_facts(scene.subject) if promises & LOCAL else {})
        yield from super().look_around()
        before = count(scene)
        self.sent.update({probe.name: Sent(before.get(probe.rule)) for probe in self.probes if probe.stands})
        for group in rounds(self.probes):
            theirs = [(f"f.{p.name}", "frame", str(p.copies), p.frame.hex()) for p in group if p.via == "guest"]
            self.look()
            send(scene, group)
            yield from self.ask(theirs)
            before = self.await_counters(group, before)

    def await_counters(self, group: Sequence[Probe], before: Mapping[str, int]) -> dict[str, int]:
        """Note the fate of the packets of a round; returns the counters after it."""
        answers = parse_answers(self.text)
        deadline = time.monotonic() + COUNT_SECONDS
        while True:
            after = count(self.scene)
            rose = {key: after[key] - before[key] for key in after if key in before}
            waiting = [p for p in group if p.rule in rose and rose[p.rule] < needed(p)]
            if not waiting or time.monotonic() > deadline:
                break
            time.sleep(0.02)
        seen = self.look()
        for probe in group:
            said = answers.get(f"f.{probe.name}", "") if probe.via == "guest" else f"sent {probe.copies}"
            has_failed = said != f"sent {probe.copies}"
            places = tuple(sorted(place for place, name in seen if name == probe.name))
            # A packet that comes back to its sender, as the answer to it or with a refusal, came out nowhere.
            if probe.via == "guest":
                places = tuple(place for place in places if place != AT_PORT)
            self.sent[probe.name] = Sent(
                UNCOUNTED if after.get(probe.rule) == UNCOUNTED else rose.get(probe.rule),
                places,
                f"the workspace could not send it: {said or 'no answer'}" if has_failed else "",
            )
        return after

    def look(self) -> set[tuple[str, str]]:
        """(place, probe) of the packets that came out somewhere since the last look."""
        token = self.ground.token.encode()
        return {(eye.place, name) for eye in self.scene.sockets.eyes for name in eye.drain(token)}


def count(scene: Scene) -> dict[str, int]:
    """The counters of all rules, on the host and in the router."""
    layout = scene.subject.layout
    host, there = gather([RULES, inside(layout, RULES)])
    return {**parse_counters(host, layout.table, "host"), **parse_counters(there, layout.table, "router")}


def send(scene: Scene, group: Sequence[Probe]) -> None:
    """Send the packets that do not come from the workspace."""
    for probe in group:
        sender = scene.sockets.senders.get(probe.via)
        for _ in range(probe.copies if sender else 0):
            assert sender is not None
            sender.send(probe.frame)
