"""logs and console: output of machine and guest. All of it is the guest's, so it is made printable first."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import signal
import socket
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import NoReturn

import click

from hutch.access.relay import Channel, open_unblocked, raw, relay
from hutch.api import Hutch
from hutch.api.workspace import Workspace
from hutch.backends import traits_of
from hutch.cli.common import Options, needs_root, options_before, printable
from hutch.cli.completing import existing_names
from hutch.engines import engine_of
from hutch.errors import HutchError
from hutch.run import PIPE, replace, start
from hutch.runtime import control
from hutch.spec.names import Layout
from hutch.spec.record import has_processes, is_local

NAME = click.argument("name", shell_complete=existing_names)
DETACH = b"\x1d"  # ^]
LINES = 1000
CHUNK = 65536
LEAST, LINE = 1 << 20, 4096  # bytes that a journal may have at the least, and for each line that is asked for


@click.command()
@NAME
@click.option("-f", "--follow", is_flag=True, help="Go on as new lines come. (A file goes first: hutch -f FILE logs.)")
@click.option("-n", "--lines", type=click.IntRange(0), default=LINES, show_default=True, help="The last lines of each.")
@options_before
def logs(options: Options, name: str, follow: bool, lines: int) -> int:
    """Show the machine log (console, starts and stops), then the guest's journal while it runs."""
    hutch = Hutch()
    record = hutch.record(name)
    own = is_local(record.wanted)
    said = control.read_log(hutch.layout, name, lines) if own else engine_of(hutch.layout, record).log(record, lines)
    if said is None:
        click.echo("the host's journal has its console's output, for the group systemd-journal to read", err=True)
    said = printable((said or "").replace("\r", ""))
    click.echo("".join(f"{line}\n" for line in last_lines(said, lines)), nl=False)
    if hutch.observe(name).state != "running":
        return 0
    command = ["journalctl", "--no-pager", f"--lines={lines}", *(["--follow"] if follow else [])]
    reading, writing = os.pipe()
    sys.stdout.flush()
    printer = os.fork()
    if printer == 0:
        os.close(writing)
        _print_all(reading, None if follow else max(LEAST, lines * LINE))
    os.close(reading)
    try:
        return Workspace(name, hutch).attach(command, root=True, capture=writing)
    finally:
        os.close(writing)
        os.waitpid(printer, 0)


def last_lines(text: str, count: int) -> list[str]:
    """The last lines of a text, the very last whether or not it is complete."""
    found = text.removesuffix("\n").split("\n") if text else []
    return found[max(len(found) - count, 0) :]


def _print_all(source: int, most: int | None) -> NoReturn:
    """Print, in a process of its own, the guest's output as it comes, in pieces of a bounded size, to the end, or to so
    many bytes: the guest's journalctl need not know of any end."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    left = most
    try:
        while data := os.read(source, CHUNK):
            sys.stdout.write(printable(decoder.decode(data[:left])))
            sys.stdout.flush()
            left = None if left is None else left - len(data)
            if left is not None and left < 0:
                click.echo(f"\nthe guest's journal goes on; the rest after {most} bytes was left out", err=True)
                os.kill(os.getppid(), signal.SIGTERM)
                break
    except BrokenPipeError:
        os.kill(os.getppid(), signal.SIGTERM)  # nobody reads on: whatever the guest runs, let it end
    except KeyboardInterrupt:
        pass
    os._exit(0)


@click.command()
@NAME
@needs_root
def console(options: Options, name: str) -> None:
    """Attach to the console, with a root shell; ^] detaches. The machine goes on.

    A container's console takes no input: the shell has a terminal of its own, on which all that is printed on the
    console shows as well; `exit` ends it."""
    hutch = Hutch()
    record = hutch.record(name)
    workspace = Workspace(name, hutch)
    if not has_processes(hutch.observe(name).state):
        raise HutchError(f"{name} is not running", resolution=f"`hutch start {name}`")
    if not is_local(record.wanted):
        replace(engine_of(hutch.layout, record).console_command(record))
    if not hutch.layout.console(name).exists():
        options.say(f"attached to {name}; ^] detaches")
        with shell_of(workspace) as terminal, following(hutch.layout, name) as said:
            attach(terminal, said)
        return
    with socket.socket(socket.AF_UNIX) as link:
        try:
            link.connect(str(hutch.layout.console(name)))
        except (ConnectionRefusedError, FileNotFoundError) as error:
            raise HutchError(f"{name} has just ended", resolution=f"`hutch start {name}`") from error
        options.say(f"attached to {name}; ^] detaches")
        with asking_for_shell(workspace):
            attach(link.fileno())


@contextmanager
def shell_of(workspace: Workspace) -> Iterator[int]:
    """A root shell inside, on a terminal as large as ours; yields the other end."""
    child, terminal = pty.fork()
    if child == 0:
        code = 255
        try:
            code = workspace.attach(["/bin/bash", "--login"], root=True)
        except HutchError as error:
            click.echo(error.brief, err=True)
        finally:
            os._exit(code)

    def resize(number: int = 0, frame: object = None) -> None:
        with suppress(OSError):  # ours is no terminal
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))

    resize()
    before = signal.signal(signal.SIGWINCH, resize)
    try:
        yield terminal
    finally:
        signal.signal(signal.SIGWINCH, before)
        os.close(terminal)  # closing it hangs up
        os.waitpid(child, 0)


@contextmanager
def following(layout: Layout, name: str) -> Iterator[int]:
    """A descriptor of what the workspace prints on its console from now on."""
    process = start(control.manager_of(layout).follow_command(name), stdout=PIPE)
    assert process.stdout is not None
    try:
        yield process.stdout.fileno()
    finally:
        process.kill()
        process.communicate()


@contextmanager
def asking_for_shell(workspace: Workspace) -> Iterator[None]:
    """Have the guest put its shell on the console. A process of its own does, so that nobody waits for a guest that
    cannot be reached: one that fails says nothing, since the terminal is the console's, and one that is not done in the
    end is called off."""
    child = os.fork()
    if child == 0:
        try:
            record = workspace.hutch.record(workspace.name)
            if workspace.hutch.observe(workspace.name).state == "running":
                command = ["systemctl", "start", "--no-block", traits_of(record.effective).console]
                workspace.attach(command, root=True, capture=os.open("/dev/null", os.O_WRONLY))
        except HutchError:
            pass
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)


def attach(link: int, *others: int) -> None:
    """Join the terminal and the console until ^], the end of input, or the end of the machine. Output from `others` is
    shown as well."""

    def until_detached(data: bytes) -> tuple[bytes, bool]:
        before, escape, _ = data.partition(DETACH)
        return before, bool(escape)

    def as_lines(data: bytes) -> tuple[bytes, bool]:
        return data.replace(b"\r", b"").replace(b"\n", b"\r\n"), False

    os.set_blocking(link, False)
    sinks = [open_unblocked(1) for _ in (link, *others)]
    terminal = sys.stdin.isatty()
    channels = [Channel(0, link, take=until_detached), Channel(link, sinks[0], owned=sinks[:1])]
    channels += [Channel(each, sink, owned=[sink], take=as_lines) for each, sink in zip(others, sinks[1:], strict=True)]
    with raw(0) if terminal else nullcontext():
        relay(channels)
    if terminal:
        click.echo("\r", err=True)
