"""The process in which a Call runs; see `job`. It says what happens, and at last how it went, on one socket."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NoReturn

from hutch import engines
from hutch.api.engine import Hutch
from hutch.api.job import Call, frame, plain_frame
from hutch.api.workspace import Workspace
from hutch.errors import HutchError, troubles_told
from hutch.host.services import lock
from hutch.host.services.process import die_with_parent


def main(descriptor: str) -> NoReturn:
    """Take a Call from the socket, answer, and end."""
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # the caller's threads may leave signals to one of their own
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    control = socket.socket(fileno=int(descriptor))
    control.set_inheritable(False)
    os.umask(0o022)  # the umask of the command line
    try:
        with control.makefile("rb") as told:
            # What it has by itself comes last: another account may find its Python elsewhere than root does.
            callers = pickle.load(told)
            sys.path[:] = [*callers, *(path for path in sys.path if path not in callers)]
            call: Call = pickle.load(told)
    except (EOFError, pickle.UnpicklingError):  # the caller has gone
        os._exit(1)
    die_with_parent(call.end_by, parent)
    if call.end_by == signal.SIGTERM:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that everything is undone
    say = frame if call.account is None else plain_frame
    try:
        with troubles_told():
            outcome = say("result", _carry_out(call, control, say))
    except Exception as error:  # noqa: BLE001 - a bug of ours, which is shown where the caller's program shows its own
        outcome = say("error", portable(error))
    with suppress(OSError):
        control.sendall(outcome)
    os._exit(0)


def portable(error: Exception) -> HutchError:
    """An error as it surely comes to the caller: one of hutch's own as it is, anything else, a bug, in words."""
    if isinstance(error, HutchError):
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001 - its attributes may be anything
            return HutchError(error.brief, details=error.details, resolution=error.resolution)
        return error
    text = f"{type(error).__name__}: {error}"
    return HutchError(f"a bug of hutch's own: {text}", details="".join(traceback.format_exception(error)))


def _carry_out(call: Call, control: socket.socket, say: Callable[[str, object], bytes]) -> object:
    def tell(kind: str, *words: object) -> None:
        with suppress(OSError):  # nobody listens any more
            control.sendall(say(kind, words))

    lock.listener = lambda holder: tell("listen", "", "waiting", f"for {holder}")
    engines.listener = lambda text: tell("listen", "", "warning", text)
    hutch = Hutch(call.layout, listen=partial(tell, "listen"), progress=partial(tell, "progress"))
    target = Workspace(call.workspace, hutch) if call.workspace else hutch
    return getattr(target, call.method)(**call.arguments)
