"""Facts by connections of the host's own, and by its ssh: positive controls, and the promises about keys. It connects
and runs ssh; it changes nothing."""

from __future__ import annotations

import json
import os
import secrets
import select
import socket
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

from hutch.apply.serving import endpoints_of, in_force
from hutch.host.network import router
from hutch.host.network.firewall import RESOLVER_PORT
from hutch.host.network.watch import wanted_watch
from hutch.host.services.service import observe_service
from hutch.prove.frames import echo, question
from hutch.prove.ground import Sockets, in_namespace, namespace_path
from hutch.prove.model import Fact, Ground
from hutch.prove.network import LOOPBACK
from hutch.prove.subject import Subject, held
from hutch.run import CommandFailed, run
from hutch.spec import names
from hutch.spec.model import Network
from hutch.spec.names import hostname
from hutch.state import read_records

PATIENCE = 2.0  # seconds for a connection of the host's
OTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
"""A public key that nobody has."""
CHANGED = "REMOTE HOST IDENTIFICATION HAS CHANGED"


def host_facts(subject: Subject, ground: Ground, network: Network, sockets: Sockets) -> dict[str, Fact]:
    """Facts about the host's reach. The workspace listens at its published ports by now, and an answer from beyond the
    host, if there is any, has come."""
    facts = {
        "host-ssh": banner(ground.ip, 22, b"SSH-"),
        "host-to-workspace-ping": pinged(ground.ip),
        "host-to-gateway-ping": pinged(ground.uplink[1]),
        "router-to-itself": resolver_in_router(subject, ground),
        "host-listener": listeners(ground),
        **port_facts(subject, ground, network),
    }
    if sockets.beyond is not None and ground.outside is not None:
        facts["translated"] = translated(sockets.beyond, ground.outside.gate)
    greeting = b"hutch" if ground.is_ours else b""
    here = [banner(item.host_ip or LOOPBACK, item.host_port, greeting) for item in ground.published]
    facts["published-here"] = worst(here)
    if ground.outside is not None:
        there, gate = namespace_path(subject.layout), ground.outside.gate
        open_ = [item for item in ground.published if item.host_ip != LOOPBACK]
        facts["published-outside"] = worst(
            [banner(item.host_ip or gate, item.host_port, greeting, there) for item in open_]
        )
        ports = sorted({item.host_port for item in ground.published} - {ground.outside.port})
        facts["published-elsewhere"] = worst([unanswered(ground.outside.ip, port) for port in ports])
    return facts


def worst(facts: Sequence[Fact]) -> Fact:
    """The first fact that is broken, or one of all."""
    broken = next((fact for fact in facts if fact.verdict == "broken"), None)
    return broken or Fact("held", ", ".join(fact.detail for fact in facts))


def port_facts(subject: Subject, ground: Ground, network: Network) -> dict[str, Fact]:
    """Facts about its port on the bridge, and about the router."""
    layout, bridge = subject.layout, ground.bridge
    port = names.port(subject.name, ground.type)
    where = ["ip", "-n", layout.namespace, "-d", "-j"]
    (link,) = json.loads(run([*where, "link", "show", "dev", port]).stdout)
    neighbours = json.loads(run([*where, "neighbour", "show", "dev", bridge]).stdout or "[]")
    pinned = [(n.get("lladdr"), n.get("state")) for n in neighbours if n["dst"] == ground.ip]
    is_isolated = link.get("linkinfo", {}).get("info_slave_data", {}).get("isolated") is True
    return {
        "port-isolated": held(is_isolated and link.get("master") == bridge, port),
        "fence": held(router.is_fenced(network, router.observe_all(layout, network)[1])),
        "watch": held(observe_service(wanted_watch(layout, network)) is not None),
        "as-written": as_written(subject, ground, network),
        "port-address": held(pinned == [(ground.mac, ["PERMANENT"])], ", ".join(map(str, pinned))),
    }


def as_written(subject: Subject, ground: Ground, network: Network) -> Fact:
    """The fact of the rules of both places, compared as every start compares them."""
    endpoints = endpoints_of(in_force(subject.layout, read_records(subject.layout)), network)
    host, facts = router.observe_all(subject.layout, network)
    late = ground.outside is not None and not ground.outside.is_known  # an address that came after the rules
    links = {name: link for name, link in host.links.items() if not late or name != subject.layout.proof_interface}
    host = replace(host, links=links)
    rules = router.wanted_rules(subject.layout, network, endpoints, host)
    wrong = router.differences(subject.layout, network, rules, host, facts)
    found = [f"{part}: {why}" for part, why in wrong.items() if part in ("router rules", "host rules")]
    return held(not found, "; ".join(found))


def banner(ip: str, port: int, greeting: bytes, namespace: Path | None = None) -> Fact:
    """The fact of a connection, and of the greeting, where one is due."""
    with in_namespace(namespace):
        stream = socket.socket()
    with closing(stream):
        stream.settimeout(PATIENCE)
        try:
            stream.connect((ip, port))
            said = stream.recv(64) if greeting else b""
        except OSError as error:
            return Fact("broken", f"{ip} port {port}: {error.strerror or error}")
    return held(said.startswith(greeting), f"{ip} port {port} answered")


def unanswered(ip: str, port: int) -> Fact:
    """The fact of a connection that nobody is to answer: nobody listens there."""
    found = banner(ip, port, b"")
    if found.verdict == "held":
        return Fact("broken", f"{found.detail}, in the place of who has that address")
    return Fact("held", f"nobody answers for {ip} port {port}")


