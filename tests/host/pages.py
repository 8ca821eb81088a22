"""Documentation pages whose every block is what a real hutch printed.

A page tells a story. A ```toml block is the file from then on, without its [network] and [defaults]; in a ```console
block, lines behind a dollar are typed, and what follows is what is shown. `HUTCH_UPDATE_GOLDEN=1` writes it anew.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.host.instance import Instance

BLOCK = re.compile(r"^```(toml|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PROMPT = "$ "

# Where the page's hutch would be, were it the first one of an ordinary host.
DIRECTORY, STATE, SUBNET = "/srv/shop", "/var/lib/hutch", "192.168.83."
DIFFERS = (
    (r"^hutch: waiting for another hutch\n", ""),  # of a tier that runs beside this one
    (r"\b[0-9]+\.[0-9]{2} s\b", "TIME"),
    (r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) [A-Z][a-z]{2} [ 0-9]?[0-9] [0-9:]{8} [0-9]{4}", "DATE"),
    (r"\bpid [0-9]+", "PID"),
    (r"-[0-9a-f]{12}\b", "-IMAGE"),
    (r" +$", ""),
)
"""What is another each time."""


def masked(text: str) -> str:
    for pattern, word in DIFFERS:
        text = re.sub(pattern, word, text, flags=re.MULTILINE)
    return text


class Story:
    """A page, told in a hutch of its own."""

    def __init__(self, instance: Instance, begin: Callable[[list[str]], None]) -> None:
        """`begin` starts a command that goes on, and returns once it is under way."""
        self.instance = instance
        self.begin = begin

    def tell(self, page: str) -> str:
        """The page with its blocks as they are now."""
        return BLOCK.sub(lambda block: f"```{block[1]}\n{self.block(block[1], block[2])}```", page)

    def block(self, kind: str, text: str) -> str:
        if kind == "toml":
            self.instance.write(text)
            return text
        return "".join(self.typed(line) for line in text.splitlines() if line.startswith(PROMPT))

    def typed(self, line: str) -> str:
        """A command, and what it prints."""
        words = line.removeprefix(PROMPT)
        if words.endswith(" &"):
            self.begin(shlex.split(words.removesuffix(" &")))
            return f"{line}\n"
        result = subprocess.run(
            ["sh", "-c", f'hutch() {{ {shlex.quote(sys.executable)} -m hutch "$@"; }}; {words}'],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=180,
            cwd=self.instance.directory,
            env=self.instance.environment(),
        )
        return f"{line}\n{in_order(self.elsewhere(result.stdout))}"

    def elsewhere(self, said: str) -> str:
        """What a hutch would have said that is the first one of an ordinary host. Columns stay where they are."""
        said = said.replace(str(self.instance.directory), DIRECTORY).replace(str(self.instance.state), STATE)
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
