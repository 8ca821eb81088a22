"""git's files as data: its configuration, and what leads from one place to another. Pure: nothing of git's runs, and
nothing is looked up."""

from __future__ import annotations

import re

TYPE_CHECKING = False  # programs that start with a workspace use it
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SECTION = re.compile(r'\s*\[\s*([A-Za-z0-9.-]+)(?:\s+"((?:[^"\\]|\\.)*)")?\s*\]')
KEY = re.compile(r"\s*([A-Za-z][A-Za-z0-9-]*)[ \t]*")
ESCAPES = {"n": "\n", "t": "\t", "b": "\b"}
COMMANDS = re.compile(
    r"core\.(fsmonitor|sshcommand|editor|pager|askpass|gitproxy)|(alias|pager)\..*|sequence\.editor|diff\.external"
    r"|gpg(\..*)?\.program|credential(\..*)?\.helper|filter\..*\.(clean|smudge|process)|merge\..*\.driver"
    r"|diff\..*\.(command|textconv)|(difftool|mergetool|browser|man|guitool)\..*\.(cmd|path)"
    r"|(hook|tar)\..*\.command|trailer\..*\.(cmd|command)|interactive\.difffilter|core\.alternaterefscommand"
    r"|gpg\.ssh\.defaultkeycommand|submodule\..*\.update|remote\..*\.(uploadpack|receivepack)|imap\.tunnel"
    r"|sendemail\.(.*\.)?(tocmd|cccmd|headercmd|sendmailcmd|smtpserver)|instaweb\.httpd"
)
"""The variables whose values are commands, see git-config(1)."""


def parse_config(text: str) -> Iterator[tuple[str, str]]:
    """(key, value) of each variable, in their order: "core.hookspath", "includeif.gitdir:~/x.path". Names are in lower
    case but for the part in quotes. A variable without a value is "true". Lines that are no git configuration are left
    out: git would refuse the file."""
    section = ""
    lines = iter(text.removeprefix("\ufeff").replace("\r\n", "\n").split("\n"))
    for line in lines:
        if found := SECTION.match(line):
            inner = found[2]
            section = found[1].lower() + ("" if inner is None else "." + re.sub(r"\\(.)", r"\1", inner))
            line = line[found.end() :]
        name = KEY.match(line)
        if not name or not section:
            continue
        rest = line[name.end() :]
        if rest.startswith("="):
            yield f"{section}.{name[1].lower()}", _value(rest[1:], lines)
        elif not rest or rest[0] in "#;":
            yield f"{section}.{name[1].lower()}", "true"


def _value(rest: str, lines: Iterator[str]) -> str:
    """A value from what follows the "=", and from further lines where one ends with a backslash. Blanks around it do
    not count, unless they are in quotes; nor does a comment. What follows a NUL is not seen by git, either."""
    value, kept, is_quoted = "", 0, False
    letters = iter(rest)
    while letter := next(letters, ""):
        if letter == "\\":
            following = next(letters, "")
            if not following:
                letters = iter(next(lines, ""))
                continue
            value += ESCAPES.get(following, following)
            kept = len(value)
        elif letter == '"':
            is_quoted, kept = not is_quoted, len(value)
        elif letter in "#;" and not is_quoted:
            break
        elif value or is_quoted or not letter.isspace():
            value += letter
            kept = len(value) if is_quoted or not letter.isspace() else kept
    return value[:kept].partition("\0")[0]


def has_own_configurations(variables: Iterable[tuple[str, str]]) -> bool:
    """Whether each worktree has a configuration of its own, by the variables of them all."""
    return any(
        key == "extensions.worktreeconfig" and value.lower() in ("true", "yes", "on", "1") for key, value in variables
    )


def pointer_in(text: str) -> str:
    """The path that a file of git's holds, which to git ends with a NUL."""
    return text.partition("\0")[0].strip("\r\n").strip()
