"""Documentation pages whose every output is what a real hutch printed.

A page tells a story. A ```toml block is the file from then on, without its [network] and [defaults]; in a ```console
block, lines behind a dollar are typed, and the lines that follow are shown. A line of three dots stands for lines that
differ from host to host, up to the one that begins as the page's next line does. `HUTCH_UPDATE_GOLDEN=1` writes a page
anew, and keeps its dots.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hutch.spec.names import Layout
from tests.host.instance import Instance

BLOCK = re.compile(r"^```(toml|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PROMPT = "$ "
DOTS = "..."
FUNCTIONS = f'hutch() {{ {shlex.quote(sys.executable)} -m hutch "$@"; }}; sudo() {{ "$@"; }}; '
KILLED = "& sleep 0.2; kill -9 $!"
"""A command that ends so is killed: at a fixed moment, since a clock would not find the same one twice."""
SEEN_LATE = 2.0  # seconds after which `hutch egress` shows what happened, on a busy host

# Where the page's hutch would be, were it the first one of an ordinary host.
DIRECTORY, STATE, RUN, SUBNET = "/srv/shop", "/var/lib/hutch", "/run/hutch", "192.168.83."
DIFFERS = (
    (r"^hutch: waiting for another hutch\n", ""),  # of a tier that runs beside this one
    (r"^\S+: waiting for another build\n", ""),  # as well
    (r"\b[0-9]+\.[0-9]{1,2} s\b", "TIME"),
    (r"\b[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9:]{8}\b", "DATE"),
    (r"\bsince [0-9:]{8}", "since TIME"),
    (r"\bafter [0-9]+ (ms|milliseconds)\b", "after TIME"),
    (r"\b192\.168\.84\.[0-9]+/30", "UPLINK"),
    (r"(?<=\S) {2,}(?=\S)", " "),  # columns are as wide as their cells
    (r" (dns|[0-9]+/tcp) [0-9]+ ", r" \1 COUNT "),  # resolvers ask again as they see fit
    (r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) [A-Z][a-z]{2} [ 0-9]?[0-9] [0-9:]{8} [0-9]{4}", "DATE"),
    (r"\bpid [0-9]+", "PID"),
    (r"-[0-9a-f]{12}\b", "-IMAGE"),
    (r" +$", ""),
)
"""Parts of an output that are others each time."""


def masked(text: str) -> str:
    for pattern, word in DIFFERS:
        text = re.sub(pattern, word, text, flags=re.MULTILINE)
    return text


def elided(shown: Sequence[str], said: Sequence[str]) -> list[str]:
    """What was said, with dots where the page shows dots."""
    told, rest = [], list(said)
    for line, following in zip(shown, [*shown, None][1:], strict=True):
        if line != DOTS:
            told += rest[:1]
            rest = rest[1:]
            continue
        told.append(DOTS)
        if following is None:
            return told
        beginnings = [beginning(each) for each in rest]
        rest = rest[beginnings.index(beginning(following)) if beginning(following) in beginnings else 0 :]
    return told + rest


def beginning(line: str) -> str:
    """The first cell of a row, or a line up to its first colon."""
    return re.split(r" {2,}|: ", line)[0]


class Story:
    """A page, told in a hutch of its own."""

    def __init__(
        self,
        instance: Instance,
        begin: Callable[[list[str]], None],
        strike: Callable[[list[str]], None] | None = None,
    ) -> None:
        """`begin` starts a command that goes on, and returns once it is under way; `strike` has one killed half-way."""
        self.instance = instance
        self.begin = begin
        self.strike = strike
        self.own = Layout(instance.state, instance.run).instance

    def tell(self, page: str) -> str:
        """The page with its blocks as they are now."""
        return BLOCK.sub(lambda block: f"```{block[1]}\n{self.block(block[1], block[2])}```", page)

    def block(self, kind: str, text: str) -> str:
        if kind == "toml":
            self.instance.write(text)
            return text
        told = []
        for part in re.split(r"^(?=\$ )", text, flags=re.MULTILINE)[1:]:
            line, *shown = part.splitlines()
            told += [line, *elided(shown, self.typed(line.removeprefix(PROMPT)))]
        return "".join(f"{line}\n" for line in told)

    def typed(self, words: str) -> list[str]:
        """What a command prints."""
        if words.endswith(KILLED):
            assert self.strike is not None
            self.strike(shlex.split(words.removesuffix(KILLED)))
            return []
        if words.endswith(" &"):
            self.begin(shlex.split(words.removesuffix(" &")))
            return []
        if words.removeprefix("sudo ").startswith("hutch egress "):
            time.sleep(SEEN_LATE)  # there is no event for it
        result = subprocess.run(
            ["sh", "-c", FUNCTIONS + words.replace(STATE, str(self.instance.state))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=180,
            cwd=self.instance.directory,
            env=self.instance.environment(),
        )
        return in_order(self.elsewhere(result.stdout)).splitlines()

    def elsewhere(self, said: str) -> str:
        """What a hutch would have said that is the first one of an ordinary host. Columns stay where they are."""
        said = said.replace(str(self.instance.directory), DIRECTORY).replace(str(self.instance.state), STATE)
        said = said.replace(str(self.instance.run), RUN)
        said = re.sub(rf"\b{re.escape(self.own)}\b", "hutch", said)
        subnet = self.instance.subnet.removesuffix("0/24")
        shorter = " " * (len(subnet) - len(SUBNET))
        return re.sub(rf"{re.escape(subnet)}([0-9]+)( ?)", lambda m: SUBNET + m[1] + m[2] + (m[2] and shorter), said)


def in_order(said: str) -> str:
    """Workspaces that come up side by side do so in any order; a page has them in one."""
    lines = said.splitlines(keepends=True)
    at = [index for index, line in enumerate(lines) if line.endswith(": ready\n")]
    for index, line in zip(at, sorted(lines[index] for index in at), strict=True):
        lines[index] = line
    return "".join(lines)


def check_page(path: Path, story: Story) -> None:
    """The page is what happens."""
    page = path.read_text(encoding="utf-8")
    told = story.tell(page)
    if os.environ.get("HUTCH_UPDATE_GOLDEN") == "1":
        path.write_text(told, encoding="utf-8")
    expected = path.read_text(encoding="utf-8")
    lines = difflib.unified_diff(masked(expected).splitlines(), masked(told).splitlines(), "the page", "what happens")
    difference = "\n".join(lines)
    assert not difference, difference
