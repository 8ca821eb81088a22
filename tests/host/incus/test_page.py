"""docs/incus.md happens as it says, on the cluster of the tests. See tests/host/pages.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.host.incus.conftest import Elsewhere
from tests.host.pages import Story, check_page
from tests.support.incus_cluster import REMOTE

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[3] / "docs" / "incus.md"
TABLE = re.compile(r"^\[engines\.incus\]\n(?:.+\n)*\n?", re.MULTILINE)
"""The page's own [engines.incus]: the hutch of the test has one of its own."""


class FarStory(Story):
    """A page that is told on a cluster: its remote is called `farm`, and the member that it shows is the first one."""

    def block(self, kind: str, text: str) -> str:
        if kind != "toml":
            return super().block(kind, text)
        super().block(kind, TABLE.sub("", text))
        return text

    def elsewhere(self, said: str) -> str:
        assert isinstance(self.instance, Elsewhere)
        words = {
            rf"\b{REMOTE}\b": "farm",
            rf"\b{re.escape(self.instance.project)}\b": "hutch",
            r"\bm[1-3]\b": "m1",
        }
        said = super().elsewhere(said)
        for pattern, word in words.items():
            said = re.sub(pattern, word, said)
        subnet = self.instance.there.removesuffix("0.0/16")
        shorter = " " * (len(subnet) - len("10.83."))  # columns stay where they are
        return re.sub(rf"\b{re.escape(subnet)}([0-9.]+)( ?)", lambda m: f"10.83.{m[1]}{m[2]}{m[2] and shorter}", said)


def test_incus(hutch: Elsewhere) -> None:
    check_page(PAGE, FarStory(hutch, lambda argv: None))
