"""The conversation with the program inside: questions, answers, and what this host finds out between them.

What comes from inside is an attacker's: it has a limit, it is parsed strictly (see judge), and nothing that it says
makes the host do anything but go on to the next step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from hutch.errors import HutchError
from hutch.prove.judge import Evidence, Sent, parse_answers
from hutch.prove.local import CONVERSATION, MADE, in_home, path
from hutch.prove.model import Fact, Ground, Probe
from hutch.prove.reach import key_facts

PROGRAM = Path(__file__).with_name("inside.pl")
COMMAND = ("perl", "-")
LIMIT = 1 << 18  # bytes that are taken from inside
KEYS = 7  # the promise that this host's ssh tells about

Talk = Callable[[Sequence[str], Iterator[bytes | None], Callable[[bytes], None]], int]
"""A function that runs a command inside as root, given its input and a taker of its output; returns its exit code."""


class Conversation:
    """A conversation about these probes. It puts their questions, and asks this host's ssh meanwhile."""

    def __init__(self, ground: Ground, probes: Sequence[Probe]) -> None:
        self.ground = ground
        self.probes = probes
        self.text = ""
        self.turns = 0
        self.is_over = False
        self.sent: dict[str, Sent] = {}
        self.facts: dict[str, Fact] = {}

    def take(self, data: bytes) -> None:
        """Take output, up to the limit: beyond it, the conversation ends by its deadline."""
        self.text += data.decode("ascii", "replace")[: LIMIT - len(self.text)]

    def sentences(self) -> Iterator[bytes | None]:
        """The input for `talk`; after None, the next piece is asked for once something was heard."""
        asked = [(probe.name, *probe.ask) for probe in self.probes if probe.ask]
        if self.ground.is_machine:
            asked.insert(0, ("patience", "patience", "4"))
        yield PROGRAM.read_bytes()
        yield from self.ask(asked)
        yield from self.look_around()
        files = [path(in_home(self.ground, name)) for name in MADE]
        yield from self.ask([("cleanup", "remove", *files)])
        self.is_over = True
        yield b"end\n"

    def look_around(self) -> Iterator[bytes | None]:
        """Find out facts while the workspace waits, and put further questions."""
        if any(probe.promise == KEYS for probe in self.probes):
            self.facts.update(key_facts(self.ground))
        yield from ()

    def ask(self, lines: Sequence[Sequence[str]]) -> Iterator[bytes | None]:
        """Ask questions, and wait until all of them are answered."""
        self.turns += 1
        yield "".join("\t".join(line) + "\n" for line in (*lines, ("go",))).encode("ascii")
        while self.text.split("\n")[:-1].count("done") < self.turns:
            yield None

    def complaint(self, code: int) -> str:
        """The reason why the conversation was not whole; "" for one that was."""
        if not self.is_over:
            return f"the conversation inside was cut short in turn {self.turns}, with code {code}"
        return f"the conversation inside ended with code {code}" if code else ""


def observe_evidence(conversation: Conversation, talk: Talk) -> Evidence:
    """Have the conversation. Probes that it does not come to are not proved, whoever ended it."""
    code = talk(COMMAND, conversation.sentences(), conversation.take)
    answers = parse_answers(conversation.text)
    if not answers and code in (126, 127):
        raise HutchError(
            f"{conversation.ground.workspace}: there is no perl inside, which the probes are written in",
            resolution='add "perl-base" to its `packages`, or leave the name out for a throw-away workspace',
        )
    cut_short = conversation.complaint(code)
    facts = conversation.facts | {CONVERSATION.name: Fact("broken" if cut_short else "held", cut_short)}
    return Evidence(answers, conversation.sent, facts, cut_short)
