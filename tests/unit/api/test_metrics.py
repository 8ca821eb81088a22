"""The page of metrics, as the parsers of those who collect it read it."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics

from hutch.api.metrics import FAMILIES, Used, count, render_metrics
from hutch.cli.show import absent
from hutch.spec.record import State
from tests.unit.api.test_summary import egress, entry

RUNNING = {
    **absent("web", "vm", "/f"),
    "state": "running",
    "engine": "local",
    "image": "debian",
    "since": 12.5,
    "ready_seconds": 0.75,
    "updates": 3,
    "warnings": ["one", "two"],
}

Found = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(page: str, how: Any) -> Found:
    """Each sample of a page, by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in how(page)
        for sample in family.samples
    }


def both(page: str) -> Found:
    """The samples of a page, as either parser reads them."""
    older = read(page, parser.text_string_to_metric_families)
    assert older == read(page, openmetrics.text_string_to_metric_families)
    return older


def test_a_page_is_what_parsers_take() -> None:
    found = both(render_metrics([(RUNNING, Used(1 << 20, 2, 7)), (absent("lab", None, "/f"), Used())]))

    def of(name: str, workspace: str = "web", **labels: str) -> float | None:
        return found.get((f"hutch_workspace_{name}", frozenset({"workspace": workspace, **labels}.items())))

    assert of("info", type="vm", engine="local", image="debian", member="") == 1
    assert {state: of("state", state=state) for state in get_args(State)} == {
        state: float(state == "running") for state in get_args(State)
    }
    values = {family: of(family) for family in FAMILIES if family not in ("info", "state")}
    assert values == {
        "since_seconds": 12.5,
        "ready_seconds": 0.75,
        "memory_bytes": 1 << 20,
        "updates": 3,
        "warnings": 2,
        "day_starts": 2,
        "day_refusals": 7,
    }
    assert of("state", "lab", state="absent") == 1
    assert [of(family, "lab") for family in values] == [None] * 4 + [0] + [None] * 2


def test_a_page_about_nobody_is_one() -> None:
    assert both(render_metrics([])) == {}


@pytest.mark.parametrize("image", ['a"b', "a\\", "a\nb", 'a"} 1\nhutch_workspace_info{workspace="x'], ids=ascii)
def test_no_value_ends_its_label(image: str) -> None:
    found = both(render_metrics([({**RUNNING, "image": image}, Used())]))
    (labels,) = (dict(labels) for name, labels in found if name == "hutch_workspace_info")
    assert labels["image"] == image


def test_a_day_is_counted() -> None:
    none: dict[str, Any] = {"address": None, "why": "not listed"}
    entries = [
        entry("started", 1, start_kind="cold"),
        entry("restarted", 2),
        entry("started", 2, start_kind="cold"),
        entry("created", 3, type="vm", image="i", file="f"),
        egress("refused", "a.example", 20, 5, **none),
        egress("refused", "b.example", 30, 1, 443, **none),
        egress("allowed", "c.example", 40, 9, **none),
        entry("connected", 50, address="192.168.83.1", port=4000),
    ]
    assert count(entries) == (2, 6)
