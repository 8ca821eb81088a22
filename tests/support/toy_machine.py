"""A hypervisor that only tests have: a shell that plays a guest with a port, and boots nothing. It shows what a new one
has to bring: this file, toy_machine.sh beside it, and a line of the registry."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hutch.backends import machine
from hutch.backends.launch import Launch, Surroundings
from hutch.backends.machine import Monitor, hear_command, machine_launch, tap_command
from hutch.backends.traits import Host, Traits
from hutch.errors import Problem
from hutch.spec.model import MACHINE_MEMORY, WorkspaceSpec

SCRIPT = """
cd "$1"
exec 4<>port.in
echo a toy is ready; echo READY=1 >port.out
read -r word <&4
echo "told to $word"
"""


def find(host: Host) -> dict[str, str]:
    """What plays the machine."""
    program = host.program("sh")
    return {"program": program} if program else {}


TRAITS = Traits(
    name="toy-machine",
    rank=-1,
    program="sh",
    console=machine.CONSOLE_UNIT,
    is_machine=True,
    memory=MACHINE_MEMORY,
    find=find,
)


def check(prefix: str, workspace: WorkspaceSpec) -> Iterable[Problem]:
    """What no machine can do."""
    yield from machine.check(prefix, workspace)


def launch(name: str, workspace: WorkspaceSpec, host: Surroundings) -> Launch:
    """Everything that makes the toy run."""
    assert host.hardware is not None
    place = f"{host.layout.runtime(name)}/vm"
    program = host.hardware.program_of(TRAITS.name)
    monitor = Monitor(
        name=TRAITS.name,
        dialect=Path(__file__).with_suffix(".sh"),
        files=(),
        prepare=(),
        pipes=("port.in", "port.out"),
        argv=(*tap_command(name, workspace, host, 3), program, "-c", SCRIPT, "toy", place),
        commands={"hear": hear_command(host, name, "port", f"{place}/port.out")},
    )
    return machine_launch(name, workspace, host, monitor)
