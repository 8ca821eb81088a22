"""Loads firewall tables and reads them back; and the watch over the router's: when they are not those that were loaded
and read back, traffic stops.

Nothing on an ordinary host reaches into the router's namespace. Should somebody change the rules there all the same, by
hand or by a program that goes through all namespaces, the bridge is set down; `hutch up` puts everything right.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from hutch.errors import HutchError
from hutch.files import kept_open, read_or_none, write_atomic
from hutch.frozen import dataclass
from hutch.host.network import ruleset
from hutch.host.network.namespace import inside
from hutch.host.services.service import Service, observe_service, only_writes, start_services
from hutch.run import CommandFailed, run
from hutch.spec.model import Network
from hutch.spec.names import Layout
from hutch.state import make_directory

FILTER, IN_FORCE, TEXTS, LOADING = "filter", "rules", "texts", "loading"
"""Files beside the services: a program of sed's, see render_filter; the rules that are to be in force; their source
texts; and a lock, held by a command between the load of other rules and its note of them."""
LIST = 'set -o pipefail; nft --stateless list ruleset | sed -f "$1"'
"""Lists all rules, and the elements of those sets that only hutch fills, by the filter in the file."""
SCRIPT = f"""
filter=$2 rules=$3 loading=$4 bridge=$5
show() (
  set -- "$filter"
  {LIST}
)
are_noted() {{
  [ "$(show 2>/dev/null)" = "$(<"$rules")" ]
}}
check() {{
  are_noted || {{ flock --timeout 60 9; are_noted || stop; }} 9<"$loading" || stop
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
    lines=0
    while ((lines++ < 1000)) && read -r -t 0.02 _; do :; done
    check
  done
  stop
}}
"""
"""The watch. A change comes in many lines, so it waits until no more come, or for a thousand: who asks for many names
causes some, too. It looks twice in the beginning, since the
monitor does not say from when on it sees. Elements that the egress proxy adds are of no interest. It stops traffic too
when it can no longer see. Rules that differ from the noted ones may be those of a command which is about to note them:
the kernel says when it has done so, or was killed, by its lock, under which this looks once more."""
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
    pid_file = str(layout.services / "watch.pid")
    files = [str(layout.services / name) for name in (FILTER, IN_FORCE, LOADING)]
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
    """Load the router's rules. The watch, which is started where there is none, waits until they are noted. Should this
    be killed before, or fail, it stops traffic. Tables that are not hutch's are removed: nobody knows what they let
    pass."""
    nft, watch = inside(layout, ["nft"]), wanted_watch(layout, network)
    with _loading(layout):
        if observe_service(watch) is None:  # an older hutch's, which would not wait, is stopped by this
            start_services(layout, (watch,))
        if foreign := ruleset.foreign_tables(load(nft, tables, layout.table, before), layout.table):
            run([*nft, "-f", "-"], stdin=ruleset.render_removal(foreign))
        note_rules(layout, tables)


@contextmanager
def _loading(layout: Layout) -> Iterator[None]:
    make_directory(layout.services)
    flags = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC  # children do not hold the lock
    with kept_open(os.open(layout.services / LOADING, flags, 0o600)) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
