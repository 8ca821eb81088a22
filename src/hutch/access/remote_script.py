"""The words that are exchanged with a guest when a command runs in it by ssh. Computes; starts nothing.

sshd gives a command line to the login user's shell, whichever that is. So the line is the same each time, and means
the same to every shell: a /bin/sh that reads a program from its standard input, in an encoding that a terminal passes
unchanged, and becomes it. What is in the program is quoted for /bin/sh alone.

Two programs work together, each in a session of its own over one connection. The first waits for a word that lets it
go, then becomes the command. The second passes signals on; when its input ends without the word that the command has,
the client is gone, and it tells the command so by SIGHUP.

Words from the guest are marked by a number that nobody else knows; what a guest makes of it, it does to itself.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Mapping, Sequence

from hutch.frozen import dataclass

SEARCH_PATH = (
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/wrappers/bin:/run/current-system/sw/bin"
)
LINE = 800  # a terminal takes 4095 bytes of one line, and keeps no more than that waiting
KEPT = 4096  # bytes of what is heard before the command starts, to explain why it does not
SIGNALS = {
    number: number.name.removeprefix("SIG")
    for number in (
        *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT),
        *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGTSTP, signal.SIGCONT),
    )
}
"""Signals that are passed on, by the names that kill(1) knows."""
DONE = b"done\n"
WAIT = b"wait\n"
KILL = b"KILL\n"
GO = b"\n"

# Neither a quote nor a backslash nor an exclamation mark, and one line: POSIX shells, fish and csh agree on the rest.
READ_PROGRAM = (
    'LC_ALL=C;printf %s "$0:hello;";p=;while IFS= read -r l||exit 1;do case $l in "")break;;esac;p=$p$l;done;'
    'eval "$(printf %b "$p")"'
)

# The shell's own error output is dropped: shells report there what a child died of.
FIRST = """
PATH={path}
trap : HUP INT QUIT TERM USR1 USR2 TSTP
exec 9>&2 2>/dev/null
{session}/bin/sh -c {become} sh {words} 2>&9 9>&-
code=$?
(printf '\\000%s:end:%s;' {nonce} "$code" >&9)
exit "$code"
"""

# The command is exec'd by env(1), which knows the environment's PATH and leaves nothing else behind.
BECOME = """
printf '%s:ready:%s;' {nonce} "$$"
IFS= read -r go || exit 1
{start}
{directory}
shift
exec env -i "$@"
"""

# A process is told from another that got its number by when it started, the 20th of what follows the name in stat.
# SIGTSTP is the 20th signal, so its bit is in the fifth digit from the right, and the highest one of it.
SECOND = """
PATH={path}
look() {{
  said=$(cat "/proc/$pid/stat") || return 1
  set -- ${{said##*) }}
  group=$3 started=${{20}}
}}
send() {{
  look && [ "$started" = "$first" ] || return 1
  case $group in "$pid") kill -s "$1" -- "-$pid" ;; *) kill -s "$1" "$pid" ;; esac
}}
stop() {{
  send TSTP || return
  while read -r key value; do
    case $key$value in SigIgn:*[89a-f]????|SigCgt:*[89a-f]????) return ;; esac
  done <"/proc/$pid/status"
  send STOP
  look && printf '%s:stopped;' {nonce}
}}
await() {{
  while look && [ "$started" = "$first" ]; do sleep 0.1 || sleep 1; done
  printf '%s:over;' {nonce}
}}
exec 2>/dev/null
IFS= read -r pid || exit 1
look || exit 1
first=$started
printf '%s:watching;' {nonce}
while IFS= read -r word; do
  case $word in
    done) exit 0 ;;
    wait) await & ;;
    TSTP) stop ;;
    *) send "$word" ;;
  esac
