"""What is told to people of what runs: the facts of its Launch. A container's has none."""

from __future__ import annotations

import json

from hutch.files import read_or_none
from hutch.spec.names import Places


def observe_facts(places: Places, name: str) -> dict[str, str]:
    """The facts of the last start. The caller knows that it is still up."""
    try:
        facts = json.loads(read_or_none(places.launch(name)) or b"{}")["facts"]
        return {key: value for key, value in facts.items() if isinstance(value, str)}
    except (ValueError, KeyError, TypeError, AttributeError):  # torn by a crash: as good as none
        return {}
