"""logs and console: what the machine and the guest say. All of it is the guest's, so it is made printable first."""

from __future__ import annotations

import codecs
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NoReturn

import click

from hutch.access.relay import Channel, open_unblocked, raw, relay
from hutch.api import Hutch
from hutch.api.workspace import Workspace
from hutch.cli.common import Options, global_options, needs_root, printable
from hutch.cli.completing import existing_names
from hutch.errors import HutchError
from hutch.host.services.units import has_systemd
from hutch.spec.names import Places

NAME = click.argument("name", shell_complete=existing_names)
DETACH = b"\x1d"  # ^]
GETTY = {"container": "console-getty.service", "vm": "serial-getty@ttyS0.service"}
LINES = 1000
CHUNK = 65536


@click.command()
@NAME
@click.option("-f", "--follow", is_flag=True, help="Go on as new lines come.")
@click.option("-n", "--lines", type=click.IntRange(0), default=LINES, show_default=True, help="The last lines of each.")
@click.pass_context
def logs(ctx: click.Context, name: str, follow: bool, lines: int) -> int:
    """Show the machine log (console, starts and stops), then the guest's journal while it runs."""
    hutch = Hutch()
    hutch.record(name)
    said = printable(machine_log(hutch.places, name, lines).replace("\r", ""))
    click.echo("".join(f"{line}\n" for line in last_lines(said, lines)), nl=False)
    if hutch.observe(name).state != "running":
        return 0
    command = ["journalctl", "--no-pager", f"--lines={lines}", *(["--follow"] if follow else [])]
    reading, writing = os.pipe()
    sys.stdout.flush()
    printer = os.fork()
    if printer == 0:
        os.close(writing)
        _print_all(reading)
    os.close(reading)
    try:
        return hutch.workspace(name).attach(command, root=True, capture=writing)
    finally:
        os.close(writing)
        os.waitpid(printer, 0)


def machine_log(places: Places, name: str, lines: int) -> str:
    """What the console said, and whoever runs the workspace: the journal of its service, or its supervisor's log."""
    if has_systemd():
        from hutch.runtime.systemd import journal

        said = journal(places, name, lines)
        if not said and os.geteuid() != 0:
            click.echo("the host's journal has what its console said, for the group systemd-journal to read", err=True)
        return said
    log = places.log(name)
    older = log.with_name(log.name + ".1")
    return "".join(path.read_text(encoding="utf-8", errors="replace") for path in (older, log) if path.exists())


def last_lines(text: str, count: int) -> list[str]:
    """The last lines of a text, the very last whether or not it is complete."""
    found = text.removesuffix("\n").split("\n") if text else []
    return found[max(len(found) - count, 0) :]


def _print_all(source: int) -> NoReturn:
    """A process of its own: print what the guest says as it comes, in pieces of a bounded size, to the end."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    try:
        while data := os.read(source, CHUNK):
            sys.stdout.write(printable(decoder.decode(data)))
            sys.stdout.flush()
    except BrokenPipeError:
        os.kill(os.getppid(), signal.SIGTERM)  # nobody reads on: whatever the guest runs, let it end
    except KeyboardInterrupt:
        pass
    os._exit(0)


@click.command()
@NAME
@global_options
@needs_root
def console(options: Options, name: str) -> None:
    """Attach to the console, with a root shell; ^] detaches. The machine goes on.

    Where systemd runs a container, what it prints there goes to the journal (`hutch logs`), and this is a root shell
    alone; `exit` ends it."""
    hutch = Hutch()
    workspace = hutch.workspace(name)
    if not hutch.observe(name).is_up:
        raise HutchError(f"{name} is not running", resolution=f"`hutch start {name}`")
    if has_systemd() and not hutch.places.console(name).exists():  # a container's output is the journal's
        workspace.attach(["/bin/bash", "--login"], root=True)
        return
    with socket.socket(socket.AF_UNIX) as link:
        try:
            link.connect(str(hutch.places.console(name)))
        except (ConnectionRefusedError, FileNotFoundError) as error:
            raise HutchError(f"{name} has just ended", resolution=f"`hutch start {name}`") from error
        options.say(f"attached to {name}; ^] detaches")
        with meanwhile(lambda: ask_for_shell(workspace)):
            attach(link)


def ask_for_shell(workspace: Workspace) -> None:
    """Have the guest put its shell on the console."""
    hutch, record = workspace.hutch, workspace.hutch.record(workspace.name)
    if hutch.observe(workspace.name).state == "running":
        booted = record.booted.workspace if record.booted else record.wanted
        null = os.open("/dev/null", os.O_WRONLY)
        workspace.attach(["systemctl", "start", "--no-block", GETTY[booted.type]], root=True, capture=null)


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Do `work` in a process of its own, so that nobody waits for a guest that cannot be reached: one that fails says
    nothing, since the terminal is the console's. What is not done in the end is called off."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except HutchError:
            pass
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)


def attach(link: socket.socket) -> None:
    """Join the terminal and the console until ^], the end of input, or the end of the machine."""

    def until_detached(data: bytes) -> tuple[bytes, bool]:
        before, escape, _ = data.partition(DETACH)
        return before, bool(escape)

    link.setblocking(False)
    sink = open_unblocked(1)
    terminal = sys.stdin.isatty()
    with raw(0) if terminal else nullcontext():
        relay([Channel(0, link.fileno(), take=until_detached), Channel(link.fileno(), sink, owned=[sink])])
    if terminal:
        click.echo("\r", err=True)
