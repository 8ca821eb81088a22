"""A move as a whole: at every moment one side counts, and whatever fails or is cut short leads there or back.

The server is a fake with a home of its own; homes of this host are real directories.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from hutch.apply import moving, reconcile
from hutch.apply.moving import Move, finish, finish_started, forget_other, reconcile_all
from hutch.apply.starting import StartsFailed, refuse_lost_homes
from hutch.engines import CutShort
from hutch.errors import HutchError, Unmet
from hutch.host.storage import shares
from hutch.plan.turning import refuse_copying, refuse_moving
from hutch.runtime import control
from hutch.spec.model import Mount
from hutch.spec.names import Layout
from hutch.spec.record import Observation, Record, is_local
from hutch.state import read_record, write_record
from tests.unit.engines.incus.fake import PLACE
from tests.unit.facts import NETWORK, workspace

NAME = "web"
HOME = {"file": b"content", "tree/other": b"more"}


class Killed(BaseException):
    """hutch is no more: nothing of it goes on."""


@dataclass
class Server:
    """A server as a mover sees it: the archive of a home, whether an instance runs, is retired, or is there at all."""

    home: bytes | None = None
    runs: bool = False
    is_there: bool = False
    is_retired: bool = False
    is_accepted: bool = True


@dataclass
class Scene:
    """All that there is. `cut` is the number of the effect at which hutch is killed; `failing` are effects that
    fail; of `cuts` archives a half comes."""

    layout: Layout
    server: Server = field(default_factory=Server)
    runs_here: bool = False
    effects: list[str] = field(default_factory=list)
    cut: int | None = None
    failing: set[str] = field(default_factory=set)
    cuts: int = 0
    heard: list[tuple[str, str, str]] = field(default_factory=list)

    def effect(self, what: str) -> None:
        self.effects.append(what)
        if self.cut is not None and len(self.effects) > self.cut:
            raise Killed
        if what in self.failing:
            raise HutchError(f"{what} failed")
        live = [self.runs_here, self.server.runs and not self.server.is_retired]
        assert live.count(True) <= 1, f"two are live at {what}"

    @property
    def home(self) -> Path:
        return self.layout.home(NAME)

    def listen(self, *said: Any) -> None:
        self.heard.append(said)

    @property
    def record(self) -> Record:
        found = read_record(self.layout, NAME)
        assert found is not None
        return found


@dataclass
class FakeMover:
    scene: Scene

    def reserve(self, size: int, member: str = "") -> str:
        self.scene.effect("reserve")
        return "token"

    def receive(self, token: Any, pieces: Iterable[bytes], size: int, end: str) -> None:
        self.discard()
        data = b"".join(pieces)
        at = data.index(f"./{end}".encode())  # the last entry, which is no part of the home
        data = data[:at] + data[at + 512 :]
        self.scene.server.home, self.scene.server.is_accepted = data[: len(data) // 2], False
        self.scene.effect("receive a half")
        if self.scene.cuts:
            self.scene.cuts -= 1
            raise CutShort("the connection ended")
        self.scene.server.home = data
        self.scene.effect("receive")

    def has_home(self) -> bool:
        return self.scene.server.home is not None

    def accept(self) -> None:
        self.scene.effect("accept")
        if self.scene.server.home is None:
            raise HutchError("the home is not there")
        self.scene.server.is_accepted = True

    def prefer(self, member: str) -> None:
        self.scene.effect(f"prefer {member}")

    def discard(self, *, is_accepted: bool = False) -> None:
        self.scene.effect("discard there")
        if self.scene.server.home is not None and self.scene.server.is_accepted and not is_accepted:
            raise HutchError("it is a home that counts")
        self.scene.server = Server()

    def retire(self) -> None:
        self.scene.effect("retire there")
        self.scene.server.runs, self.scene.server.is_retired = False, True

    def check_retired(self) -> None:
        if self.scene.server.runs or not self.scene.server.is_retired:
            raise HutchError("somebody started it")

    def rearm(self) -> None:
        self.scene.effect("rearm there")
        self.scene.server.is_retired = False

    def send(self, take: Callable[[bytes], None], is_whole: Callable[[], bool]) -> bool:
        self.scene.effect("send")
        home = self.scene.server.home
        assert home is not None
        take(home[:1000])
        self.scene.effect("send more")
        take(home[1000:])
        return True

    def check_leaving(self) -> None:
        self.scene.effect("check leaving")

    def size(self) -> int:
        return 1


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    made = Scene(Layout(tmp_path / "state", tmp_path / "run"))

    def observe_all(layout: Layout, records: dict[str, Record]) -> dict[str, Observation]:
        runs = made.runs_here if is_local(records[NAME].wanted) else made.server.runs
        return {NAME: Observation("running" if runs else "stopped")}

    def start_one(layout: Layout, network: Any, record: Record, listen: Any) -> None:
        made.effect("start")
        write_record(layout, record.with_booted())
        if is_local(record.wanted):
            made.runs_here = True
        else:
            made.server.runs, made.server.is_there, made.server.is_retired = True, True, False
        if "start late" in made.failing:
            made.failing.discard("start late")
            raise StartsFailed({NAME: "its sshd does not answer"})
        made.effect("started")

    def stop_all(layout: Layout, names: list[str]) -> None:
        made.effect("stop here")
        made.runs_here = False

    monkeypatch.setattr(moving, "mover_of", lambda layout, record: FakeMover(made))
    monkeypatch.setattr(moving, "observe_all", observe_all)
    monkeypatch.setattr(moving, "observe", lambda layout, name: Observation("running" if made.runs_here else "stopped"))
    monkeypatch.setattr(moving, "start_one", start_one)
    monkeypatch.setattr(control, "stop_all", stop_all)
    monkeypatch.setattr(control, "forget", lambda layout, name: made.effect("forget here"))
    monkeypatch.setattr(control, "is_forgotten", lambda layout, name: False)
    monkeypatch.setattr(reconcile, "reconcile_again", lambda *words: made.effect("reconcile"))
    monkeypatch.setattr(moving, "disarm", lambda layout, record: ())
    monkeypatch.setattr(moving, "release_quota", lambda *words, **options: None)
    monkeypatch.setattr(shares, "release", lambda layout, path: None)
    monkeypatch.setattr(moving, "run", lambda argv, **options: None)
    return made


def sides(scene: Scene) -> tuple[Record, Record]:
    """The workspace on this host, and on the server."""
    home, own = str(scene.home), os.getuid()
    image, id = "image-1", "0" * 32
    here = Record(NAME, "/srv/hutch.toml", workspace(NAME, home=home, owner=own), image, 0x7000_0000, id)
    far = workspace(NAME, engine="incus", home=None, ip="10.83.0.2", owner=own)
    return here, replace(here, wanted=far, uid_base=0, place=PLACE)


def fill(scene: Scene) -> None:
    for name, content in HOME.items():
        (scene.home / name).parent.mkdir(parents=True, exist_ok=True)
        (scene.home / name).write_bytes(content)


def content(top: Path) -> dict[str, bytes]:
    return {str(path.relative_to(top)): path.read_bytes() for path in sorted(top.rglob("*")) if path.is_file()}


def at_home(scene: Scene, *, to_server: bool) -> Move:
    """The workspace runs where it is, and is to be moved."""
    here, there = sides(scene)
    scene.layout.workspace(NAME).mkdir(parents=True)
    fill(scene)
    if to_server:
        scene.runs_here = True
        write_record(scene.layout, here.with_booted())
        return move_from(scene, scene.record, there)
    write_record(scene.layout, here.with_booted())
    move_from(scene, scene.record, there).make()
    scene.effects.clear()
    scene.heard.clear()
    return move_from(scene, scene.record, here)


def move_from(scene: Scene, before: Record, after: Record) -> Move:
    return Move(scene.layout, NETWORK, before, after, scene.listen, lambda *words: None)


def check_at(scene: Scene, *, server: bool) -> None:
    """It is there alone, whole, and nothing of the move is left."""
    assert scene.record.moving is None
    assert is_local(scene.record.wanted) != server
    assert (scene.runs_here, scene.server.runs) == (not server, server)
    assert not scene.layout.arriving(NAME).exists()
    if server:
        assert not scene.home.exists()
        assert (scene.server.is_accepted, scene.server.is_retired) == (True, False)
        assert all(content in (scene.server.home or b"") for content in HOME.values())
    else:
        assert content(scene.home) == HOME
        assert scene.server == Server()


@pytest.mark.parametrize("to_server", [True, False])
def test_there_and_back(scene: Scene, to_server: bool) -> None:
    at_home(scene, to_server=to_server).make()
    check_at(scene, server=to_server)
    assert [(event, text.split(" (")[0]) for _, event, text in scene.heard][-1] == (
        "moved",
        "to the Incus server lab, project hutch" if to_server else "to this host",
    )


@pytest.mark.parametrize("to_server", [True, False])
@pytest.mark.parametrize("failing", ["receive", "receive a half", "send", "send more", "retire there", "start late"])
def test_what_fails_goes_back(scene: Scene, to_server: bool, failing: str) -> None:
    move = at_home(scene, to_server=to_server)
    scene.failing = {failing}
    on_the_way = "receive" in failing if to_server else "receive" not in failing
    if not on_the_way and failing != "start late":
        move.make()
        check_at(scene, server=to_server)
        return
    with pytest.raises(Unmet, match="web was not moved: "):
        move.make()
    check_at(scene, server=not to_server)
    assert not scene.layout.journal.exists()


@pytest.mark.parametrize("cuts", [1, 2])
def test_an_archive_that_is_cut_short_is_sent_once_more(scene: Scene, cuts: int) -> None:
    move = at_home(scene, to_server=True)
    scene.cuts = cuts
    with pytest.raises(Unmet, match="the connection ended") if cuts > 1 else nullcontext():
        move.make()
    assert [text for *_, text in scene.heard if "once more" in text] == ["the connection ended; it is copied once more"]
    check_at(scene, server=cuts == 1)


@pytest.mark.parametrize("to_server", [True, False])
def test_nothing_is_stopped_before_all_was_looked_at(scene: Scene, to_server: bool) -> None:
    move = at_home(scene, to_server=to_server)
    scene.failing = {"reserve", "check leaving"}
    with pytest.raises(HutchError, match="failed"):
        move.make()
    assert scene.effects == (["reserve", "discard there"] if to_server else ["check leaving"])
    assert (scene.runs_here, scene.server.runs) == (to_server, not to_server)


@pytest.mark.parametrize("to_server", [True, False])
@pytest.mark.parametrize("cut", range(16))
def test_it_is_killed(scene: Scene, to_server: bool, cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record says where it is, that home is whole, and the next command goes on or back."""
    move = at_home(scene, to_server=to_server)
    scene.cut = cut
    with monkeypatch.context() as dying:
        dying.setattr(Move, "_go_back", lambda self, was_up: None)  # nothing goes on after a kill
        try:
            move.make()
        except Killed:
            pass
    scene.cut = None
    found = scene.record
    if is_local(found.wanted):
        assert content(scene.home) == HOME
    else:
        assert all(content in (scene.server.home or b"") for content in HOME.values())
    if found.moving is not None:
        with pytest.raises(HutchError, match="its move was cut short"):
            refuse_moving(found, "")
        with nullcontext() if found.moving.step == "starting" else pytest.raises(HutchError, match="was cut short"):
            refuse_copying(found, "")
    reconcile_all(scene.layout, {NAME: not to_server}, scene.listen)
    now = scene.record
    here, there = sides(scene)
    if now.moving is not None:  # it is to be started where it is, as `up` does
        moving.start_one(scene.layout, NETWORK, now, scene.listen)
        finish(scene.layout, scene.record, scene.listen)
    elif is_local(now.wanted) == to_server:  # it went back, and is moved again
        move_from(scene, now, there if to_server else here).make()
    if not scene.runs_here and not scene.server.runs:  # it was stopped before
        moving.start_one(scene.layout, NETWORK, scene.record, scene.listen)
    check_at(scene, server=to_server)


