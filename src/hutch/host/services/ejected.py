"""What has been ejected from any hutch of this host, by the units that it has: no hutch need remember it."""

from __future__ import annotations

from hutch.files import read_or_none
from hutch.host.services.units import LASTING
from hutch.spec.ejected import Note, parse_note


def observe_ejected() -> dict[str, Note]:
    """By their names."""
    texts = (read_or_none(path) or b"" for path in sorted(LASTING.glob("workspace-*.service")))
    notes = (parse_note(text.decode("utf-8", "replace")) for text in texts)
    return {note.name: note for note in notes if note is not None}
