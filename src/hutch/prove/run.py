"""Carries out the probes of one workspace: talks with the program inside, sends packets and reads counters meanwhile.

What comes from inside is an attacker's: it has a limit, it is parsed strictly (see judge), and nothing that it says
makes the host do anything but go on to the next step.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from hutch.backends import is_machine
from hutch.backends.identity import guest_uid
from hutch.errors import HutchError
from hutch.files import read_or_none
from hutch.frozen import dataclass
from hutch.host.hardware.clock import read_boot
from hutch.host.network import router
from hutch.host.network.namespace import RULES, inside
from hutch.host.network.neighbours import RESOLV_CONF, parse_servers
from hutch.prove.facts import gather_facts, opened_home
from hutch.prove.ground import ALONE, AT_PORT, PLAIN, Sockets, mac_of, open_sockets, outside_of, subnet_address
from hutch.prove.judge import UNCOUNTED, Evidence, Sent, judge, needed, parse_answers, parse_counters, rounds
from hutch.prove.local import CONVERSATION, MADE, PREFIX, in_home, local_probes, path
from hutch.prove.model import Fact, Ground, Probe, ProbeResult
from hutch.prove.network import network_probes
from hutch.prove.reach import host_facts, key_facts
from hutch.prove.subject import Subject
from hutch.run import gather
from hutch.spec import names
from hutch.spec.model import Network
from hutch.spec.names import Layout
from hutch.spec.policy import policy_of
from hutch.spec.record import Record
from hutch.state import read_records
from hutch.trees.removing import remove_below

PROGRAM = Path(__file__).with_name("inside.pl")
COMMAND = ("perl", "-")
LIMIT = 1 << 18  # bytes that are taken from inside
SWEEPING = 10.0  # seconds for each thing of ours in a home
SETTLING = 1.5  # seconds that a packet may take until it is counted
NETWORK, LOCAL, KEYS = {3, 4}, {1, 2, 6, 7, 11}, 7  # promises that facts of the host are about

Talk = Callable[[Sequence[str], Iterator[bytes | None], Callable[[bytes], None]], int]
"""A function that runs a command inside as root, given its input and a taker of its output; returns its exit code."""


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

    def wants(self, probe: Probe) -> bool:
        return not self.only or bool({str(probe.promise), probe.name} & set(self.only))


def prove(subject: Subject, task: Task, talk: Talk) -> tuple[ProbeResult, ...]:
    """Try the promises on a workspace that runs."""
    port, token = names.port(subject.name, subject.booted.type), secrets.token_hex(8)
    try:
        marker_of(subject.layout, subject.name, token).touch(0o600)
        with open_sockets(subject.layout, port, task.outside) as sockets:
            ground = observe_ground(subject, task, sockets, token)
            probes = tuple(filter(task.wants, (*network_probes(ground), *local_probes(ground))))
            if not probes:
                return ()
            evidence = observe_evidence(Scene(subject, ground, task.network, sockets, probes), talk)
            return tuple(judge(probe, ground, evidence) for probe in (*probes, CONVERSATION))
    finally:
        sweep(subject.layout, subject.record)


def marker_of(layout: Layout, name: str, token: str) -> Path:
    """The path of the marker, among the files that go when the workspace stops."""
    return layout.runtime(name) / f"marker.{token}"


def sweep(layout: Layout, record: Record) -> None:
    """Remove the files of a run for a workspace, or of one that was killed, or that the workspace did not clean up
    after. In its home there may be anything under our names by now."""
    for marker in layout.runtime(record.name).glob("marker.*"):
        marker.unlink(missing_ok=True)
    for workspace in [record.wanted, *([record.booted.workspace] if record.booted else [])]:
        with suppress(FileNotFoundError, NotADirectoryError), opened_home(workspace) as home:
            for name in MADE:
                with suppress(HutchError):
                    remove_below(home, PREFIX + name, seconds=SWEEPING)


def observe_ground(subject: Subject, task: Task, sockets: Sockets, token: str) -> Ground:
    """The data from which the probes are made."""
    booted, network = subject.booted, task.network
    layout = subject.layout
    assert booted.ip and booted.mac and isinstance(booted.owner, int)
    ips = {name: record.wanted.ip for name, record in read_records(layout).items() if record.wanted.ip is not None}
    others = [(name, ip) for name, ip in sorted(ips.items()) if name != subject.name]
    nobody = ("nobody", subnet_address(network, set(ips.values())))
    beyond = outside_of(layout, task.outside, sockets)
    addresses = router.observe_host().addresses(without=layout.uplink_host)
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
        host_addresses=tuple(ip for ip in addresses if beyond is None or ip != beyond.gate),
        host_port=sockets.port,
        resolvers=nameservers(),
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
        machine=os.uname().machine,
        boot_id=read_boot(),
    )


def nameservers() -> tuple[str, ...]:
    """The host's own IPv4 resolvers."""
    found = parse_servers((read_or_none(RESOLV_CONF) or b"").decode("ascii", "replace"))
    return tuple(dict.fromkeys(ip for ip in found if ip.replace(".", "").isdigit()))


