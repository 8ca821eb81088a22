"""Moves of workspaces between this host and a server. Those between the members of one are in members.py.

At every moment the record says where the workspace is, and the other side counts for nothing: first it is where it was,
and a copy grows at its new place; once that is whole, it is at its new place, and the old one waits until the new one
has been ready. Before its home is read, the old one is retired: nobody can start it by mistake. A copy of a home that
anybody has changed, or whose old one was started meanwhile, is refused.

What fails in here goes back by itself. After a move that was killed, the next `up` of the workspace goes back from a
copy that is not whole, or goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from hutch.access.homes import Changed, Owners, calm, check_unchanged, measure, packing, unpack_home
from hutch.access.unpack import Unpacker
from hutch.apply import reconcile
from hutch.apply.moving_checks import check_room, check_unmounted, check_vacant
from hutch.apply.removal import disarm
from hutch.apply.starting import StartsFailed, start, start_elsewhere
from hutch.backends.identity import guest_uid
from hutch.engines import CutShort, mover_of, observe_all
from hutch.errors import HutchError, Unmet
from hutch.files import sync_directory
from hutch.host.identity.ssh import owner_of
from hutch.host.storage import shares
from hutch.host.storage.quota import release_quota
from hutch.plan.turning import refuse_moving
from hutch.run import run
from hutch.runtime import control
from hutch.runtime.observe import observe
from hutch.spec.model import Network
from hutch.spec.record import Observation, Record, holds_identity, is_local, state_of
from hutch.state import journaled, make_directory, read_network, read_records, write_record
from hutch.trees.cursor import holds_something
from hutch.trees.removing import remove_tree

if TYPE_CHECKING:
    from hutch.images.progress import BuildProgress
    from hutch.runtime.control import Listener
    from hutch.spec.names import Layout

COPYING = "copying the home"
STEP = 1 << 22  # bytes between two words about progress
SYNC_SECONDS = 1800.0


class Move:
    """One move: from where `before` is to where `after` is. `network` and `file` are those of the plan, for a start on
    this host; `member` is the member of a cluster that is asked for, if any."""

    def __init__(
        self,
        layout: Layout,
        network: Network,
        before: Record,
        after: Record,
        listen: Listener,
        progress: BuildProgress,
        member: str = "",
    ) -> None:
        self.layout, self.network, self.before, self.after = layout, network, before, after
        self.listen, self.progress, self.member = listen, progress, member
        self.name = before.name

    def make(self) -> None:
        """Move it; returns when it is ready at its new place. Raises HutchError, and then it is where it was, as it
        was. The caller holds the lock."""
        refuse_moving(self.before, ", so it is not moved again")  # what it left would not be known any more
        there = self._arrival()
        was_up = holds_identity(state_of(self.before, self._observe(self.before)))
        with journaled(self.layout, "up", (self.name,)):
            write_record(self.layout, self.before.while_moving("copying", self.after))
            try:
                since = there.copy()
                self._check_retired()
                arrived = self.after.while_moving("starting", self.before, since)
                write_record(self.layout, arrived)
                self._start(arrived)
            except BaseException as error:
                self._go_back(was_up=was_up)
                if isinstance(error, HutchError):
                    raise Unmet(
                        f"{self.name} was not moved: {error.brief}", details=error.details, resolution=error.resolution
                    ) from error
                raise
            try:
                if self.member:
                    mover_of(self.layout, self.after).prefer(self.member)
                finish(self.layout, read_records(self.layout)[self.name], self.listen)
            except HutchError as error:
                raise Unmet(
                    f"{self.name} was moved, but its old place is as it was: {error.brief}",
                    details=error.details,
                    resolution=error.resolution,
                ) from error

    def _arrival(self) -> _ToServer | _ToHost:
        """The way, which was looked at: nothing is stopped before that."""
        return _ToHost(self) if self.after.place is None else _ToServer(self)

    def _check_retired(self) -> None:
        check_retired(self.layout, self.before)

    def _start(self, record: Record) -> None:
        start_one(self.layout, self.network, record, self.listen)

    def _go_back(self, *, was_up: bool) -> None:
        """Have it where it was, as it was. What cannot be removed at the other place is marked there, and told of."""
        back = self.before.while_moving("copying", self.after)
        write_record(self.layout, back)
        record = undo(self.layout, back, self.listen)
        if was_up:
            start_all_the_same(self.layout, self.network, record, self.listen)

    def _observe(self, record: Record) -> Observation:
        return observe_all(self.layout, {self.name: record})[self.name]

    def tell(self, done: int, size: int) -> None:
        self.progress(self.name, COPYING, min(1.0, done / size) if size else 1.0)


class _ToServer:
    """The way from this host to a server."""

    def __init__(self, move: Move) -> None:
        self.move, self.layout = move, move.layout
        self.home = str(move.before.wanted.home)
        check_unmounted(move.layout, move.before)
        self.measure = measure(self.home)
        self.mover = mover_of(move.layout, move.after)
        try:
            self.token = self.mover.reserve(self.measure.size, move.member)
        except HutchError:
            with suppress(HutchError):  # the image may have come already, and what it needs
                self.mover.discard()
            raise

    def copy(self) -> float | None:
        """Bring the home. Returns the moment from which nobody has changed it; None where there is none."""
        retire_here(self.layout, self.move.before)
        if not os.path.lexists(self.home):  # it was never started, so there is nothing to bring
            self.mover.discard()  # an earlier move may have left a half
            return None
        self.layout.workspace(self.move.name).chmod(0o700)  # the next one that starts here is open to its owner again
        since = calm()
        try:
            self._bring()
        except CutShort as error:
            self.move.listen(self.move.name, "warning", f"{error.brief}; it is copied once more")
            self._bring()
        check_unchanged(self.home, since)
        return since

    def _bring(self) -> None:
        end = f".hutch-end-{os.urandom(16).hex()}"
        with packing(self.home, owners_of(self.move.before, self.move.after), end) as packer:
            told = Steps(lambda done: self.move.tell(done, self.measure.size))
            self.mover.receive(self.token, told.through(packer.pieces()), self.measure.size, end)
            if not packer.is_handed_on:
                raise HutchError(f"tar on the server ended before it had read all of {self.home}")
        _tell_left(self.move, packer.left_out, packer.disarmed)


class _ToHost:
    """The way from a server to this host."""

    def __init__(self, move: Move) -> None:
        self.move, self.layout = move, move.layout
        self.mover = mover_of(move.layout, move.before)
        self.home = self.layout.home(move.name)
        self.mover.check_leaving()
        self.size = self.mover.size()
        check_vacant(self.layout, move.name)
        check_room(self.layout, move.name, self.size)

    def copy(self) -> None:
        self.mover.retire()
        arriving = self.layout.arriving(self.move.name)
        remove_tree(arriving)
        make_directory(arriving, 0o700)
        told = Steps(lambda done: self.move.tell(done, self.size))
        is_there = True

        def send(take: Callable[[bytes], None], is_whole: Callable[[], bool]) -> None:
            nonlocal is_there

            def heard(data: bytes) -> None:
                take(data)
                told.add(len(data))

            is_there = self.mover.send(heard, is_whole)
            if not is_there:
                raise _Nothing

        try:
            unpacked = unpack_home(str(arriving), owners_of(self.move.after, self.move.before), self.move.name, send)
        except _Nothing:
            remove_tree(arriving)
            return
        run(["sync", "--file-system", str(arriving)], timeout=SYNC_SECONDS)
        if self.home.is_dir():
            self.home.rmdir()  # an empty one, see check_vacant
        (arriving / Unpacker.ITEM).rename(self.home)
        sync_directory(self.home.parent)
        remove_tree(arriving)
        _tell_left(self.move, unpacked.left_out, unpacked.disarmed)


class _Nothing(Exception):
    """There is no home to bring: the workspace was never started."""


class Steps:
    """Tells of progress, now and then."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self.tell, self.done, self.told = tell, 0, -1

    def add(self, size: int) -> None:
        self.done += size
        if self.done - self.told >= STEP:
            self.told = self.done
            self.tell(self.done)

    def through(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            yield piece
            self.add(len(piece))


def _tell_left(move: Move, left_out: list[str], disarmed: int) -> None:
    if left_out:
        some = "; ".join(left_out[:5])
        move.listen(move.name, "warning", f"{len(left_out)} of its home do not go along: {some}")
    if disarmed:
        move.listen(move.name, "warning", f"{disarmed} programs in its home are not setuid or setgid any more")


def owners_of(here: Record, there: Record) -> Owners:
    """The owners of a home's files on this host, where it is as `here` says, and as `there` says on a server."""
    uid = here.wanted.uid
    gid, _ = owner_of(uid)
    return Owners(uid, gid, here.uid_base, guest_uid(there.wanted.uid))


def start_one(layout: Layout, network: Network, record: Record, listen: Listener) -> None:
    """Start a workspace where its record says that it is. Raises StartsFailed."""
    records = {**read_records(layout), record.name: record}
    if is_local(record.wanted):
        start(layout, network, record.file, records, [record.name], listen)
    elif failures := start_elsewhere(layout, records, {record.name: record}, listen):
        raise StartsFailed(failures)


def start_all_the_same(layout: Layout, network: Network, record: Record, listen: Listener) -> None:
    """Start a workspace that was not moved. If that fails, the reason why it was not moved is still what counts."""
    try:
        start_one(layout, network, record, listen)
    except StartsFailed as error:
        listen(record.name, "warning", f"it does not start where it was, either: {error.details}")


# One side of a move, on this host.


def retire_here(layout: Layout, record: Record) -> None:
    """Stop a workspace of this host, and take its units away, so that nobody starts it."""
    control.stop_all(layout, [record.name])
    control.forget(layout, record.name)
    check_retired(layout, record)


def check_retired(layout: Layout, record: Record) -> None:
    """Refuse one that somebody has started since it was retired."""
    if not is_local(record.wanted):
        mover_of(layout, record).check_retired()
    elif observe(layout, record.name).state != "stopped" or control.is_forgotten(layout, record.name):
        raise HutchError(
            f"{record.name}, which is being moved, was started on this host meanwhile",
            details="the copy of its home may be stale",
            resolution=f"`hutch stop {record.name}`, then `hutch up {record.name}`",
        )


def discard(layout: Layout, record: Record, *, is_old: bool = False) -> tuple[str, ...]:
    """Remove all that there is of a workspace at a place where it is not any more (`is_old`), or not yet, home and all.
    May be called again. Returns notes for the user."""
    if not is_local(record.wanted):
        mover_of(layout, record).discard(is_accepted=is_old)
        return ()
    name, home = record.name, str(record.wanted.home)
    control.stop_all(layout, [name])
    is_own = home == str(layout.home(name))
    notes = disarm(layout, record)
    release_quota(home, record.uid_base, is_kept=not is_own)
    if is_own:
        shares.release(layout, home)
        remove_tree(layout.leaving(name))
        with suppress(FileNotFoundError):  # one that is half deleted is no home any more
            os.rename(home, layout.leaving(name))
            sync_directory(layout.workspace(name))
        remove_tree(layout.leaving(name))
    remove_tree(layout.arriving(name))
    remove_tree(layout.root(name))
    remove_tree(layout.unit_directory(name))
    control.forget(layout, name)
    return notes if is_own else (f"{home} is a directory of your own and was left alone", *notes)


# After a move that was cut short.


def undo(layout: Layout, record: Record, listen: Listener) -> Record:
    """Go back from a copy that is not whole: returns the record of the workspace, which is where it was, stopped, and
    can be started."""
    assert record.moving is not None and record.moving.step == "copying"
    try:
        for note in discard(layout, record.other_side):
            listen(record.name, "warning", note)
    except HutchError as error:  # what is left there is marked, and the next move there removes it
        listen(record.name, "warning", f"the copied part is left there: {error.brief}")
    whole = replace(record, moving=None)
    if not is_local(whole.wanted):
        mover_of(layout, whole).rearm()
    write_record(layout, whole)
    if is_local(whole.wanted):
        reconcile.reconcile_again(layout, read_network(layout), read_records(layout))
    return whole


def finish(layout: Layout, record: Record, listen: Listener) -> Record:
    """Remove the old one of a workspace that is ready at its new place. May be called again."""
    assert record.moving is not None and record.moving.step == "starting"
    old = record.other_side
    check_retired(layout, old)
    _check_copied(layout, old, record.moving.since)
    _accept(layout, record, old)
    notes = discard(layout, old, is_old=True)
    whole = replace(record, moving=None)
    write_record(layout, whole)
    reconcile.reconcile_again(layout, read_network(layout), read_records(layout))
    text = "; ".join(notes)
    listen(
        record.name, "moved", f"to {'this host' if whole.place is None else whole.place}{f' ({text})' if text else ''}"
    )
    return whole


def _accept(layout: Layout, record: Record, old: Record) -> None:
    """Have it be at its new place for good. Raises HutchError where it has no home there, but an old one."""
    if not is_local(record.wanted):
        if _has_home(layout, old) or _has_home(layout, record):
            mover_of(layout, record).accept()
    elif not os.path.lexists(str(record.wanted.home)) and _has_home(layout, old):
        raise HutchError(
            f"the home of {record.name} is not in {record.wanted.home} any more, and its old one was kept",
            resolution=f"put it back, or go back with `hutch rm --force {record.name}`, which keeps the old one",
        )


def _check_copied(layout: Layout, old: Record, since: float | None) -> None:
    """Refuse to delete an old home of this host in which somebody has changed something since it was copied."""
    home = str(old.wanted.home)
    if since is None or home != str(layout.home(old.name)) or not os.path.lexists(home):
        return
    try:
        check_unchanged(home, since)
    except Changed as error:
        raise Changed(
            f"{home} was changed after it had been copied, so it was kept",
            details=error.details,
            resolution=f"look at the changes, move {home} away, and `hutch up {old.name}` finishes the move",
        ) from error


def _has_home(layout: Layout, record: Record) -> bool:
    if is_local(record.wanted):
        return holds_something(str(record.wanted.home))
    return mover_of(layout, record).has_home()


def reconcile_all(layout: Layout, targets: Mapping[str, bool], listen: Listener) -> None:
    """Go back from, or finish, moves of these workspaces that were cut short: name -> whether the file wants it on this
    host. One that is to start at its new place is left to be started, and one for which that fails is told of and left
    as it is. The caller holds the lock."""
    for name, record in read_records(layout).items():
        if name in targets and record.moving is not None:
            with _told(name, listen):
                _reconcile_one(layout, record, listen, is_wanted_here=targets[name])


def _reconcile_one(layout: Layout, record: Record, listen: Listener, *, is_wanted_here: bool) -> None:
    assert record.moving is not None
    if record.moving.step == "copying":
        listen(record.name, "warning", "an earlier move of it was cut short, and is undone first")
        undo(layout, record, listen)
        return
    is_up = observe_all(layout, {record.name: record})[record.name].state == "running"
    if is_up or is_local(record.wanted) != is_wanted_here:
        finish(layout, record, listen)


def finish_started(layout: Layout, names: Collection[str], listen: Listener) -> None:
    """Finish the moves of workspaces that have just been started at their new places. One for which that fails is told
    of, and goes on."""
    for name, record in read_records(layout).items():
        if name in names and record.moving is not None and record.moving.step == "starting":
            with _told(name, listen):
                finish(layout, record, listen)


@contextmanager
def _told(name: str, listen: Listener) -> Iterator[None]:
    """Tell of an error with an earlier move of one workspace, which holds up no other."""
    try:
        yield
    except HutchError as error:
        text = error.brief + (f" ({error.resolution})" if error.resolution else "")
        listen(name, "warning", f"an earlier move of it is not at its end: {text}")


def forget_other(layout: Layout, record: Record, listen: Listener, *, force: bool) -> Record:
    """Have a workspace that is to be removed at one place only: where its home is. With `force`, a server that it has
    left and that does not answer holds up nobody."""
    if record.moving is None:
        return record
    if record.moving.step == "copying":
        return undo(layout, record, listen)
    old = record.other_side
    try:
        if not _has_home(layout, record) and _has_home(layout, old):
            listen(record.name, "warning", f"its home did not come to where it was moved; {old.home_words} counts")
            back = old.while_moving("copying", record)
            write_record(layout, back)
            return undo(layout, back, listen)
        return finish(layout, record, listen)
    except HutchError as error:
        if not force or is_local(old.wanted):
            raise
        left = f"its old instance and home may be left on {old.place}: {error.brief}"
        listen(record.name, "warning", left)
        whole = replace(record, moving=None)
        write_record(layout, whole)
        return whole
