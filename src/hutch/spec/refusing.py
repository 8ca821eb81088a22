"""Problems of this host with a hutch.toml that is valid by itself, as one error: a directory that is not there, a port
that is taken."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hutch.errors import ConfigError, Problem

if TYPE_CHECKING:
    from hutch.spec.kit_files import Kits
    from hutch.spec.positions import Positions
    from hutch.spec.validation import Path

Uses = Mapping[str, Sequence[str]]
"""The kits that workspaces use, by the workspace's name."""


def refuse_files(found: Iterable[tuple[str, Problem]], uses: Uses | None = None) -> None:
    """Raise all problems as one ConfigError, each with the file that it is in, if there is any, and the line there. One
    with a value that a kit brought is in the kit's file, where `uses` names that kit."""
    by_file: dict[str, list[Problem]] = {}
    for file, problem in found:
        by_file.setdefault(file, []).append(replace(problem, file=file))
    if by_file:
        raise ConfigError(
            problem for file, problems in by_file.items() for problem in _locate(file, problems, uses or {})
        )


def _locate(file: str, problems: list[Problem], uses: Uses) -> list[Problem]:
    """The problems in the order of the file, then those of kits; without lines where it cannot be read any more."""
    # Spares the start-up of `hutch start` where nothing is wrong.
    from hutch.spec.kit_files import Kits
    from hutch.spec.positions import Positions
    from hutch.spec.reading import parse_toml, read_file
    from hutch.spec.validation import undotted

    try:
        text = read_file(file)
        tables = parse_toml(file, text).get("kits", {})
    except ConfigError:
        return problems
    positions = Positions(text)
    kits = Kits(file, tables if isinstance(tables, dict) else {})

    def located(problem: Problem) -> Problem:
        """The problem at the line of the value, where it is the one that was found wrong: files may have been changed
        since. At that of its table otherwise."""
        path = undotted(problem.key)
        here = ((problem, positions, at) for at in (path, ("defaults", *path[2:])))
        there = _in_kits(problem, path, positions, kits, uses)
        for found, lines, at in (*here, *there):
            place = lines.find(at)
            if place.text and problem.value.endswith(place.text.strip("\"'~.")):
                return replace(found, line=place.line)
        return replace(problem, line=positions.find(path[:2]).line)

    return sorted(map(located, problems), key=lambda problem: (problem.file != file, problem.file, problem.line))


def _in_kits(
    problem: Problem, path: Path, positions: Positions, kits: Kits, uses: Uses
) -> Iterator[tuple[Problem, Positions, Path]]:
    """The places that the value of a problem with an entry of a list may have in kits: the problem as it is told there,
    the lines of that file, and the path in it."""
    # Spares the start-up of `hutch start` where nothing is wrong.
    from hutch.spec.positions import Positions
    from hutch.spec.validation import dotted

    if len(path) < 4:
        return
    for kit in filter(None, map(kits.find, uses.get(str(path[1]), ()))):
        is_table = kit.whose == "file"
        lines = positions if is_table else Positions(kit.text)
        for index in kit.used.kept.get(str(path[2]), ()):
            at = (*(("kits", kit.used.name) if is_table else ()), path[2], index, *path[4:])
            yield replace(problem, file=kit.file, key=dotted(at)), lines, at
