"""Run as a script: a server that answers an HTTP request, and reads anything else to its end. Argument: its port."""

from __future__ import annotations

import socket
import sys
import threading

BLOCK = 2**20


def serve(connection: socket.socket) -> None:
    block = bytearray(BLOCK)
    with connection:
        connection.recv_into(block)
        if block.startswith(b"GET "):
            connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nhi\n")
            return
        while connection.recv_into(block):
            pass


def main() -> None:
    with socket.create_server(("", int(sys.argv[1])), backlog=64) as listener:
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
