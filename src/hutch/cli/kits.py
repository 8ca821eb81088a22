"""kits: the parts that workspaces can have in common."""

from __future__ import annotations

import click

from hutch.api.kits import ListedKit, list_kits
from hutch.cli.common import Options, global_options, print_json, print_table, printable
from hutch.spec.names import Layout

SAID = {"file": "hutch.toml", "user": "your own", "host": "the host's", "hutch": "hutch's own"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with all that they bring.")
@global_options
def kits(options: Options, as_json: bool) -> int:
    """List the kits that a workspace of the file can use, with their contents. Exits 1 when one is wrong."""
    found = list_kits(Layout.from_environment(), options.path)
    if as_json:
        print_json([kit.to_json() for kit in found])
    else:
        rows = [(kit.name, SAID[kit.whose], printable(brings(kit))) for kit in found]
        print_table(("NAME", "FROM", "BRINGS"), rows)
    for kit in found:
        for problem in kit.problems:
            options.listen(kit.name, "warning", printable(problem))
        for file in kit.hides:
            options.say(printable(f"{kit.name}: {kit.file} counts, and not {file}"))
    return 1 if any(kit.problems for kit in found) else 0


def brings(kit: ListedKit) -> str:
    """The parts of a kit on one line."""
    if kit.problems:
        return "nothing: it is wrong"
    lists = {
        "packages": kit.kit.packages,
        "mounts": [mount.target for mount in kit.kit.mounts],
        "env": [name for name, _ in kit.kit.env],
        "egress": kit.kit.egress,
    }
    parts = [f"{key} {' '.join(entries)}" for key, entries in lists.items() if entries]
    if kit.kit.setup:
        parts.insert(1 if kit.kit.packages else 0, "setup")
    return "; ".join(parts) or "nothing"