def observe_evidence(scene: Scene, talk: Talk) -> Evidence:
    """Have the conversation. Probes that it does not come to are not proved, whoever ended it."""
    conversation = Conversation(scene)
    code = talk(COMMAND, conversation.sentences(), conversation.take)
    answers = parse_answers(conversation.text)
    if not answers and code in (126, 127):
        raise HutchError(
            f"{scene.ground.workspace}: there is no perl inside, which the probes are written in",
            resolution='add "perl-base" to its `packages`, or leave the name out for a throw-away workspace',
        )
    cut_short = conversation.complaint(code)
    facts = conversation.facts | {CONVERSATION.name: Fact("broken" if cut_short else "held", cut_short)}
    return Evidence(answers, conversation.sent, facts, cut_short)


class Conversation:
    """The conversation with the program inside: questions, answers, and the host's work between them."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.text = ""
        self.turns = 0
        self.is_over = False
        self.sent: dict[str, Sent] = {}
        self.facts: dict[str, Fact] = {}

    def take(self, data: bytes) -> None:
        """Take output, up to the limit: beyond it, the conversation ends by its deadline."""
        self.text += data.decode("ascii", "replace")[: LIMIT - len(self.text)]

    def sentences(self) -> Iterator[bytes | None]:
        """The input for `talk`; after None, the next piece is asked for once something was heard."""
        ground, probes = self.scene.ground, self.scene.probes
        asked = [(probe.name, *probe.ask) for probe in probes if probe.ask]
        if ground.is_machine:
            asked.insert(0, ("patience", "patience", "4"))
        yield PROGRAM.read_bytes()
        yield from self.ask(asked)
        promises = {probe.promise for probe in probes}
        if promises & NETWORK:
            self.facts.update(host_facts(self.scene.subject, ground, self.scene.network, self.scene.sockets))
        self.facts.update(gather_facts(self.scene.subject) if promises & LOCAL else {})
        self.facts.update(key_facts(ground) if KEYS in promises else {})
        before = count(self.scene)
        self.sent.update({probe.name: Sent(before.get(probe.rule)) for probe in probes if probe.stands})
        for group in rounds(probes):
            theirs = [(f"f.{p.name}", "frame", str(p.copies), p.frame.hex()) for p in group if p.via == "guest"]
            self.look()
            send(self.scene, group)
            yield from self.ask(theirs)
            before = self.settle(group, before)
        files = [path(in_home(ground, name)) for name in MADE]
        yield from self.ask([("cleanup", "remove", *files)])
        self.is_over = True
        yield b"end\n"

    def ask(self, lines: Sequence[Sequence[str]]) -> Iterator[bytes | None]:
        """Ask questions, and wait until all of them are answered."""
        self.turns += 1
        yield "".join("\t".join(line) + "\n" for line in (*lines, ("go",))).encode("ascii")
        while self.text.split("\n")[:-1].count("done") < self.turns:
            yield None

    def complaint(self, code: int) -> str:
        """The reason why the conversation was not whole; "" for one that was."""
        if not self.is_over:
            return f"the conversation inside was cut short in turn {self.turns}, with code {code}"
        return f"the conversation inside ended with code {code}" if code else ""

    def settle(self, group: Sequence[Probe], before: Mapping[str, int]) -> dict[str, int]:
        """Note the fate of the packets of a round; returns the counters after it."""
        answers = parse_answers(self.text)
        deadline = time.monotonic() + SETTLING
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
        token = self.scene.ground.token.encode()
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
