"""What is told to people of what runs: the facts of its Launch. A container's has none."""

from __future__ import annotations

from hutch.runtime.launched import read_launch
from hutch.spec.names import Places


def observe_facts(places: Places, name: str) -> dict[str, str]:
    """The facts of the last start. The caller knows that it is still up."""
    facts = (read_launch(places.launch(name)) or {}).get("facts", {})
    return {key: value for key, value in facts.items() if isinstance(value, str)}
