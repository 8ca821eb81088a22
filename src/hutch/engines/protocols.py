"""The abilities of engines, as the rest of hutch uses them. Only annotations need this module: a class of this kind
costs every command a fraction of a millisecond.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from hutch.host.identity.ssh import Peer
from hutch.images.progress import BuildProgress
from hutch.plan.actions import Change, Wanted
from hutch.runtime.control import Listener
from hutch.spec.record import Observation, Record
from hutch.spec.snapshot import Snapshot


class Engine(Protocol):
    """A server, or several, that run workspaces. Each method gets records of such workspaces, and may be called again:
    what is as it should be is left alone. Raises HutchError where a server refuses, or does not answer."""

    def observe(self, records: Mapping[str, Record]) -> dict[str, Observation]:
        """The state of each. One whose server or member does not answer is unreachable, which is no error."""

    def broken(self, records: Mapping[str, Record]) -> dict[str, tuple[Change, ...]]:
        """The parts of those that run which somebody else changed, and that only a start gives back."""

    def check(self, wanted: Mapping[str, Wanted], records: Mapping[str, Record]) -> tuple[str, ...]:
        """Refuse workspaces that a server could not run as they are to be; changes nothing. `records` are those of all
        that exist. Returns notes for the user: the promises that do not hold there."""

    def supply(self, wanted: Mapping[str, Wanted], progress: BuildProgress) -> None:
        """Bring the images of these workspaces to the servers, where they are missing; the cache has them. The host's
        lock is not held: it takes long."""

    def stop(self, records: Mapping[str, Record]) -> None:
        """Stop them side by side: in order first, by force after a deadline."""

    def start(self, records: Mapping[str, Record], listen: Listener) -> dict[str, str]:
        """Make what is missing, start them, and wait until sshd answers in each. Returns name -> why for those
        that did not come up."""

    def change(self, record: Record) -> dict[str, str]:
        """Put what is wanted in force in one that runs, which differs from what was booted only in keys that need no
        restart. Returns key -> why not."""

    def remove(self, record: Record, *, purge: bool) -> tuple[str, ...]:
        """Remove a workspace, which does not run; with `purge`, its home too. Returns notes for the user."""

    def prune(self, records: Mapping[str, Record]) -> tuple[str, ...]:
        """Remove the images that none of these workspaces needs. Returns them by their ids."""

    def log(self, record: Record, lines: int) -> str:
        """The last lines of its console."""

    def console_command(self, record: Record) -> tuple[str, ...]:
        """A command that attaches the terminal to its console."""

    def peer(self, record: Record) -> Peer:
        """The workspace as the ssh client sees it."""

    def listeners(self, record: Record) -> tuple[tuple[str, int], ...]:
        """The IPv4 addresses and ports at which its server says that it listens, or the most that are of use."""

    def obstacles(self, record: Record) -> list[str]:
        """The reasons, in words, why it should not be removed without a second thought."""

    def unsaved_in_root(self, record: Record) -> list[str]:
        """Git work, in words, that would go with the root of one that runs; reasons why nobody can tell, too."""

    def sessions(self, record: Record) -> list[str]:
        """The sessions in it, in words."""

    def explain(self, record: Record) -> dict[str, str]:
        """What its next start makes there: title -> text."""


class Mover(Protocol):
    """A workspace's side of a move, at the place of its engine. A `token` is what `reserve` found; archives of homes
    are those of hutch.access.homes. Each method raises HutchError for what cannot be."""

    def check_member(self, member: str) -> None:
        """Refuse a member that is not there, or takes nothing."""

    def reserve(self, size: int, member: str = "") -> Any:
        """Look at everything that a workspace needs there whose home has `size` bytes, and have there what workspaces
        share: on a server its project, and the image. Makes nothing of the workspace itself. Returns a token."""

    def receive(self, token: Any, pieces: Iterable[bytes], size: int, end: str) -> None:
        """Make the home of an archive, whose last entry has the name `end` and is no part of it. Raises CutShort where
        that has not come, after which it may be called with another archive. The home counts for nothing before
        `accept`."""

    def has_home(self) -> bool:
        """Whether the home is there. Raises HutchError where nobody can tell."""

    def accept(self) -> None:
        """Have the workspace be there for good, with its home. May be called again."""

    def prefer(self, member: str) -> None:
        """Note the member that somebody wants it on."""

    def discard(self, *, is_accepted: bool = False) -> None:
        """Remove all that is there of the workspace, home and all. Refuses a home that was there for good, unless
        `is_accepted`. May be called again."""

    def retire(self) -> None:
        """Stop it, so that nobody can go on with it. May be called again."""

    def check_retired(self) -> None:
        """Refuse one that somebody has started since."""

    def rearm(self) -> None:
        """Take back `retire`; it stays stopped. May be called again."""

    def send(self, take: Callable[[bytes], None], is_whole: Callable[[], bool]) -> bool:
        """Have `take` get an archive of the retired one's home; `is_whole` says when it has all of it. Returns False
        where it never had any."""

    def check_leaving(self) -> None:
        """Refuse a workspace of which not all can go along; changes nothing."""

    def size(self) -> int:
        """The bytes of its home; 0 where nobody can tell."""

    def move_to(self, member: str) -> None:
        """Bring it to another member, stopped. May be called again."""

    def member(self) -> str:
        """The member that has it; "" where it is on none."""


class Snapshots(Protocol):
    """The ability to keep points in time of a workspace: its home, and its root where that is kept, as they were at one
    moment.

    Each method first undoes what an earlier one that was killed has left half done, but for `list`, which tells of it.
    Raises HutchError where the server refuses, or does not answer.
    """

    def take(self, record: Record, tag: str) -> float:
        """Take a snapshot. Returns the seconds for which the workspace was paused."""

    def list(self, record: Record) -> Sequence[Snapshot]:
        """All snapshots, oldest first, with those that are not whole."""

    def delete(self, record: Record, tag: str) -> None:
        """Delete a snapshot, or what is left of one."""

    def check(self, record: Record, tag: str) -> tuple[str, ...]:
        """Refuse a snapshot that cannot be restored; changes nothing. Returns notes for the user."""

    def restore(self, record: Record, tag: str) -> None:
        """Stop a workspace, and make what it keeps as it was. One that is cut short is finished before the
        workspace starts again, unless somebody has started it since."""

    def fork(self, record: Record, tag: str, copies: Sequence[Record], known: Collection[str]) -> float:
        """Make the homes, and the roots that are kept, of new workspaces out of a snapshot, or with "" of the present
        state. `copies` are their records, which are not written yet; `known` as in `recover`. Returns the seconds of
        the pause."""

    def confirm(self, record: Record, copies: Sequence[Record]) -> None:
        """Note that the records of copies are written, so that nobody takes these for half-made ones."""

    def recover(self, record: Record, known: Collection[str]) -> tuple[str, ...]:
        """Undo what was left half done of the workspace: thaw it, and remove halves of snapshots and of copies; those
        whose machine ids are `known` have records, and stay. Returns in words what was done."""
