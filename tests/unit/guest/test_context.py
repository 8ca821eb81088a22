"""The text that tells whoever works inside where that is."""

from __future__ import annotations

import pytest

from hutch.guest.context import render_context
from hutch.spec.model import Mount
from hutch.spec.record import Decision
from tests.unit.facts import check_golden, everything, workspace

LIST = ("api.example.com:443", "*.example.org")
DECISIONS = (
    Decision("api.example.com:443", True, 1.0),
    Decision("pkg.example.net", True, 1.0),
    Decision("cdn.example.net:443", True, 1.0, 3600.0),
    Decision("telemetry.example.net", False, 1.0),
)
CASES = {
    "minimal": render_context("web", workspace()),
    "list": render_context(
        "web",
        workspace(type="vm", egress=LIST, mounts=(Mount("/home/alice/src/web", "/home/alice/src/web"),)),
        DECISIONS,
        is_machine=True,
    ),
    "everything": render_context("web", everything(egress="none", learn=True)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_text(case: str) -> None:
    check_golden(f"context/{case}.md", CASES[case])


def test_what_is_written_in_a_private_directory_stays() -> None:
    text = render_context("web", workspace(mounts=(Mount("/home/alice/.claude", "/home/dev/.claude", mode="private"),)))
    assert "shared: what is written there stays in this workspace." in text


def test_all_and_an_empty_list() -> None:
    text = render_context("web", workspace(egress="all"), DECISIONS)
    assert "and private networks" in text
    assert "example.net" not in text  # a decision counts beside a list alone
    assert "networks: none." in render_context("web", workspace(egress=()))
