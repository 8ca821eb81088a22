"""Frames, byte by byte."""

from __future__ import annotations

import struct

from hutch.prove import frames


def test_checksum() -> None:
    """The example of RFC 1071."""
    assert frames.checksum(bytes.fromhex("0001f203f4f5f6f7")) == ~0xDDF2 & 0xFFFF
    assert frames.checksum(b"\xff") == 0x00FF


def test_an_ipv4_packet_verifies() -> None:
    packet = frames.ipv4("192.168.83.2", "192.0.2.1", frames.UDP, frames.udp(1, 2, b"hi"))
    assert frames.checksum(packet[:20]) == 0
    assert struct.unpack("!H", packet[2:4])[0] == len(packet) == 30
    assert packet[12:20] == bytes([192, 168, 83, 2, 192, 0, 2, 1])


def test_a_segment_verifies() -> None:
    segment = frames.tcp("192.0.2.1", "192.0.2.2", (40000, 80), frames.SYN, b"odd")
    pseudo = bytes([192, 0, 2, 1, 192, 0, 2, 2, 0, 6]) + struct.pack("!H", len(segment))
    assert frames.checksum(pseudo + segment) == 0
    assert segment[13] == frames.SYN


def test_an_echo_request_verifies() -> None:
    assert frames.checksum(frames.echo(b"hutch")) == 0


def test_an_arp_answer() -> None:
    told = frames.arp(2, ("02:00:00:00:00:01", "192.0.2.1"), ("ff:ff:ff:ff:ff:ff", "192.0.2.2"))
    assert told.hex() == "00010800060400020200000000" + "01c0000201" + "ffffffffffffc0000202"


def test_a_question() -> None:
    assert (
        frames.question("a.example.").hex()
        == "4875" + "0100" + "0001" + "00" * 6 + "0161076578616d706c6500" + "00010001"
    )
