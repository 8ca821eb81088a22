"""`python -m hutch.egress VIEWS CONTROL JOURNAL INBOXES --pid-file=FILE --code=WHICH`: serves until it is told to end.

Prints its pid when it serves. The pid file is not its own: it stands here so that the process is known by it, and by
the code that it has.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from hutch.egress.proxy import EgressProxy


async def serve(views: Path, control: Path, journal: Path, inboxes: Path) -> None:
    proxy = EgressProxy(views, journal, inboxes)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await proxy.serve(control)
    os.write(1, f"{os.getpid()}\n".encode())
    null = os.open("/dev/null", os.O_WRONLY)
    os.dup2(null, 1)
    await ended.wait()
    proxy.close()


def main() -> None:
    views, control, journal, inboxes = map(Path, sys.argv[1:5])
    asyncio.run(serve(views, control, journal, inboxes))


main()
