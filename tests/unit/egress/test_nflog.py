"""What the kernel says of logged packets, and what else may come instead. tests/host/test_nflog.py has the kernel."""

from __future__ import annotations

import struct
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.egress.nflog import (
    HEADER,
    NLMSG_ERROR,
    PREFIX,
    SEQ,
    Packet,
    attributes,
    check_answer,
    messages,
    parse_ipv4,
    parse_messages,
    render_bind,
)
from hutch.spec.names import HEARD_GROUP

# A datagram of Linux 6.18: four packets, and the end of them.
DATAGRAM = bytes.fromhex(
    "7400000000040000000000000000000002000053080001000800030012000a00687574636820726566757365640000000800050000000003"
    "08000b000000000008000e000000000008000c0000000000210009004500001d92684000401158b7c0a85302cb007105cb8f003500094fcb"
    "780000009400000000040000000000000000000002000053080001000800030012000a006875746368207265667573656400000008000500"
    "0000000108000b000000000008000e000000000008000c00000000014400090045000080184740004011241c7f0000017f000009cb8f01bb"
    "006cfe87787878787878787878787878787878787878787878787878787878787878787878787878cc000000000400000000000000000000"
    "02000053080001000800000012000a006875746368206c6561726e6564000000080004000000000110000800000600000000000000000000"
    "06000f000304000006001100000e0000120010000000000000000000000000000800000014000300000000006b076cb100000000000eb1c1"
    "08000c00000000024400090045000080184740004011241c7f0000017f000009cb8f01bb006cfe8778787878787878787878787878787878"
    "78787878787878787878787878787878787878789000000000040000000000000000000002000053080001000800030012000a0068757463"
    "682072656675736564000000080005000000000108000b000000000008000e000000000008000c0000000003400009004500003c3e8a4000"
    "4006fe277f0000017f00000985ba01bca0aa511400000000a002ffd7fe3800000204ffd70402080acb2aa97f000000000103030a14000000"
    "03000000000000000000000000000053"
)
little = pytest.mark.skipif(sys.byteorder == "big", reason="netlink has the byte order of the machine")


@little
def test_packets_are_told() -> None:
    assert list(parse_messages(DATAGRAM)) == [
        (0, Packet("hutch refused", 0, "192.168.83.2", "203.0.113.5", "udp", 53)),
        (1, Packet("hutch refused", 0, "127.0.0.1", "127.0.0.9", "udp", 443)),
        (2, Packet("hutch learned", 1, "127.0.0.1", "127.0.0.9", "udp", 443)),
        (3, Packet("hutch refused", 0, "127.0.0.1", "127.0.0.9", "tcp", 444)),
    ]


@little
@pytest.mark.parametrize("size", range(0, len(DATAGRAM), 3))
def test_half_of_it(size: int) -> None:
    whole = list(parse_messages(DATAGRAM))
    assert list(parse_messages(DATAGRAM[:size])) == whole[: len(list(parse_messages(DATAGRAM[:size])))]


@given(st.binary(max_size=300))
def test_garbage(data: bytes) -> None:
    for number, packet in parse_messages(data):
        assert number is None or packet is None or packet.protocol


@given(st.integers(0, len(DATAGRAM) - 1), st.integers(0, 255))
def test_one_wrong_byte(at: int, byte: int) -> None:
    list(parse_messages(DATAGRAM[:at] + bytes([byte]) + DATAGRAM[at + 1 :]))


def packet(*, first: int = 0x45, protocol: int = 6, fragment: int = 0, rest: bytes = b"\x9c\x40\x01\xbb") -> bytes:
    return (
        struct.pack("!BxHHHBBH4s4s", first, 40, 1, fragment, 64, protocol, 0, b"\x0a\0\0\x01", b"\x0a\0\0\x02") + rest
    )


@pytest.mark.parametrize(
    ("data", "protocol", "port"),
    [
        (packet(), "tcp", 443),
        (packet(protocol=17), "udp", 443),
        (packet(first=0x46, rest=b"\0\0\0\0\x9c\x40\x00\x35"), "tcp", 53),
        (packet(fragment=0x2000), "tcp", 443),
        (packet(fragment=0x2001), "tcp", None),
        (packet(fragment=0x0001), "tcp", None),
        (packet(rest=b"\x9c\x40\x01"), "tcp", None),
        (packet(rest=b""), "tcp", None),
        (packet(first=0x44), "tcp", None),
        (packet(first=0x4F), "tcp", None),
        (packet(protocol=1, rest=b"\x08\0\0\0"), "icmp", None),
        (packet(protocol=47), "47", None),
    ],
)
def test_ipv4(data: bytes, protocol: str, port: int | None) -> None:
    assert parse_ipv4(data) == ("10.0.0.1", "10.0.0.2", protocol, port)


@pytest.mark.parametrize("data", [b"", packet()[:19], packet(first=0x65), packet(first=0)])
def test_what_is_not_ipv4(data: bytes) -> None:
    assert parse_ipv4(data) is None


@little
def test_a_packet_that_is_none_is_still_counted() -> None:
    (_, body), *_ = messages(DATAGRAM)
    arp = DATAGRAM.replace(bytes.fromhex("0800010008000300"), bytes.fromhex("0800010008060300"), 1)
    assert next(parse_messages(arp)) == (0, None)
    assert {PREFIX, SEQ} <= dict(attributes(body[4:])).keys()


def test_the_request_is_one_message() -> None:
    ((kind, body),) = messages(render_bind(HEARD_GROUP))
    assert kind == 0x0401
    assert body[:4] == b"\0\0\0\x53"
    assert dict(attributes(body[4:])) == {
        1: b"\x01",
        2: b"\0\0\0\x40\x02\0",
        4: b"\0\0\0\x05",
        5: b"\0\0\0\x20",
        6: b"\0\x01",
    }


def test_a_refusal_is_raised() -> None:
    def answer(code: int) -> bytes:
        return HEADER.pack(HEADER.size + 4, NLMSG_ERROR, 0, 1, 0) + struct.pack("=i", code)

    check_answer(answer(0))
    with pytest.raises(PermissionError, match="NFLOG cannot be listened to"):
        check_answer(answer(-1))
