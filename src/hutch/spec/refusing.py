"""Problems of this host with a hutch.toml that is valid by itself, as one error: a directory that is not there, a port
that is taken."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from hutch.errors import ConfigError, Problem


def refuse_files(found: Iterable[tuple[str, Problem]]) -> None:
    """Raise all problems as one ConfigError, each with the file that it is in, if there is any, and the line there."""
    by_file: dict[str, list[Problem]] = {}
    for file, problem in found:
        by_file.setdefault(file, []).append(replace(problem, file=file))
    if by_file:
        raise ConfigError(problem for file, problems in by_file.items() for problem in _locate(file, problems))


def _locate(file: str, problems: list[Problem]) -> list[Problem]:
    """The problems in the order of the file; without lines where it cannot be read any more."""
    # Spares the start-up of `hutch start` where nothing is wrong.
    from hutch.spec.loading import parse_toml, read_file
    from hutch.spec.positions import Positions
    from hutch.spec.validation import undotted

    try:
        text = read_file(file)
        parse_toml(file, text)
    except ConfigError:
        return problems
    positions = Positions(text)

    def line_of(problem: Problem) -> int:
        """The line of the value, where it is the one that was found wrong: the file may have been changed since. That
        of its table otherwise."""
        path = undotted(problem.key)
        for at in (path, ("defaults", *path[2:])):
            place = positions.find(at)
            if place.text and problem.value.endswith(place.text.strip("\"'~.")):
                return place.line
        return positions.find(path[:2]).line

    return sorted((replace(p, line=line_of(p)) for p in problems), key=lambda problem: problem.line)
