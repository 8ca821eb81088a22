"""Loads firewall tables and reads them back: the host's, and the router's, over which there is a watch."""

from __future__ import annotations

import json

from hutch.errors import HutchError
from hutch.frozen import dataclass
from hutch.host.network import ruleset
from hutch.host.network.namespace import inside
from hutch.host.network.watch import note_rules, rules_file, wanted_watch
from hutch.host.services.service import start_services, stop_service
from hutch.run import CommandFailed, run
from hutch.spec.model import Network
from hutch.spec.names import Places


@dataclass(frozen=True)
class Rules:
    """All that is wanted: the tables of the router, and those of the host."""

    router: tuple[ruleset.Table, ...]
    host: tuple[ruleset.Table, ...]


def load(nft: list[str], tables: tuple[ruleset.Table, ...], name: str, before: ruleset.Shape) -> None:
    """Load in one transaction, then read back. What does not come back as wanted must not carry traffic. What others
    have filled into sets stays, where the tables are of the same make."""
    kept = ruleset.with_frame(tables, before)
    try:
        run([*nft, "-f", "-"], stdin=ruleset.render_tables(tables, kept))
    except CommandFailed as error:
        if kept:  # a set of another type, say, of an earlier hutch
            load(nft, tables, name, {})
            return
        raise HutchError(
            "the kernel does not take the firewall rules, so nothing was started",
            details=error.details,
            resolution="`hutch explain NAME` prints them; the kernel needs nf_tables with fib and bridge support",
        ) from error
    found = ruleset.observed_shape(run([*nft, "-j", "list", "ruleset"]).stdout, name)
    wrong = ruleset.differences(ruleset.shape_of(tables), found)
    if wrong:
        raise HutchError("the firewall rules did not load as written, so nothing was started", details="\n".join(wrong))


def load_watched(places: Places, network: Network, tables: tuple[ruleset.Table, ...], before: ruleset.Shape) -> None:
    """Load the router's rules. The watch does not look meanwhile; who settles the host starts it again. Tables that are
    not hutch's are removed: what they let pass, nobody knows."""
    nft, watch = inside(places, ["nft"]), wanted_watch(places, network)
    stop_service(places, watch.pid_file)
    try:
        run([*nft, "-f", "-"], stdin=ruleset.render_removal(_foreign_tables(nft, places.table)))
        load(nft, tables, places.table, before)
        note_rules(places, tables)
    except HutchError:
        if rules_file(places).exists():
            start_services(places, (watch,))
        raise


def _foreign_tables(nft: list[str], name: str) -> list[tuple[str, str]]:
    listed = json.loads(run([*nft, "-j", "list", "tables"]).stdout)["nftables"]
    tables = [entry["table"] for entry in listed if "table" in entry]
    return [(table["family"], table["name"]) for table in tables if table["name"] != name]
