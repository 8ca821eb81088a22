"""`hutch prove`: gets a workspace to try the promises on, its own or a throw-away one, and has them tried.

Throw-away workspaces belong to a file that is not there. That is how those of a run that was killed are known again.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from hutch.access.piped import Overdue
from hutch.api.running import call_of, carry_through
from hutch.apply.machines import check_machines
from hutch.apply.recovery import recover
from hutch.apply.removal import remove
from hutch.errors import HutchError, UsageError
from hutch.frozen import dataclass
from hutch.host.services.lock import lock
from hutch.prove.conversation import Talk
from hutch.prove.elsewhere import prove_elsewhere
from hutch.prove.ground import make_decoys, only_one, remove_ground, start_outside
from hutch.prove.known import check_known
from hutch.prove.model import ProbeResult
from hutch.prove.run import Task, prove, sweep
from hutch.prove.subject import Subject
from hutch.spec.model import Config, Network, Publish, WorkspaceSpec
from hutch.spec.record import Observation, Record, is_local
from hutch.state import read_network, read_records, write_network

if TYPE_CHECKING:
    from hutch.api.engine import Hutch

TYPES = ("container", "vm")
TARGET = ("deb.debian.org", 80)
MEMORY = 1 << 30
LISTENING = 4242  # the port inside, of what is published
LISTS = "5"  # the promise about egress lists
SECONDS = 180.0  # seconds for the whole conversation with one workspace

Told = Callable[[tuple[ProbeResult, ...]], None]
"""A callback that gets the results of each workspace as soon as they are there."""


@dataclass(frozen=True)
class Proof:
    """All results, and the reason for each kind of workspace that was left out."""

    results: tuple[ProbeResult, ...]
    left_out: Mapping[str, str]

    @property
    def is_broken(self) -> bool:
        return any(result.result == "broken" for result in self.results)


@dataclass(frozen=True)
class ProofRequest:
    """The options of a proof. `target` is a public name and port, `only` are numbers of promises and names of probes,
    all without; `types` are the kinds of throw-away workspaces."""

    target: tuple[str, int]
    only: tuple[str, ...]
    types: tuple[str, ...]
    told: Told


def prove_on(hutch: Hutch, name: str | None, config: Config | None, order: ProofRequest) -> Proof:
    """Try promises: on a workspace that runs, or on a throw-away one of each kind. `config` is where the first
    workspace's image is taken from."""
    check_known(order.only)
    with only_one(hutch.layout):
        # Leftovers of a killed run. The place beyond the host goes first: the last to leave puts the host's settings
        # back, unless there is another interface that it might forward packets for.
        remove_ground(hutch.layout)
        remove_leftovers(hutch)
        for record in read_records(hutch.layout).values():
            sweep(hutch.layout, record)
        if name is not None:
            return Proof(prove_running(hutch, name, order), {})
        return prove_throw_away(hutch, config, order)


def prove_running(hutch: Hutch, name: str, order: ProofRequest) -> tuple[ProbeResult, ...]:
    if reached(hutch, name).state != "running":
        raise UsageError(f"{name} does not run", resolution=f"`hutch start {name}`")
    here = is_local(hutch.record(name).wanted)
    found = prove_here(hutch, name, order) if here else prove_there(hutch, name, order)
    order.told(found)
    return found


def reached(hutch: Hutch, name: str) -> Observation:
    """The workspace as it is now. Raises HutchError where its server does not answer."""
    seen = hutch.observe(name)
    if seen.state == "unreachable":
        raise HutchError(
            f"{name} cannot be reached: {seen.reason}", resolution="bring its server back; nothing is proved"
        )
    return seen


def prove_there(hutch: Hutch, name: str, order: ProofRequest) -> tuple[ProbeResult, ...]:
    """Try one that a server runs. When the server goes away meanwhile, that looks as if the workspace broke off, so it
    is asked again before this is said of the workspace."""
    try:
        found = prove_elsewhere(hutch.layout, hutch.record(name), order.target, order.only, talk_to(hutch, name))
    except HutchError:
        reached(hutch, name)
        raise
    if any(result.result == "broken" for result in found):
        reached(hutch, name)
    return found


def prove_here(hutch: Hutch, name: str, order: ProofRequest) -> tuple[ProbeResult, ...]:
    network = read_network(hutch.layout)
    if network is None:
        raise HutchError("the network is not set up", resolution="`hutch up` does that")
    with start_outside(hutch.layout, network.network) as outside:
        make_decoys(hutch.layout, network.network)
        return try_one(hutch, name, Task(network.network, outside, order.target, only=order.only))


