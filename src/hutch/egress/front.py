"""The servers for questions of watched workspaces: by UDP and by TCP, each bounded for each workspace."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable

import dns.exception
import dns.flags
import dns.message

from hutch.egress.views import View

MOST_ASKED = 128  # questions of one workspace that wait for an answer
MOST_CONNECTIONS = 8  # of one workspace
PAUSE = 0.01  # seconds between two questions by one connection: a segment can hold a thousand of them
IDLE_SECONDS = 10.0
LARGEST_DATAGRAM = 1232  # bytes that pass everywhere in one piece
SMALLEST_DATAGRAM = 512
LONGEST_QUESTION = 512  # bytes; a name has 255 at most
HEADER = struct.Struct("!6H")  # RFC 1035, 4.1.1
SO_RCVBUFFORCE = 33
RECEIVE_BUFFER = 4 << 20  # bytes; what one workspace may ask at once does not push out what another one asks

Find = Callable[[str], View | None]
Answer = Callable[[View, dns.message.Message], Awaitable[dns.message.Message]]


def sockets_at(address: tuple[str, int]) -> tuple[socket.socket, socket.socket]:
    """The sockets for datagrams, with its buffer, and for connections, at an address. It takes CAP_NET_ADMIN."""
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    datagrams.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
    connections = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    # What is closed and not over is not in the way of the next one.
    connections.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for made in (datagrams, connections):
        made.bind(address)
    return datagrams, connections


def parse_question(data: bytes) -> dns.message.Message | None:
    """A message that asks one thing; None for everything else that a guest may send. Parts that could take long are not
    even looked at."""
    if not HEADER.size <= len(data) <= LONGEST_QUESTION:
        return None
    _, flags, *counts, additional = HEADER.unpack_from(data)
    if flags & dns.flags.QR or counts != [1, 0, 0] or additional > 1:  # EDNS, at most
        return None
    try:
        return dns.message.from_wire(data, ignore_trailing=True)
    except (dns.exception.DNSException, ValueError):
        return None


class Front(asyncio.DatagramProtocol):
    """The servers. `find` gives the view of an address, and `answer` the answer to a message that asks."""

    def __init__(self, find: Find, answer: Answer) -> None:
        self._find, self._answer = find, answer
        self._asked: Counter[str] = Counter()
        self._connected: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._transport: asyncio.DatagramTransport

    async def listen(self, datagrams: socket.socket, connections: socket.socket) -> None:
        """Listen by these sockets, which have their address."""
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, sock=datagrams)
        self._server = await asyncio.start_server(self._serve, sock=connections, backlog=256)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        view = self._find(addr[0])
        question = parse_question(data) if view is not None else None
        if view is None or question is None or self._asked[view.workspace] >= MOST_ASKED:
            return
        self._asked[view.workspace] += 1
        task = asyncio.get_running_loop().create_task(self._reply(view, question, addr))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _reply(self, view: View, question: dns.message.Message, addr: tuple[str, int]) -> None:
        size = min(max(question.payload, SMALLEST_DATAGRAM), LARGEST_DATAGRAM)
        try:
            answer = await self._answer(view, question)
            self._transport.sendto(answer.to_wire(max_size=size, prefer_truncation=True), addr)
        except dns.exception.DNSException:
            pass  # an answer that cannot be encoded is not sent
        finally:
            self._asked[view.workspace] -= 1

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        view = self._find(peer[0]) if peer else None
        try:
            if view is not None and self._connected[view.workspace] < MOST_CONNECTIONS:
                self._connected[view.workspace] += 1
                try:
                    await self._converse(peer[0], reader, writer)
                finally:
                    self._connected[view.workspace] -= 1
        except (OSError, EOFError, TimeoutError, dns.exception.DNSException):
            writer.transport.abort()  # a client that does not read is not waited for
        finally:
            writer.close()

    async def _converse(self, peer: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            async with asyncio.timeout(IDLE_SECONDS):
                length = int.from_bytes(await reader.readexactly(2), "big")
                question = parse_question(await reader.readexactly(min(length, LONGEST_QUESTION + 1)))
            view = self._find(peer)  # it may be another one by now
            if view is None or question is None:
                return
            wire = (await self._answer(view, question)).to_wire()
            writer.write(len(wire).to_bytes(2, "big") + wire)
            async with asyncio.timeout(IDLE_SECONDS):
                await writer.drain()
            await asyncio.sleep(PAUSE)
