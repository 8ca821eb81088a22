"""What runs as a service of systemd's: what differs for a machine from one that the embedded supervisor runs, and what
machinectl is told of both.

Beside the machine there is no process but a shell (runtime/machine.sh). It holds the other ends of named pipes, and
commands of root's come to sockets that listen.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import replace

from hutch.backends.launch import REBOOT, Launch, Step, Surroundings

LOG = "log"
"""The pipe through which what the machine says goes to the journal."""
MACHINED = ("org.freedesktop.machine1", "/org/freedesktop/machine1", "org.freedesktop.machine1.Manager")


def as_service(launch: Launch, host: Surroundings) -> Launch:
    """The Launch of a machine whose links are pipes in place of sockets. It tells by its port that it is ready, whether
    there is vsock or not: to know who calls there takes a process that stays."""
    name, places = launch.workspace, host.places
    return replace(
        launch,
        cgroup=places.unit_cgroup(name),
        prepare=(*launch.prepare, (pipes_step(f"{launch.runtime}/vm", launch.links, host.uid_base),)),
        inward=(register_step(places.machine(name), host.machine_id),),
        helpers=tuple(
            replace(helper, argv=(*listening(host, (helper.socket, helper.uid, 3)), *helper.argv))
            for helper in launch.helpers
        ),
        cleanup=(*launch.cleanup, forget_step(places.machine(name))),
        restart_codes=(REBOOT,),
        unit=places.unit(name),
    )


def pipes_step(directory: str, links: Iterable[str], uid: int) -> Step:
    """The pipes, new, and the machine's own. The ends of a link are called as the machine sees them."""
    script = 'uid=$1; shift; rm -f -- "$@"; mkfifo -m 600 -- "$@"; chown "$uid:$uid" -- "$@"'
    pipes = (LOG, *(f"{link}.{way}" for link in links for way in ("in", "out")))
    paths = (f"{directory}/{pipe}" for pipe in pipes)
    return Step(("sh", "-euc", script, "sh", str(uid), *paths), "make the pipes that it talks through")


def listening(host: Surroundings, *sockets: tuple[str, int, int]) -> tuple[str, ...]:
    """The beginning of a command line: what has it inherit sockets that listen, given as (path, who may connect,
    descriptor)."""
    program = (host.python, "-I", "-S", f"{host.package}/host/services/listen.py")
    return (*program, *(str(word) for socket in sockets for word in socket), "--")


def forget_step(machine: str) -> Step:
    """machined keeps a machine for as long as its unit is not gone, which one that is started again never is."""
    command = ("busctl", "--timeout=5", "call", *MACHINED, "UnregisterMachine", "s", machine)
    return Step(command, "strike it off machinectl's list", may_fail=True)


def register_step(machine: str, machine_id: str) -> Step:
    """Show the machine to machinectl, where the host has that. The process whose pid comes as one more argument stands
    for it. See org.freedesktop.machine1(5)."""
    octets = [str(octet) for octet in bytes.fromhex(machine_id)]
    words = (
        "busctl",
        "--timeout=5",
        "call",
        *MACHINED,
        "RegisterMachine",
        "sayssus",
        machine,
        str(len(octets)),
        *octets,
        "hutch",
        "vm",
    )
    script = f"exec {shlex.join(words)} \"$1\" ''"
    return Step(("sh", "-euc", script, "sh"), "show it to machinectl", may_fail=True)
