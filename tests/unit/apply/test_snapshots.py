"""snapshot, restore and fork with a cluster of the tests: what is asked, noted, and undone by the next command."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hutch.apply import snapshots
from hutch.apply.recovery import recover
from hutch.backends.incus import FORK, ID
from hutch.engines import need_snapshots
from hutch.engines.incus import IncusEngine, preparing
from hutch.engines.incus.snapshots import IncusSnapshots
from hutch.errors import HutchError, UsageError
from hutch.plan.actions import Action, Plan, Wanted
from hutch.spec.model import Config
from hutch.spec.names import Layout
from hutch.spec.record import Record
from hutch.state import read_record, read_records, unfinished, write_record
from tests.unit.engines.incus.cluster import record
from tests.unit.engines.incus.fake import PLACE
from tests.unit.engines.incus.points_cluster import PointsWorld
from tests.unit.facts import NETWORK, workspace

WEB = record().with_booted()
COPY = record("copy", 9)
CONFIG = Config("/srv/hutch.toml", NETWORK, {"web": WEB.wanted, "copy": COPY.wanted})


class Host:
    """A hutch with one workspace, which runs on the cluster. `heard` is what a listener is told."""

    def __init__(self, layout: Layout, world: PointsWorld) -> None:
        self.layout, self.world = layout, world
        self.heard: list[tuple[str, ...]] = []
        self.questions: list[str] = []
        self.turned: list[str] = []
        self.copy = COPY

    def find(self, name: str) -> Record:
        found = read_record(self.layout, name)
        if found is None:
            raise UsageError(f"there is no workspace {name}")
        return found

    def listen(self, *said: str) -> None:
        self.heard.append(said)

    def make(self, names: Any) -> Plan:
        wanted = Wanted(self.copy.wanted, self.copy.image, self.copy.place)
        return Plan("/srv/hutch.toml", NETWORK, tuple(Action(name, "create", wanted=wanted) for name in names))

    def snapshot(self, tag: str = "") -> str:
        return snapshots.snapshot(self.layout, "web", tag, self.find, self.listen)

    def restore(self, tag: str) -> None:
        snapshots.restore(self.layout, "web", tag, self.find, self.listen, confirm=self.questions.append)

    def fork(self, *names: str, tag: str = "") -> None:
        snapshots.fork(self.layout, CONFIG, "web", names, self.find, self.make, self.listen, tag=tag)

    def recover(self) -> None:
        recover(self.layout, self.listen)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    world, layout = PointsWorld(), Layout(tmp_path / "state", tmp_path / "run")
    made = Host(layout, world)
    layout.host_key("web").parent.mkdir(parents=True)
    layout.host_key("web").write_text("private\n")
    layout.key(0).parent.mkdir(parents=True)
    layout.key(0).with_name("id_ed25519.pub").write_text("ssh-ed25519 A\n")
    for name in ("ensure_project", "ensure_network"):
        monkeypatch.setattr(preparing, name, lambda *arguments: None)
    monkeypatch.setattr(preparing, "ensure_image", lambda client, layout, image: image)
    monkeypatch.setattr(preparing, "choose_pool", lambda client: "default")
    engine, points = IncusEngine(layout, world.client), IncusSnapshots(layout, world.client)
    monkeypatch.setattr(snapshots, "need_snapshots", lambda layout, record: points)
    monkeypatch.setattr("hutch.engines.snapshots_of", lambda layout, record: points)
    monkeypatch.setattr(snapshots, "observe_all", lambda layout, records: engine.observe(records))
    monkeypatch.setattr(snapshots, "turn", lambda layout, verb, names, find, listen: made.turned.append(verb))
    monkeypatch.setattr("hutch.apply.reconcile.reconcile_host", lambda *arguments: made.turned.append("reconcile"))
    monkeypatch.setattr("hutch.apply.recovery.end_looks", lambda layout: None)
    monkeypatch.setattr("hutch.apply.recovery.collect_leftovers", lambda layout, records: None)
    write_record(layout, WEB)
    assert engine.start({"web": WEB}, lambda *said: None) == {}
    world.write("web", "one")
    world.steps.clear()
    return made


def test_those_of_this_host_have_none_yet(tmp_path: Path) -> None:
    local = Record("web", "/f", workspace(), "image", 0, "0" * 32)
    with pytest.raises(HutchError, match="web: hutch takes no snapshots of the workspaces that this host runs yet"):
        need_snapshots(Layout(tmp_path, tmp_path), local)


def test_a_snapshot_is_told_with_its_pause(host: Host) -> None:
    assert host.snapshot("monday") == "monday"
    ((name, event, text),) = host.heard
    assert (name, event) == ("web", "snapshot") and text.startswith("monday (paused for ")
    assert unfinished(host.layout) is None
    assert len(host.snapshot()) == len("20261128-120000")
    with pytest.raises(UsageError):
        host.snapshot("../etc")


def test_one_that_runs_is_stopped_after_a_question_and_started_again(host: Host) -> None:
    host.snapshot("monday")
    host.world.write("web", "two")
    host.restore("monday")
    assert len(host.questions) == 1 and host.turned == ["start"]
    assert host.world.words("web")[1] == "one"
    host.turned.clear()
    host.restore("monday")  # it is stopped by now
    assert len(host.questions) == 1 and host.turned == []


def test_an_answer_of_no_changes_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.snapshot("monday")
    host.world.steps.clear()

    def no(question: str) -> None:
        raise HutchError("nothing was changed")

    with pytest.raises(HutchError, match="nothing was changed"):
        snapshots.restore(host.layout, "web", "monday", host.find, host.listen, confirm=no)
    assert host.world.steps == [] and unfinished(host.layout) is None


def test_one_that_cannot_be_reached_is_not_restored(host: Host) -> None:
    host.snapshot("monday")
    host.world.instances["web"]["status"] = "Error"
    with pytest.raises(HutchError, match="web cannot be reached"):
        host.restore("monday")


def test_the_next_command_undoes_a_snapshot_that_was_cut_short(host: Host) -> None:
    host.world.cut = 3
    with pytest.raises(HutchError):
        host.snapshot("monday")
    host.world.cut = None
    assert host.world.instances["web"]["status"] == "Frozen"
    assert unfinished(host.layout) == ("snapshot", ("web",))
    host.heard.clear()
    host.recover()
    assert host.heard == [("web", "warning", "an earlier `hutch snapshot` was cut short: it was frozen, and goes on")]
    assert host.world.instances["web"]["status"] == "Running" and unfinished(host.layout) is None


def test_a_server_that_is_away_holds_up_nobody(host: Host) -> None:
    host.world.cut = 3
    with pytest.raises(HutchError):
        host.snapshot("monday")
    host.world.silent, host.world.is_slow = {"m1", "m2"}, True
    host.heard.clear()
    host.recover()
    ((name, event, text),) = host.heard
    assert (name, event) == ("web", "warning") and "cannot be removed yet: no answer" in text


# Forks.


def test_a_fork_is_written_down_once_it_is_whole(host: Host) -> None:
    host.fork("copy")
    made = read_records(host.layout)["copy"]
    assert host.world.volume("home-copy")["config"] == {ID: made.machine_id}
    assert made.machine_id != WEB.machine_id and made.booted is None and made.file == "/srv/hutch.toml"
    assert made.place == PLACE and host.turned == ["reconcile"]
    assert ("copy", "forked", "from web") in host.heard
    with pytest.raises(HutchError, match="there is a workspace copy already"):
        host.fork("copy")


def test_what_is_not_declared_is_told_with_its_lines(host: Host) -> None:
    with pytest.raises(UsageError, match="does not declare other") as caught:
        host.fork("other")
    assert caught.value.details.splitlines()[:3] == [
        "[workspaces.other]",
        'type = "container"',
        'engine = "incus"',
    ]
    lines = snapshots.declaration("other", replace(WEB.wanted, persist="all", packages=("git", "vim")))
    assert lines[3:] == ['packages = ["git", "vim"]', 'persist = "all"']
    for wrong in (("web",), ("copy", "copy"), ("Copy",)):
        with pytest.raises(UsageError):
            host.fork(*wrong)


@pytest.mark.parametrize(
    ("keys", "said"),
    [({"user": "other"}, "user"), ({"owner": 1234}, "owner"), ({"persist": "all"}, "persist")],
)
def test_what_could_not_use_the_files_is_refused(host: Host, keys: dict[str, Any], said: str) -> None:
    host.copy = replace(COPY, wanted=replace(COPY.wanted, **keys))
    with pytest.raises(HutchError, match=f"a fork of web has the same {said}"):
        host.fork("copy")
    host.copy = replace(COPY, image="another")
    with pytest.raises(HutchError, match="a fork of web has the same image"):
        host.fork("copy")
    host.copy = replace(COPY, place=replace(PLACE, project="other"))
    with pytest.raises(HutchError, match="a fork of web has the same engine"):
        host.fork("copy")
    assert "copy" not in read_records(host.layout) and len(host.world.volumes) == 1


def test_a_fork_that_is_cut_short_is_undone_or_whole(host: Host) -> None:
    for step in range(40):
        host.world.cut = step
        host.world.steps.clear()
        try:
            host.fork("copy")
        except HutchError:
            host.world.cut = None
            host.recover()
            assert host.world.instances["web"]["status"] == "Running", step
            written = "copy" in read_records(host.layout)
            assert written == (len(host.world.volumes) == 2), step
            if written:
                assert FORK not in host.world.volume("home-copy")["config"]
                break
        else:
            break
    assert step > 8
