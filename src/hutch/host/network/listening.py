"""The listeners on the host's ports, to be looked at before a published port takes one over without a word. Nothing
holds a published port, so those that come later are told of.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

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


def taken_by(entry: Publish, listeners: tuple[Listener, ...]) -> Listener | None:
    """The program that would lose its port to the entry."""
    for listener in listeners:
        same_port = (listener.protocol, listener.port) == (entry.protocol, entry.host_port)
        if same_port and (not entry.host_ip or not listener.ip or listener.ip == entry.host_ip):
            return listener
    return None


def check_ports(file: str, workspaces: Mapping[str, WorkspaceSpec], records: Mapping[str, Record]) -> None:
    """Refuse entries of `publish` that would take a port from a program of the host. Those that are recorded are in
    force already."""
    new = []
    for name, workspace in workspaces.items():
        record = records.get(name)
        before = record.wanted.publish if record is not None and not record.removed else ()
        new += [(name, index, entry) for index, entry in enumerate(workspace.publish) if entry not in before]
    listeners = observe_listeners() if new else ()
    problems = []
    for name, index, entry in new:
        owner = taken_by(entry, listeners)
        if owner is not None:
            what = f"{entry.protocol} port {entry.host_port} of the host is taken"
            message = f"{what}: {owner.program or 'a program'} listens on {owner.ip or '*'}:{owner.port}"
            key = f"workspaces.{name}.publish[{index}]"
            problems.append(Problem(message, key, str(entry), "another host_port, or stop that program"))
    refuse_files((file, problem) for problem in problems)


def find_deaf(records: Mapping[str, Record]) -> dict[str, tuple[str, ...]]:
    """By workspace, in words, the published ports on which a program of the host has come to listen: what is sent to it
    there, the workspace gets."""
    published = {name: record.wanted.publish for name, record in records.items() if record.wanted.publish}
    listeners = observe_listeners() if published else ()
    found = {}
    for name, entries in published.items():
        pairs = ((entry, taken_by(entry, listeners)) for entry in entries)
        found[name] = tuple(
            f"{entry.protocol} port {entry.host_port} of the host leads here, though "
            f"{deaf.program or 'a program'} listens on {deaf.ip or '*'}:{deaf.port}, and hears nothing"
            for entry, deaf in pairs
            if deaf is not None
        )
    return {name: told for name, told in found.items() if told}
