"""Ports of a running workspace on this host's loopback, and the other way round: by one ssh, which is told of each port
on its control socket, and asked once a second what listens inside. It ends with whoever follows it.
"""

from __future__ import annotations

import os
import secrets
import select
import socket
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, closing

from hutch.access.listening import (
    LOOPBACK,
    PRIVILEGED,
    Forward,
    ForwardEvent,
    Listener,
    choose,
    parse_listeners,
    render_program,
    targets,
)
from hutch.access.relay import is_ready
from hutch.access.remote import PATIENCE, RemoteTarget
from hutch.access.remote_script import Ear, render_line, render_root
from hutch.access.session import GRACE, Session
from hutch.errors import HutchError
from hutch.host.identity.ssh import render_argv, render_own_argv
from hutch.host.services.process import open_process
from hutch.run import run
from hutch.spec.names import hostname

PACE = 1.0  # seconds between looks at what listens
TRIES = 3  # at a port of the kernel's choice, which another program may take before ssh does
MOST_SAID = 4 << 20  # bytes of one answer


class Lost(HutchError):
    """The connection to a workspace has ended: it stops, or cannot be reached any more."""


class Answers(Ear):
    """The words of the program after its start, as far as nobody has taken them."""

    def __init__(self, nonce: str) -> None:
        super().__init__(nonce, has_end=False)
        self.said = b""

    def take(self, data: bytes) -> bytes:
        self.said += super().take(data)
        if len(self.said) > MOST_SAID:
            raise HutchError("the workspace's list of listening ports is too long to be believed")
        return b""

    def next(self) -> str | None:
        """An answer, once all of it is there."""
        answer, end, rest = self.said.partition(b"%s\n" % self.mark)
        if not end:
            return None
        self.said = rest
        return answer.decode("utf-8", "replace")


