"""The two ways by which copies reach a workspace: root's own, and ssh for whoever else has a key."""

from __future__ import annotations

import os
import secrets
import shlex
from collections.abc import Iterable, Sequence
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING

from hutch.access.piped import Overdue, Piped, Take
from hutch.access.remote_script import encode, render_line
from hutch.api.copying import Side
from hutch.api.running import call_of, carry_through
from hutch.errors import HutchError
from hutch.run import PIPE, start
from hutch.spec.names import hostname

if TYPE_CHECKING:
    from hutch.api.workspace import Workspace

NOISE = 1 << 20  # bytes that a login shell may print before the mark


def own_side(workspace: Workspace, seconds: float | None = None) -> Side:
    """A side that runs commands as `run` does, which takes root."""

    def carry(argv: Sequence[str], output: Take, errors: Take, stdin: Iterable[bytes | None]) -> int:
        call = call_of(workspace.hutch.layout, workspace.name, argv)
        try:
            return carry_through(call, output, errors, stdin, seconds)
        except Overdue:
            raise HutchError(f"{workspace.name}: the copy did not end within {seconds:g} s") from None

    return Side(workspace.name, carry)


def ssh_side(name: str, seconds: float | None = None) -> Side:
    """A side by the caller's own ssh, its configuration and keys; it may ask for a passphrase on the terminal."""

    def carry(argv: Sequence[str], output: Take, errors: Take, stdin: Iterable[bytes | None]) -> int:
        # The program comes by the standard input, since any shell may be the login user's.
        nonce = secrets.token_hex(16)
        program = encode(f"exec {shlex.join(argv)}")
        process = start(
            ["ssh", "-T", "--", hostname(name), render_line(nonce)],
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=os.environ,
        )
        with closing(Piped(process)) as piped:
            assert process.stdout is not None and process.stderr is not None
            heard = After(b"%s:hello;" % nonce.encode(), output)
            takes = {process.stdout.fileno(): heard.take, process.stderr.fileno(): errors}
            try:
                return piped.carry(takes, chain([program], stdin), seconds=seconds)
            except Overdue:
                raise HutchError(f"{name} did not come to an end within {seconds:g} s") from None

    return Side(name, carry)


class After:
    """A filter that passes on all output after a mark: a login shell may print something of its own first."""

    def __init__(self, mark: bytes, take: Take) -> None:
        self.mark = mark
        self.rest = take
        self.before: bytes | None = b""

    def take(self, data: bytes) -> None:
        if self.before is not None:
            before, found, data = (self.before + data).partition(self.mark)
            if len(before) > NOISE:
                raise HutchError("the login shell says more than it should")
            self.before = None if found else before
        if self.before is None and data:
            self.rest(data)