done
send {last}
send CONT
"""


@dataclass(frozen=True)
class Command:
    """A command to run: its directory, its whole environment, its arguments. `cwd`, unlike `home`, must be there."""

    home: str
    environment: Mapping[str, str]
    argv: Sequence[str]
    cwd: str = ""

    def words(self) -> list[str]:
        """The arguments of `env -i`, after the directory. A name that env takes for its own comes by way of nice."""
        set_to = [f"{name}={value}" for name, value in self.environment.items()]
        own = ["nice", "-n", "0", "--"] if "=" in self.argv[0] or self.argv[0] == "-" else []
        return [*set_to, *own, *self.argv]


def render_line(nonce: str) -> str:
    """The command line for the login shell: the same program each time, and a word of hexadecimal digits."""
    return f"exec /bin/sh -c '{READ_PROGRAM}' {nonce}"


def render_root(nonce: str) -> bytes:
    """A program that becomes root, and reads another one."""
    return encode(f"PATH={SEARCH_PATH}\nexec doas -n -- /bin/sh -c {shlex.quote(READ_PROGRAM)} {nonce}")


def render_first(command: Command, nonce: str, *, terminal: bool) -> bytes:
    """The program that becomes the command. On a terminal it is in the session that the terminal controls; otherwise in
    one of its own, so that a signal reaches it and what it started, and not the shell that waits for it."""
    start = f"printf '%s:start;' {nonce}"
    become = BECOME.format(
        nonce=nonce,
        start=start if terminal else f"{start}\n{start} >&2",
        directory='cd "$1" || exit 126' if command.cwd else 'cd "$1" 2>/dev/null || cd /',
    )
    words = shlex.join([command.cwd or command.home, *command.words()])
    session = "" if terminal else "setsid "
    return encode(FIRST.format(path=SEARCH_PATH, session=session, become=shlex.quote(become), words=words, nonce=nonce))


def render_second(nonce: str, *, by_force: bool) -> bytes:
    """The program that passes signals on. It reads the command's process number first, see render_pid; asked to wait,
    it says when the command has ended."""
    return encode(SECOND.format(path=SEARCH_PATH, nonce=nonce, last="KILL" if by_force else "HUP"))


def encode(program: str) -> bytes:
    """A program as READ_PROGRAM reads it: short lines of printable ASCII, and an empty one."""
    data = os.fsencode(program)
    text = "".join(chr(byte) if 0x20 <= byte < 0x7F and byte != 0x5C else f"\\0{byte:03o}" for byte in data)
    return "".join(f"{text[at : at + LINE]}\n" for at in range(0, len(text), LINE)).encode() + b"\n"


def render_pid(pid: int) -> bytes:
    return b"%d\n" % pid


def render_signal(number: int) -> bytes:
    return f"{SIGNALS[signal.Signals(number)]}\n".encode()


class Ear:
    """A parser for one stream of a session. Only what comes between the start of the command and its end is the
    command's own; `has_end` says whether the stream tells the end too, by a word that holds the exit code.

    An end begins with a zero byte, for which one has to wait only behind another zero byte; it does not come on the
    standard output, where somebody may be waiting for one.
    """

    def __init__(self, nonce: str, *, has_end: bool) -> None:
        self.mark = nonce.encode()
        self.end = b"\0%s:end:" % self.mark if has_end else b""
        self.early = b""
        self.held = b""
        self.has_started = False
        self.code: int | None = None

    def hears(self, word: str) -> bool:
        """Whether the word was said before the start."""
        return b"%s:%s;" % (self.mark, word.encode()) in self.early

    def pid(self) -> int | None:
        """The number of the process that is to become the command, once it is known."""
        found = re.search(rb"%s:ready:([1-9][0-9]{0,9});" % self.mark, self.early)
        return int(found[1]) if found else None

    def take(self, data: bytes) -> bytes:
        """Return the part of the data that is to be passed on; `data` is empty at the end of the stream."""
        if not self.has_started:
            self.early += data
            before, found, data = self.early.partition(b"%s:start;" % self.mark)
            if not found:
                self.code = self._code_in(self.early)  # of one that did not get as far, when a signal came first
                self.early = self.early[-KEPT:]
                return b""
            self.early, self.has_started = before[-KEPT:], True
        if not self.end or self.code is not None:
            return b"" if self.code is not None else data
        return self._until_end(self.held + data, is_last=not data)

    def _code_in(self, data: bytes) -> int | None:
        found = re.search(rb"%s([0-9]{1,3});" % re.escape(self.end), data) if self.end else None
        return int(found[1]) if found and int(found[1]) < 256 else None

    def _until_end(self, data: bytes, *, is_last: bool) -> bytes:
        at = 0
        while (at := data.find(self.end, at)) >= 0:
            rest = data[at + len(self.end) : at + len(self.end) + 4]
            word = re.match(rb"([0-9]{1,3});", rest)
            if word and int(word[1]) < 256:
                self.held, self.code = b"", int(word[1])
                return data[:at]
            if not is_last and re.fullmatch(rb"[0-9]{0,3}", rest):
                self.held = data[at:]
                return data[:at]
            at += 1
        keep = 0 if is_last else overlap(data, self.end)
        self.held = data[len(data) - keep :]
        return data[: len(data) - keep]

    def explain(self) -> str:
        """The output that came instead of a start, for people; the guest may have written it."""
        text = re.sub(rb"\0?%s:[a-z]+:?[0-9]*;" % self.mark, b"", self.early)
        return text.decode("utf-8", "replace").replace("\r", "").strip()


def overlap(data: bytes, word: bytes) -> int:
    """The number of bytes at the end of `data` that are a beginning of `word`, not the whole of it."""
    return next((size for size in range(min(len(word) - 1, len(data)), 0, -1) if data.endswith(word[:size])), 0)
