"""The places of the values of a TOML file: key path to line and source text.

tomllib gives values without lines, so the file is parsed a second time by tree-sitter, and only when there
is something to report. The file must be valid TOML; nothing here judges it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from hutch.frozen import dataclass
from hutch.spec.validation import Path

if TYPE_CHECKING:
    from tree_sitter import Node

TABLES = ("table", "table_array_element")
KEYS = ("bare_key", "quoted_key")
DEEPEST = 8  # keys further down belong to no table of ours, and to note them all would take quadratic time


@dataclass(frozen=True)
class Place:
    """The line of a value, from 1, and the value as it is written; "" for a table."""

    line: int
    text: str


class Positions:
    """All places of one file, by path."""

    def __init__(self, source: str) -> None:
        # Spares the start-up of `hutch up` for files that are right.
        import tree_sitter
        import tree_sitter_toml

        parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_toml.language()))
        self._layout: dict[Path, Place] = {}
        self._elements: dict[Path, int] = {}
        self._read(parser.parse(source.encode()).root_node)

    def find(self, path: Path) -> Place:
        """The place of `path`; of a value that is not in the file, the line of the nearest table around it."""
        if path in self._layout:
            return self._layout[path]
        for length in range(len(path) - 1, 0, -1):
            if path[:length] in self._layout:
                return Place(self._layout[path[:length]].line, "")
        return Place(0, "")

    def _read(self, document: Node) -> None:
        # A stack, not recursion: how deep a file nests is up to whoever wrote it.
        stack: list[tuple[Path, Node]] = [((), child) for child in reversed(document.named_children)]
        while stack:
            at, node = stack.pop()
            if node.type in TABLES:
                path = self._open(node)
                stack += [(path, child) for child in reversed(node.named_children) if child.type == "pair"]
            elif node.type == "pair":
                path = at + tuple(key_parts(node.named_children[0]))
                value = next(child for child in reversed(node.named_children) if child.type != "comment")
                self._note(at, path, node)
                stack += self._enter(path, value)

    def _enter(self, path: Path, value: Node) -> Iterator[tuple[Path, Node]]:
        """Note a value, and yield the pairs inside it."""
        stack = [(path, value)]
        while stack:
            at, node = stack.pop()
            if node.type == "inline_table":
                self._layout.setdefault(at, Place(line_of(node), ""))
                yield from [(at, child) for child in node.named_children if child.type == "pair"]
                continue
            self._layout[at] = Place(line_of(node), (node.text or b"").decode())
            if node.type == "array":
                entries = [child for child in node.named_children if child.type != "comment"]
                stack += [((*at, index), child) for index, child in enumerate(entries)]

    def _open(self, table: Node) -> Path:
        """The path of a `[table]` or of the next element of a `[[table]]`, indexes of earlier ones included."""
        parts = tuple(key_parts(table.named_children[0]))
        path: Path = ()
        for part in parts[:-1]:
            path = (*path, part)
            if path in self._elements:
                path = (*path, self._elements[path])
        path = (*path, parts[-1])
        if table.type == "table_array_element":
            self._elements[path] = self._elements.get(path, -1) + 1
            path = (*path, self._elements[path])
        self._note((), path, table)
        self._layout[path] = Place(line_of(table), "")
        return path

    def _note(self, above: Path, path: Path, node: Node) -> None:
        """Gives `path`, and the tables that it opens in passing, the line of `node`."""
        for length in range(len(above) + 1, len(path) + 1):
            self._layout.setdefault(path[:length], Place(line_of(node), ""))


def line_of(node: Node) -> int:
    return int(node.start_point[0]) + 1


def key_parts(node: Node) -> list[str]:
    """The parts of a possibly dotted key, as far as findings go. tomllib reads quoted ones: it knows the escapes."""
    parts: list[str] = []
    stack = [node]
    while stack and len(parts) < DEEPEST:
        key = stack.pop()
        if key.type == "dotted_key":
            stack += reversed([child for child in key.named_children if child.type in (*KEYS, "dotted_key")])
        else:
            text = (key.text or b"").decode()
            parts.append(str(tomllib.loads(f"key = {text}")["key"]) if key.type == "quoted_key" else text)
    return parts
