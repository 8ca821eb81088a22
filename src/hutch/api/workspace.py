"""One workspace that exists: start it, run commands in it, copy files, stop it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from hutch.api.engine import Hutch
from hutch.errors import ways_in

if TYPE_CHECKING:
    from typing import Unpack

    from hutch.api.result import Copied, Result
    from hutch.api.running import RunOptions

MAX_OUTPUT = 64 << 20  # bytes of a command's output that are kept in memory
MAX_COPY = 16 << 30  # bytes that a workspace may hand out in one go

Argument = str | os.PathLike[str]


@ways_in
class Workspace:
    """One workspace, by its name. Making the object touches nothing: a method raises UsageError when there is none.

    All methods but `status` need root, and all may be called by any thread, by several at once; `hutch.aio` has them
    for asyncio.
    """

    def __init__(self, name: str, hutch: Hutch | None = None) -> None:
        self.name = name
        self.hutch = hutch or Hutch()

    def start(self) -> None:
        """Start it unless it runs; returns when it is ready for ssh."""
        self._change("start")

    def stop(self) -> None:
        """Stop it: in order first, by force after a deadline. Its state stays."""
        self._change("stop")

    def _change(self, method: str) -> None:
        # Spares the start-up of `hutch exec`.
        from hutch.api.job import Call, change

        change(Call(self.hutch.layout, method, {"names": [self.name]}), listen=self.hutch.listen)

    def status(self) -> dict[str, Any]:
        """The state of the workspace: the same as an entry of `hutch status --json`."""
        return self.hutch.status(self.name)

    @overload
    def run(
        self,
        argv: Sequence[Argument],
        *,
        capture: Literal[False] = False,
        text: bool = False,
        **options: Unpack[RunOptions],
    ) -> Result[None]: ...

    @overload
    def run(
        self,
        argv: Sequence[Argument],
        *,
        capture: Literal[True],
        text: Literal[False] = False,
        **options: Unpack[RunOptions],
    ) -> Result[bytes]: ...

    @overload
    def run(
        self, argv: Sequence[Argument], *, capture: Literal[True], text: Literal[True], **options: Unpack[RunOptions]
    ) -> Result[str]: ...

    def run(
        self,
        argv: Sequence[Argument],
        *,
        root: bool = False,
        input: str | bytes | None = None,
        capture: bool = False,
        text: bool = False,
        check: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: Argument | None = None,
        timeout: float | None = None,
        max_output: int = MAX_OUTPUT,
    ) -> Result[str] | Result[bytes] | Result[None]:
        """Run a command inside, without a shell in between, as the login user or as root.

        With `capture`, its output is returned: as bytes, or decoded with `text`. Without, it has the caller's own
        streams. `input` is what it reads; without that, a captured command reads nothing. `env` adds to the environment
        of a login session, nothing of the caller's own comes along; `cwd` is a directory inside, relative to home.

        Returns a Result whatever the exit code; with `check`, any but 0 raises RunFailed. After `timeout` seconds the
        command and all in its process group are killed, and RunTimeout is raised. One that writes more than
        `max_output` bytes is killed as well. HutchError when the workspace does not run.
        """
        # Spares the start-up of `hutch exec`.
        from hutch.api.running import RunRequest, run

        return run(self, RunRequest(argv, root, input, capture, text, check, env, cwd, timeout, max_output))

    def put(self, source: Argument, target: Argument, *, timeout: float | None = None, into: bool = False) -> Copied:
        """Copy a file or a directory of the host to `target` inside, as the login user; see `get`.

        Symbolic links are copied as links, but for `source` itself. Copies belong to the login user there; modes and
        times are kept. Needs tar inside.
        """
        # Spares the start-up of `hutch exec`.
        from hutch.api.copying import put
        from hutch.api.transports import own_side

        return put(own_side(self, timeout), source, target, into=into)

    def get(
        self,
        source: Argument,
        target: Argument,
        *,
        timeout: float | None = None,
        into: bool = False,
        limit: int = MAX_COPY,
    ) -> Copied:
        """Copy a file or a directory from inside to `target` on the host.

        A directory becomes `target`; if that is there, it is added to it, and files of the same name are replaced. With
        `into`, it goes into a `target` that is there. A file goes into a `target` that is a directory. The directory
        above `target` must be there. Paths inside are relative to the login user's home.

        The copy belongs to the caller. Whatever the workspace answers, nothing is written outside of `target`. A copy
        stands beside it until it is whole, and nothing of it is kept when the workspace fails, sends more than `limit`
        bytes or a name that leads elsewhere, or when a file would take the place of a directory or the other way round.
        Only where the host's own file system refuses to have files moved into a directory that is there, those that
        were moved by then stay. Devices, sockets and links that lead out of the tree are left out, and are named in the
        result. Nobody but the owner may write the copy, and nothing in it is setuid.
        """
        # Spares the start-up of `hutch exec`.
        from hutch.api.copying import get
        from hutch.api.transports import own_side

        return get(own_side(self, timeout), source, target, limit=limit, into=into)

    def attach(
        self,
        argv: Sequence[str],
        *,
        root: bool = False,
        capture: int | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
    ) -> int:
        """Run a command with this process's own streams and signals, which are the command's until it ends; returns its
        exit code, 128 + n when signal n ended it. For programs that do nothing else meanwhile, such as `hutch exec`: it
        needs the main thread, and forks.

        `capture` is a descriptor that takes its output instead.
        """
        # Spares the start-up of `import hutch`.
        from hutch.access.inside import run_inside

        record = self.hutch.record(self.name)
        return run_inside(self.hutch.layout, record, argv, root=root, capture=capture, env=env, cwd=cwd)
