"""Runs inside a machine that stands for its own host: hears, as the supervisor does, what is said over vsock.

    guest_listener.py FILE CID COMMAND...

tells FILE where to call, starts the command, and prints what was heard of CID until there was something, or until the
command has ended.
"""

from __future__ import annotations

import select
import subprocess
import sys
from socket import socket

from hutch.runtime.calls import Calls
from hutch.runtime.main_process import listen_to_guest


def main(told: str, cid: str, *command: str) -> None:
    listener, caller = listen_to_guest({"cid": int(cid), "file": told, "uid": 0})
    calls = Calls(socket(fileno=listener.detach()), caller)
    heard: list[tuple[str, str]] = []
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while not heard:
            has_ended = process.poll() is not None
            select.select([calls], [], [], 0.1)
            heard += calls.hear()
            if has_ended:
                break
        process.kill()
    print(heard)
    calls.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
