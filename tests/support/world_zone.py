"""What tests say to the world's name server (`world_dns`), and what it was asked. Entries are described there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class ZoneFile:
    """The zone of the world's own name server, and its log."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "zone.json"
        self.log = directory / "asked"
        self._entries: dict[str, Mapping[str, Any]] = {}
        self._write()
        self.log.touch()

    def put(self, name: str, **entry: Any) -> None:
        """What the next question for a name is answered with."""
        self.put_all({name: entry})

    def put_all(self, entries: Mapping[str, Mapping[str, Any]]) -> None:
        self._entries.update(entries)
        self._write()

    def asked(self) -> list[dict[str, str]]:
        """Every question that has come, in order: name (with its dot at the end), type, via."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def names_asked(self) -> set[str]:
        """The names of them in one form."""
        return {question["name"].rstrip(".").lower() for question in self.asked()}

    def _write(self) -> None:
        """In one go, since the server may read at any moment."""
        new = self.path.with_suffix(".new")
        new.write_text(json.dumps(self._entries))
        new.replace(self.path)
