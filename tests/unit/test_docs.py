"""What the documentation says of the model is what the model says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hutch.backends import weight_of
from hutch.spec.model import WORKSPACE_KEYS, has_effect
from tests.unit.facts import workspace

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(("column", "kind"), [(1, "container"), (2, "vm")])
def test_the_weights_of_keys(column: int, kind: str) -> None:
    """Keys without effect on a type are left out."""
    lines = (DOCS / "up.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    told = {
        row[0]: set(re.findall(r"`(\w+)`", row[column])) for row in rows if row[0] in ("live", "restart", "recreate")
    }
    own = [key for key in WORKSPACE_KEYS if has_effect(key, kind)]
    assert told == {weight: {key for key in own if weight_of(key, workspace(type=kind)) == weight} for weight in told}
    assert set.union(*told.values()) == set(own)
