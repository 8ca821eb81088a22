"""Run as a script: a name server whose zone is a file that tests rewrite while it runs, and which keeps a list of all
that it was asked.

Arguments: the zone file, the log, then the addresses to listen at. The zone is a JSON table of names (wildcards are
for any depth below) to entries; what an entry may hold is said in `Zone`. Prints "ready" once all sockets listen.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

LONGEST_CHAIN = 12
Entry = dict[str, Any]


class Zone:
    """What is known of names. An entry may hold `a`, `aaaa`, `txt` and `https` (lists), `cname`, `ttl` (default 60),
    and `turns`, lists of addresses for the first question, the second, and so on (the last one stays). `beside` is a
    table of other names to addresses that are put into the answer unasked. `rcode`, `delay` in seconds and `silent`
    say how it is answered."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] = (0, 0)
        self._entries: dict[dns.name.Name, Entry] = {}
        self._turns: Counter[str] = Counter()

    def find(self, name: dns.name.Name) -> Entry | None:
        """The entry of a name, or that of the nearest wildcard above."""
        self._read()
        if name in self._entries:
            return self._entries[name]
        while len(name) > 1:
            name = name.parent()
            wildcard = dns.name.Name((b"*", *name.labels))
            if wildcard in self._entries:
                return self._entries[wildcard]
        return None

    def addresses(self, name: dns.name.Name, entry: Entry) -> list[str]:
        turns: list[list[str]] = entry.get("turns", [])
        if not turns:
            return list(entry.get("a", ()))
        key = f"{name} {turns}"
        self._turns[key] += 1
        return turns[min(self._turns[key], len(turns)) - 1]

    def _read(self) -> None:
        state = self._path.stat()
        seen = (state.st_ino, state.st_mtime_ns)
        if seen != self._seen:
            entries = json.loads(self._path.read_text())
            self._entries = {dns.name.from_text(name): entry for name, entry in entries.items()}
            self._seen = seen


class Server:
    """Answers as a resolver would that has looked up everything: chains are followed."""

    def __init__(self, zone: Zone, log: int) -> None:
        self._zone = zone
        self._log = log
        self._lock = threading.Lock()

    def answer(self, packet: bytes, via: str) -> tuple[bytes, float] | None:
        """The answer to a packet and how long to wait before it is sent; None for none at all."""
        try:
            query = dns.message.from_wire(packet)
        except dns.exception.DNSException:
            return None
        question = query.question[0]
        kind = dns.rdatatype.to_text(question.rdtype)
        line = json.dumps({"name": str(question.name), "type": kind, "via": via})
        os.write(self._log, f"{line}\n".encode())
        response = dns.message.make_response(query, recursion_available=True)
        with self._lock:
            entry = self._fill(response, question.name, kind)
        if entry.get("silent"):
            return None
        wire = response.to_wire(max_size=65535)
        if via == "udp" and len(wire) > max(512, query.payload):
            response.flags |= dns.flags.TC
            response.answer.clear()
            wire = response.to_wire(max_size=65535)
        return wire, entry.get("delay", 0)

    def _fill(self, response: dns.message.Message, name: dns.name.Name, kind: str) -> Entry:
        """Put the answer together; returns the entry of the name that was asked for."""
        first = entry = self._zone.find(name)
        if first is None:
            response.set_rcode(dns.rcode.NXDOMAIN)
            return {}
        if "rcode" in first:
            response.set_rcode(dns.rcode.from_text(first["rcode"]))
            return first
        for _ in range(LONGEST_CHAIN):
            if entry is None or "cname" not in entry:
                break
            target = dns.name.from_text(entry["cname"])
            response.answer.append(dns.rrset.from_text(name, entry.get("ttl", 60), "IN", "CNAME", str(target)))
            name = target
            entry = self._zone.find(name)
        for known in ("A", "AAAA", "TXT", "HTTPS") if kind == "ANY" else (kind,):
            self._add(response, name, entry or {}, known)
        for other, addresses in first.get("beside", {}).items():
            response.answer.append(dns.rrset.from_text(dns.name.from_text(other), 60, "IN", "A", *addresses))
        return first

    def _add(self, response: dns.message.Message, name: dns.name.Name, entry: Entry, kind: str) -> None:
        values = self._zone.addresses(name, entry) if kind == "A" else entry.get(kind.lower(), [])
        if values:
            response.answer.append(dns.rrset.from_text(name, entry.get("ttl", 60), "IN", kind, *values))

    def serve_datagrams(self, server: socket.socket) -> None:
        while True:
            packet, peer = server.recvfrom(4096)
            answer = self.answer(packet, "udp")
            if answer and answer[1]:
                threading.Timer(answer[1], server.sendto, (answer[0], peer)).start()
            elif answer:
                server.sendto(answer[0], peer)

    def serve_streams(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self._serve_stream, args=(connection,), daemon=True).start()

    def _serve_stream(self, connection: socket.socket) -> None:
        connection.settimeout(10)
        with connection, connection.makefile("rb") as stream:
            while len(head := stream.read(2)) == 2:
                answer = self.answer(stream.read(*struct.unpack(">H", head)), "tcp")
                if answer is None:
                    return
                time.sleep(answer[1])
                connection.sendall(struct.pack(">H", len(answer[0])) + answer[0])


def main() -> None:
    zone, log, *addresses = sys.argv[1:]
    server = Server(Zone(Path(zone)), os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT))
    threads = []
    for address in addresses:
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams.bind((address, 53))
        listener = socket.create_server((address, 53), backlog=64)
        threads.append(threading.Thread(target=server.serve_datagrams, args=(datagrams,)))
        threads.append(threading.Thread(target=server.serve_streams, args=(listener,)))
    for thread in threads:
        thread.start()
    print("ready", flush=True)


if __name__ == "__main__":
    main()
