"""The watch over the router's rules: when they are not those that hutch has loaded and read back, traffic stops.

Nothing on an ordinary host reaches into the router's namespace. Should somebody change the rules there all the same, by
hand or by a program that goes through all namespaces, the bridge is set down; `hutch up` puts everything right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from hutch.files import read_or_none, write_atomic
from hutch.host.network.namespace import inside
from hutch.host.network.ruleset import Table
from hutch.host.services.service import Service, observe_service, only_writes
from hutch.run import run
from hutch.spec.model import Network
from hutch.spec.names import Places
from hutch.state import make_directory

LIST = """
nft --stateless --terse list ruleset && while read -r family table kind name; do
    nft --stateless list $kind $family $table $name || exit
  done <"$1"
"""
"""Lists all rules, and the elements of those sets that only hutch fills, which stand in the file. nft finds some of
them only when it is asked for one at a time."""
SCRIPT = f"""
list=$2 rules=$3 bridge=$4
show() (
  set -- "$list"
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
"""What changes comes in many lines, so it waits until no more come. It looks twice in the beginning, since the monitor
does not say from when on it sees. What the warden opens is of no interest. It stops traffic too when it can no longer
see."""
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


def wanted_watch(places: Places, network: Network) -> Service:
    """The watch, as a service."""
    bridge = network.bridge
    pid_file = str(places.services / "watch.pid")
    return Service(
        "the watch over the rules",
        pid_file,
        str(places.namespace_path),
        (
            "bash",
            "-c",
            SCRIPT,
            "bash",
            f"--pid-file={pid_file}",
            str(list_file(places)),
            str(rules_file(places)),
            bridge,
        ),
        says_pid=True,
        sandbox=(*SANDBOX, *only_writes(places.services)),
    )


def rules_file(places: Places) -> Path:
    """What is to be in force."""
    return places.services / "rules"


def list_file(places: Places) -> Path:
    """Which sets hutch alone fills."""
    return places.services / "sets"


def texts_file(places: Places) -> Path:
    """What the rules were made of."""
    return places.services / "texts"


def observe_watched(places: Places, network: Network) -> bytes | None:
    """The texts of the rules that were loaded and read back, if there has been a watch over them since then: what is
    there can be believed to be that, word for word."""
    return None if observe_service(wanted_watch(places, network)) is None else read_or_none(texts_file(places))


def texts_of(tables: Iterable[Table]) -> bytes:
    return "\n".join(rule.text for table in tables for chain in table.chains for rule in chain.rules).encode()


def fixed_sets(tables: Iterable[Table]) -> str:
    """The sets that only hutch fills, a line each, as LIST reads them."""
    return "".join(
        f"{table.family} {table.name} {item.kind} {item.name}\n"
        for table in tables
        for item in table.sets
        if not item.is_filled
    )


def note_rules(places: Places, tables: Sequence[Table]) -> None:
    """Note what has just been loaded, and read back, for what is to be in force."""
    make_directory(places.services)
    write_atomic(list_file(places), fixed_sets(tables).encode(), mode=0o600, is_lasting=False)
    listed = run(inside(places, ["sh", "-c", LIST, "sh", str(list_file(places))])).stdout
    write_atomic(rules_file(places), listed.encode(), mode=0o600, is_lasting=False)
    write_atomic(texts_file(places), texts_of(tables), mode=0o600, is_lasting=False)
