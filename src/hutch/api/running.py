"""Commands in a workspace for programs: captured, with input, a deadline, and from any thread."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypedDict

from hutch.access.piped import Overdue, Take, current_canceller
from hutch.access.streams import BY_FORCE, fill_gaps
from hutch.api.job import Call, Job, Streams
from hutch.api.result import Result, RunFailed, RunTimeout
from hutch.errors import UsageError, lacks_root
from hutch.frozen import dataclass
from hutch.run import PIPE
from hutch.spec.entries import EnvironmentTable
from hutch.spec.names import Layout

if TYPE_CHECKING:
    from hutch.api.workspace import Argument, Workspace

PATIENCE = 5.0  # seconds from the kill of a command to the kill of the process that carries it


class RunOptions(TypedDict, total=False):
    """The options of `Workspace.run` that do not change what it returns."""

    root: bool
    input: str | bytes | None
    check: bool
    env: Mapping[str, str] | None
    cwd: Argument | None
    timeout: float | None
    max_output: int


@dataclass(frozen=True)
class RunRequest:
    """The arguments of `Workspace.run`."""

    argv: Sequence[Argument]
    root: bool
    input: str | bytes | None
    capture: bool
    text: bool
    check: bool
    env: Mapping[str, str] | None
    cwd: Argument | None
    timeout: float | None
    max_output: int


def run(workspace: Workspace, order: RunRequest) -> Result[str] | Result[bytes] | Result[None]:
    """Run a command to its end."""
    words = check_words(order.argv)
    call = call_of(workspace.hutch.layout, workspace.name, words, root=order.root, env=order.env, cwd=order.cwd)
    given = order.input.encode() if isinstance(order.input, str) else order.input
    stdout, stderr = (Kept(order.max_output), Kept(order.max_output)) if order.capture else (None, None)
    stdin = PIPE if given is not None else None if order.capture else 0
    if not order.capture:
        fill_gaps()
        sys.stdout.flush()
        sys.stderr.flush()
    streams: Streams = (stdin, PIPE, PIPE) if order.capture else (stdin, 1, 2)

    def result(code: int) -> Result[str] | Result[bytes] | Result[None]:
        if stdout is None or stderr is None:
            return Result(words, code, None, None)
        if order.text:
            return Result(words, code, stdout.text(), stderr.text())
        return Result(words, code, stdout.data(), stderr.data())

    with started(call, streams) as job:
        takes = {
            stream.fileno(): kept.take
            for stream, kept in ((job.process.stdout, stdout), (job.process.stderr, stderr))
            if stream is not None and kept is not None
        }
        try:
            code = job.result(takes, [given] if given else [], seconds=order.timeout)
        except Overdue:
            reason = f"did not end within {order.timeout:g} s"
            raise RunTimeout(workspace.name, result(128 + 9), reason) from None
        except TooMuch:
            raise RunFailed(workspace.name, result(128 + 9), f"wrote more than {order.max_output} bytes") from None
    found = result(code)
    if order.check and code != 0:
        raise RunFailed(workspace.name, found)
    return found


def check_words(argv: Sequence[Argument]) -> tuple[str, ...]:
    """The arguments as text."""
    if isinstance(argv, str | bytes) or not argv:
        raise UsageError("a command is a list of arguments, and has one at least", resolution='run(["ls", "-l"])')
    words = tuple(os.fspath(word) for word in argv)
    if any("\0" in word for word in words):
        raise UsageError(f"{words[0]!r}: an argument of a command has a zero byte in it")
    return words


def call_of(
    layout: Layout,
    name: str,
    argv: Sequence[str],
    *,
    root: bool = False,
    env: Mapping[str, str] | None = None,
    cwd: Argument | None = None,
) -> Call:
    for variable, value in (env or {}).items():
        if not re.fullmatch(EnvironmentTable.name, variable, re.ASCII) or "\0" in value:
            raise UsageError(f"{variable!r} cannot be set as a variable")
    where = os.fspath(cwd) if cwd is not None else ""
    arguments = {"argv": list(argv), "root": root, "env": dict(env or {}), "cwd": where}
    return Call(layout, "attach", arguments, name, end_by=BY_FORCE)


@contextmanager
def started(call: Call, streams: Streams) -> Iterator[Job]:
    """A running command. When the context is left, it has ended."""
    if os.geteuid() != 0:
        raise lacks_root()
    with current_canceller().watching(job := Job(call, streams, patience=PATIENCE)):
        yield job


def carry_through(call: Call, output: Take, errors: Take, stdin: Iterable[bytes | None], seconds: float | None) -> int:
    """Run a command to its end, which has pipes of ours for its streams; returns its exit code. Raises Overdue."""
    with started(call, (PIPE, PIPE, PIPE)) as job:
        assert job.process.stdout is not None and job.process.stderr is not None
        takes = {job.process.stdout.fileno(): output, job.process.stderr.fileno(): errors}
        return int(job.result(takes, stdin, seconds=seconds))


class TooMuch(Exception):
    """A command wrote more than was allowed."""


class Kept:
    """The output of a command, up to `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.pieces: list[bytes] = []
        self.size = 0

    def take(self, data: bytes) -> None:
        self.size += len(data)
        if self.size > self.limit:
            raise TooMuch
        self.pieces.append(data)

    def data(self) -> bytes:
        return b"".join(self.pieces)

    def text(self) -> str:
        """The output as text, with a mark in place of bytes that are no UTF-8: a guest may write anything."""
        return self.data().decode("utf-8", "replace")
