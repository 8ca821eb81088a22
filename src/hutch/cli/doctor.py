"""doctor: what this host lacks, and what that means."""

from __future__ import annotations

from dataclasses import asdict

import click

from hutch.apply.doctor import examine, is_broken
from hutch.cli.common import Options, global_options, print_json, print_table, printable
from hutch.host.abilities import observe_abilities
from hutch.spec.names import Places


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@global_options
def doctor(options: Options, as_json: bool) -> int:
    """Check what this host can do, and what it cannot enforce; exits with 1 when something needed is missing.

    It looks at programs, the kernel, KVM, vsock, limits, and quotas of the state directory. It does not look yet for
    conflicts with Docker, ufw, NetworkManager or systemd-resolved, tries no guest under KVM, and repairs nothing.
    """
    findings = examine(observe_abilities(Places.from_environment()))
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_table(
            ("CHECK", "STATE", "MEANS"),
            [(finding.name, finding.state, printable(finding.means)) for finding in findings],
        )
        for finding in findings:
            if finding.do and not options.quiet:
                click.echo(f"→ {finding.name}: {printable(finding.do)}")
    return 1 if is_broken(findings) else 0
