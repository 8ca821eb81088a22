"""The NixOS module knows hutch's keys from a file that `hutch schema` makes."""

from __future__ import annotations

import json
from pathlib import Path

from hutch.spec.schema import render_schema
from tests.unit.facts import check_golden

SCHEMA = Path(__file__).parents[2] / "nix" / "schema.json"


def test_the_schema_is_that_of_this_hutch() -> None:
    check_golden(str(SCHEMA), json.dumps(render_schema(), indent=2) + "\n")
