"""The one change that hutch makes in a hutch.toml, when it is asked for: a key of a workspace whose value is a word,
such as its engine, or a list of words, on one line.

Everything else stays as it is, byte for byte. The text is changed where its own parser says that the value is, and the
result is read again and must say the same but for that value; where it is written in another way, nothing is changed.
Pure; apply/declaring writes the file.
"""

from __future__ import annotations

import json
import re
import tomllib
from copy import deepcopy

from hutch.errors import UsageError
from hutch.spec.positions import Positions

BOM = "\N{ZERO WIDTH NO-BREAK SPACE}"
LINE = r"""(?P<before>[ \t]*(?:{key}|"{key}"|'{key}')[ \t]*=[ \t]*){value}(?P<after>[ \t]*(?:#.*)?)"""
WORD, WORDS = r"""["'][a-z]+["']""", r"\[[^\[\]#]*\]"
"""The line of a key, and both kinds of its value."""
HEADER = re.compile(
    r"""[ \t]*\[[ \t]*(?:workspaces|"workspaces"|'workspaces')[ \t]*\.[ \t]*[^\[\]=]+\][ \t]*(?:#.*)?"""
)


def with_value(text: str, name: str, key: str, value: str | list[str]) -> str:
    """The text of a hutch.toml in which a key of the workspace is this word, or these: its line is changed, or one is
    added behind the head of its table. Raises UsageError where it is written in another way."""
    quoted = json.dumps(value)
    mark = BOM if text.startswith(BOM) else ""
    lines = re.findall(r"[^\n]*\n|[^\n]+$", text.removeprefix(mark))
    before = tomllib.loads(_plain("".join(lines)))
    positions = Positions(_plain("".join(lines)))
    table = before["workspaces"][name]
    path = ("workspaces", name, key) if key in table else ("workspaces", name)
    index = positions.find(path).line - 1
    content = lines[index].rstrip("\r\n") if index >= 0 else ""
    end = lines[index][len(content) :]
    line = re.compile(LINE.format(key=key, value=WORD if isinstance(value, str) else WORDS))
    found = (line if key in table else HEADER).fullmatch(content)
    if found is None:
        raise _unclear(name, key, quoted)
    if key in table:
        lines[index] = f"{found['before']}{quoted}{found['after']}{end}"
    else:
        lines[index] = f"{content}{end or chr(10)}{key} = {quoted}{end}"
    changed = "".join(lines)
    wanted = deepcopy(before)
    wanted["workspaces"][name][key] = value
    try:
        is_right = tomllib.loads(_plain(changed)) == wanted
    except ValueError:
        is_right = False
    if not is_right:
        raise _unclear(name, key, quoted)
    return mark + changed


def _plain(text: str) -> str:
    """The text as it is parsed: see reading.read_file."""
    return text.replace("\r\n", "\n")


def _unclear(name: str, key: str, quoted: str) -> UsageError:
    return UsageError(
        f"the {key} of {name} is not on a line of its own, so hutch does not change it",
        resolution=f"write {key} = {quoted} into [workspaces.{name}] yourself",
    )
