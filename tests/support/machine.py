"""What a test run must leave as it found it: a picture of the machine, and the difference between two.

Only looks. Sections are sorted lines of text, so that a difference reads like one.
"""

from __future__ import annotations

import glob
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from hutch.run import run

Snapshot = Mapping[str, tuple[str, ...]]

# Byte for byte.
FILES = (
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/passwd",
    "/etc/group",
    "/etc/subuid",
    "/etc/subgid",
    "/etc/ssh/ssh_config",
    "/etc/ssh/ssh_config.d/*",
    "/root/.ssh/*",
)

# By name only: what lies in them may change while they stay.
PATHS = (
    "/run/hutch*",
    "/run/netns/*",
    "/run/systemd/nspawn/*",
    "/var/lib/hutch*",
    "/etc/systemd/system/hutch*",
    "/etc/systemd/network/*hutch*",
)

SETTINGS = (
    "/proc/sys/net/ipv4/ip_forward",
    "/proc/sys/net/ipv4/conf/all/rp_filter",
    "/proc/sys/net/ipv4/conf/all/route_localnet",
    "/proc/sys/net/ipv6/conf/all/forwarding",
)

# Mounts that a host with systemd makes and removes on its own.
SYSTEMD_MOUNTS = re.compile(r"/run/(user|credentials)/|/proc/sys/fs/binfmt_misc")


def snapshot() -> Snapshot:
    """The machine as this process sees it: its network and mount namespaces, its files. Needs root."""
    return {
        **namespaces(),
        "cgroups": _cgroups(),
        "files": _files(),
        "paths": _lines(path for pattern in PATHS for path in glob.glob(pattern)),
    }


def namespaces() -> Snapshot:
    """Its network and mount namespaces, and the kernel's settings."""
    return {
        "interfaces": _interfaces(),
        "routes": _lines(run(["ip", "-4", "route", "show", "table", "all"]).stdout.splitlines()),
        "routing rules": _lines(run(["ip", "-4", "rule"]).stdout.splitlines()),
        "firewall": tuple(run(["nft", "--stateless", "list", "ruleset"]).stdout.splitlines()),
        "mounts": _mounts(),
        "kernel settings": tuple(f"{path} = {_read(path)}" for path in SETTINGS),
    }


def difference(before: Snapshot, after: Snapshot) -> str:
    """What has appeared (+) and what has gone (-), by section; "" when nothing has."""
    report = []
    for section in before:
        old, new = Counter(before[section]), Counter(after[section])
        gone = [f"  - {line}" for line in (old - new).elements()]
        come = [f"  + {line}" for line in (new - old).elements()]
        if gone or come:
            report += [f"{section}:", *gone, *come]
    return "\n".join(report)


def settled_difference(before: Snapshot, *, seconds: float = 5.0) -> str:
    """The difference to now, once the kernel has had time: it removes namespaces and their links in its own time."""
    deadline = time.monotonic() + seconds
    while (report := difference(before, snapshot())) and time.monotonic() < deadline:
        time.sleep(0.2)
    return report


def _lines(lines: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(line.strip() for line in lines))


def _interfaces() -> tuple[str, ...]:
    """Names, settings and addresses; not the carrier, which a cable may change."""
    lines = []
    for link in json.loads(run(["ip", "-j", "address"]).stdout):
        up = "up" if "UP" in link["flags"] else "down"
        addresses = " ".join(f"{item['local']}/{item['prefixlen']}" for item in link["addr_info"] if "local" in item)
        lines.append(
            f"{link['ifname']} {link.get('address', '')} mtu {link['mtu']} {up} {link.get('master', '')} {addresses}"
        )
    return _lines(lines)


def _mounts() -> tuple[str, ...]:
    lines = []
    for line in _read("/proc/self/mountinfo").splitlines():
        fields = line.split()
        target, tail = fields[4], fields[fields.index("-") + 1 :]
        if not SYSTEMD_MOUNTS.match(target):
            options = f"{fields[5]} {tail[2]}" if tail[0] == "cgroup2" else fields[5]
            lines.append(f"{target} type {tail[0]} from {tail[1]} ({options})")
    return _lines(lines)


def _cgroups() -> tuple[str, ...]:
    """Every cgroup of hutch's in every hierarchy that is mounted; a host makes and removes others as it likes."""
    found: list[str] = []
    for line in _read("/proc/self/mountinfo").splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] in ("cgroup", "cgroup2"):
            for top in glob.glob(f"{glob.escape(fields[4])}/hutch*"):
                found += [directory for directory, _, _ in os.walk(top)]
    return _lines(found)


def remove_cgroups(before: Snapshot) -> list[str]:
    """Remove those of hutch's that have come since, as far as nobody is in them, and return their paths: what a test
    that failed leaves on the whole machine, when all else of it has gone with its namespaces."""
    removed = []
    for directory in sorted(set(_cgroups()) - set(before["cgroups"]), reverse=True):  # the innermost first
        with suppress(OSError):
            os.rmdir(directory)
            removed.append(directory)
    return removed


def _files() -> tuple[str, ...]:
    lines = []
    for path in sorted(path for pattern in FILES for path in glob.glob(pattern)):
        lines.append(f"{path} exists, mode {os.stat(path).st_mode:o}")
        if os.path.isfile(path):
            lines += [f"{path}: {line!r}" for line in Path(path).read_bytes().splitlines(keepends=True)]
    return tuple(lines)


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        return f"({error.strerror})"
