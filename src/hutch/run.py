"""The only importer of subprocess: every command that hutch runs passes here.

Commands are argument lists, never shell text. The environment is built, not inherited; standard input
is closed unless given; every call has a deadline; a failure carries a line that a person can replay.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import IO, NoReturn

from hutch.errors import HutchError

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/current-system/sw/bin"
BASE_ENVIRONMENT = {"PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8", "HOME": "/root"}

Popen = subprocess.Popen  # for annotations elsewhere; only this module creates one
PIPE = subprocess.PIPE
STDOUT = subprocess.STDOUT
TimeoutExpired = subprocess.TimeoutExpired


def nobody(argv: Sequence[str]) -> None:
    """A listener that does not care."""


listener: Callable[[Sequence[str]], None] = nobody
"""A callback that gets each command before it runs; the command line's -v sets it."""


class CommandFailed(HutchError):
    """A command ended with a non-zero code, by a signal, or past its deadline."""

    def __init__(self, argv: Sequence[str], reason: str, stderr: str, returncode: int | None) -> None:
        self.argv = tuple(argv)
        self.returncode = returncode
        self.stderr = stderr
        tail = "\n".join(stderr.strip().splitlines()[-15:])
        super().__init__(f"{argv[0]} {reason}", details=tail, resolution=f"to replay it: {shlex.join(argv)}")


class ProgramMissing(CommandFailed):
    """A command that this host does not have. The command line tells the package, see hutch.host.doctor.tools."""

    def __init__(self, argv: Sequence[str]) -> None:
        super().__init__(argv, "is not installed", "", None)
        self.resolution = "`hutch doctor` names the packages of all that hutch needs"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child: fixed, plus `extra`."""
    return {**BASE_ENVIRONMENT, **(extra or {})}


def run(
    argv: Sequence[str],
    *,
    stdin: str | None = None,
    timeout: float = 30.0,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run `argv` to its end and return its output as text.

    `timeout` is in seconds. Raises CommandFailed when the program is missing, overruns, or (with `check`)
    returns non-zero.
    """
    listener(argv)
    try:
        result = subprocess.run(
            argv,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=timeout,
            env=environment(),
            encoding="utf-8",
            errors="replace",
        )
    except FileNotFoundError:
        raise ProgramMissing(argv) from None
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(argv, f"did not end within {timeout:g} s", "", None) from error
    if check and result.returncode != 0:
        raise CommandFailed(argv, describe(result.returncode), result.stderr or result.stdout, result.returncode)
    return result


class Gathering:
    """Several short commands that run side by side, from now on. To be closed; `outputs` waits for them."""

    def __init__(self, commands: Sequence[Sequence[str]]) -> None:
        self.commands = commands
        self.running: list[subprocess.Popen[bytes]] = []
        try:
            for argv in commands:  # one that is missing leaves none of those before it behind
                self.running.append(start(argv, stdout=PIPE, stderr=PIPE))
        except BaseException:
            self.close()
            raise

    def outputs(self, timeout: float = 30.0) -> list[str]:
        """The standard output of each command. Raises CommandFailed for one that fails or overruns."""
        outputs = []
        for argv, process in zip(self.commands, self.running, strict=True):
            try:
                output, errors = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired as error:
                raise CommandFailed(argv, f"did not end within {timeout:g} s", "", None) from error
            if process.returncode != 0:
                reason = describe(process.returncode)
                raise CommandFailed(argv, reason, errors.decode("utf-8", "replace"), process.returncode)
            outputs.append(output.decode("utf-8", "replace"))
        return outputs

    def close(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.communicate()


def gather(commands: Sequence[Sequence[str]], *, timeout: float = 30.0) -> list[str]:
    """Run several short commands side by side, each to its end; returns the standard output of each."""
    with closing(Gathering(commands)) as gathering:
        return gathering.outputs(timeout)


def start(
    argv: Sequence[str],
    *,
    stdin: int | IO[bytes] | None = None,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    pass_fds: Sequence[int] = (),
    new_session: bool = False,
) -> subprocess.Popen[bytes]:
    """Start `argv` and return at once. Streams that are not given are /dev/null."""
    listener(argv)
    null = subprocess.DEVNULL
    try:
        return subprocess.Popen(
            argv,
            stdin=null if stdin is None else stdin,
            stdout=null if stdout is None else stdout,
            stderr=null if stderr is None else stderr,
            env=environment(env),
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=new_session,
        )
    except FileNotFoundError:
        raise ProgramMissing(argv) from None


def replace(argv: Sequence[str]) -> NoReturn:
    """Become `argv`, with the caller's own environment and streams: for ssh, sudo and doas."""
    listener(argv)
    try:
        os.execvp(argv[0], list(argv))
    except FileNotFoundError:
        raise ProgramMissing(argv) from None


def describe(returncode: int) -> str:
    """ "failed with code 3" or "was killed by SIGKILL"."""
    if returncode >= 0:
        return f"failed with code {returncode}"
    try:
        return f"was killed by {signal.Signals(-returncode).name}"
    except ValueError:  # a real-time signal: all but the first and the last have no name
        return f"was killed by signal {-returncode}"