def pinged(ip: str) -> Fact:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as stream:
        stream.connect((ip, 0))
        stream.send(echo(b"hutch", secrets.randbelow(1 << 16)))  # no answer to an earlier one
        deadline = time.monotonic() + PATIENCE
        while (left := deadline - time.monotonic()) > 0 and select.select([stream], [], [], left)[0]:
            packet = stream.recv(2048)
            if packet[4 * (packet[0] & 15)] == 0:
                return Fact("held", f"{ip} answered")
    return Fact("broken", f"{ip} did not answer")


def resolver_in_router(subject: Subject, ground: Ground) -> Fact:
    with in_namespace(subject.layout.namespace_path):
        stream = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with closing(stream):
        stream.settimeout(PATIENCE)
        stream.connect((ground.gateway, RESOLVER_PORT))
        try:
            stream.send(question("localhost"))
            stream.recv(2048)
        except OSError as error:
            return Fact("broken", f"{error.strerror or error}")
    return Fact("held", f"{ground.gateway} answered")


def answers_by_tcp(resolver: str, name: str) -> bool:
    """Whether a resolver finds the name for a question by TCP, for which it has PATIENCE."""
    asked = question(name)
    try:
        with socket.create_connection((resolver, 53), PATIENCE) as stream, stream.makefile("rb") as answer:
            stream.sendall(len(asked).to_bytes(2) + asked)
            head = answer.read(6)
    except OSError:
        return False
    return head[2:4] == asked[:2] and len(head) == 6 and head[5] & 15 == 0


def listeners(ground: Ground) -> Fact:
    """The fact of the host's listener, at every address that the workspace will try."""
    addresses = [*ground.host_addresses, ground.uplink[0], *([ground.outside.gate] if ground.outside else [])]
    failed = []
    for ip in addresses:
        try:
            socket.create_connection((ip, ground.host_port), PATIENCE).close()
        except OSError:
            failed.append(ip)
    if failed:
        return Fact("unknown", f"the host itself does not reach {', '.join(failed)}")
    return Fact("held", ", ".join(addresses))


def translated(listener: socket.socket, gate: str) -> Fact:
    """The fact of the address translation: the addresses from which clients came to the place beyond the host."""
    seen = set()
    with suppress(BlockingIOError):
        while True:
            stream, (ip, _) = listener.accept()
            stream.close()
            seen.add(ip)
    if not seen:
        return Fact("broken", "nobody came")
    return held(seen == {gate}, f"it saw {', '.join(sorted(seen))}")


# ssh.


def key_facts(ground: Ground) -> dict[str, Fact]:
    host = hostname(ground.workspace)
    settings = dict(line.partition(" ")[::2] for line in run(["ssh", "-G", host]).stdout.splitlines())
    strict = (settings.get("stricthostkeychecking", ""), settings.get("globalknownhostsfile", ""))
    known = settings.get("userknownhostsfile", "")
    ports = [key for key in ("localforward", "remoteforward", "dynamicforward") if key in settings]
    return {
        "ssh": logs_in(host),
        "ssh-changed-key": changed_key(host, ground.ip),
        "ssh-strict": held(
            strict in (("true", "/dev/null"), ("yes", "/dev/null")) and known == f"{ground.state}/known_hosts", known
        ),
        "ssh-agent": held(settings.get("forwardagent") == "no", f"ForwardAgent {settings.get('forwardagent')}"),
        "ssh-x11": held(settings.get("forwardx11") == "no", f"ForwardX11 {settings.get('forwardx11')}"),
        "ssh-ports": held(not ports, ", ".join(ports)),
        "ssh-passwords": methods(host),
    }


def attempt(host: str, *options: str) -> tuple[int, str]:
    words = [word for option in ("BatchMode=yes", "ConnectTimeout=10", *options) for word in ("-o", option)]
    try:
        result = run(["ssh", *words, "--", host, "true"], timeout=60, check=False)
    except CommandFailed as error:  # the other end takes its time
        return -1, error.brief
    return result.returncode, result.stderr


def logs_in(host: str) -> Fact:
    code, said = attempt(host)
    if code == 0:
        return Fact("held")
    last = "".join(said.splitlines()[-1:])
    # The key was believed, and it is this account that has none of its own there.
    is_known = "Permission denied" in last and CHANGED not in said
    return Fact("unknown" if is_known else "broken", last or f"code {code}")


def changed_key(host: str, ip: str) -> Fact:
    """The fact of ssh with a known-hosts file that knows another key."""
    descriptor, path = tempfile.mkstemp(prefix="hutch-prove-")
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(f"{host},{ip} {OTHER_KEY}\n")
        code, said = attempt(host, f"UserKnownHostsFile={path}", "GlobalKnownHostsFile=/dev/null")
    finally:
        os.unlink(path)
    return held(code == 255 and CHANGED in said, "refused" if code == 255 else "it connected")


def methods(host: str) -> Fact:
    """The fact of the ways to log in, as sshd tells them to a client without a key."""
    _, said = attempt(host, "PreferredAuthentications=none", "PubkeyAuthentication=no")
    offered = said.rpartition("Permission denied (")[2].partition(")")[0]
    if not offered or "Permission denied" not in said:
        return Fact("broken", "".join(said.splitlines()[-1:]) or "it did not answer")
    return held(offered == "publickey", offered)
