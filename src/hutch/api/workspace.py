"""One workspace that exists: start it, run commands in it, copy files, stop it."""

from __future__ import annotations

import os
from collections.abc import Collection, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from hutch.api.engine import Hutch
from hutch.errors import HutchError, ways_in

if TYPE_CHECKING:
    from typing import Unpack

    from hutch.access.listening import ForwardEvent, Listener
    from hutch.api.result import Copied, Fetched, Result
    from hutch.api.running import RunOptions
    from hutch.clones.notes import Clone
    from hutch.host.identity.ssh import Peer
    from hutch.spec.record import Record

MAX_OUTPUT = 64 << 20  # bytes of a command's output that are kept in memory
MAX_COPY = 16 << 30  # bytes that a workspace may hand out in one go
MAX_FETCH = 4 << 30  # bytes of objects that it may

Argument = str | os.PathLike[str]


@ways_in
class Workspace:
    """One workspace, by its name. Making the object touches nothing: a method raises UsageError when there is none.

    All methods but `status`, `ports`, `forward`, `clone`, `diff` and `fetch` need root, and all may be called by any
    thread, by several at once; `hutch.aio` has them for asyncio.
    """

    def __init__(self, name: str, hutch: Hutch | None = None) -> None:
        self.name = name
        self.hutch = hutch or Hutch()

    def start(self) -> None:
        """Start it unless it runs; returns when it is ready for ssh."""
        self._change("start")

    def stop(self, *, force: bool = False) -> None:
        """Stop it: in order first, by force after a deadline. Its state stays. Without `force`, HutchError while git
        work outside of its home would go with its root."""
        self._change("stop", force=force)

    def _change(self, method: str, **options: bool) -> None:
        # Spares the start-up of `hutch exec`.
        from hutch.api.job import Call, change

        change(Call(self.hutch.layout, method, {"names": [self.name], **options}), listen=self.hutch.listen)

    def snapshot(self, tag: str = "") -> str:
        """Take a snapshot of what it keeps, as that is at one moment; see `Hutch.snapshot`. Returns its tag."""
        return str(self._call("snapshot", tag=tag))

    def snapshots(self) -> list[dict[str, Any]]:
        """Its snapshots, oldest first: the same as `hutch snapshots --json` shows."""
        return self.hutch.snapshots(self.name)

    def restore(self, tag: str) -> None:
        """Make what it keeps as it was in a snapshot. If it runs, it is stopped, and started again."""
        self._call("restore", tag=tag)

    def _call(self, method: str, **arguments: Any) -> Any:
        # Spares the start-up of `hutch exec`.
        from hutch.api.job import Call, change

        return change(Call(self.hutch.layout, method, {"name": self.name, **arguments}), listen=self.hutch.listen)

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

    def clone(self, source: Argument, *, committed: bool = False) -> Clone:
        """Make a clone of the git checkout that the directory `source` of the host is in, in the workspace's home; or
        return the one that was made of it before.

        It begins at HEAD, with what is not committed there as one commit on top of it; with `committed`, without. What
        git ignores stays out. Its branches are brought back by `fetch`. Runs as the workspace's owner, whose checkout
        it must be, also for root. Needs git, on the host and inside.
        """
        # Spares the start-up of `hutch exec`.
        from hutch.api.cloning import as_owner

        made: Clone = as_owner(self, "clone", source=os.path.abspath(source), committed=committed)
        return made

    def diff(self, *, stat: bool = False) -> str:
        """The changes in the clone since it was made, committed or not, as git shows them; with `stat`, the files
        alone. The text may hold anything that a workspace can write."""
        # Spares the start-up of `hutch exec`.
        from hutch.api.cloning import as_owner

        return str(as_owner(self, "diff", stat=stat))

    def fetch(self, branch: str = "", *, prune: bool = False, limit: int = MAX_FETCH) -> Fetched:
        """Bring the branches of the clone into the host's repository, as refs/remotes/NAME/BRANCH, or one of them.

        git checks all objects before any is kept, and `limit` bytes are the most that are taken. Nothing is checked
        out, no other ref is touched, and nothing runs that the workspace or the repository has configured. Branches
        that are gone inside stay in the repository, but with `prune`.
        """
        # Spares the start-up of `hutch exec`.
        from hutch.api.cloning import as_owner

        fetched: Fetched = as_owner(self, "fetch", branch=branch, prune=prune, limit=limit)
        return fetched

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
        from hutch.audit.events import words_of
        from hutch.audit.telling import begin

        layout, (record, peer) = self.hutch.layout, self._whereabouts()
        session, code = begin(layout, self.name, "exec", argv=words_of(argv), root=root), None
        try:
            code = run_inside(layout, record, argv, root=root, capture=capture, env=env, cwd=cwd, peer=peer)
        finally:
            session.end(code=code)
        return code

    def ports(self) -> list[Listener]:
        """The TCP ports that listen inside, by number; as the workspace tells them, which may be anything."""
        # Spares the start-up of `hutch exec`.
        from hutch.access.forward import listeners_of
        from hutch.access.inside import target_of

        return list(listeners_of(target_of(self.hutch.layout, *self._whereabouts())))

    def forward(
        self, ports: Collection[int] = (), *, auto: bool = False, reverse: Collection[int] = ()
    ) -> Generator[ForwardEvent]:
        """Make ports of the workspace reachable on this host's loopback, with `auto` whatever listens inside; and ports
        of this host's loopback, `reverse`, by the name host.internal inside. Nothing happens before the first event is
        asked for, and all of it ends when the generator is closed: `contextlib.closing` does that. HutchError when
        the workspace ends. What listens inside is looked at only while an event is waited for.
        """
        # Spares the start-up of `hutch exec`.
        from hutch.access.forward import Lost, forward
        from hutch.access.inside import target_of
        from hutch.audit.events import MOST_ITEMS
        from hutch.audit.telling import begin

        target = target_of(self.hutch.layout, *self._whereabouts())
        some, back = list(ports)[:MOST_ITEMS], list(reverse)[:MOST_ITEMS]
        session = begin(self.hutch.layout, self.name, "forward", ports=some, auto=auto, reverse=back)
        try:
            yield from forward(target, ports, auto=auto, reverse=reverse)
        except Lost as error:
            state = self.hutch.observe(self.name).state
            if state == "running":
                raise
            raise HutchError(f"{self.name} is {state}", resolution=f"`hutch start {self.name}`") from error
        finally:
            session.end()

    def _whereabouts(self) -> tuple[Record, Peer | None]:
        """Its record, and for a workspace that another host runs, the way there."""
        # Spares the start-up of `import hutch`.
        from hutch.engines import engine_of
        from hutch.spec.record import is_local

        record = self.hutch.record(self.name)
        return record, None if is_local(record.wanted) else engine_of(self.hutch.layout, record).peer(record)
