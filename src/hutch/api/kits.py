"""The kits that a workspace could use: those of the file, of the person who calls, of the host, and hutch's own."""

from __future__ import annotations

from dataclasses import asdict, field
from pathlib import Path

from hutch.apply.ownership import believing
from hutch.errors import HutchError
from hutch.frozen import dataclass
from hutch.spec.kit_files import FoundKit, Kits, Whose
from hutch.spec.lookup import believed_owners, look_for_file, resolved
from hutch.spec.model import Kit
from hutch.spec.names import Layout
from hutch.spec.reading import locate, parse_toml, read_file


@dataclass(frozen=True)
class ListedKit:
    """A kit: `file` has it. `hides` are the files with others of its name; `problems` keep it from being used."""

    name: str
    whose: Whose
    file: str
    kit: Kit = field(default_factory=Kit)
    hides: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def to_json(self) -> dict[str, object]:
        brings = {**asdict(self.kit), "env": dict(self.kit.env)}
        about = {"name": self.name, "from": self.whose, "file": self.file}
        return {**about, **brings, "hides": list(self.hides), "problems": list(self.problems)}


def list_kits(layout: Layout, path: Path | None = None) -> list[ListedKit]:
    """All kits by name. `path` is that of a hutch.toml, or None for the one that `load` would take, if there is any.
    Raises ConfigError for one that is no TOML, or not to be believed."""
    found = look_for_file(path)
    file, text = "", ""
    tables: object = {}
    believe = believing(layout)
    if found is not None:
        file = resolved(found)
        text = read_file(file, believed_owners(path, found), judge=believe(str(found), file))
        tables = parse_toml(file, text).get("kits", {})
    kits = Kits(file, tables if isinstance(tables, dict) else {}, believe)
    return [_listed(kits, name, text) for name in kits.names()]


def _listed(kits: Kits, name: str, text: str) -> ListedKit:
    first, *others = kits.places(name)
    try:
        found = kits.find(name)
    except HutchError as error:
        return ListedKit(
            name, first.whose, first.file, hides=tuple(other.file for other in others), problems=(error.brief,)
        )
    assert found is not None
    return ListedKit(
        name, found.whose, found.file, found.used.kit, tuple(o.file for o in others), _problems(found, text)
    )


def _problems(found: FoundKit, text: str) -> tuple[str, ...]:
    if found.whose == "file":
        return tuple(map(str, locate(found.file, text, found.findings)))
    return tuple(map(str, found.all_problems()))
