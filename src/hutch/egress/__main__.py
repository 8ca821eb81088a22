"""`python -m hutch.egress VIEWS CONTROL JOURNAL INBOXES --pid-file=FILE --code=WHICH`: serves until it is told to end.

Prints its pid when it serves. The pid file is not its own: it stands here so that the process is known by it, and by
the code that it has. This process keeps the right to fill sets, and the directories of records; its child, which lacks
both, is the proxy.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
import time
from pathlib import Path

from hutch.egress.front import sockets_at
from hutch.egress.keeper import Errors, Keeper, Kept, begin_proxy, keep
from hutch.egress.nflog import Nflog
from hutch.egress.proxy import EgressProxy, Means
from hutch.egress.sets import Sets
from hutch.egress.views import read_views

PATIENCE = 1.0  # seconds that another process may have the sockets


async def serve(views: Path, means: Means, channel: socket.socket) -> None:
    """Serve, and have that said, until a signal comes or nobody is at the other end of the channel."""
    proxy = EgressProxy(views, means)
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    await proxy.serve()
    loop.add_reader(channel, ended.set)  # answers are read where they are asked for
    means.kept.serve()
    await ended.wait()
    proxy.close()


def listening_at(control: Path) -> socket.socket:
    """A socket for clients at a path."""
    control.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(control))
    listening.listen()
    return listening


def sockets_for(listen: tuple[str, int]) -> tuple[Nflog, tuple[socket.socket, socket.socket]]:
    """The sockets that take a right which the proxy does not have. Those that an ended proxy sent to itself, and so
    has left behind, the kernel frees a moment after its end. OSError where another process has them for longer."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return Nflog(), sockets_at(listen)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EBUSY) or time.monotonic() > end:
                raise
        time.sleep(0.02)


def main() -> None:
    views, control, journal, inboxes = map(Path, sys.argv[1:5])
    os.umask(0o077)  # of the socket; a list of the directory's says who may read a journal
    told = read_views(views.read_text())
    try:
        log, listening = sockets_for(told.listen)
    except OSError as error:
        sys.exit(f"{error.strerror}; does another process hear it in this network namespace?")
    asked = listening_at(control)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    errors = Errors()
    try:
        proxy = begin_proxy((control.parent, journal, inboxes), errors)
    except (OSError, ValueError) as error:
        sys.exit(f"the egress proxy cannot be sandboxed, so it is not run: {error}")
    if proxy:
        for given in (theirs, log, *listening, asked):
            given.close()
        keep(Keeper(Sets(told.table), journal, inboxes), ours, errors, proxy)
    ours.close()
    asyncio.run(serve(views, Means(Kept(theirs), log, listening, asked), theirs))


if __name__ == "__main__":
    main()
