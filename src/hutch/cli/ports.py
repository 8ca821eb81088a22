"""ports and forward: what listens in a workspace, and the loopback of this host."""

from __future__ import annotations

from contextlib import closing

import click

from hutch.access.listening import HOST_NAME, LOOPBACK, MOST_FORWARDS, PRIVILEGED, Forward, ForwardEvent
from hutch.api.workspace import Workspace
from hutch.cli.common import Options, global_options, print_json, print_table
from hutch.cli.completing import existing_names

NAME = click.argument("name", shell_complete=existing_names)
AUTO = "auto"


def read_ports(ctx: click.Context, param: click.Parameter, words: tuple[str, ...]) -> tuple[int, ...]:
    """The ports of a command line; 0 is the word for all that listen."""
    for word in words:
        if word != AUTO and not (word.isascii() and word.isdigit() and 1 <= int(word[:6]) <= 65535):
            raise click.BadParameter(f"{word!r} is neither a port nor `{AUTO}`", ctx, param)
    return tuple(0 if word == AUTO else int(word) for word in words)


def complete_auto(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    return [AUTO] if AUTO.startswith(incomplete) else []


@click.command()
@NAME
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@global_options
def ports(options: Options, name: str, as_json: bool) -> None:
    """List the TCP ports that listen in a workspace, with the program that listens, as the workspace tells it."""
    found = Workspace(name).ports()
    if as_json:
        print_json([listener.to_json() for listener in found])
    else:
        print_table(("ADDRESS", "PORT", "PROGRAM"), [(x.address, str(x.port), x.program or "-") for x in found])


@click.command()
@NAME
@click.argument("ports", nargs=-1, callback=read_ports, metavar=f"[PORT|{AUTO}]...", shell_complete=complete_auto)
@click.option(
    "--reverse",
    type=click.IntRange(PRIVILEGED, 65535),
    multiple=True,
    metavar="PORT",
    help=f"Make a port of this host's {LOOPBACK} reachable inside, as {HOST_NAME}:PORT; 1024 or above.",
)
@global_options
def forward(options: Options, name: str, ports: tuple[int, ...], reverse: tuple[int, ...]) -> int:
    """Make ports of a workspace reachable on this host's loopback, until Ctrl-C or the end of the workspace.

    PORT is one port inside, whether something listens there yet or not. `auto`, also without any PORT or --reverse,
    follows what begins and stops to listen. Outside it is the same port, or another one where that is taken or below
    1024."""
    auto = 0 in ports or not (ports or reverse)
    chosen = dict.fromkeys(port for port in ports if port)
    has_begun = False
    try:
        with closing(Workspace(name).forward(chosen, auto=auto, reverse=dict.fromkeys(reverse))) as events:
            for event in events:
                has_begun = True
                tell(options, name, event)
    except KeyboardInterrupt:
        has_begun = True
    finally:
        if has_begun:
            options.say(f"nothing of {name} is forwarded any more")
    return 0


def tell(options: Options, name: str, event: ForwardEvent) -> None:
    """Print what became of a port: the ways that are open to stdout, and the rest to stderr."""
    way = event.forward
    if way is None:
        options.say(
            f"{name}: more than {MOST_FORWARDS} ports listen; name those that you want"
            if event.event == "crowded"
            else f"{name}: {HOST_NAME} does not lead to {LOOPBACK} there; name that instead"
        )
    elif event.event == "open":
        if way.port != way.host_port:
            why = "below 1024" if way.port < PRIVILEGED else "taken"
            options.say(f"port {way.port} of this host is {why}, so it is {way.host_port}")
        click.echo(line_of(name, way))
    elif event.event == "closed":
        options.say(f"{line_of(name, way)}: nothing listens there any more")
    else:
        options.say(f"{name}:{way.port}: no port of this host could be had for it")


def line_of(name: str, way: Forward) -> str:
    if way.is_reverse:
        return f"{HOST_NAME}:{way.port} -> {LOOPBACK}:{way.host_port}"
    return f"{LOOPBACK}:{way.host_port} -> {name}:{way.port}"
