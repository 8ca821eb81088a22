"""What comes back of a removed workspace, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hutch.apply import reconcile, undeleting
from hutch.apply.holdings import kept_homes
from hutch.apply.removal import mark_removed
from hutch.apply.undeleting import undelete
from hutch.errors import HutchError, UsageError
from hutch.runtime import control
from hutch.spec.entries import Publish
from hutch.spec.model import Network
from hutch.spec.names import Layout
from hutch.spec.record import NetworkRecord, Record
from hutch.state import read_record, read_records, write_network, write_record
from tests.unit.facts import NETWORK, workspace
from tests.unit.scale import PLACE

Said = list[tuple[str, str, str]]


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setattr(reconcile, "reconcile_host", lambda *words: None)
    monkeypatch.setattr(reconcile, "with_uplink", lambda layout, network, applied: network)
    monkeypatch.setattr(undeleting, "recover", lambda layout, listen: None)
    monkeypatch.setattr(undeleting, "observe_ejected", dict)
    monkeypatch.setattr(control, "forget", lambda layout, name: None)
    found = Layout(tmp_path / "state", tmp_path / "run")
    found.workspaces.mkdir(parents=True)
    write_network(found, NetworkRecord(NETWORK, "/f"))
    return found


def add(layout: Layout, name: str, *, removed: bool = True, **keys: Any) -> Record:
    home = layout.home(name)
    home.mkdir(parents=True)
    (home / "file").write_text("x" * 5000)
    record = Record(name, "/gone/hutch.toml", workspace(name, home=str(home), **keys), "image-1", 1 << 30, "0" * 32)
    write_record(layout, record.with_booted())
    if removed:
        mark_removed(layout, {name: record}, name, lambda *words: None)
    return record


def brought(layout: Layout, name: str = "web", networks: Mapping[str, Network] | None = None) -> Said:
    said: Said = []

    def load(path: Path) -> Network:
        if str(path) not in (networks or {}):
            raise UsageError(f"{path} is not there")
        return (networks or {})[str(path)]

    undelete(layout, name, lambda *words: said.append(words), load)
    return said


def test_it_is_as_it_was_and_stopped(layout: Layout) -> None:
    before = add(layout, "web")
    kept = read_record(layout, "web")
    assert kept is not None and kept.removed and kept.removed_at is not None
    said = brought(layout)
    assert said[0] == ("web", "undeleted", "(it is stopped; `hutch start web` starts it)")
    assert [words[2].partition(",")[0].partition(" is ")[0] for words in said[1:]] == [
        "/gone/hutch.toml",
        "its image image-1",
    ]
    assert read_record(layout, "web") == replace(before, booted=None)
    assert kept_homes(layout) == []


def test_what_is_kept_is_listed(layout: Layout) -> None:
    add(layout, "web")
    add(layout, "db", removed=False)
    [entry] = kept_homes(layout)
    assert entry == {
        "name": "web",
        "type": "container",
        "ip": "192.168.83.2",
        "home": str(layout.home("web")),
        "file": "/gone/hutch.toml",
        "removed": entry["removed"],
        "size": entry["size"],
    }
    assert 5000 <= entry["size"] < 1 << 20
    assert entry["removed"].endswith("+00:00")
    old = replace(read_records(layout)["web"], removed_at=None)  # an earlier hutch removed it
    write_record(layout, old)
    assert kept_homes(layout)[0]["removed"] is None


def test_a_home_that_a_server_keeps_is_listed_without_a_size(layout: Layout) -> None:
    add(layout, "web")
    found = read_records(layout)["web"]
    write_record(layout, replace(found, wanted=replace(found.wanted, engine="incus", home=None)))
    assert kept_homes(layout)[0]["size"] is None


def test_another_network_gives_another_address(layout: Layout) -> None:
    add(layout, "web")
    write_network(layout, NetworkRecord(replace(NETWORK, subnet="10.7.0.0/24"), "/f"))
    assert "with another address, 10.7.0.2" in brought(layout)[0][2]
    found = read_record(layout, "web")
    assert found is not None and found.wanted.ip == "10.7.0.2"


def test_without_a_network_the_file_tells(layout: Layout) -> None:
    add(layout, "web")
    layout.network_record.unlink()
    layout.network_record.with_name("network.json.copy").unlink()
    with pytest.raises(HutchError, match=r"/gone/hutch\.toml is not there") as caught:
        brought(layout)
    assert caught.value.resolution.startswith("`hutch -f FILE undelete web`")
    assert brought(layout, networks={"/gone/hutch.toml": NETWORK})[0][1] == "undeleted"


def test_what_another_has_by_now(layout: Layout) -> None:
    port = Publish("", 8080, 80, "tcp")
    add(layout, "web", publish=(port,))
    add(layout, "db", removed=False, ip="192.168.83.3", publish=(port,))
    with pytest.raises(HutchError, match="web cannot be brought back") as caught:
        brought(layout)
    assert "8080" in caught.value.details
    found = read_record(layout, "web")
    assert found is not None and found.removed


def test_what_is_not_kept(layout: Layout) -> None:
    add(layout, "there", removed=False)
    for name, words in (("../x", "no home is kept"), ("nobody", "no home is kept"), ("there", "there is there")):
        with pytest.raises(UsageError, match=words):
            brought(layout, name)
    gone = add(layout, "gone")
    (layout.home("gone") / "file").unlink()
    layout.home("gone").rmdir()
    with pytest.raises(HutchError, match=f"its home {gone.wanted.home} is gone"):
        brought(layout, "gone")
    far = replace(gone, name="far", removed=True, wanted=workspace("far", engine="incus"), place=PLACE)
    write_record(layout, far)
    with pytest.raises(HutchError, match="on the Incus server") as caught:
        brought(layout, "far")
    assert "hutch up far" in caught.value.resolution
    write_record(layout, replace(gone, name="out", removed=True, ejected="/srv/out"))
    with pytest.raises(UsageError, match="was ejected"):
        brought(layout, "out")