def test_a_home_that_is_changed_meanwhile_is_not_left(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    move = at_home(scene, to_server=True)
    receive = FakeMover.receive

    def change(self: FakeMover, *words: Any) -> None:
        receive(self, *words)
        (scene.home / "file").write_bytes(b"changed")

    monkeypatch.setattr(FakeMover, "receive", change)
    with pytest.raises(Unmet, match="was changed while it was copied"):
        move.make()
    assert (scene.home / "file").read_bytes() == b"changed"
    assert (scene.runs_here, scene.server) == (True, Server())


@pytest.mark.parametrize("to_server", [True, False])
def test_an_old_one_that_was_started_meanwhile_is_not_removed(
    scene: Scene, to_server: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    move = at_home(scene, to_server=to_server)
    scene.cut = None
    with monkeypatch.context() as dying:
        dying.setattr(Move, "_go_back", lambda self, was_up: None)
        dying.setattr(moving, "finish", lambda *words: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            move.make()
    home, there = content(scene.home) if to_server else {}, scene.server.home
    if to_server:
        scene.runs_here = True
    else:
        scene.server.runs, scene.server.is_retired = True, False
    monkeypatch.setattr(scene, "effect", lambda what: None)  # two are live now, by somebody else's doing
    reconcile_all(scene.layout, {NAME: not to_server}, scene.listen)
    assert "started" in scene.heard[-1][2]
    assert scene.record.moving is not None
    assert (content(scene.home) if to_server else {}, scene.server.home) == (home, there)


def test_a_home_that_is_in_the_way_is_left_alone(scene: Scene) -> None:
    move = at_home(scene, to_server=False)
    fill(scene)
    with pytest.raises(HutchError, match="holds something already"):
        move.make()
    assert content(scene.home) == HOME
    assert scene.server.runs


def test_a_server_that_does_not_answer_holds_up_nobody(scene: Scene) -> None:
    """Going back from a copy on a server that is gone leaves it there, marked, and says so."""
    move = at_home(scene, to_server=True)
    scene.failing = {"receive"}

    def fail(what: str, real: Any = scene.effect) -> None:
        real(what)
        if what == "receive a half":
            scene.failing.add("discard there")

    scene.effect = fail  # type: ignore[method-assign]
    with pytest.raises(Unmet, match="receive failed"):
        move.make()
    assert ("warning", "the copied part is left there: discard there failed") in [said[1:] for said in scene.heard]
    assert (scene.runs_here, scene.record.moving, scene.server.is_accepted) == (True, None, False)


def not_finished(scene: Scene, monkeypatch: pytest.MonkeyPatch, *, to_server: bool) -> Record:
    """A workspace that is at its new place, where it does not run, and its old home waits."""
    move = at_home(scene, to_server=to_server)
    with monkeypatch.context() as dying:
        dying.setattr(Move, "_go_back", lambda self, was_up: None)
        dying.setattr(moving, "finish", lambda *words: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            move.make()
    scene.runs_here = scene.server.runs = False
    return scene.record


def test_the_only_home_is_never_deleted(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is lost on the server leaves the old one, and its removal keeps that."""
    found = not_finished(scene, monkeypatch, to_server=True)
    scene.server.home = None
    with pytest.raises(HutchError, match="the home is not there"):
        finish(scene.layout, found, scene.listen)
    assert content(scene.home) == HOME
    left = forget_other(scene.layout, scene.record, scene.listen, force=True)
    assert is_local(left.wanted)
    assert (left.moving, scene.record, content(scene.home)) == (None, left, HOME)
    assert any("did not come" in text for _, _, text in scene.heard)


def test_one_that_never_had_a_home_is_moved(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = sides(scene)
    write_record(scene.layout, here)
    scene.server = Server(home=b"a half", is_accepted=False)  # an earlier move has left it
    move_from(scene, here, there).make()
    assert scene.server.home is None
    assert scene.record.moving is None
    assert not is_local(scene.record.wanted)


def test_an_old_server_that_is_gone_is_forgotten_by_force(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    found = not_finished(scene, monkeypatch, to_server=False)
    scene.failing = {"discard there"}
    with pytest.raises(HutchError, match="discard there failed"):
        forget_other(scene.layout, found, scene.listen, force=False)
    left = forget_other(scene.layout, found, scene.listen, force=True)
    assert (left.moving, is_local(left.wanted), content(scene.home)) == (None, True, HOME)
    assert "may be left on the Incus server lab" in scene.heard[-1][2]


def test_an_old_home_that_was_changed_after_the_copy_is_kept(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    found = not_finished(scene, monkeypatch, to_server=True)
    assert stat.S_IMODE(scene.layout.workspace(NAME).stat().st_mode) == 0o700
    (scene.home / "new").write_bytes(b"work")
    with pytest.raises(HutchError, match="was changed after it had been copied, so it was kept"):
        finish(scene.layout, found, scene.listen)
    assert (content(scene.home)["new"], scene.server.is_accepted) == (b"work", False)
    scene.home.rename(scene.home.with_name("away"))
    finish(scene.layout, found, scene.listen)
    assert (scene.record.moving, scene.server.is_accepted) == (None, True)


def test_an_old_home_that_is_half_deleted_is_not_taken_for_changed(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = not_finished(scene, monkeypatch, to_server=True)

    def remove_half(path: Path) -> None:
        if path.exists():
            (path / "file").unlink()
            raise Killed

    with monkeypatch.context() as dying:
        dying.setattr(moving, "remove_tree", remove_half)
        with pytest.raises(Killed):
            finish(scene.layout, found, scene.listen)
    finish(scene.layout, scene.record, scene.listen)
    assert not scene.home.exists()
    assert not scene.layout.leaving(NAME).exists()


@pytest.mark.parametrize("below", ["", "/tree"])
def test_a_home_that_another_mounts_stays(scene: Scene, below: str) -> None:
    move = at_home(scene, to_server=True)
    mounts = (Mount(f"{scene.home}{below}", "/mnt", readonly=True),)
    write_record(scene.layout, replace(move.before, name="api", wanted=workspace("api", mounts=mounts), booted=None))
    with pytest.raises(HutchError, match=f"api mount {scene.home}, or a part of it, which goes to a server"):
        move.make()
    assert (scene.effects, scene.runs_here) == ([], True)


@pytest.mark.parametrize("finishing", [reconcile_all, finish_started])
def test_an_old_server_that_does_not_answer_holds_up_nobody(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, finishing: Callable[..., None]
) -> None:
    found = not_finished(scene, monkeypatch, to_server=False)
    scene.runs_here, scene.failing = True, {"discard there"}
    finishing(scene.layout, {NAME: True}, scene.listen)
    assert scene.heard[-1][1:] == ("warning", "an earlier move of it is not at its end: discard there failed")
    assert scene.record == found
    with pytest.raises(HutchError, match="its move was cut short, so it is not moved again"):
        move_from(scene, found, sides(scene)[1]).make()
    scene.failing = set()
    finishing(scene.layout, {NAME: True}, scene.listen)
    check_at(scene, server=False)


def test_a_home_that_came_and_is_lost_is_not_made_anew(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    found = not_finished(scene, monkeypatch, to_server=False)
    refuse_lost_homes([found])
    scene.home.rename(scene.home.with_name("away"))
    with pytest.raises(StartsFailed) as caught:
        refuse_lost_homes([found])
    assert "is gone, and the old one is kept" in caught.value.failures[NAME]
    with pytest.raises(HutchError, match=r"is not in .* any more"):
        finish(scene.layout, found, scene.listen)
    assert scene.server.home is not None


def test_one_whose_old_place_is_not_reconciled_was_moved(scene: Scene) -> None:
    move = at_home(scene, to_server=False)
    scene.failing = {"discard there"}
    with pytest.raises(Unmet, match="web was moved, but its old place is as it was: discard there failed"):
        move.make()
    assert (scene.runs_here, content(scene.home)) == (True, HOME)
