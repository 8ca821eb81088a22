"""hutch for asyncio: the names of `import hutch`, to be awaited. Nothing here blocks the event loop.

Calls that only read run in a thread. Calls that change something run in a process of their own, as a command of the
command line would: several at once do not share a thread pool, and a cancelled one is interrupted. So a cancelled `run`
kills its command, a cancelled `up` or `start` stops what is not ready yet, and the cancelled call returns only then.
Files that a cancelled `put` has copied by then stay; a cancelled `get` has written nothing, unless all had come.
Listeners are called in the event loop's thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from functools import partial, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from hutch import api
from hutch.access.piped import CURRENT, Canceller
from hutch.api.engine import Hutch
from hutch.api.workspace import Workspace as SyncWorkspace

__all__ = ["Workspace", "load", "plan", "up"]

P = ParamSpec("P")
T = TypeVar("T")


def _awaited(function: Callable[P, T]) -> Callable[P, Coroutine[Any, Any, T]]:
    """A function of `hutch`, to be awaited."""

    @wraps(function)
    async def awaited(*arguments: P.args, **options: P.kwargs) -> T:
        return await _thread(partial(function, *arguments, **options))

    return awaited


def _awaited_method(
    method: Callable[Concatenate[SyncWorkspace, P], T],
) -> Callable[Concatenate[Workspace, P], Coroutine[Any, Any, T]]:
    """A method of `hutch.Workspace`, to be awaited."""

    @wraps(method)
    async def awaited(self: Workspace, /, *arguments: P.args, **options: P.kwargs) -> T:
        return await _thread(partial(method, SyncWorkspace(self.name, self.hutch), *arguments, **options))

    return awaited


async def _thread(work: Callable[[], T]) -> T:
    """Do `work` in a thread of its own, so that any number goes on at once, and the kernel can tell its processes when
    it is gone. When cancelled, the work is called off, and this ends when that has."""
    loop = asyncio.get_running_loop()
    canceller = Canceller(loop.call_soon_threadsafe)
    done: asyncio.Future[T] = loop.create_future()

    def finish(setter: Callable[[Any], None], value: object) -> None:
        if not done.done():
            setter(value)

    def target() -> None:
        CURRENT.set(canceller)
        try:
            value = work()
        except BaseException as error:  # noqa: BLE001 - it is raised where it is awaited
            loop.call_soon_threadsafe(finish, done.set_exception, error)
        else:
            loop.call_soon_threadsafe(finish, done.set_result, value)

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
        done.exception()  # its result is of no interest any more
        raise


load = _awaited(api.load)
plan = _awaited(api.plan)
up = _awaited(api.up)


class Workspace:
    """One workspace, by its name: `hutch.Workspace` to be awaited."""

    def __init__(self, name: str, hutch: Hutch | None = None) -> None:
        self.name = name
        self.hutch = hutch or Hutch()

    start = _awaited_method(SyncWorkspace.start)
    stop = _awaited_method(SyncWorkspace.stop)
    status = _awaited_method(SyncWorkspace.status)
    snapshot = _awaited_method(SyncWorkspace.snapshot)
    snapshots = _awaited_method(SyncWorkspace.snapshots)
    restore = _awaited_method(SyncWorkspace.restore)
    run = _awaited_method(SyncWorkspace.run)
    put = _awaited_method(SyncWorkspace.put)
    get = _awaited_method(SyncWorkspace.get)
    ports = _awaited_method(SyncWorkspace.ports)
    clone = _awaited_method(SyncWorkspace.clone)
    diff = _awaited_method(SyncWorkspace.diff)
    fetch = _awaited_method(SyncWorkspace.fetch)
