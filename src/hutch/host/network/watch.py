"""Loads firewall tables and reads them back; and the watch over the router's: when they are not those that were loaded
and read back, traffic stops.

Nothing on an ordinary host reaches into the router's namespace. Should somebody change the rules there all the same, by
hand or by a program that goes through all namespaces, the bridge is set down; `hutch up` puts everything right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hutch.errors import HutchError
from hutch.files import read_or_none, write_atomic
from hutch.frozen import dataclass
from hutch.host.network import ruleset
from hutch.host.network.namespace import inside
from hutch.host.services.service import Service, observe_service, only_writes, start_services, stop_service
from hutch.run import CommandFailed, run
from hutch.spec.model import Network
from hutch.spec.names import Layout
from hutch.state import make_directory

FILTER, IN_FORCE, TEXTS = "filter", "rules", "texts"
"""Files beside the services: a program of sed's, see render_filter; the rules that are to be in force; their source
texts."""
LIST = 'set -o pipefail; nft --stateless list ruleset | sed -f "$1"'
"""Lists all rules, and the elements of those sets that only hutch fills, by the filter in the file."""
SCRIPT = f"""
filter=$2 rules=$3 bridge=$4
show() (
  set -- "$filter"
  {LIST}
)
check() {{
  [ "$(show 2>/dev/null)" = "$(<"$rules")" ] || stop
}}
stop() {{
  ip link set dev "$bridge" down
}}
nft monitor 2>/dev/null | {{
  echo $$
  exec >/dev/null
  check
  read -r -t 0.3 _
  check
  while read -r line; do
    case $line in *" element inet "*" allowed"*) continue ;; esac
    while read -r -t 0.02 _; do :; done
    check
  done
  stop
}}
"""
"""The watch. A change comes in many lines, so it waits until no more come. It looks twice in the beginning, since the
monitor does not say from when on it sees. Elements that the egress proxy adds are of no interest. It stops traffic too
when it can no longer see."""
SANDBOX = (
    "CapabilityBoundingSet=CAP_NET_ADMIN",
    "MemoryDenyWriteExecute=yes",
    "ProtectHome=tmpfs",
    "ProtectProc=invisible",
    "RestrictAddressFamilies=AF_NETLINK AF_UNIX",
    "RestrictNamespaces=yes",
    "RestrictSUIDSGID=yes",
    "SystemCallFilter=@system-service",
)


def wanted_watch(layout: Layout, network: Network) -> Service:
    """The watch, as a service."""
    pid_file, files = str(layout.services / "watch.pid"), [str(layout.services / name) for name in (FILTER, IN_FORCE)]
    return Service(
        "the watch over the rules",
        pid_file,
        str(layout.namespace_path),
        ("bash", "-c", SCRIPT, "bash", f"--pid-file={pid_file}", *files, network.bridge),
        says_pid=True,
        sandbox=(*SANDBOX, *only_writes(layout.services)),
    )


def observe_watched(layout: Layout, network: Network) -> bytes | None:
    """The texts of the rules that were loaded and read back, if there has been a watch over them since then: the rules
    in force can be believed to be those, word for word."""
    return None if observe_service(wanted_watch(layout, network)) is None else read_or_none(layout.services / TEXTS)


def texts_of(tables: Iterable[ruleset.Table]) -> bytes:
    return "\n".join(rule.text for table in tables for chain in table.chains for rule in chain.rules).encode()


def render_filter(tables: Iterable[ruleset.Table]) -> str:
    """A program of sed's that leaves the elements of sets which others fill out of nft's list. Everything else that is
    indented thrice, or begins so, stays."""
    names = r"\|".join(item.name for table in tables for item in table.sets if item.is_filled)
    return f"/^\t\\(set\\|map\\) \\({names}\\) {{$/,/^\t}}$/ {{\n/^\t\telements = /d\n/^\t\t\t/d\n}}\n"


def note_rules(layout: Layout, tables: Sequence[ruleset.Table]) -> None:
    """Note the rules that have just been loaded, and read back, as those that are to be in force."""
    make_directory(layout.services)
    write_atomic(layout.services / FILTER, render_filter(tables).encode(), mode=0o600, is_lasting=False)
    listed = run(inside(layout, ["bash", "-c", LIST, "bash", str(layout.services / FILTER)])).stdout
    write_atomic(layout.services / IN_FORCE, listed.encode(), mode=0o600, is_lasting=False)
    write_atomic(layout.services / TEXTS, texts_of(tables), mode=0o600, is_lasting=False)


@dataclass(frozen=True)
class Rules:
    """The wanted tables of the router, and those of the host."""

    router: tuple[ruleset.Table, ...]
    host: tuple[ruleset.Table, ...]


def load(nft: list[str], tables: tuple[ruleset.Table, ...], name: str, before: ruleset.Shape) -> str:
    """Load in one transaction, then read back; returns what that listed. Tables that do not come back as wanted must
    not carry traffic. What others have filled into sets stays, where the tables are of the same make."""
    kept = ruleset.with_frame(tables, before)
    try:
        run([*nft, "-f", "-"], stdin=ruleset.render_tables(tables, kept))
    except CommandFailed as error:
        if kept:  # a set of another type, say, of an earlier hutch
            return load(nft, tables, name, {})
        raise HutchError(
            "the kernel does not take the firewall rules, so nothing was started",
            details=error.details,
            resolution="`hutch explain NAME` prints them; the kernel needs nf_tables with fib and bridge support",
        ) from error
    listing = run([*nft, "-j", "list", "ruleset"]).stdout
    wrong = ruleset.differences(ruleset.shape_of(tables), ruleset.observed_shape(listing, name))
    if wrong:
        raise HutchError("the firewall rules did not load as written, so nothing was started", details="\n".join(wrong))
    return listing


def load_watched(layout: Layout, network: Network, tables: tuple[ruleset.Table, ...], before: ruleset.Shape) -> None:
    """Load the router's rules. The watch does not look meanwhile; the reconciliation of the host starts it again.
    Tables that are not hutch's are removed: nobody knows what they let pass."""
    nft, watch = inside(layout, ["nft"]), wanted_watch(layout, network)
    stop_service(layout, watch.pid_file)
    try:
        if foreign := ruleset.foreign_tables(load(nft, tables, layout.table, before), layout.table):
            run([*nft, "-f", "-"], stdin=ruleset.render_removal(foreign))
        note_rules(layout, tables)
    except HutchError:
        if (layout.services / IN_FORCE).exists():
            start_services(layout, (watch,))
        raise