class Link:
    """An ssh into a workspace that is asked what listens there. `control` is the socket by which that ssh is told of
    ports, "" for none; `tells_programs` and `names_host` are as in render_program. To be closed."""

    def __init__(
        self, target: RemoteTarget, *, tells_programs: bool = False, names_host: bool = False, control: str = ""
    ) -> None:
        self.name = target.peer.name
        nonce = secrets.token_hex(16)
        self.answers, self.errors = Answers(nonce), Ear(nonce, has_end=False)
        self.leader = open_process(*target.leader) if target.leader is not None else None
        if target.leader is not None and self.leader is None:
            raise self._lost()
        render = render_own_argv if target.by_own_key else render_argv
        argv = render(target.layout, target.peer, render_line(nonce), terminal=False, control=control, is_first=True)
        self.session = Session(
            argv, [self.answers, self.errors], terminal=False, env=os.environ if target.by_own_key else {}
        )
        become = render_root(nonce) if tells_programs else b""  # who listens is root's to see
        self.session.unsent = become + render_program(nonce, tells_programs=tells_programs, names_host=names_host)

    def ask(self) -> str:
        """What listens now, in the guest's words. Raises Lost."""
        self.session.unsent += b"\n"
        found: list[str] = []

        def has_answered() -> bool:
            if (answer := self.answers.next()) is not None:
                found.append(answer)
            return bool(found)

        if not self.wait(PATIENCE, has_answered):
            raise self._lost(f"did not answer by ssh within {PATIENCE:g} s")
        return found[0]

    def wait(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Hear what is said until that is enough, and return True; False when it was not in time. Raises Lost."""
        deadline = time.monotonic() + seconds
        while not until():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            poll = select.poll()
            for descriptor, events in self.session.interests().items():
                poll.register(descriptor, events)
            if self.leader is not None:
                poll.register(self.leader, select.POLLIN)
            poll.poll(left * 1000)
            if self.leader is not None and is_ready(self.leader):
                raise self._lost()
            if not self.session.exchange() and not until():
                raise self._lost()
        return True

    def _lost(self, why: str = "") -> Lost:
        if why or self.answers.has_started:
            return Lost(f"{self.name} {why}" if why else f"the connection to {self.name} was lost")
        said = "\n".join(filter(None, (self.errors.explain(), self.answers.explain())))
        return Lost(f"{self.name} cannot be reached by ssh", details=said)

    def close(self) -> None:
        self.session.close_streams()
        self.session.end(0)
        if self.leader is not None:
            os.close(self.leader)


def listeners_of(target: RemoteTarget) -> tuple[Listener, ...]:
    """What listens in a workspace. Raises HutchError when it does not tell."""
    with closing(Link(target, tells_programs=True)) as link:
        return parse_listeners(link.ask())


def forward(
    target: RemoteTarget, ports: Collection[int], *, auto: bool, reverse: Collection[int]
) -> Iterator[ForwardEvent]:
    """Forward ports of a workspace, and with `auto` whatever listens in it, to this host's loopback; and `reverse`,
    ports of this host's loopback, to it. All that ends when the generator is closed; it raises Lost when the workspace
    ends."""
    with ExitStack() as stack:
        control = stack.enter_context(target.socket(secrets.token_hex(6)))
        if not control:
            raise HutchError("there is no directory for the socket of ssh", resolution="set TMPDIR to one of yours")
        link = stack.enter_context(closing(Link(target, names_host=bool(reverse), control=control)))
        yield from Forwarding(link, control).events(ports, auto, reverse)


class Forwarding:
    """The ports of one link. `have` are those that are forwarded because they listen."""

    def __init__(self, link: Link, control: str) -> None:
        self.link = link
        self.control = control
        self.have: dict[int, Forward] = {}
        self.untried: set[int] = set()
        self.is_crowded = False

    def events(self, ports: Collection[int], auto: bool, reverse: Collection[int]) -> Iterator[ForwardEvent]:
        said = self.link.ask()  # answered, it can be told of ports
        yield from self._begin(ports, reverse)
        while True:
            if auto:  # a reversed port listens inside too, and would only come back
                yield from self._follow(targets(parse_listeners(said)), {*ports, *reverse})
            self.link.wait(PACE)
            said = self.link.ask()

    def _begin(self, ports: Collection[int], reverse: Collection[int]) -> Iterator[ForwardEvent]:
        """The ports that somebody named."""
        for port in reverse:
            way = Forward(port, port, is_reverse=True)
            if not self._tell("forward", way):
                raise HutchError(
                    f"{self.link.name}: its sshd does not listen at {LOOPBACK}:{port}",
                    resolution="something else listens there already, or its sshd is told to forward nothing",
                )
            yield ForwardEvent("open", way)
        if reverse and not self.link.answers.hears("named"):
            yield ForwardEvent("unnamed")
        for port in ports:
            opened = self._open(port, "localhost")
            if opened is None:
                raise HutchError(f"{self.link.name}: no port of this host could be had for {port}")
            yield ForwardEvent("open", opened)

    def _follow(self, found: dict[int, str], named: Collection[int]) -> Iterator[ForwardEvent]:
        """The ports that listen, but for those that somebody named."""
        self.untried &= found.keys()
        begin, end, is_crowded = choose(found, self.have, {*named, *self.untried})
        for port in end:
            way = self.have.pop(port)
            self._tell("cancel", way)
            yield ForwardEvent("closed", way)
        for port in begin:
            opened = self._open(port, found[port])
            if opened is None:
                self.untried.add(port)
                yield ForwardEvent("left", Forward(port, port))
            else:
                self.have[port] = opened
                yield ForwardEvent("open", opened)
        if is_crowded and not self.is_crowded:
            yield ForwardEvent("crowded")
        self.is_crowded = is_crowded

    def _open(self, port: int, target: str) -> Forward | None:
        """Forward a port of the workspace to the same one here, or to another where that is taken or below 1024."""
        for attempt in range(TRIES + 1):
            if attempt == 0 and port < PRIVILEGED:
                continue
            way = Forward(port, port if attempt == 0 else free_port(), target)
            if self._tell("forward", way):
                return way
        return None

    def _tell(self, order: str, way: Forward) -> bool:
        """Have the ssh that runs begin or end a way; the configuration of ssh has no part in that."""
        own = ["-F", "none", "-S", self.control, "-o", "LogLevel=ERROR"]
        argv = ["ssh", *own, "-O", order, *way.words(), "--", hostname(self.link.name)]
        return run(argv, check=False, timeout=GRACE * 5).returncode == 0


def free_port() -> int:
    """A port of this host's loopback at which nothing listens."""
    with socket.socket(socket.AF_INET) as tried:
        tried.bind((LOOPBACK, 0))
        return int(tried.getsockname()[1])
