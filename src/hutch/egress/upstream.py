"""Asks the host's resolver, over one socket that only it can answer."""

from __future__ import annotations

import asyncio
import secrets
import struct

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype

from hutch.frozen import dataclass

PATIENCE = (1.0, 1.5, 2.5)
"""Seconds after which a question is asked again; after the last of them it is given up."""
PAYLOAD = 1232
MOST_WAITING = 4096
LONGEST_ANSWER = 1 << 14  # bytes; whoever runs a listed name is not to keep the others waiting


class Unanswered(Exception):
    """The host's resolver has not answered, or not the question that was asked."""


@dataclass(frozen=True)
class Question:
    number: int
    name: dns.name.Name
    kind: dns.rdatatype.RdataType

    def render(self) -> bytes:
        """The message; by hand, since everybody waits for it. See RFC 1035, 4.1, and RFC 6891, 6.1."""
        header = struct.pack("!6H", self.number, dns.flags.RD, 1, 0, 0, 1)
        asked = self.name.to_wire() + struct.pack("!HH", self.kind, dns.rdataclass.IN)  # type: ignore[operator]
        return header + asked + struct.pack("!BHHIH", 0, dns.rdatatype.OPT, PAYLOAD, 0, 0)

    def is_answered_by(self, message: dns.message.Message) -> bool:
        asked = [(item.name, item.rdtype, item.rdclass) for item in message.question]
        is_same = message.id == self.number and asked == [(self.name, self.kind, dns.rdataclass.IN)]
        return is_same and bool(message.flags & dns.flags.QR)


class Upstream(asyncio.DatagramProtocol):
    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._transport: asyncio.DatagramTransport | None = None
        self._waiting: dict[int, tuple[Question, asyncio.Future[dns.message.Message]]] = {}

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, remote_addr=self._address)

    async def ask(self, name: dns.name.Name, kind: dns.rdatatype.RdataType) -> dns.message.Message:
        """The response to a question. Raises Unanswered."""
        if self._transport is None or len(self._waiting) >= MOST_WAITING:
            raise Unanswered
        number = secrets.randbelow(1 << 16)
        while number in self._waiting:
            number = secrets.randbelow(1 << 16)
        question = Question(number, name, kind)
        future: asyncio.Future[dns.message.Message] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (question, future)
        try:
            wire = question.render()
            for seconds in PATIENCE:
                self._transport.sendto(wire)
                found, _ = await asyncio.wait([future], timeout=seconds)
                if found:
                    response = future.result()
                    return await self._ask_again(question) if response.flags & dns.flags.TC else response
        finally:
            self._waiting.pop(number, None)
        raise Unanswered

    async def _ask_again(self, question: Question) -> dns.message.Message:
        """Ask by TCP, where the answer was too long."""
        try:
            async with asyncio.timeout(PATIENCE[-1]):
                reader, writer = await asyncio.open_connection(*self._address)
                try:
                    wire = question.render()
                    writer.write(len(wire).to_bytes(2, "big") + wire)
                    length = int.from_bytes(await reader.readexactly(2), "big")
                    if length > LONGEST_ANSWER:
                        raise Unanswered
                    response = dns.message.from_wire(await reader.readexactly(length), ignore_trailing=True)
                finally:
                    writer.close()
        except (OSError, TimeoutError, EOFError, dns.exception.DNSException, ValueError) as error:
            raise Unanswered from error
        if not question.is_answered_by(response):
            raise Unanswered
        return response

    def datagram_received(self, data: bytes, addr: object) -> None:
        try:
            response = dns.message.from_wire(data, ignore_trailing=True, raise_on_truncation=False)
        except (dns.exception.DNSException, ValueError):
            return
        question, future = self._waiting.get(response.id, (None, None))
        if question is not None and future is not None and not future.done() and question.is_answered_by(response):
            future.set_result(response)

    def error_received(self, exc: Exception) -> None:
        """Do nothing: the resolver is being restarted, and the question is asked again."""
