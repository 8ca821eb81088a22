"""docs/incus.md says what hutch says: what does not hold on a server, and the messages that it explains."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import hutch
from hutch.backends.incus import LIMITS

PAGE = (Path(__file__).parents[2] / "docs" / "incus.md").read_text(encoding="utf-8")
SOURCES = Path(hutch.__file__).parent
SPOKEN = ("engines/incus/*.py", "backends/incus.py", "plan/decide.py")


def said() -> str:
    """All texts of the modules that speak of servers, each on a line; what is filled in is an ellipsis."""
    texts = []
    for path in sorted(path for pattern in SPOKEN for path in SOURCES.glob(pattern)):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(re.sub(r"\{\w+\}", "…", node.value))
    return "\n".join(texts)


def test_the_page_has_the_limits() -> None:
    listed = PAGE.partition("<!-- limits -->\n")[2].partition("<!-- end -->")[0]
    assert listed == "".join(f"- {text}\n" for text in LIMITS)


def test_every_message_that_is_explained_is_there() -> None:
    rows = PAGE.partition("## Troubleshooting")[2].splitlines()[4:]
    messages = [
        message for row in rows if row.startswith("|") for message in re.findall(r"`([^`]+)`", row.split("|")[1])
    ]
    assert len(messages) > 15
    spoken = said()
    assert [message for message in messages if message not in spoken] == []
