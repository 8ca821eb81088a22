"""The router's network namespace seen from outside: its presence, the way into it, and the first look at it.

Its imports stay few: a start looks while it still imports what it does about what it sees.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from hutch.run import Gathering
from hutch.spec.names import Layout

HOST_ADDRESSES = ["ip", "-j", "addr"]
ROUTES = "/proc/net/route"
RULES = ["nft", "-j", "list", "ruleset"]
ROUTER = Path(__file__).with_name("router.batch")
"""Questions to `ip -batch` in the router namespace: one process, and a line of JSON for each of its questions."""


def has_namespace(layout: Layout) -> bool:
    """Whether the namespace's file is a mounted namespace: a crash leaves a plain file."""
    try:
        return os.stat(layout.namespace_path).st_dev != os.stat(layout.namespace_path.parent).st_dev
    except FileNotFoundError:
        return False


def inside(layout: Layout, argv: Iterable[str]) -> list[str]:
    """`argv`, run in the router namespace."""
    return ["nsenter", f"--net={layout.namespace_path}", "--", *argv]


def look(layout: Layout) -> Gathering:
    """Begin to look at the host's network and the router; router.observe_all takes it from there."""
    commands = [HOST_ADDRESSES, RULES]
    if has_namespace(layout):
        commands += [["ip", "-n", layout.namespace, "-j", "-d", "-batch", str(ROUTER)], inside(layout, RULES)]
    return Gathering(commands)
