"""The results of commands in a workspace, of copies, and of fetches."""

from __future__ import annotations

import shlex
from typing import Any, Generic, TypeVar

from hutch.errors import HutchError
from hutch.frozen import dataclass

Output = TypeVar("Output", str, bytes, None, covariant=True)


@dataclass(frozen=True)
class Result(Generic[Output]):
    """The result of a command in a workspace.

    `returncode` is its exit code, 128 + n when signal n ended it, 127 when there is no such command. `stdout` and
    `stderr` are its output: bytes, or str with `text=True`; None when they were not captured.
    """

    argv: tuple[str, ...]
    returncode: int
    stdout: Output
    stderr: Output


@dataclass(frozen=True)
class Copied:
    """The result of `put` or `get`: `files` (links and directories are not counted) of `size` bytes together.

    `left_out` are sentences about what was not copied: devices, sockets, links that lead out of the tree.
    """

    files: int = 0
    size: int = 0
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class FetchedBranch:
    """A branch of a clone that is in the host's repository now: its name inside, its `ref` there, and the commits that
    this named `before`, "" for none, and `now`."""

    name: str
    ref: str
    before: str
    now: str


@dataclass(frozen=True)
class Fetched:
    """The result of `fetch`: the `branches` that were fetched, and the names of those that once were and are `gone`
    inside, which stay in the repository unless `prune` was said. `left_out` are sentences about what was not fetched.
    """

    branches: tuple[FetchedBranch, ...]
    gone: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


class RunFailed(HutchError):
    """A command did not end with 0, and `check` was asked for; or it wrote too much. `result` is how it ended."""

    def __init__(self, workspace: str, result: Result[Any], reason: str = "") -> None:
        self.result = result
        said = result.stderr or b""
        text = said.decode("utf-8", "replace") if isinstance(said, bytes) else said
        super().__init__(
            f"{workspace}: {result.argv[0]} {reason or f'failed with code {result.returncode}'}",
            details="\n".join(text.strip().splitlines()[-15:]),
            resolution=f"to replay it: hutch exec {workspace} -- {shlex.join(result.argv)}",
        )


class RunTimeout(RunFailed):
    """A command was killed when its `timeout` had passed. `result` holds its output until then."""
