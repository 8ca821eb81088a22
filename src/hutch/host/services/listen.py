"""A program of its own: open Unix sockets that listen, then become a command that has them as descriptors.

    python listen.py [PATH UID DESCRIPTOR]... -- COMMAND...

A process in a jail cannot make a socket that others find; `UID` alone may connect to it. A path is there once its
socket listens. It imports next to nothing.
"""

import fcntl
import os
import sys
from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socket

MOST_WAITING = 4  # that are not answered yet


def main() -> None:
    border = sys.argv.index("--")
    opened = {}
    mask = os.umask(0o177)
    for path, uid, wanted in zip(*[iter(sys.argv[1:border])] * 3, strict=True):
        try:
            # Out of the way first: one may have the number that another is to get.
            opened[int(wanted)] = fcntl.fcntl(listening(path, int(uid)), fcntl.F_DUPFD_CLOEXEC, 100)
        except OSError as error:
            sys.exit(f"the socket {path} cannot be made: {error.strerror or error}")
    os.umask(mask)
    for target, source in opened.items():
        os.dup2(source, target)
    os.execvp(sys.argv[border + 1], sys.argv[border + 1 :])


def listening(path: str, uid: int) -> int:
    """The descriptor of a socket at a path of root's own, in place of what is there."""
    new = f"{path}.new"
    if os.path.lexists(new):
        os.unlink(new)
    made = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    made.bind(new)
    made.listen(MOST_WAITING)
    os.chown(new, uid, uid)
    os.rename(new, path)
    return made.detach()


if __name__ == "__main__":
    main()
