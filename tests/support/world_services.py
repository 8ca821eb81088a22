"""Run as a script: servers that say who they are and who asked.

Each argument is `tcp:ADDRESS:PORT:LABEL`, `tcp6:…`, `udp:…` or `echo:…`. A TCP server answers one HTTP request with
"LABEL PEER"; a UDP server sends the same back to whoever sends it something; an echo server repeats what it is sent for
as long as the connection lives. "@" for a label is the server's own address. Prints "ready" once all listen.
"""

from __future__ import annotations

import socket
import sys
import threading


def serve_stream(listener: socket.socket, label: str) -> None:
    while True:
        connection, peer = listener.accept()
        name = connection.getsockname()[0] if label == "@" else label
        threading.Thread(target=answer, args=(connection, f"{name} {peer[0]}\n".encode()), daemon=True).start()


def answer(connection: socket.socket, body: bytes) -> None:
    connection.settimeout(5)
    with connection:
        try:
            request = connection.recv(4096)
            head = f"HTTP/1.0 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
            connection.sendall(head + (b"" if request.startswith(b"HEAD") else body))
        except OSError:
            return


def serve_echo(listener: socket.socket, _label: str) -> None:
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=echo, args=(connection,), daemon=True).start()


def echo(connection: socket.socket) -> None:
    with connection:
        try:
            while data := connection.recv(1 << 16):
                connection.sendall(data)
        except OSError:
            return


def serve_datagrams(server: socket.socket, label: str) -> None:
    name = server.getsockname()[0] if label == "@" else label
    while True:
        _, peer = server.recvfrom(4096)
        server.sendto(f"{name} {peer[0]}\n".encode(), peer)


SERVERS = {"udp": serve_datagrams, "echo": serve_echo}


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
        threads.append(threading.Thread(target=SERVERS.get(protocol, serve_stream), args=(server, label)))
    for thread in threads:
        thread.start()
    print("ready", flush=True)


if __name__ == "__main__":
    main()
