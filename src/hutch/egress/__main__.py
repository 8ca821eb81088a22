"""`python -m hutch.egress VIEWS CONTROL JOURNAL INBOXES --pid-file=FILE --code=WHICH`: serves until it is told to end.

Prints its pid when it serves. The pid file is not its own: it stands here so that the process is known by it, and by
the code that it has. This process keeps the right to fill sets; its child, which lacks it, is the proxy.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

from hutch.egress.front import large_socket
from hutch.egress.keeper import KeptSets, begin_proxy, keep
from hutch.egress.nflog import Nflog
from hutch.egress.proxy import EgressProxy, Means
from hutch.egress.sets import Sets
from hutch.egress.views import read_views


async def serve(places: list[Path], means: Means, channel: socket.socket, served_as: int) -> None:
    """Serve, and say `served_as` then, until a signal comes or nobody is at the other end of the channel."""
    views, control, journal, inboxes = places
    proxy = EgressProxy(views, journal, inboxes, means)
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    await proxy.serve(control)
    loop.add_reader(channel, ended.set)  # answers are read where they are asked for
    os.write(1, f"{served_as}\n".encode())
    os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
    await ended.wait()
    proxy.close()


def main() -> None:
    places = list(map(Path, sys.argv[1:5]))
    table = read_views(places[0].read_text()).table
    try:
        log, questions = Nflog(), large_socket()  # both take the right that the proxy does not have
    except OSError as error:
        sys.exit(f"{error.strerror}; does another process hear it in this network namespace?")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    served_as = os.getpid()
    if proxy := begin_proxy():
        os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
        for given in (theirs, log, questions):
            given.close()
        keep(Sets(table), ours, proxy)
    ours.close()
    asyncio.run(serve(places, Means(KeptSets(theirs), log, questions), theirs, served_as))


main()
