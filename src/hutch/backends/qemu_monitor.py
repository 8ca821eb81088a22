"""A program of its own: has the balloon of a machine leave it so many bytes, by the QEMU project's own library.

    main(SOCKET, LIBRARY, BYTES)

The machine's monitor (QMP) listens at SOCKET, and answers one at a time; LIBRARY is where qemu.qmp lies.
"""

from __future__ import annotations

import asyncio
import logging
import sys

PATIENCE = 10.0  # seconds; a machine that was just started is not at its monitor yet


def main(path: str, library: str, size: str) -> None:
    if library not in sys.path:
        sys.path.append(library)
    logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())
    try:
        asyncio.run(asyncio.wait_for(execute(path, "balloon", {"value": int(size)}), PATIENCE))
    except TimeoutError:
        sys.exit("the machine's monitor does not answer")
    except Exception as error:  # noqa: BLE001 - whatever a machine sends
        sys.exit(f"the machine's monitor refuses: {str(error) or type(error).__name__}")


async def execute(path: str, command: str, arguments: dict[str, object]) -> None:
    from qemu.qmp import QMPClient  # from `library`

    client = QMPClient("hutch")
    await client.connect(path)
    try:
        await client.execute(command, arguments)
    finally:
        await client.disconnect()
