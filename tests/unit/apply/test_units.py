"""Which units are written anew while workspaces run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hutch.apply import live, units
from hutch.backends.launch import Launch, encode_launch
from hutch.host.services.unit_texts import refresh_units
from hutch.runtime.observe import read_launch
from hutch.spec.names import Layout
from hutch.spec.record import Observation, Record
from tests.unit.facts import NETWORK, launched, workspace


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state", tmp_path / "run")


def running(layout: Layout, **keys: Any) -> Record:
    """A workspace that runs, and of which something else is wanted by now."""
    booted = Record("web", "/f", workspace(**keys), "image-1", 0x7000_0000, "0" * 32).with_booted()
    layout.image_root("image-1").mkdir(parents=True)
    layout.runtime("web").mkdir(parents=True)
    return replace(booted, wanted=replace(booted.wanted, env=(("A", "b"),)), image="image-2")


@pytest.mark.parametrize("is_older", [False, True])
def test_what_an_older_hutch_started_has_its_next_start_described(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, is_older: bool
) -> None:
    record = running(layout)
    layout.launch("web").write_bytes(b'{"supervisor": 1}' if is_older else encode_launch(launched()))
    made: list[Record] = []
    provided: list[Launch] = []

    def make_launch(layout: Layout, record: Record, *rest: object) -> Launch:
        made.append(record)
        return launched()

    monkeypatch.setattr("hutch.host.services.units.resting_units", lambda names: set())
    monkeypatch.setattr(units, "make_launch", make_launch)
    monkeypatch.setattr(units, "provide", lambda layout, manager, launches: provided.extend(launches))
    monkeypatch.setattr(units, "write_record", lambda *words: pytest.fail("it is what it was booted as"))
    units.reconcile_units(layout, NETWORK, {"web": record})
    assert len(provided) == is_older
    assert [(each.wanted, each.image) for each in made] == [(workspace(), "image-1")] * is_older


def test_a_live_change_keeps_the_hypervisor_that_runs(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one may have been installed since, which "auto" would choose at the next start."""
    record = replace(running(layout, type="vm", hypervisor="auto"), image="image-1")
    layout.launch("web").write_bytes(encode_launch(launched(facts={"hypervisor": "qemu"})))
    made: list[Record] = []
    monkeypatch.setattr("hutch.apply.hardware.accelerator_of", lambda *words: None)
    monkeypatch.setattr(live, "make_launch", lambda layout, record, *rest, **more: made.append(record))
    live._Live(layout, NETWORK, record, Observation(state="running"))
    assert [each.wanted.hypervisor for each in made] == ["qemu"]
    assert read_launch(layout.launch("web")) is not None


@pytest.mark.parametrize("place", ["outside", "state"])
def test_only_what_others_might_look_at_is_guarded_at_boot(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """A home in hutch's own directory is closed. The unit goes when the last one outside does."""
    done: list[tuple[str, list[str]]] = []
    monkeypatch.setattr("hutch.host.services.units.has_systemd", lambda: True)
    for act in ("ensure_units", "enable_units", "remove_units"):
        monkeypatch.setattr(f"hutch.host.services.units.{act}", lambda names, act=act: done.append((act, list(names))))
    monkeypatch.setattr(units, "wanted_services", lambda *words, is_watched: ())
    home = str(layout.home("web")) if place == "state" else "/home/alice/web"
    record = Record("web", "/f", workspace(home=home), "image-1", 0x7000_0000, "0" * 32)
    units.reconcile_host_units(layout, NETWORK, {"web": record}, is_unit=True)
    guarding = [act for act, names in done if layout.guards_unit in names]
    assert guarding == (["ensure_units", "enable_units"] if place == "outside" else ["remove_units"])


@pytest.mark.parametrize(
    ("keys", "periods"),
    [
        ([{"auto_refresh": "weekly"}, {}], ["weekly"]),
        ([{"auto_refresh": "weekly"}, {"auto_refresh": "daily"}, {"auto_refresh": "weekly"}], ["daily", "weekly"]),
        ([{}], []),
    ],
)
def test_images_are_made_anew_by_timers_of_the_periods_that_are_asked_for(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, keys: list[dict[str, Any]], periods: list[str]
) -> None:
    monkeypatch.setattr("hutch.host.services.units.has_systemd", lambda: True)
    monkeypatch.setattr(units, "wanted_services", lambda *words, is_watched: ())
    records = {
        f"w{number}": Record(f"w{number}", "/f", workspace(f"w{number}", **given), "image-1", 0x7000_0000, "0" * 32)
        for number, given in enumerate(keys)
    }
    found = units.wanted_host_units(layout, NETWORK, records)
    wanted = {unit for period in periods for unit in refresh_units(layout, period)}
    assert {unit for unit in found if "-refresh-" in unit} == wanted
    assert units.due(records, "weekly") == [
        f"w{n}" for n, given in enumerate(keys) if given == {"auto_refresh": "weekly"}
    ]


WEEKLY = Record("web", "/f", workspace(auto_refresh="weekly"), "image-1", 0x7000_0000, "0" * 32)
KEPT = replace(WEEKLY, wanted=workspace(auto_refresh="weekly", persist="all"))
KEPT_MACHINE = replace(WEEKLY, wanted=workspace(type="vm", auto_refresh="weekly", persist="all"))


@pytest.mark.parametrize(
    ("record", "is_due"),
    [
        (WEEKLY, True),
        (replace(WEEKLY, removed=True), False),
        (replace(WEEKLY, ejected="/srv/web"), False),
        (KEPT, True),
        (KEPT.with_booted(), False),  # it does not start from its image any more
        (KEPT_MACHINE.with_booted(), True),  # but boots its kernel
    ],
    ids=["is there", "removed", "ejected", "to be kept", "kept", "a kept machine"],
)
def test_who_has_no_use_for_a_newer_image_asks_for_none(record: Record, is_due: bool) -> None:
    assert (units.due({"web": record}, "weekly"), units.refreshing({"web": record})) == (
        (["web"], ["weekly"]) if is_due else ([], [])
    )
