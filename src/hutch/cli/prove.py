"""prove: the promises, tried on this very host."""

from __future__ import annotations

import re
from contextlib import closing
from typing import TYPE_CHECKING

import click

from hutch.api import Hutch
from hutch.cli.common import Options, needs_root, print_json, print_table, printable
from hutch.cli.completing import existing_names
from hutch.cli.progress import Bar
from hutch.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hutch.prove.model import ProbeResult

VERDICTS = ("held", "broken", "unknown")
HEADER = ("WORKSPACE", "PROMISE", "PROBE", "COMMAND", "RESULT")


def read_target(ctx: click.Context, param: click.Parameter, value: str) -> tuple[str, int]:
    match = re.fullmatch(r"([a-z0-9-]+(?:\.[a-z0-9-]+)+):([1-9][0-9]{0,4})", value, re.ASCII)
    if not match or int(match[2]) > 65535 or max(map(len, match[1].split("."))) > 63:
        raise click.BadParameter(f"{value!r} is not a name and a port, such as example.org:80")
    return match[1], int(match[2])


@click.command()
@click.argument("name", required=False, shell_complete=existing_names)
@click.option(
    "--target",
    callback=read_target,
    default="deb.debian.org:80",
    show_default=True,
    help="A public server that a workspace must reach.",
)
@click.option("--only", multiple=True, metavar="PROMISE|PROBE", help="Nothing but that promise, by number, or probe.")
@click.option("--type", "types", type=click.Choice(["container", "vm"]), help="Throw-away workspaces of one kind only.")
@click.option("--json", "as_json", is_flag=True, help="A list of objects.")
@needs_root
def prove(
    options: Options, name: str | None, target: tuple[str, int], only: tuple[str, ...], types: str | None, as_json: bool
) -> int:
    """Try hutch's promises (docs/threat-model.md) from inside NAME, as root, and print how each probe went.

    Without NAME, throw-away workspaces are started: a container, one with an egress list, and a vm where this host can
    run one. Their image is that of the first workspace of the hutch.toml in use, if there is one. They are gone at the
    end, and so are those of a run that was killed.

    All probes are run, also after the first broken promise; the exit code is 1 when any promise is broken. "unknown" is
    what this host cannot enforce or tell, with the reason: that breaks nothing, and proves nothing. A workspace that
    does not answer, or not to the end, is broken. A firewall counts a packet for a probe to
    have held, so a run adds to the counters. For its time the host has one more interface, with an address that is
    reserved for documentation, and listens at a port.

    Where an Incus server runs NAME, no packets are sent: what needs hutch's router, or a look at the member, is
    "unknown", with the thing that is lacking (docs/incus.md)."""
    if name is not None and types:
        raise UsageError("--type is for throw-away workspaces, and NAME is one that runs", resolution="leave one out")
    with closing(Bar(options)) as bar:
        hutch = Hutch(listen=bar.listen, progress=bar.show)
        config = None
        if name is None and hutch.declared(options.path)[0]:
            config = hutch.load(options.path)
        proof = hutch.prove(
            name,
            config,
            target=target,
            only=only,
            types=(types,) if types else None,
            told=lambda found: tell(options, found),
        )
    for kind, why in proof.left_out.items():
        options.say(f"hutch: no {kind} was tried: {printable(why)}")
    if as_json:
        print_json([result.as_json() for result in proof.results])
    else:
        print_table(HEADER, [row(result) for result in proof.results])
        for result in proof.results:
            if result.result == "broken":
                click.echo(printable(f"broken: {result.workspace}: {result.says} ({result.probe}): {result.detail}"))
        click.echo(untried(proof.results))
    if not proof.results:
        raise UsageError("nothing was tried", resolution="--only takes the number of a promise, or the name of a probe")
    return 1 if proof.is_broken else 0


def row(result: ProbeResult) -> tuple[str, ...]:
    detail = f": {result.detail}" if result.result != "held" and result.detail else ""
    words = (result.workspace, str(result.promise), result.says, result.command, f"{result.result}{detail}")
    return tuple(printable(word) for word in words)


def untried(results: Sequence[ProbeResult]) -> str:
    """The last line of a run: the probes that could not be tried."""
    unknown = [result for result in results if result.result == "unknown"]
    promises = sorted({result.promise for result in unknown})
    if not unknown:
        return f"all {len(results)} probes could be tried here"
    count = f"{len(unknown)} of {len(results)} probes, of {len(promises)} promise{'s' if len(promises) > 1 else ''}"
    probes = ", ".join(dict.fromkeys(result.probe for result in unknown))
    return printable(f"{count}, could not be tried here, which proves nothing about them: {probes}")


def tell(options: Options, found: tuple[ProbeResult, ...]) -> None:
    """Print the results of one workspace, as soon as they are known."""
    for name in {result.workspace: None for result in found}:
        counts = {verdict: sum(result.result == verdict for result in found) for verdict in VERDICTS}
        options.say(f"{name}: {', '.join(f'{count} {verdict}' for verdict, count in counts.items() if count)}")
