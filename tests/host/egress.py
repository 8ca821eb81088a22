"""What tests of egress do from inside a workspace, by an agent that stays there, and what they look at on the host."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

from tests.host.instance import Instance
from tests.host.opening import open_instance
from tests.host.processes import Process, processes
from tests.support.world import ECHO_PORT, FAR, FAR_PORTS, RESOLVERS, ZONE_RESOLVER, World

AGENT = Path(__file__).with_name("guest_agent.py")
REFUSED, NXDOMAIN, NOERROR, SERVFAIL = 5, 3, 0, 2
PORT = FAR_PORTS[0]
DEADLINE = 60.0  # seconds for what is asked of an agent at once
AT_ONCE = 0.5  # seconds that a refusal may take: far below any retry of a resolver's or of TCP's
KINDS = {"A": 1, "TXT": 16, "AAAA": 28, "HTTPS": 65, "ANY": 255}


@dataclass(frozen=True)
class Answer:
    """What came of a task: of a question the code and records, of a connection who answered."""

    error: str = ""
    seconds: float = 0.0
    code: int = -1
    records: tuple[tuple[str, str, int], ...] = ()
    cut: bool = False
    said: str = ""
    addresses: tuple[str, ...] = ()
    outcomes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, found: dict[str, Any]) -> Answer:
        records = tuple((kind, value, ttl) for kind, value, ttl in found.pop("records", ()))
        return cls(records=records, addresses=tuple(found.pop("addresses", ())), **found)

    @property
    def ips(self) -> list[str]:
        """The addresses of an answer to a question."""
        return sorted(value for kind, value, _ in self.records if kind == "A")


def first_at_once(answers: Iterable[Answer]) -> Answer:
    """The first that came at once, else the last: beside busy tests one may be late, but what waits for a retry always
    is."""
    last = Answer()
    for last in answers:
        if last.seconds < AT_ONCE:
            break
    return last


class Agent:
    """A process inside a workspace that asks and connects."""

    def __init__(self, process: Popen[str], gateway: str) -> None:
        self._process = process
        self._gateway = gateway

    def all(self, *tasks: dict[str, Any]) -> list[Answer]:
        """Do these at once."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(tasks) + "\n")
        self._process.stdin.flush()
        answered, _, _ = select.select([self._process.stdout], [], [], DEADLINE)
        assert answered, f"no end of {tasks}"
        return [Answer.of(found) for found in json.loads(self._process.stdout.readline())]

    def question(self, name: str | Sequence[str], kind: str = "A", **how: Any) -> dict[str, Any]:
        labels = name.rstrip(".").split(".") if isinstance(name, str) else list(name)
        common = {"do": "ask", "labels": labels, "kind": KINDS[kind], "server": self._gateway, "via": "udp"}
        return {**common, "patience": 3.0, **how}

    def ask(self, name: str | Sequence[str], kind: str = "A", **how: Any) -> Answer:
        return self.all(self.question(name, kind, **how))[0]

    def dial(self, address: str, port: int = PORT, protocol: str = "tcp", patience: float = 1.5) -> Answer:
        return self.all(connection(address, port, protocol, patience))[0]

    def reach(self, name: str, port: int = PORT) -> str:
        """Ask for a name and connect: who answered, "" for nobody."""
        found = self.ask(name)
        return self.dial(found.ips[0], port).said if found.ips else ""

    def resolve(self, name: str) -> Answer:
        return self.all({"do": "resolve", "host": name})[0]

    def hold(self, key: str, address: str) -> None:
        """Open a connection that stays."""
        found = self.all({"do": "hold", "key": key, "address": address, "port": ECHO_PORT, "patience": 2.0})[0]
        assert found.said == "echo", found

    def lives(self, key: str, patience: float = 1.0) -> bool:
        return self.all({"do": "say", "key": key, "patience": patience})[0].said == "echo"

    def flood(self, listed: str, unlisted: str, count: int, clients: int) -> dict[str, int]:
        """Ask for names below two parents in turn; how often what was answered."""
        parents = {"listed": listed.split("."), "unlisted": unlisted.split(".")}
        how = {"count": count, "clients": clients, "server": self._gateway, "patience": 5.0}
        return self.all({"do": "flood", **parents, **how})[0].outcomes

    def garbage(self, count: int) -> None:
        found = self.all({"do": "garbage", "count": count, "server": self._gateway, "patience": 3.0})[0]
        assert not found.error, found


def connection(address: str, port: int = PORT, protocol: str = "tcp", patience: float = 1.5) -> dict[str, Any]:
    return {"do": "dial", "address": address, "port": port, "protocol": protocol, "patience": patience}


@contextmanager
def start_agent(instance: Instance, name: str) -> Iterator[Agent]:
    """An agent in a workspace, for a while."""
    argv = ("exec", "--root", name, "--", "python3", "-c", AGENT.read_text())
    with instance.spawn(*argv, stdin=PIPE, stdout=PIPE, text=True) as process:
        try:
            yield Agent(process, instance.gateway)
        finally:
            process.kill()


# On the host.


def egress_proxies(instance: Instance) -> list[Process]:
    """The processes that answer this hutch's workspaces that have a list: the keeper of the sets, and its child."""
    marks = (str(instance.state), str(instance.run))
    return [
        process
        for process in processes()
        if "python" in process.command[0]
        and "hutch.egress" in process.command
        and any(mark in word for word in process.command for mark in marks)
    ]


def kill_egress_proxy(instance: Instance, number: int = signal.SIGKILL) -> None:
    """A signal to both of them; where one ends, the other does by itself."""
    found = egress_proxies(instance)
    assert found
    for process in found:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def records(instance: Instance, name: str) -> list[dict[str, Any]]:
    """What `hutch egress NAME --json` prints."""
    found = json.loads(instance.hutch("egress", name, "--json").stdout)
    assert isinstance(found, list)
    return found


def eventually(holds: Callable[[], bool], patience: float = 5.0, pause: float = 0.05) -> bool:
    """Whether something came to be; for what nothing tells us of."""
    deadline = time.monotonic() + patience
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
    return True


@contextmanager
def open_hutch(world: World, images: Path) -> Iterator[Instance]:
    """A hutch on a host whose resolver knows what the test's zone says. Everything below "example" is there, so that
    what is not answered was refused here, and not unknown there."""
    world.zone.put("*.example", a=[FAR[0]])
    world.use_resolver(ZONE_RESOLVER)
    try:
        with open_instance(world, images) as instance:
            yield instance
    finally:
        world.use_resolver(RESOLVERS[0])
