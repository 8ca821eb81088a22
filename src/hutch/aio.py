"""hutch for asyncio: the names of `import hutch`, to be awaited. Nothing here blocks the event loop.

What only reads runs in a thread. What changes something runs in a process of its own, as a command of the command line
would: several at once do not share a thread pool, and one that is cancelled is interrupted. So a cancelled `run` kills
its command, a cancelled `up` or `start` stops what is not ready yet, and the cancelled call returns only then.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

from hutch import api
from hutch.access.piped import Canceller
from hutch.api.engine import Hutch, Progress, no_progress, silent
from hutch.api.job import Call, call_on, call_up, change
from hutch.api.workspace import MAX_COPY, MAX_OUTPUT, Argument
from hutch.api.workspace import Workspace as SyncWorkspace
from hutch.errors import troubles_told

if TYPE_CHECKING:
    from hutch.api.result import Copied, Result
    from hutch.plan.actions import Plan
    from hutch.runtime.control import Listener
    from hutch.spec.model import Config

__all__ = ["Workspace", "load", "plan", "up"]

T = TypeVar("T")


async def load(path: str | os.PathLike[str] | None = None) -> Config:
    """Read and validate a hutch.toml; see `hutch.load`."""
    return await _thread(lambda canceller: api.load(path))


async def plan(
    config: Config, names: Sequence[str] = (), *, start: bool = True, prune: bool = False, adopt: bool = False
) -> Plan:
    """What `up` would do, and why; see `hutch.plan`."""
    return await _thread(lambda canceller: api.plan(config, names, start=start, prune=prune, adopt=adopt))


async def up(
    config: Config,
    names: Sequence[str] = (),
    *,
    start: bool = True,
    prune: bool = False,
    adopt: bool = False,
    listen: Listener = silent,
    progress: Progress = no_progress,
) -> Plan:
    """Plan and apply; see `hutch.up`. When cancelled, workspaces that are not ready yet are stopped first. `listen` and
    `progress` are called in the event loop's thread."""
    return cast("Plan", await _change(call_up(config, names, start=start, prune=prune, adopt=adopt), listen, progress))


class Workspace:
    """One workspace, by its name: `hutch.Workspace` to be awaited."""

    def __init__(self, name: str, hutch: Hutch | None = None) -> None:
        self.name = name
        self.hutch = hutch or Hutch()

    async def start(self) -> None:
        """Start it unless it runs; see `hutch.Workspace.start`. When cancelled, it is stopped unless it is ready."""
        await _change(call_on(self.name, self.hutch.places, "start"), self.hutch.listen)

    async def stop(self) -> None:
        """Stop it; see `hutch.Workspace.stop`."""
        await _change(call_on(self.name, self.hutch.places, "stop"), self.hutch.listen)

    async def status(self) -> dict[str, Any]:
        """How it stands; see `hutch.Workspace.status`."""
        return await _thread(lambda canceller: self._sync.status())

    @property
    def _sync(self) -> SyncWorkspace:
        return SyncWorkspace(self.name, self.hutch)

    @overload
    async def run(
        self,
        argv: Sequence[Argument],
        *,
        root: bool = False,
        input: str | bytes | None = None,
        capture: Literal[False] = False,
        text: bool = False,
        check: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: Argument | None = None,
        timeout: float | None = None,
        max_output: int = MAX_OUTPUT,
    ) -> Result[None]: ...

    @overload
    async def run(
        self,
        argv: Sequence[Argument],
        *,
        root: bool = False,
        input: str | bytes | None = None,
        capture: Literal[True],
        text: Literal[False] = False,
        check: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: Argument | None = None,
        timeout: float | None = None,
        max_output: int = MAX_OUTPUT,
    ) -> Result[bytes]: ...

    @overload
    async def run(
        self,
        argv: Sequence[Argument],
        *,
        root: bool = False,
        input: str | bytes | None = None,
        capture: Literal[True],
        text: Literal[True],
        check: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: Argument | None = None,
        timeout: float | None = None,
        max_output: int = MAX_OUTPUT,
    ) -> Result[str]: ...

    async def run(
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
        """Run a command inside; see `hutch.Workspace.run`. When cancelled, the command is killed first."""
        from hutch.api.running import Order, run

        order = Order(argv, root, input, capture, text, check, env, cwd, timeout, max_output)
        return await _thread(lambda canceller: run(self._sync, order, canceller))

    async def put(
        self, source: Argument, target: Argument, *, timeout: float | None = None, into: bool = False
    ) -> Copied:
        """Copy a file or a directory of the host to `target` inside; see `hutch.Workspace.put`. When cancelled, what
        has been copied by then stays."""
        from hutch.api.carriers import own_side
        from hutch.api.copying import put

        return await _thread(lambda canceller: put(own_side(self._sync, canceller, timeout), source, target, into=into))

    async def get(
        self,
        source: Argument,
        target: Argument,
        *,
        timeout: float | None = None,
        into: bool = False,
        limit: int = MAX_COPY,
    ) -> Copied:
        """Copy a file or a directory from inside to `target` on the host; see `hutch.Workspace.get`. When cancelled,
        nothing has been written, unless all had come."""
        from hutch.api.carriers import own_side
        from hutch.api.copying import get

        return await _thread(
            lambda canceller: get(own_side(self._sync, canceller, timeout), source, target, limit=limit, into=into)
        )


async def _change(call: Call, listen: Listener, progress: Progress = no_progress) -> object:
    """Have a call carried out, and tell here what it tells."""
    loop = asyncio.get_running_loop()

    def here(function: Callable[..., None]) -> Callable[..., object]:
        return lambda *words: loop.call_soon_threadsafe(function, *words)

    events = {"listen": here(listen), "progress": here(progress)}
    return await _thread(lambda canceller: change(call, events, canceller))


async def _thread(work: Callable[[Canceller], T]) -> T:
    """Do `work` in a thread of its own, so that any number goes on at once, and the kernel can tell its processes when
    it is gone. When cancelled, it is called off, and this ends when it has."""
    loop, canceller = asyncio.get_running_loop(), Canceller()
    done: asyncio.Future[T] = loop.create_future()

    def settle(setter: Callable[[Any], None], value: object) -> None:
        if not done.done():
            setter(value)

    def target() -> None:
        try:
            with troubles_told():
                value = work(canceller)
        except BaseException as error:  # noqa: BLE001 - it is raised where it is awaited
            loop.call_soon_threadsafe(settle, done.set_exception, error)
        else:
            loop.call_soon_threadsafe(settle, done.set_result, value)

    threading.Thread(target=target, name="hutch", daemon=True).start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        canceller.cancel()
        while not done.done():
            try:
                await asyncio.shield(asyncio.wait([done]))
            except asyncio.CancelledError:
                continue  # once is enough: it is on its way
        done.exception()  # what it says of its end is of no interest any more
        raise
