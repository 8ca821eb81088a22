"""The kinds of IPv4 addresses that a workspace may or may not reach.

Some are nobody's to reach from a workspace, whatever a file says (NEVER). Private ones are reached only where a file
opens them by name: with `egress = "all"`, or by a network in a list that is private as a whole. The rest is the
Internet.
"""

from __future__ import annotations

import ipaddress
from functools import cache

NEVER = (
    "0.0.0.0/8",  # "this" network: Linux takes it for the host itself
    "127.0.0.0/8",
    "169.254.0.0/16",  # link-local, with the metadata services of clouds
    "192.0.0.0/24",  # IETF protocol assignments
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, and broadcast
)
PRIVATE = (
    "10.0.0.0/8",
    "100.64.0.0/10",  # shared by carriers; VPNs use it too
    "172.16.0.0/12",
    "192.168.0.0/16",
    "198.18.0.0/15",  # benchmarking
)
"""Documentation ranges are left to routing: some networks use them as if they were public."""
EVERYWHERE = "0.0.0.0/0"


def is_private(network: str) -> bool:
    """Whether a network, or an address, is private as a whole."""
    return _is_within(network, PRIVATE)


def is_never(network: str) -> bool:
    """Whether a network, or an address, is no workspace's to reach, as a whole."""
    return _is_within(network, NEVER)


def _is_within(network: str, ranges: tuple[str, ...]) -> bool:
    wanted = ipaddress.IPv4Network(network)
    return any(wanted.subnet_of(range) for range in _parsed(ranges))


@cache
def _parsed(ranges: tuple[str, ...]) -> tuple[ipaddress.IPv4Network, ...]:
    return tuple(ipaddress.IPv4Network(range) for range in ranges)
