"""The process in which a Call runs; see `job`. It says what happens, and at last how it went, on one socket."""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import suppress
from functools import partial
from typing import NoReturn

from hutch.api.engine import Hutch
from hutch.api.job import Call, receive, send
from hutch.errors import HutchError
from hutch.host.process import die_with_parent


def main(descriptor: int) -> NoReturn:
    """Take a Call from the socket, answer, and end."""
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # the caller's threads may leave signals to one of their own
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    control = socket.socket(fileno=descriptor)
    control.set_inheritable(False)
    os.umask(0o022)  # as the command line has it
    try:
        sys.path[:] = receive(control)
        call: Call = receive(control)
    except EOFError:
        os._exit(1)
    die_with_parent(call.end_by, parent)
    if call.end_by == signal.SIGTERM:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that everything is undone
    try:
        outcome = "result", _carry_out(call, control)
    except HutchError as error:
        outcome = "error", error
    except Exception as error:  # noqa: BLE001 - a bug of ours, which is shown where the caller's program shows its own
        import traceback

        error.add_note(traceback.format_exc())
        outcome = "error", error
    with suppress(OSError):
        send(control, outcome)
    os._exit(0)


def _carry_out(call: Call, control: socket.socket) -> object:
    def tell(kind: str, *words: object) -> None:
        with suppress(OSError):  # nobody listens any more
            send(control, (kind, words))

    hutch = Hutch(call.places, listen=partial(tell, "listen"), progress=partial(tell, "progress"))
    target = hutch.workspace(call.workspace) if call.workspace else hutch
    return getattr(target, call.method)(**call.arguments)
