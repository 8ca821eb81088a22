"""doctor: findings on what this host lacks and what others on it do to workspaces; and the repairs."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict

import click

from hutch.api import Hutch
from hutch.apply import repairing
from hutch.apply.allowing import policy_problem
from hutch.apply.coexistence import check_neighbours
from hutch.apply.doctor import (
    Finding,
    check_entrance,
    check_images,
    check_policy,
    check_published,
    check_records,
    examine,
    installation,
    is_broken,
)
from hutch.audit.chain import Damage
from hutch.audit.reading import damages, recorded_names
from hutch.cli.common import Options, become_root, global_options, print_error, print_json, print_table, printable
from hutch.errors import HutchError, UsageError
from hutch.host.doctor.abilities import observe_abilities
from hutch.host.doctor.entry import observe_entrance
from hutch.host.network.listening import find_deaf
from hutch.spec.names import Layout
from hutch.spec.record import served
from hutch.state import read_records

NEWEST = 2
"""The files of each record that are looked at: a look at all of them takes seconds."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--fix", is_flag=True, help="Make the repairs that are safe, and say each; then check.")
@click.option("--undo", is_flag=True, help="Take back the changes of --fix, and no others.")
@click.option("--yes", is_flag=True, help="With --fix: do not ask.")
@global_options
def doctor(options: Options, as_json: bool, fix: bool, undo: bool, yes: bool) -> int:
    """Check this host's abilities, its gaps in enforcement, and who else on it stops workspaces.

    It looks at programs, the kernel, KVM, limits, quotas of the state directory; at Docker, ufw, firewalld,
    libvirt, NetworkManager and systemd-resolved; at forwarding, the way out, and who else has the workspaces'
    addresses; at the last answers about security updates of their images; at programs that listen on ports that they
    publish; and at the ends of their records. It exits with 1 when something needed is missing, or a conflict stops
    workspaces now.

    --fix lets workspaces through others' firewalls, keeps NetworkManager off their uplink, turns forwarding on where
    a workspace needs it, tries KVM with a guest, installs the aliases, and lets the group `hutch` in by sudo, doas or
    polkit. Only after asking, or with --yes, it
    installs packages, and stops and takes away the workspaces whose state directory was deleted.
    `hutch rm --purge` of the last workspace, `hutch uninstall` and --undo take the rest back.
    """
    if undo and (fix or yes):
        raise UsageError("--undo excludes --fix and --yes")
    if yes and not fix:
        raise UsageError("--yes is about --fix")
    if (fix or undo) and os.geteuid() != 0:
        become_root()
    layout = Layout.from_environment()
    if undo:
        return take_back(layout, options)
    failures = repair(layout, options, is_agreed=yes) if fix else []
    findings = [*examine(observe_abilities(layout)), *check_neighbours(repairing.look(layout, options.path))]
    findings += check_policy(policy_problem())
    findings += check_records(observe_records(layout))
    findings += check_entrance(observe_entrance(layout))
    with suppress(HutchError):  # a damaged record is told already
        if os.geteuid() == 0:
            findings += check_published(find_deaf(served(read_records(layout))))
        findings += check_images(Hutch(layout).freshness())
    show(findings, options, as_json=as_json)
    for failure in failures:
        print_error(failure)
    return 1 if failures or is_broken(findings) else 0


def observe_records(layout: Layout) -> dict[str, Sequence[Damage]]:
    """What is wrong with the records of workspaces, also where nothing of one is left, and as far as the caller may
    read them."""
    names, found = {*recorded_names(layout)}, dict[str, Sequence[Damage]]()
    with suppress(HutchError):  # a damaged state is told already
        if os.geteuid() == 0:  # nobody else may read it
            names |= read_records(layout).keys()
    for name in sorted(names):
        try:
            found[name] = damages(layout, name, newest=NEWEST)
        except HutchError as error:
            if not isinstance(error.__cause__, PermissionError):  # others' are not for everybody to read
                found[name] = [Damage(0, error.brief)]
    return found


def show(findings: Sequence[Finding], options: Options, *, as_json: bool) -> None:
    if as_json:
        print_json([asdict(finding) for finding in findings])
        return
    print_table(
        ("CHECK", "STATE", "MEANS"),
        [(printable(finding.name), finding.state, printable(finding.means)) for finding in findings],
    )
    for finding in findings:
        if finding.do and not options.quiet:
            click.echo(f"→ {printable(finding.name)}: {printable(finding.do)}")


def repair(layout: Layout, options: Options, *, is_agreed: bool) -> list[HutchError]:
    """Make the repairs, and print each change. Returns the failures; none is a reason not to do the rest."""
    said: list[str] = []
    tell, failures = teller(options, said), []

    def agrees(question: str) -> bool:
        return is_agreed or (sys.stdin.isatty() and click.confirm(question, err=True))

    command = installation(observe_abilities(layout))
    if command and agrees(f"install the missing packages, with `{shlex.join(command)}`?"):
        tell(shlex.join(command))
        try:
            repairing.install(command)
        except HutchError as error:
            failures.append(error)
    question = f"stop the workspaces of {layout.state}, and take away their leftovers?"
    if repairing.is_left_behind(layout) and agrees(question):
        failures += repairing.clear_away(layout, tell)
    failures += repairing.repair(layout, options.path, tell)
    if not said and not failures:
        options.say("nothing to repair")
    return failures


def take_back(layout: Layout, options: Options) -> int:
    said: list[str] = []
    failures = repairing.take_back(layout, teller(options, said))
    for failure in failures:
        click.echo(f"hutch: this stays: {printable(failure)}", err=True)
    if not said and not failures:
        options.say("nothing to take back")
    return 1 if failures else 0


def teller(options: Options, said: list[str]) -> Callable[[str], None]:
    """A function that prints each change, and notes it in `said`."""

    def tell(text: str) -> None:
        said.append(text)
        options.say(f"+ {printable(text)}")

    return tell
