"""What machines do that take too long to start, asked while they are there: once they are given up, nobody can tell."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import TextIO

QUESTIONS = ("info status", "info registers -a", "info lapic 0", "info lapic 1", "info pic", "info chardev")
PATIENCE = 10.0  # seconds for a monitor that answers nothing


def look_at_machines(run: Path) -> str:
    """What the monitors of the machines say that are starting, of the hutch with that runtime directory."""
    said = []
    for status in run.glob("workspaces/*/status.json"):
        control = status.with_name("control")
        if control.exists() and '"starting"' in status.read_text():
            try:
                said.append(f"{status.parent.name}:\n{ask(control)}")
            except (OSError, ValueError) as error:
                said.append(f"{status.parent.name}: its monitor does not answer: {error}")
    return "\n".join(said)


def ask(control: Path) -> str:
    """The answers to QUESTIONS, twice: between them, a machine that lives has come further."""
    with socket.socket(socket.AF_UNIX) as stream:
        stream.settimeout(PATIENCE)
        stream.connect(str(control))
        with stream.makefile("rw", encoding="utf-8", errors="replace") as file:
            file.readline()
            _execute(file, "qmp_capabilities")
            words = ({"command-line": question} for question in QUESTIONS * 2)
            return "\n".join(_execute(file, "human-monitor-command", **word) for word in words)


def _execute(file: TextIO, command: str, **arguments: str) -> str:
    file.write(f"{json.dumps({'execute': command, 'arguments': arguments})}\n")
    file.flush()
    while "return" not in (answer := json.loads(file.readline())) and "error" not in answer:
        pass  # an event
    return str(answer.get("return") or answer.get("error", ""))
