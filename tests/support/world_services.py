"""Run as a script: servers that say who they are and who asked.

Each argument is `tcp:ADDRESS:PORT:LABEL`, `tcp6:…` or `udp:…`. A TCP server answers one HTTP request with
"LABEL PEER"; a UDP server sends the same back to whoever sends it something. Prints "ready" once all listen.
"""

from __future__ import annotations

import socket
import sys
import threading


def serve_stream(listener: socket.socket, label: str) -> None:
    while True:
        connection, peer = listener.accept()
        threading.Thread(target=answer, args=(connection, f"{label} {peer[0]}\n".encode()), daemon=True).start()


def answer(connection: socket.socket, body: bytes) -> None:
    connection.settimeout(5)
    with connection:
        try:
            request = connection.recv(4096)
            head = f"HTTP/1.0 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
            connection.sendall(head + (b"" if request.startswith(b"HEAD") else body))
        except OSError:
            return


def serve_datagrams(server: socket.socket, label: str) -> None:
    while True:
        _, peer = server.recvfrom(4096)
        server.sendto(f"{label} {peer[0]}\n".encode(), peer)


def main() -> None:
    threads = []
    for argument in sys.argv[1:]:
        protocol, rest = argument.split(":", 1)
        address, port, label = rest.rsplit(":", 2)
        family = socket.AF_INET6 if protocol == "tcp6" else socket.AF_INET
        server = socket.socket(family, socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if protocol == "tcp6":
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        server.bind((address, int(port)))
        if protocol != "udp":
            server.listen(64)
        threads.append(
            threading.Thread(target=serve_datagrams if protocol == "udp" else serve_stream, args=(server, label))
        )
    for thread in threads:
        thread.start()
    print("ready", flush=True)


if __name__ == "__main__":
    main()
