"""Runs inside a machine that stands for its own host: hears, as a machine's service does, what is said over vsock.

    guest_listener.py FILE CID COMMAND...

tells FILE where to call, starts the command, and prints whether CID was heard to be ready by the time that the command
has ended.
"""

from __future__ import annotations

import select
import subprocess
import sys
from pathlib import Path

from hutch.runtime.hear import listen_to_vsock


def main(told: str, cid: str, *command: str) -> None:
    noted = Path(f"{told}.cid")
    noted.write_text(cid, encoding="ascii")
    calls = listen_to_vsock(str(noted), told, 0)
    is_heard = False
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while not is_heard:
            has_ended = process.poll() is not None
            if select.select([calls], [], [], 0.1)[0]:
                is_heard = calls.hears_ready()
            if has_ended:
                break
        process.kill()
    print("ready" if is_heard else "nothing")
    calls.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