def prove_throw_away(hutch: Hutch, config: Config | None, order: ProofRequest) -> Proof:
    before = read_network(hutch.layout)
    network = before.network if before else config.network if config else Network()
    results: list[ProbeResult] = []
    with ExitStack() as undo:
        # The place beyond the host is taken away before the workspaces are: the last of them puts the host's settings
        # back.
        undo.callback(remove_leftovers, hutch)
        outside = undo.enter_context(start_outside(hutch.layout, network))
        workspaces, left_out = throw_away(hutch, config, order, outside)
        hutch.up(Config(origin(hutch), network, workspaces))
        record = read_network(hutch.layout)
        assert record is not None
        if before is not None:  # the network is still whose it was
            with lock(hutch.layout):
                write_network(hutch.layout, replace(record, file=before.file))
        make_decoys(hutch.layout, record.network)
        for name, workspace in workspaces.items():
            asked = order.only if workspace.egress == "internet" else order.only or (LISTS,)
            found = try_one(hutch, name, Task(record.network, outside, order.target, is_ours=True, only=asked))
            order.told(found)
            results += found
    return Proof(tuple(results), left_out)


def try_one(hutch: Hutch, name: str, task: Task) -> tuple[ProbeResult, ...]:
    subject = Subject(hutch.layout, hutch.record(name), hutch.observe(name))
    return prove(subject, task, talk_to(hutch, name))


def talk_to(hutch: Hutch, name: str) -> Talk:
    """A conversation by the same way as `hutch exec --root`. One that does not come to its end is cut off."""

    def talk(argv: Sequence[str], sentences: Iterator[bytes | None], take: Callable[[bytes], None]) -> int:
        with suppress(Overdue):
            return carry_through(call_of(hutch.layout, name, argv, root=True), take, take, sentences, SECONDS)
        return 128 + 9

    return talk


# Throw-away workspaces.


def origin(hutch: Hutch) -> str:
    """The path of the file that declares them, as they say."""
    return str(hutch.layout.state / "prove")


def throw_away(
    hutch: Hutch, config: Config | None, order: ProofRequest, outside: tuple[str, str] | None
) -> tuple[dict[str, WorkspaceSpec], dict[str, str]]:
    """Throw-away workspaces by name: one of each kind that this host can run, and a container with a list; and the
    reason why a kind is left out. They are made from the same as the first workspace of the file."""
    first = next(iter(config.workspaces.values()), None) if config else None
    made_from = ("image", "packages", "setup", "owner")
    shown = {key: getattr(first, key) for key in made_from} if first else {}
    taken, made, left_out = read_records(hutch.layout), {}, {}
    listed = (f"{order.target[0]}:{order.target[1]}", *((f"{outside[1]}/32",) if outside else ()))
    kinds = [*((type, type, "internet") for type in TYPES), ("list", "container", listed)]
    for kind, type, egress in (kind for kind in kinds if kind[1] in order.types):
        memory = (first.memory if first else None) or MEMORY
        workspace = WorkspaceSpec(type=type, memory=memory, vcpus=1, egress=egress, **shown)  # type: ignore[arg-type]
        if kind in TYPES:
            workspace = replace(workspace, publish=published(outside))
        try:
            check_machines([(origin(hutch), f"prove-{kind}", workspace)])
        except HutchError as error:
            left_out[kind] = error.brief
            continue
        names = (f"prove-{kind}{f'-{number}' if number else ''}" for number in range(len(taken) + 1))
        made[next(name for name in names if name not in taken)] = workspace
    return made, left_out


def published(outside: tuple[str, str] | None) -> tuple[Publish, ...]:
    """Ports that are free now: one published on the host's loopback, and one on its address towards `outside`."""
    addresses = ("127.0.0.1", *((outside[0],) if outside else ()))
    return tuple(Publish(address, free_port(address), LISTENING, "tcp") for address in addresses)


def free_port(address: str) -> int:
    with closing(socket.socket()) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def remove_leftovers(hutch: Hutch) -> None:
    """Remove all throw-away workspaces, with everything of theirs."""
    if not leftovers(hutch):
        return
    with lock(hutch.layout):
        recover(hutch.layout, hutch.listen)
        if found := leftovers(hutch):
            remove(hutch.layout, found, lambda *words: None, purge=True)


def leftovers(hutch: Hutch) -> dict[str, Record]:
    return {name: record for name, record in read_records(hutch.layout).items() if record.file == origin(hutch)}
