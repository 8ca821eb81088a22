"""Reasons of a plan name the kits that they come from, and no others."""

from __future__ import annotations

from typing import Any

import pytest

from hutch.plan.actions import Action, Change
from hutch.plan.origins import with_kits
from hutch.spec.joining import join_scripts
from hutch.spec.model import Brought

MOUNT = {"source": "/a", "target": "/a", "readonly": False, "create": False}
BROUGHT: Brought = {
    "packages": {"node": ["nodejs", "npm"], "claude": ["git"]},
    "setup": {"claude": ["npm install\n"]},
    "mounts": {"node": [MOUNT]},
    "env": {"node": [["A", "1"]]},
    "egress": {"claude": ["api.example.org"]},
}


@pytest.mark.parametrize(
    ("key", "old", "new", "kits"),
    [
        ("packages", ["git"], ["git", "nodejs"], ("node",)),
        ("packages", [], ["git", "nodejs", "npm"], ("node", "claude")),
        ("packages", ["git", "nodejs", "npm"], ["git", "nodejs", "npm", "vim"], ()),
        ("setup", "", join_scripts([("claude", "npm install\n")], ""), ("claude",)),
        ("setup", "npm install\nx", "npm install\n", ()),
        ("mounts", [], [MOUNT], ("node",)),
        ("mounts", [{**MOUNT, "readonly": True}], [MOUNT], ("node",)),
        ("env", [["A", "0"]], [["A", "1"]], ("node",)),
        ("egress", "internet", ["api.example.org", "x.example.org"], ("claude",)),
        ("egress", ["api.example.org"], ["api.example.org", "x.example.org"], ()),
        ("memory", None, 1, ()),
        ("state", "stopped", "running", ()),
    ],
)
def test_the_kits_behind_a_change(key: str, old: Any, new: Any, kits: tuple[str, ...]) -> None:
    (change,) = with_kits(Action("web", "restart", (Change(key, old, new),)), {}, BROUGHT).reasons
    (back,) = with_kits(Action("web", "restart", (Change(key, new, old),)), BROUGHT, {}).reasons
    assert back.kits == kits
    assert change.kits == kits
    assert change.to_json().get("kits", ()) == kits


def test_a_new_workspace_has_them_in_notes() -> None:
    action = with_kits(Action("web", "create", (Change("workspace", None, "declared"),)), {}, BROUGHT)
    assert action.notes == (
        "the kit node brings packages, mounts, env",
        "the kit claude brings packages, setup, egress",
    )
    assert with_kits(Action("web", "create"), {}, {}).notes == ()
