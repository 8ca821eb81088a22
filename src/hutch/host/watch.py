"""The watch over the router's rules: when they are not those that hutch has loaded and read back, traffic stops.

Nothing on an ordinary host reaches into the router's namespace. Should somebody change the rules there all the same, by
hand or by a program that goes through all namespaces, the bridge is set down; `hutch up` puts everything right.
"""

from __future__ import annotations

from pathlib import Path

from hutch.files import write_atomic
from hutch.host.namespace import inside
from hutch.host.service import Service
from hutch.run import run
from hutch.spec.model import Network
from hutch.spec.names import Places

SCRIPT = """
rules=$2 bridge=$3
check() {
  [ "$(nft --stateless --terse list ruleset 2>/dev/null)" = "$(<"$rules")" ] || stop
}
stop() {
  ip link set dev "$bridge" down
}
nft monitor rules 2>/dev/null | {
  echo $$
  exec >/dev/null
  check
  read -r -t 0.3 _
  check
  while read -r _; do
    while read -r -t 0.02 _; do :; done
    check
  done
  stop
}
"""
"""What changes comes in many lines, so it waits until no more come. It looks twice in the beginning, since the monitor
does not say from when on it sees. It stops traffic too when it can no longer see."""


def wanted_watch(places: Places, network: Network) -> Service:
    """The watch, as a service."""
    pid_file = str(places.services / "watch.pid")
    return Service(
        "the watch over the rules",
        pid_file,
        str(places.namespace_path),
        ("bash", "-c", SCRIPT, "bash", f"--pid-file={pid_file}", str(rules_file(places)), network.bridge),
        says_pid=True,
    )


def rules_file(places: Places) -> Path:
    """The rules as they were read back, without counters and elements."""
    return places.services / "rules"


def note_rules(places: Places) -> None:
    """Note what is in force now for what is to be."""
    rules = run(inside(places, ["nft", "--stateless", "--terse", "list", "ruleset"])).stdout
    write_atomic(rules_file(places), rules.encode(), mode=0o600, is_lasting=False)
