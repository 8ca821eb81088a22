"""The addresses of the host and the listeners on its ports, to be looked at before a published port takes one over
without a word. Nothing holds a published port, so listeners that come later, and addresses that go, are told of.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping

from hutch.errors import Problem
from hutch.frozen import dataclass
from hutch.run import run
from hutch.spec.entries import Publish
from hutch.spec.model import WorkspaceSpec
from hutch.spec.record import Record
from hutch.spec.refusing import refuse_files

EVERYWHERE = ("0.0.0.0", "*", "")


@dataclass(frozen=True)
class Listener:
    """A socket of a program on the host. `ip` is "" for every address; `program` is "" when nobody knows."""

    protocol: str
    ip: str
    port: int
    program: str = ""


def parse_listeners(text: str) -> Iterator[Listener]:
    """The IPv4 sockets in the output of `ss -Hlntup`; "*" is IPv6 and IPv4 in one."""
    for line in text.splitlines():
        fields = line.split(maxsplit=6)
        if len(fields) < 5:
            continue
        ip, _, port = fields[4].rpartition(":")
        ip = ip.partition("%")[0].removeprefix("[::ffff:").rstrip("]")  # "127.0.0.53%lo"
        if not port.isdigit() or (ip not in EVERYWHERE and not re.fullmatch(r"[0-9.]+", ip)):
            continue
        program = re.search(r'\(\("([^"]*)",pid=([0-9]+)', fields[6]) if len(fields) > 6 else None
        words = f"{program[1]}, pid {program[2]}" if program else ""
        yield Listener(fields[0], "" if ip in EVERYWHERE else ip, int(port), words)


def observe_listeners() -> tuple[Listener, ...]:
    return tuple(parse_listeners(run(["ss", "-Hlntup"]).stdout))


def find_foreign(entries: Iterable[Publish]) -> frozenset[str]:
    """The addresses in these entries that are not the host's. All of 127/8 are; of another one the kernel is asked, as
    the rule of a published port does."""
    addresses = {entry.host_ip for entry in entries if entry.host_ip and not entry.is_local}
    return frozenset(address for address in addresses if not _is_own(address))


def _is_own(address: str) -> bool:
    route = run(["ip", "-j", "route", "get", address], check=False)
    return route.returncode == 0 and json.loads(route.stdout)[0].get("type") == "local"


def taken_by(entry: Publish, listeners: tuple[Listener, ...]) -> Listener | None:
    """The program that would lose its port to the entry."""
    for listener in listeners:
        same_port = (listener.protocol, listener.port) == (entry.protocol, entry.host_port)
        if same_port and (not entry.host_ip or not listener.ip or listener.ip == entry.host_ip):
            return listener
    return None


def check_ports(file: str, workspaces: Mapping[str, WorkspaceSpec], records: Mapping[str, Record]) -> None:
    """Refuse entries of `publish` that are for an address which is not the host's, or would take a port from a program
    of the host. Those that are recorded are in force already."""
    new = []
    for name, workspace in workspaces.items():
        record = records.get(name)
        before = record.wanted.publish if record is not None and not record.removed else ()
        new += [(name, index, entry) for index, entry in enumerate(workspace.publish) if entry not in before]
    listeners = observe_listeners() if new else ()
    foreign = find_foreign(entry for _, _, entry in new)
    problems = []
    for name, index, entry in new:
        key = f"workspaces.{name}.publish[{index}]"
        owner = taken_by(entry, listeners)
        if entry.host_ip in foreign:
            right = "one of the host's, 127.0.0.1, or none, which is all of them"
            problems.append(Problem(f"{entry.host_ip} is no address of this host", key, str(entry), right))
        elif owner is not None:
            what = f"{entry.protocol} port {entry.host_port} of the host is taken"
            message = f"{what}: {owner.program or 'a program'} listens on {owner.ip or '*'}:{owner.port}"
            problems.append(Problem(message, key, str(entry), "another host_port, or stop that program"))
    refuse_files((file, problem) for problem in problems)


def find_deaf(records: Mapping[str, Record]) -> dict[str, tuple[str, ...]]:
    """By workspace, in words, the published ports on which a program of the host has come to listen: what is sent to it
    there, the workspace gets; and those at an address that the host has lost."""
    published = {name: record.wanted.publish for name, record in records.items() if record.wanted.publish}
    listeners = observe_listeners() if published else ()
    foreign = find_foreign(entry for entries in published.values() for entry in entries)
    found = {}
    for name, entries in published.items():
        pairs = ((entry, taken_by(entry, listeners)) for entry in entries if entry.host_ip not in foreign)
        deaf = (
            f"{entry.protocol} port {entry.host_port} of the host leads here, though "
            f"{other.program or 'a program'} listens on {other.ip or '*'}:{other.port}, and hears nothing"
            for entry, other in pairs
            if other is not None
        )
        lost = (
            f"{entry.protocol} port {entry.host_port} leads nowhere: {entry.host_ip} is no address of this host"
            for entry in entries
            if entry.host_ip in foreign
        )
        found[name] = (*deaf, *lost)
    return {name: told for name, told in found.items() if told}
