"""Packets of a workspace's own, as the probes of the network send them, and the rules that are to stop them. Pure."""

from __future__ import annotations

from hutch.prove import frames
from hutch.prove.model import Ground

SPOOFED = "router bridge prerouting/spoofed"
INPUT = "router inet input/input-denied"
FORWARD = "router inet forward/"
HOST_DOOR = "host inet from-router/"
FENCED = ""  # between workspaces nothing is routed, which the kernel counts nowhere
NOWHERE = "192.0.2.77"
"""A public address by the rules that nobody has, for what is never to get that far."""


def mark(ground: Ground, name: str) -> bytes:
    return f"{ground.token}:{name};".encode()


def datagram(ground: Ground, name: str, target: str, port: int = 9, **identity: str) -> bytes:
    payload = frames.udp(40000, port, mark(ground, name))
    content = frames.ipv4(identity.get("source") or ground.ip, target, frames.UDP, payload)
    return frames.ethernet(
        identity.get("to") or ground.gateway_mac, identity.get("mac") or ground.mac, frames.IPV4, content
    )
