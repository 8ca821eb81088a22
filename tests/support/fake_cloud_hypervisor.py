"""What cloud-hypervisor accepts, by the facts of its published description; and a server that plays it.

The facts are a trimmed copy, see tests/unit/backends/cloud_hypervisor_api.json. A command line or a request that they
do not cover is wrong here, even where the real program would be kinder.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PATH = Path(__file__).parents[1] / "unit" / "backends" / "cloud_hypervisor_api.json"
FACTS: dict[str, Any] = json.loads(PATH.read_text())
SCHEMAS: dict[str, Any] = FACTS["schemas"]
LINE: dict[str, Any] = FACTS["command_line"]


class Refused(Exception):
    """cloud-hypervisor would not take it, or nobody can say that it would."""


# The command line.


def parse_options(argv: Sequence[str]) -> dict[str, list[str]]:
    """The program's options, each with its values, as checked by the facts."""
    options: dict[str, list[str]] = {}
    values: list[str] | None = None
    for word in argv:
        if word.startswith("--"):
            name = word.removeprefix("--")
            if name not in LINE["options"] or name in options:
                raise Refused(word)
            values = options[name] = []
        elif values is None:
            raise Refused(word)
        else:
            values.append(word)
    for name, given in options.items():
        check_option(name, given)
    return options


def check_option(name: str, values: Sequence[str]) -> None:
    if len(values) != 1 and not (name in LINE["flags"] and not values) and not (name in LINE["many"] and values):
        raise Refused(f"--{name} {values}")
    for value in values:
        if name in LINE["schemas"]:
            parse_config(name, value)
        elif name in LINE["places"]:
            key, _, place = value.partition("=")
            if key not in LINE["places"][name] or not place:
                raise Refused(f"--{name} {value}")
        elif value not in LINE["one_of"].get(name, [value]):
            raise Refused(f"--{name} {value}")


def parse_config(name: str, text: str) -> dict[str, Any]:
    """An option's "key=value,…" as the object that the interface describes."""
    schema = SCHEMAS[LINE["schemas"][name]]
    found: dict[str, Any] = {}
    for key, value in (pair.split("=", 1) for pair in re.split(r",(?![^\[]*\])", text)):
        if key in LINE["only_here"].get(name, []):
            found[key] = value
            continue
        field = LINE["renamed"].get(name, {}).get(key, key)
        if field not in schema["properties"] or field in found:
            raise Refused(f"--{name} {key}=")
        found[field] = parse_value(schema["properties"][field], key, value)
    missing = {*schema["required"]} - found.keys() - {*LINE["defaulted"].get(name, [])}
    if missing:
        raise Refused(f"--{name} without {missing}")
    return found


def parse_value(kind: str, key: str, value: str) -> Any:
    if kind == "boolean":
        if value not in ("on", "off"):
            raise Refused(f"{key}={value}")
        return value == "on"
    if kind == "integer":
        number = re.fullmatch(r"([0-9]+)([KMGT]?)", value, re.ASCII)
        if number is None:
            raise Refused(f"{key}={value}")
        return int(number[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[number[2]]
    if key in LINE["enums"] and value not in LINE["enums"][key]:
        raise Refused(f"{key}={value}")
    if not value or set(value) & set('"[],'):
        raise Refused(f"{key}={value}")
    return value


# The HTTP interface.


def parse_request(data: bytes) -> tuple[str, str]:
    """(method, path below the base) of one whole request."""
    head, empty_line, body = data.partition(b"\r\n\r\n")
    first, *headers = head.decode("ascii").split("\r\n")
    words = first.split(" ")
    if not empty_line or len(words) != 3 or words[2] != "HTTP/1.1":
        raise Refused(repr(data))
    if any(not re.fullmatch(r"[A-Za-z-]+: \S.*", header) for header in headers):
        raise Refused(repr(headers))
    method, path = words[0], words[1].removeprefix(FACTS["base"])
    if path == words[1] or method.lower() not in FACTS["paths"].get(path, {}):
        raise Refused(first)
    length = next((int(header.partition(": ")[2]) for header in headers if header.startswith("Content-Length:")), 0)
    if len(body) != length or bool(body) != (path in FACTS["bodies"]):
        raise Refused(repr(data))
    if body:
        known = FACTS["schemas"][FACTS["bodies"][path]]["properties"]
        wrong = {
            key for key, value in json.loads(body).items() if known.get(key) != "integer" or type(value) is not int
        }
        if wrong:
            raise Refused(f"{path}: {wrong}")
    return method, path


class FakeMachine:
    """The two sockets of a machine in `directory`. It answers as cloud-hypervisor does, keeps what was asked, and a
    request that is wrong as its refusal. `ports` are those at which its guest listens; `status` is its answer to any
    request, by default as published."""

    def __init__(self, directory: Path, ports: Sequence[int] = ()) -> None:
        self.directory, self.ports = directory, ports
        self.requests: list[tuple[str, str]] = []
        self.bodies: list[bytes] = []
        self.connected: list[int] = []
        self.missed: list[int] = []
        self.refused: list[str] = []
        self.status = ""
        self.heard = threading.Event()
        self._open: list[socket.socket] = []
        self._listen("api", self._answer_request)
        self._listen("vm", self._answer_call)

    def _listen(self, name: str, answer: Any) -> None:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.directory / name))
        listener.listen()
        self._open.append(listener)
        threading.Thread(target=self._serve, args=(listener, answer), daemon=True).start()

    def _serve(self, listener: socket.socket, answer: Any) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.settimeout(10)
            self._open.append(connection)
            try:
                answer(connection)
            except (OSError, Refused, UnicodeDecodeError) as error:
                self.refused.append(f"{type(error).__name__}: {error}")
            self.heard.set()

    def _answer_request(self, connection: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data or (b"Content-Length" in data and not data.endswith(b"}")):
            more = connection.recv(4096)
            if not more:
                raise Refused(repr(data))
            data += more
        method, path = parse_request(data)
        self.requests.append((method, path))
        self.bodies.append(data.partition(b"\r\n\r\n")[2])
        status = self.status or f"{FACTS['paths'][path][method.lower()][0]} "
        connection.sendall(
            f"HTTP/1.1 {status}\r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\r\n".encode()
        )

    def _answer_call(self, connection: socket.socket) -> None:
        """docs/vsock.md: one line, "CONNECT" and a port; the answer is "OK" and the port at this end."""
        line = connection.recv(32)
        found = re.fullmatch(rb"CONNECT ([0-9]+)\n", line)
        if found is None:
            raise Refused(repr(line))
        port = int(found[1])
        if port in self.ports:
            self.connected.append(port)
            connection.sendall(b"OK 1073741824\n")
        else:
            self.missed.append(port)
            connection.close()

    def call(self, port: int) -> socket.socket:
        """What the machine does when its guest connects to the host's `port`."""
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(10)
        try:
            connection.connect(str(self.directory / f"vm_{port}"))
        except OSError:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        for connection in self._open:
            try:
                connection.shutdown(socket.SHUT_RDWR)  # or a thread that waits at it goes on waiting
            except OSError:
                pass
            connection.close()
