"""Hears from the kernel of the packets that rules log to a group, in the network namespace that this process is in.

The layout of the messages is that of <linux/netfilter/nfnetlink_log.h>. What they hold of a packet is the guest's.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

from hutch.frozen import dataclass
from hutch.spec.names import HEARD_GROUP

COPY_RANGE = 64
"""Bytes of each packet: the longest header of IPv4, and the ports behind it."""
QUEUE, QUEUE_TIMEOUT = 32, 5
"""The packets, or hundredths of a second, that the kernel waits for before it tells."""
RECEIVE_BUFFER = 4 << 20
LONGEST = 1 << 16
"""The most bytes of a datagram: the kernel's own buffer for a group has a page or two, unless it is told otherwise."""
AT_ONCE = 64
"""Datagrams that are read before others have their turn."""

NETLINK_NETFILTER, SOL_NETLINK, NETLINK_NO_ENOBUFS, SO_RCVBUFFORCE = 12, 270, 5, 33
NLMSG_ERROR, NLM_F_REQUEST, NLM_F_ACK = 2, 1, 4
SUBSYSTEM = 4 << 8  # NFNL_SUBSYS_ULOG
MSG_PACKET, MSG_CONFIG = SUBSYSTEM, SUBSYSTEM | 1
CFG_CMD, CFG_MODE, CFG_TIMEOUT, CFG_QTHRESH, CFG_FLAGS = 1, 2, 4, 5, 6
CMD_BIND, COPY_PACKET, F_SEQ = 1, 2, 1
PACKET_HDR, IFINDEX_INDEV, PAYLOAD, PREFIX, SEQ = 1, 4, 9, 10, 12
NESTED = 0xC000  # flags in an attribute's type

HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence number, port
GENERAL = struct.Struct("!BBH")  # nfgenmsg: family, version, group
ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type

IPV4 = 0x0800
PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp"}
WITH_PORTS = (6, 17)


@dataclass(frozen=True)
class Packet:
    """A packet that a rule logged with `prefix`. `interface` is the index of the one that it came by, 0 for none;
    `port` is where it goes to, None where there are no ports."""

    prefix: str
    interface: int
    source: str
    destination: str
    protocol: str
    port: int | None


class Nflog:
    """A group's listener; there can be one. For an event loop: `fileno` is readable when `receive` has something.

    Packets that the kernel could not deliver, because nobody listened for too long, are counted in `lost` as soon as
    the next packet comes. Their workspaces are not known.
    """

    def __init__(self, group: int = HEARD_GROUP) -> None:
        """Bind the group. Raises PermissionError (EPERM) while another process listens."""
        self.lost = 0
        self._next: int | None = None
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        try:
            self._socket.bind((0, 0))
            # Lost packets are counted by numbers that are missing; without this, more would be lost.
            self._socket.setsockopt(SOL_NETLINK, NETLINK_NO_ENOBUFS, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
            self._socket.settimeout(5)
            self._socket.sendto(render_bind(group), (0, 0))
            check_answer(self._socket.recv(LONGEST))
            self._socket.setblocking(False)
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def receive(self) -> list[Packet]:
        """The packets that have come; none when there are none."""
        found = []
        for _ in range(AT_ONCE):
            try:
                data, (port, _) = self._socket.recvfrom(LONGEST)
            except BlockingIOError:
                break
            if port == 0:  # the kernel; nobody else is believed
                for number, packet in parse_messages(data):
                    self._count(number)
                    if packet is not None:
                        found.append(packet)
        return found

    def _count(self, number: int | None) -> None:
        if number is not None:
            if self._next is not None:
                self.lost += (number - self._next) & 0xFFFFFFFF
            self._next = (number + 1) & 0xFFFFFFFF


def render_bind(group: int) -> bytes:
    """The request to listen, with all settings."""
    settings = (
        (CFG_CMD, struct.pack("=B", CMD_BIND)),
        (CFG_MODE, struct.pack("!IBx", COPY_RANGE, COPY_PACKET)),
        (CFG_TIMEOUT, struct.pack("!I", QUEUE_TIMEOUT)),
        (CFG_QTHRESH, struct.pack("!I", QUEUE)),
        (CFG_FLAGS, struct.pack("!H", F_SEQ)),
    )
    body = GENERAL.pack(socket.AF_UNSPEC, 0, group)
    for kind, value in settings:
        body += ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)
    return HEADER.pack(HEADER.size + len(body), MSG_CONFIG, NLM_F_REQUEST | NLM_F_ACK, 1, 0) + body


def check_answer(data: bytes) -> None:
    """Raise the kernel's error, if it refuses the request."""
    for kind, body in messages(data):
        if kind == NLMSG_ERROR and len(body) >= 4:
            (code,) = struct.unpack_from("=i", body)
            if code:
                raise OSError(-code, f"NFLOG cannot be listened to: {os.strerror(-code)}")


def parse_messages(data: bytes) -> Iterator[tuple[int | None, Packet | None]]:
    """The number and the packet of each message of a datagram; None for one that is missing or damaged."""
    for kind, body in messages(data):
        if kind == MSG_PACKET and len(body) >= GENERAL.size:
            yield parse_packet(dict(attributes(body[GENERAL.size :])))


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The type and the body of each netlink message."""
    while len(data) >= HEADER.size:
        length, kind, *_ = HEADER.unpack_from(data)
        if not HEADER.size <= length <= len(data):
            return
        yield kind, data[HEADER.size : length]
        data = data[length + -length % 4 :]


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The type and the value of each attribute."""
    while len(data) >= ATTRIBUTE.size:
        length, kind = ATTRIBUTE.unpack_from(data)
        if not ATTRIBUTE.size <= length <= len(data):
            return
        yield kind & ~NESTED, data[ATTRIBUTE.size : length]
        data = data[length + -length % 4 :]


def parse_packet(values: dict[int, bytes]) -> tuple[int | None, Packet | None]:
    """The number and the packet in the attributes of one message."""
    number = big_endian(values.get(SEQ, b""), 4)
    route = parse_ipv4(values.get(PAYLOAD, b"")) if big_endian(values.get(PACKET_HDR, b"")[:2], 2) == IPV4 else None
    if route is None:
        return number, None
    prefix = values.get(PREFIX, b"").rstrip(b"\0").decode("ascii", "replace")
    return number, Packet(prefix, big_endian(values.get(IFINDEX_INDEV, b""), 4) or 0, *route)


def parse_ipv4(data: bytes) -> tuple[str, str, str, int | None] | None:
    """Source, destination, protocol and destination port of the beginning of a packet; None when it is none."""
    if len(data) < 20 or data[0] >> 4 != 4:
        return None
    header = (data[0] & 15) * 4
    protocol = data[9]
    is_first = not int.from_bytes(data[6:8], "big") & 0x1FFF  # fragment
    ports = data[header : header + 4] if header >= 20 and is_first and protocol in WITH_PORTS else b""
    source, destination = (socket.inet_ntoa(data[at : at + 4]) for at in (12, 16))
    return source, destination, PROTOCOLS.get(protocol, str(protocol)), big_endian(ports[2:], 2)


def big_endian(data: bytes, size: int) -> int | None:
    return int.from_bytes(data, "big") if len(data) == size else None
