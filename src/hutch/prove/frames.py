"""Ethernet frames and questions to a resolver, byte by byte. Pure.

A guest's own kernel refuses to send much of what an attacker would: so frames that are to be refused are made here, and
the guest only puts them on the wire. At the end stand packets as a workspace sends them.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable

from hutch.prove.model import Ground

ARP, IPV4, IPV6, VLAN, EXPERIMENT = 0x0806, 0x0800, 0x86DD, 0x8100, 0x88B5
EVERYBODY = "ff:ff:ff:ff:ff:ff"
ICMP, TCP, UDP = 1, 6, 17
SYN, FIN = 2, 1


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def ip_bytes(ip: str) -> bytes:
    return ipaddress.ip_address(ip).packed


def ethernet(target: str, source: str, kind: int, payload: bytes) -> bytes:
    return mac_bytes(target) + mac_bytes(source) + struct.pack("!H", kind) + payload


def checksum(data: bytes) -> int:
    """The Internet checksum, RFC 1071."""
    padded = data + b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return int(~total & 0xFFFF)


def ipv4(source: str, target: str, protocol: int, payload: bytes) -> bytes:
    def header(check: int) -> bytes:
        fixed = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0x4875, 0, 64, protocol, check)
        return fixed + ip_bytes(source) + ip_bytes(target)

    return header(checksum(header(0))) + payload


def ipv6(source: str, target: str, next_header: int, payload: bytes) -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(payload), next_header, 64) + ip_bytes(source) + ip_bytes(target) + payload


def udp(source_port: int, target_port: int, payload: bytes) -> bytes:
    """A UDP datagram without a checksum, which IPv4 allows."""
    return struct.pack("!HHHH", source_port, target_port, 8 + len(payload), 0) + payload


def tcp(source: str, target: str, ports: tuple[int, int], flags: int, payload: bytes = b"") -> bytes:
    def segment(check: int) -> bytes:
        return struct.pack("!HHIIBBHHH", *ports, 1, 0, 5 << 4, flags, 1024, check, 0) + payload

    pseudo = ip_bytes(source) + ip_bytes(target) + struct.pack("!BBH", 0, TCP, 20 + len(payload))
    return segment(checksum(pseudo + segment(0)))


def echo(payload: bytes, identity: int = 0x4875) -> bytes:
    """An ICMP echo request."""
    head = struct.pack("!BBHHH", 8, 0, 0, identity, 1) + payload
    return head[:2] + struct.pack("!H", checksum(head)) + head[4:]


def arp(operation: int, sender: tuple[str, str], target: tuple[str, str]) -> bytes:
    """An ARP packet: the operation 1 asks, 2 answers; sender and target are (MAC, IP)."""
    (sender_mac, sender_ip), (target_mac, target_ip) = sender, target
    head = struct.pack("!HHBBH", 1, IPV4, 6, 4, operation)
    return head + mac_bytes(sender_mac) + ip_bytes(sender_ip) + mac_bytes(target_mac) + ip_bytes(target_ip)


def tagged(vlan: int, kind: int, payload: bytes) -> bytes:
    """The bytes after the type VLAN in a frame."""
    return struct.pack("!HH", vlan, kind) + payload


def question(name: str, kind: int = 1, number: int = 0x4875) -> bytes:
    """A question to a resolver: 1 for an address, 12 for the name of one."""
    labels: Iterable[str] = (label for label in name.rstrip(".").split(".") if label)
    encoded = b"".join(bytes([len(label)]) + label.encode("ascii") for label in labels)
    return struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0) + encoded + struct.pack("!BHH", 0, kind, 1)


def mark(ground: Ground, name: str) -> bytes:
    return f"{ground.token}:{name};".encode()


def packet(
    ground: Ground, target: str, protocol: int, payload: bytes, *, source: str = "", mac: str = "", to: str = ""
) -> bytes:
    """A packet of a workspace's by way of the gateway, with its own addresses, or with others."""
    content = ipv4(source or ground.ip, target, protocol, payload)
    return ethernet(to or ground.gateway_mac, mac or ground.mac, IPV4, content)


def datagram(ground: Ground, name: str, target: str, port: int = 9, **identity: str) -> bytes:
    return packet(ground, target, UDP, udp(40000, port, mark(ground, name)), **identity)


def segment(ground: Ground, name: str, target: str, flags: int = SYN) -> bytes:
    return packet(ground, target, TCP, tcp(ground.ip, target, (40000, 80), flags, mark(ground, name)))


def datagram6(ground: Ground, name: str, target: str, mac: str) -> bytes:
    """An IPv6 frame by way of the gateway, or to everybody."""
    to = "33:33:00:00:00:01" if target == "ff02::1" else ground.gateway_mac
    return ethernet(to, mac, IPV6, ipv6("fe80::5", target, UDP, udp(40000, 9, mark(ground, name))))
