"""Calls of a machine over vsock: by one of them it says, in sd_notify's words, that it is ready. All that comes in here
is the attacker's, and everything else on the host, other machines too, may call the same number.
"""

from __future__ import annotations

import select

from hutch.runtime.sources import Source

TYPE_CHECKING = False  # see runtime/status
if TYPE_CHECKING:
    from collections.abc import Iterator
    from socket import socket

    from hutch.runtime.sources import Said

MOST_CALLS = 1024  # until the guest is ready
MOST_AT_ONCE = 16
LONGEST_CALL = 4096


class Calls(Source):
    """What is heard at a socket that listens. `caller` is the machine's context id where others can call as well: the
    kernel says whose a call is, and those of others are not answered."""

    def __init__(self, listener: socket, caller: int | None = None) -> None:
        self._listener = listener
        listener.setblocking(False)
        self._caller = caller
        self._calls: dict[int, socket] = {}
        self._left = MOST_CALLS
        self._poll = select.epoll()
        self._poll.register(self._listener, select.EPOLLIN)

    def fileno(self) -> int:
        return self._poll.fileno()

    @property
    def is_spent(self) -> bool:
        return not self._left

    def hear(self) -> Iterator[Said]:
        for descriptor, _ in self._poll.poll(0):
            if not self._left:
                return
            if descriptor == self._listener.fileno():
                self._accept()
            elif self._is_ready(self._calls.pop(descriptor)):
                self._hang_up()
                yield "ready", "vsock"

    def _accept(self) -> None:
        try:
            call, address = self._listener.accept()
        except OSError:
            return  # it has gone away already
        if self._caller is not None and address[0] != self._caller:
            call.close()  # and is not counted: another machine is not to use up what this one has
            return
        self._left -= 1
        if not self._left:
            call.close()
            self._hang_up()
        elif len(self._calls) >= MOST_AT_ONCE:
            call.close()
        else:
            call.setblocking(False)
            self._calls[call.fileno()] = call
            self._poll.register(call, select.EPOLLIN)

    def _is_ready(self, call: socket) -> bool:
        """Whether the guest has just said so. A message comes in one piece. The call is over with it, and has to be:
        systemd waits for that, and not every machine tells us that its guest has closed its end."""
        self._poll.unregister(call)
        try:
            said = call.recv(LONGEST_CALL)
        except OSError:
            said = b""
        call.close()
        return b"READY=1" in said.splitlines()

    def _hang_up(self) -> None:
        """Take no more calls: whoever calls from now on is refused at once, rather than left to wait."""
        self._left = 0
        for call in self._calls.values():
            call.close()
        self._calls = {}
        self._listener.close()

    def close(self) -> None:
        self._hang_up()
        self._poll.close()
