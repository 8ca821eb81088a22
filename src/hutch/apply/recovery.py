"""What a killed run left half done is undone before the next one begins."""

from __future__ import annotations

from hutch.spec.names import Places
from hutch.state import unfinished
from hutch.supervise import control
from hutch.supervise.observe import observe


def recover(places: Places) -> None:
    """Undo what a killed run left half done: stop and clean the workspaces that it was changing."""
    for name in unfinished(places):
        if observe(places, name).state != "running":
            control.stop_all(places, [name])
    places.journal.unlink(missing_ok=True)
