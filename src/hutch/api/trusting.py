"""The word of a person about hutch.toml files in checkouts: what they ask for, and what was accepted."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from hutch.errors import ConfigError, HutchError, explained, ways_in
from hutch.spec.lookup import LOCAL_FILE, look_for_file, resolved
from hutch.spec.person import caller

if TYPE_CHECKING:
    from hutch.api.engine import Hutch
    from hutch.apply.accepting import Offer
    from hutch.host.identity.answers import Answer


def is_in_checkout(path: Path) -> bool:
    """Whether the hutch.toml at this path counts for nothing until it is accepted."""
    # Spares the start-up of `hutch plan`.
    from hutch.spec.checkouts import find_checkout

    try:
        return find_checkout(str(path), resolved(path), caller(os.environ, os.getuid())) is not None
    except HutchError:
        return True


@ways_in
class Trust:
    """The answers of the caller: for root, of who is behind sudo or doas."""

    def __init__(self, hutch: Hutch) -> None:
        self.layout = hutch.layout
        self.person = caller(os.environ, os.getuid())

    def offer(self, path: Path | None = None) -> Offer | None:
        """What the hutch.toml asks for that `load` would take; None for one that is in no checkout, and needs no trust.
        Raises ConfigError for a file that could not be loaded if it was accepted."""
        # Spares the start-up of `hutch init`.
        from hutch.api.checking import host_check
        from hutch.apply.accepting import make_offer

        return make_offer(self.layout, self.person, path, host_check())

    def accept(self, offer: Offer) -> None:
        """Remember that this content of the file is accepted, in place of an earlier one."""
        # Spares the start-up of `hutch init`.
        from hutch.host.identity.answers import write_answer

        write_answer(self.person, offer.file, offer.content, offer.asks)

    def revoke(self, path: Path | None = None) -> tuple[str, bool]:
        """Forget what was accepted of a file; its path, and whether anything was."""
        # Spares the start-up of `hutch init`.
        from hutch.host.identity.answers import remove_answer

        with explained("the current directory cannot be found"):
            file = resolved(path if path is not None else look_for_file(None) or LOCAL_FILE)
        return file, remove_answer(self.person, file)

    def answers(self) -> Iterable[tuple[Answer, str]]:
        """What was accepted, each with a word for the file as it is now: "accepted", "changed", "gone", or
        "unreadable"."""
        # Spares the start-up of `hutch init`.
        from hutch.host.identity.answers import read_answers

        return [(answer, _standing(answer)) for answer in read_answers(self.person)]


def _standing(answer: Answer) -> str:
    # Spares the start-up of `hutch init`.
    from hutch.host.identity.answers import digest
    from hutch.spec.reading import read_content

    if not os.path.lexists(answer.file):
        return "gone"
    try:
        return "accepted" if digest(read_content(answer.file)) == answer.sha256 else "changed"
    except ConfigError:
        return "unreadable"
