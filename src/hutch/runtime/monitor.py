"""A machine's monitor (QMP), heard by the QEMU project's own library. Only the supervisors of machines import this, and
commands that have something to say to a machine that systemd runs.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress

from hutch.runtime.sources import Source

TYPE_CHECKING = False  # see runtime/status
if TYPE_CHECKING:
    import _socket

    from qemu.qmp import QMPClient

    from hutch.runtime.sources import Said

PATIENCE = 2.0  # seconds, once the machine has ended


class Monitor(Source):
    """A machine's events: the library wants an event loop, so it has a thread."""

    _client: QMPClient
    _loop: asyncio.AbstractEventLoop

    def __init__(self, connection: _socket.socket, library: str) -> None:
        self._trouble = ""
        self._is_connected = threading.Event()
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread = threading.Thread(target=self._run, args=(connection.detach(), library), daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        return self._read

    def hear(self) -> Iterator[Said]:
        try:
            data = os.read(self._read, 4096)
        except BlockingIOError:
            return
        for word in data.decode("utf-8", "replace").split():
            yield "outcome", word

    def last_words(self) -> Iterator[Said]:
        self._thread.join(PATIENCE)
        yield from self.hear()
        if self._trouble:
            yield "note", self._trouble

    def leave_memory(self, size: int, whole: int) -> str:
        if not (self._is_connected.wait(PATIENCE) and self._thread.is_alive()):
            return self._trouble or "the machine's monitor does not answer"
        try:
            asked = asyncio.run_coroutine_threadsafe(self._client.execute("balloon", {"value": size}), self._loop)
            asked.result(PATIENCE)
        except concurrent.futures.TimeoutError:
            return "the machine's monitor does not answer"
        except Exception as error:  # noqa: BLE001 - whatever a machine sends, the supervisor goes on
            return f"the machine's monitor refuses: {error}"
        return ""

    def close(self) -> None:
        if not self._thread.is_alive():  # or it would write into another file of the same number
            os.close(self._write)
        os.close(self._read)

    def _run(self, descriptor: int, library: str) -> None:
        logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())  # what matters is told below
        if library not in sys.path:
            sys.path.append(library)
        with socket.socket(fileno=descriptor) as connection:
            try:
                asyncio.run(self._listen(connection))
            except Exception as error:  # noqa: BLE001 - whatever a machine sends, the supervisor goes on without it
                self._trouble = f"the machine's monitor cannot be heard: {error}"

    async def _listen(self, connection: socket.socket) -> None:
        from qemu.qmp import EventListener, QMPClient

        client = self._client = QMPClient("hutch")
        events = EventListener(names={"SHUTDOWN"})
        client.register_listener(events)
        await client.connect(connection)
        self._loop = asyncio.get_running_loop()
        self._is_connected.set()
        said, gone = asyncio.ensure_future(events.get()), asyncio.ensure_future(client.runstate_changed())
        await asyncio.wait({said, gone}, return_when=asyncio.FIRST_COMPLETED)
        with suppress(Exception):  # how the connection ended, which asyncio would tell on stderr
            await client.disconnect()
        if said.done():
            data = said.result().get("data")
            reason = data.get("reason") if isinstance(data, dict) else None
            if isinstance(reason, str) and len(reason) < 64 and reason.replace("-", "").isalnum():
                os.write(self._write, f"{reason}\n".encode())


def leave_memory(path: str, library: str, size: int) -> str:
    """Have the balloon of a machine whose monitor listens at a path leave it `size` bytes. Returns why that cannot be.
    One is answered at a time."""
    if library not in sys.path:
        sys.path.append(library)
    logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())
    try:
        asyncio.run(asyncio.wait_for(_execute(path, "balloon", {"value": size}), PATIENCE))
    except TimeoutError:
        return "the machine's monitor does not answer"
    except Exception as error:  # noqa: BLE001 - whatever a machine sends
        return f"the machine's monitor refuses: {error}"
    return ""


async def _execute(path: str, command: str, arguments: dict[str, object]) -> None:
    from qemu.qmp import QMPClient

    client = QMPClient("hutch")
    await client.connect(path)
    try:
        await client.execute(command, arguments)
    finally:
        await client.disconnect()
