"""Run as a script: a relay from the world's internet to the machine's real network, for package mirrors only.

Arguments: a descriptor of the machine's network namespace, then `ADDRESS:PORT=ADDRESS:PORT` for each mirror.
It listens in the namespace where it is started and connects in the other one; a socket stays where it was made.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import socket
import sys
import threading

CLONE_NEWNET = 0x40000000


def enter_network(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), "setns")


def accept(listener: socket.socket, target: tuple[str, int]) -> None:
    while True:
        client, _ = listener.accept()
        threading.Thread(target=relay, args=(client, target), daemon=True).start()


def relay(client: socket.socket, target: tuple[str, int]) -> None:
    try:
        with client, socket.create_connection(target, timeout=20) as server:
            server.settimeout(None)
            pump(client, server)
    except OSError:
        return


def pump(client: socket.socket, server: socket.socket) -> None:
    """Copy both ways until both sides have ended."""
    with selectors.DefaultSelector() as selector:
        selector.register(client, selectors.EVENT_READ, server)
        selector.register(server, selectors.EVENT_READ, client)
        while selector.get_map():
            for key, _ in selector.select():
                source, sink = key.fileobj, key.data
                assert isinstance(source, socket.socket)
                data = source.recv(1 << 16)
                if data:
                    sink.sendall(data)
                else:
                    selector.unregister(source)
                    sink.shutdown(socket.SHUT_WR)


def main() -> None:
    outer = int(sys.argv[1])
    threads = []
    for route in sys.argv[2:]:
        listen, target = route.split("=")
        host, port = target.rsplit(":", 1)
        address, listen_port = listen.rsplit(":", 1)
        listener = socket.create_server((address, int(listen_port)), backlog=64)
        threads.append(threading.Thread(target=accept, args=(listener, (host, int(port)))))
    enter_network(outer)  # before any thread starts: a namespace belongs to a thread, and children inherit it
    for thread in threads:
        thread.start()
    print("ready", flush=True)


if __name__ == "__main__":
    main()
