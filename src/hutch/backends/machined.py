"""Calls that tell machinectl of workspaces, where the host has that. See org.freedesktop.machine1(5)."""

from __future__ import annotations

import shlex

from hutch.backends.launch import Step

MACHINED = ("org.freedesktop.machine1", "/org/freedesktop/machine1", "org.freedesktop.machine1.Manager")


def forget_step(machine: str) -> Step:
    """Unregister a machine: machined keeps it until its unit is gone, which one that is started again never is."""
    command = ("busctl", "--timeout=5", "call", *MACHINED, "UnregisterMachine", "s", machine)
    return Step(command, "strike it off machinectl's list", may_fail=True)


def register_step(machine: str, machine_id: str) -> Step:
    """Show the machine to machinectl, where the host has that. The process whose pid comes as one more argument stands
    for it."""
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
