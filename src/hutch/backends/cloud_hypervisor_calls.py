"""A program of its own: sends a request to a machine under cloud-hypervisor.

    main(DIRECTORY, "end")
    main(DIRECTORY, "balloon", BYTES)

Its vsock device is the Unix socket `vm` in a directory that is the machine's own: who writes "CONNECT P" to it reaches
port P of the guest, and at POWEROFF_PORT the guest listens to end (hutch-poweroff.socket, see guest/units). Its HTTP
interface, `api`, has a power button for guests that have another idea of ending in order, and a balloon, which takes so
many bytes from the guest. See docs/vsock.md and docs/api.md of cloud-hypervisor. All that comes back is the attacker's,
and so are the directory's entries: they are opened without following links.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time

POWEROFF_PORT = 900  # of the guest; below 1024, so that nobody but its root can listen there
BUTTON = b"PUT /api/v1/vm.power-button HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n"
PATIENCE = 10.0  # seconds; a machine that was just started is not at its interface yet
AGAIN = 0.5  # seconds until a guest that has not listened yet is called again


def main(directory: str, what: str, size: str = "") -> None:
    place = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if what == "end":
        ask_for_the_end(place)
    elif why := set_balloon(place, int(size)):
        sys.exit(why)


def ask_for_the_end(place: int) -> None:
    """Ask again and again, and stay on the lines, until the machine has ended: this program ends with it."""
    lines = [call(place, "api", BUTTON)]  # a request whose caller has hung up is dropped
    while True:
        line = call(place, "vm", f"CONNECT {POWEROFF_PORT}\n".encode())
        if line is not None and answers(line):
            lines.append(line)
            signal.pause()
        time.sleep(AGAIN)


def answers(line: socket.socket) -> bool:
    try:
        return bool(line.recv(4096))
    except OSError:
        return False


def call(place: int, name: str, text: bytes) -> socket.socket | None:
    """Send `text` to a socket of the machine's, and return the connection; None where nobody listens."""
    line = socket.socket(socket.AF_UNIX)
    line.settimeout(PATIENCE)
    try:
        connect(line, place, name)
        line.sendall(text)
    except OSError:
        line.close()
        return None
    return line


def connect(line: socket.socket, place: int, name: str) -> None:
    entry = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
    try:
        line.connect(f"/proc/self/fd/{entry}")
    finally:
        os.close(entry)


def set_balloon(place: int, size: int) -> str:
    """Set the bytes that the balloon takes. Returns the problem, "" for none."""
    body = json.dumps({"desired_balloon": size}).encode()
    head = f"PUT /api/v1/vm.resize HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    deadline = time.monotonic() + PATIENCE
    while (line := call(place, "api", head.encode() + body)) is None:
        if time.monotonic() > deadline:
            return "cloud-hypervisor does not answer"
        time.sleep(0.1)
    with line:
        try:
            first = line.recv(4096).partition(b"\r\n")[0].decode("ascii", "replace")
        except OSError as error:
            return f"cloud-hypervisor does not answer: {error}"
    return (
        ""
        if first.startswith("HTTP/1.1 2")
        else f"cloud-hypervisor refuses: {''.join(filter(str.isprintable, first[:80]))}"
    )
