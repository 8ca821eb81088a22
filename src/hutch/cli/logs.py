"""logs and console: what the machine and the guest say. All of it is the guest's, so it is made printable first."""

from __future__ import annotations

import os
import select
import socket
import sys
import termios
import tty

import click

from hutch.api import Hutch
from hutch.cli.common import Options, global_options, needs_root, printable, workspace_names
from hutch.errors import HutchError

NAME = click.argument("name", shell_complete=workspace_names)
DETACH = b"\x1d"  # ^]
LINES = 1000


@click.command()
@NAME
@click.option("-f", "--follow", is_flag=True, help="Go on as new lines come.")
@click.option("-n", "--lines", default=LINES, show_default=True, help="How many lines of the journal.")
@click.pass_context
@needs_root
def logs(ctx: click.Context, name: str, follow: bool, lines: int) -> int:
    """Show the machine log (console, starts and stops), then the guest's journal while it runs."""
    hutch = Hutch()
    hutch.record(name)
    log = hutch.places.log(name)
    for path in (log.with_name(log.name + ".1"), log):
        if path.exists():
            click.echo(printable(path.read_text(encoding="utf-8", errors="replace").replace("\r", "")), nl=False)
    if hutch.observe(name).state != "running":
        return 0
    command = ["journalctl", "--no-pager", f"--lines={lines}", *(["--follow"] if follow else [])]
    reading, writing = os.pipe()
    sys.stdout.flush()
    relay = os.fork()
    if relay == 0:
        os.close(writing)
        with open(reading, encoding="utf-8", errors="replace") as journal:
            try:
                for line in journal:
                    sys.stdout.write(printable(line))
                    sys.stdout.flush()
            except (BrokenPipeError, KeyboardInterrupt):
                pass
        os._exit(0)
    os.close(reading)
    try:
        return hutch.workspace(name).execute(command, root=True, capture=writing)
    finally:
        os.close(writing)
        os.waitpid(relay, 0)


@click.command()
@NAME
@global_options
@needs_root
def console(options: Options, name: str) -> None:
    """Attach to the console, with a root shell; ^] detaches. The machine goes on."""
    hutch = Hutch()
    workspace = hutch.workspace(name)
    if not hutch.observe(name).is_up:
        raise HutchError(f"{name} is not running", resolution=f"`hutch start {name}`")
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(hutch.places.console(name)))
        if hutch.observe(name).state == "running":
            null = os.open("/dev/null", os.O_WRONLY)
            workspace.execute(["systemctl", "start", "--no-block", "console-getty.service"], root=True, capture=null)
            os.close(null)
        options.say(f"attached to {name}; ^] detaches")
        attach(link)


def attach(link: socket.socket) -> None:
    """Join the terminal and the console until ^], the end of input, or the end of the machine."""
    terminal = sys.stdin.isatty()
    saved = termios.tcgetattr(0) if terminal else None
    try:
        if terminal:
            tty.setraw(0)
        sources: list[int | socket.socket] = [0, link]
        while True:
            for source in select.select(sources, [], [])[0]:
                if source is link:
                    data = link.recv(65536)
                    if not data:
                        return
                    os.write(1, data)
                else:
                    data = os.read(0, 4096)
                    before, escape, _ = data.partition(DETACH)
                    link.sendall(before)
                    if escape or not data:
                        return
    finally:
        if saved is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, saved)
            click.echo("\r", err=True)
