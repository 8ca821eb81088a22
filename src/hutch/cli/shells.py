"""aliases and completion: scripts for shells."""

from __future__ import annotations

import os

import click

from hutch.cli.common import Options, become_root, global_options
from hutch.cli.completing import render_completion
from hutch.errors import HutchError, UsageError
from hutch.spec.names import Layout


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]), required=False)
@click.option("--install", is_flag=True, help="Give them to every shell of this host, from its next start on.")
@click.option("--remove", is_flag=True, help="Undo --install.")
@global_options
def aliases(options: Options, shell: str | None, install: bool, remove: bool) -> None:
    """Print shell aliases: workspace_NAME, and workspace_NAME_start, _stop, _restart and _status.

    In a profile: eval "$(hutch aliases bash)", or for fish: hutch aliases fish | source. With --install or --remove it
    is about the given shell, or about all three."""
    # Spares the start-up of `hutch completion`.
    from hutch.host.identity import shells, user_view

    layout = Layout.from_environment()
    if install and remove:
        raise UsageError("--install and --remove exclude each other")
    if not install and not remove:
        if shell is None:
            raise UsageError("for which shell?", resolution="`hutch aliases bash`, `zsh` or `fish`")
        click.echo(shells.render_aliases(layout, shell, user_view.visible_names(layout)), nl=False)
        return
    if os.geteuid() != 0:
        become_root()
    wanted = [shell] if shell else [name for name in shells.SCRIPTS if shells.is_here(name)]
    if install and not all(map(shells.is_here, wanted)):
        raise HutchError(f"{shell} has no configuration in /etc", resolution="install it first")
    changed = shells.install(layout, wanted) if install else shells.remove(layout, shells=wanted)
    for path in changed:
        options.say(f"{'wrote' if install or path.exists() else 'removed'} {path}")
    if not changed:
        options.say("nothing to do")


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@global_options
def completion(options: Options, shell: str) -> None:
    """Print a completion script: `hutch completion bash > /etc/bash_completion.d/hutch`."""
    click.echo(render_completion(shell))
