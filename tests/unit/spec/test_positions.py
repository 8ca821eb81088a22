"""Lines and source text of values, wherever TOML lets them be."""

from __future__ import annotations

import pytest

from hutch.spec.positions import Positions
from hutch.spec.validation import Path, dotted, shorten, undotted

SOURCE = """\
top.level = 1 # one

[workspaces."we\\u0062"]
type = 'vm' # two
list = [ # three
  "a", # four
  # five
  [1,
   2],
  { x = 1, "y z".w = [
    { deep = true } ] },
]
text = '''
line
'''
[[workspaces.web.mounts]]
source = "/a"
[[workspaces.web.mounts]]
source = "/b"
[workspaces.web.mounts.sub]
key = 1979-05-27
[other.table]
"""


@pytest.mark.parametrize(
    ("path", "line", "text"),
    [
        (("top",), 1, ""),
        (("top", "level"), 1, "1"),
        (("workspaces",), 3, ""),
        (("workspaces", "web"), 3, ""),
        (("workspaces", "web", "type"), 4, "'vm'"),
        (("workspaces", "web", "missing"), 3, ""),
        (("workspaces", "web", "list", 0), 6, '"a"'),
        (("workspaces", "web", "list", 1, 1), 9, "2"),
        (("workspaces", "web", "list", 2), 10, ""),
        (("workspaces", "web", "list", 2, "x"), 10, "1"),
        (("workspaces", "web", "list", 2, "y z", "w", 0, "deep"), 11, "true"),
        (("workspaces", "web", "text"), 13, "'''\nline\n'''"),
        (("workspaces", "web", "mounts", 0, "source"), 17, '"/a"'),
        (("workspaces", "web", "mounts", 1), 18, ""),
        (("workspaces", "web", "mounts", 1, "source"), 19, '"/b"'),
        (("workspaces", "web", "mounts", 1, "sub", "key"), 21, "1979-05-27"),
        (("workspaces", "lab", "type"), 3, ""),
        (("other",), 22, ""),
        (("nowhere",), 0, ""),
    ],
    ids=str,
)
def test_layout(path: Path, line: int, text: str) -> None:
    place = Positions(SOURCE).find(path)
    assert (place.line, place.text) == (line, text)


def test_paths_are_shown_as_in_the_file() -> None:
    assert dotted(("workspaces", "web", "mounts", 0, "source")) == "workspaces.web.mounts[0].source"
    assert dotted(("env", "A B\n")) == 'env."A B\\n"'
    assert undotted("workspaces.web.mounts[10].source") == ("workspaces", "web", "mounts", 10, "source")
    assert undotted("") == ()


def test_shortening() -> None:
    assert shorten("a\n  b") == "a b"
    assert shorten("x" * 61) == "x" * 59 + "…"
