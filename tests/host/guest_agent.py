"""Runs inside a workspace, as root: does what it is told on stdin, one JSON list of tasks a line, and prints what came
of each. The tasks of a line run at once; connections that are held stay open from line to line.

Nothing here but Python's own library: it is what a guest has. Names are lists of labels, since some that are tried are
no text that a resolver of the guest's would send.
"""

import collections
import concurrent.futures
import errno
import json
import random
import socket
import struct
import sys
import threading
import time
from typing import Any

Task = dict[str, Any]
HELD: dict[str, socket.socket] = {}
KINDS = {1: "A", 5: "CNAME", 16: "TXT", 28: "AAAA", 65: "HTTPS"}


# Questions, as bytes.


def question(labels: list[str], kind: int, number: int) -> bytes:
    name = b"".join(bytes([len(label)]) + label.encode("latin-1") for label in labels) + b"\0"
    return struct.pack(">6H", number, 0x0100, 1, 0, 0, 0) + name + struct.pack(">2H", kind, 1)


def skip_name(packet: bytes, at: int) -> int:
    while packet[at]:
        if packet[at] >= 0xC0:
            return at + 2
        at += packet[at] + 1
    return at + 1


def read_answer(packet: bytes) -> Task:
    """The code, whether it was cut, and the records: kind, value (addresses only), TTL."""
    _, flags, questions, answers, _, _ = struct.unpack(">6H", packet[:12])
    at, records = 12, []
    for _ in range(questions):
        at = skip_name(packet, at) + 4
    for _ in range(answers):
        at = skip_name(packet, at)
        kind, _, ttl, length = struct.unpack(">2HIH", packet[at : at + 10])
        data = packet[at + 10 : at + 10 + length]
        at += 10 + length
        records.append([KINDS.get(kind, str(kind)), socket.inet_ntoa(data) if kind == 1 else "", ttl])
    return {"code": flags & 15, "records": records, "cut": bool(flags & 0x0200)}


def exchange(packet: bytes, server: str, via: str, patience: float) -> bytes:
    if via == "udp":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
            datagram.settimeout(patience)
            datagram.connect((server, 53))
            datagram.send(packet)
            return datagram.recv(65535)
    with socket.create_connection((server, 53), patience) as stream, stream.makefile("rb") as answers:
        stream.sendall(struct.pack(">H", len(packet)) + packet)
        return answers.read(struct.unpack(">H", answers.read(2))[0])


def ask(task: Task) -> Task:
    packet = question(task["labels"], task["kind"], random.randrange(1 << 16))
    return read_answer(exchange(packet, task["server"], task["via"], task["patience"]))


def resolve(task: Task) -> Task:
    """As any program of the guest would ask."""
    found = socket.getaddrinfo(task["host"], None, socket.AF_INET, socket.SOCK_STREAM)
    return {"addresses": sorted({str(item[4][0]) for item in found})}


# Connections.


def dial(task: Task) -> Task:
    """The first word of what answers: the address that was reached, or a name."""
    if task["protocol"] == "udp":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
            datagram.settimeout(task["patience"])
            datagram.connect((task["address"], task["port"]))
            datagram.send(b"hello")
            answer = datagram.recv(4096)
    else:
        with socket.create_connection((task["address"], task["port"]), task["patience"]) as stream:
            stream.sendall(b"GET / HTTP/1.0\r\n\r\n")
            with stream.makefile("rb") as lines:
                answer = lines.read()
    return {"said": answer.decode().split("\r\n\r\n")[-1].split()[0]}


def hold(task: Task) -> Task:
    HELD[task["key"]] = socket.create_connection((task["address"], task["port"]), task["patience"])
    return say(task)


def say(task: Task) -> Task:
    """Send a line over a held connection, to a server that repeats it."""
    stream = HELD[task["key"]]
    stream.settimeout(task["patience"])
    line = f"{random.random()}\n".encode()
    stream.sendall(line)
    answer = stream.recv(4096)
    if answer != line:
        raise ConnectionResetError(errno.ECONNRESET, "no echo")
    return {"said": "echo"}


# Much at once.


def flood(task: Task) -> Task:
    """Ask `count` questions from several clients; how often a listed and an unlisted name was answered how."""
    outcomes: collections.Counter[str] = collections.Counter()
    lock = threading.Lock()

    def client(numbers: range) -> None:
        mine: collections.Counter[str] = collections.Counter()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
            datagram.settimeout(task["patience"])
            datagram.connect((task["server"], 53))
            for number in numbers:
                if mine["silence"] > 3:
                    break
                parent = task["listed"] if number % 2 else task["unlisted"]
                found = outcome(datagram, number, parent)
                mine[f"{'listed' if number % 2 else 'unlisted'} {found}" if found else "silence"] += 1
        with lock:
            outcomes.update(mine)

    clients, count = task["clients"], task["count"]
    threads = [threading.Thread(target=client, args=(range(n, count, clients),)) for n in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"outcomes": outcomes}


def outcome(datagram: socket.socket, number: int, parent: list[str]) -> str:
    """The code of the answer and its addresses, "" for none."""
    for _ in range(2):  # a datagram may be lost when many are under way; a client asks again
        try:
            datagram.send(question([f"n{number}", *parent], 1, number & 0xFFFF))
            while True:
                packet = datagram.recv(4096)
                if packet[:2] == struct.pack(">H", number & 0xFFFF):
                    answer = read_answer(packet)
                    return f"{answer['code']} {' '.join(record[1] for record in answer['records'])}".strip()
        except TimeoutError:
            continue
    return ""


def garbage(task: Task) -> Task:
    """What no resolver should stumble over: noise, pieces, pointers that lead in circles, streams that stop."""
    noise = random.Random(5)
    whole = question(["far", "example"], 1, 1)
    packets = [b"", b"\0", whole[:11], whole[:14], whole[:-1], whole + whole, whole[:12] + b"\xc0\x0c" * 200]
    packets += [whole[:2] + b"\x81\x80" + whole[4:], whole[:4] + b"\xff\xff" * 4 + whole[12:]]
    packets += [whole[:12] + b"\x3f" * 300, whole[:2] + b"\x79" + whole[3:], whole[:4] + b"\0\0" + whole[6:]]
    packets += [noise.randbytes(noise.randrange(1, 1400)) for _ in range(task["count"])]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram:
        for packet in packets:
            datagram.sendto(packet, (task["server"], 53))
    for number, packet in enumerate(packets[:40]):
        with socket.create_connection((task["server"], 53), task["patience"]) as stream:
            length = len(packet) + (number % 3) * 100
            try:
                stream.sendall(struct.pack(">H", length) + packet)
            except OSError:
                continue  # it hung up, which it may
    return {}


TASKS = {function.__name__: function for function in (ask, resolve, dial, hold, say, flood, garbage)}


def perform(task: Task) -> Task:
    """What a task returns, with the time that it took and the name of the error that ended it."""
    start = time.monotonic()
    try:
        found = {"error": "", **TASKS[task["do"]](task)}
    except TimeoutError:
        found = {"error": "timeout"}
    except socket.gaierror as error:
        found = {"error": f"gai {error.errno}"}
    except OSError as error:
        found = {"error": errno.errorcode.get(error.errno or 0, str(error))}
    return {**found, "seconds": time.monotonic() - start}


def main() -> None:
    with concurrent.futures.ThreadPoolExecutor(max_workers=64) as pool:
        for line in sys.stdin:
            print(json.dumps(list(pool.map(perform, json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
