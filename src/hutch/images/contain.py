"""Runs a long command whose processes and mounts all end with it, line by line.

Whatever happens to hutch, nothing is left running: the command lives in a cgroup that is killed at the end,
and in a PID namespace that the kernel kills when hutch itself is killed. Its mounts are in a namespace of
their own. It is in a session of its own, so that a terminal's Ctrl-C reaches hutch alone, which then ends it.
"""

from __future__ import annotations

import codecs
import os
import re
import select
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager

from hutch.files import kept_open
from hutch.host.services.cgroup import JOIN, Cgroup, control_files
from hutch.run import PIPE, STDOUT, CommandFailed, Popen, TimeoutExpired, describe, start

KEPT_LINES = 400


def run_contained(
    argv: Sequence[str],
    *,
    group: str,
    tasks: int,
    memory: int | None = None,
    cpus: int | None = None,
    on_line: Callable[[str], None],
    namespace: str = "",
    mounts: str = "",
    stdin: str = "/dev/null",
    env: Mapping[str, str] | None = None,
    timeout: float = 3600.0,
) -> None:
    """Run `argv` to its end, giving every line of its output to `on_line`.

    `group` is the path of a cgroup that nothing else uses, in the slice of all, which leaves the host its reserve of
    memory; `tasks`, `memory`, in bytes, and `cpus` are limits of its own, as far as this host has controllers.
    `namespace` is a network namespace to run in, `mounts` a mount namespace of which it gets a copy; `stdin` is a file
    that it reads.
    Raises CommandFailed, with the last lines of the output.
    """
    enter = [*([f"--net={namespace}"] if namespace else []), *([f"--mount={mounts}"] if mounts else [])]
    isolate = ["unshare", "--kill-child", "--fork", "--pid", "--mount", "--propagation", "slave", "--mount-proc"]
    whole = [*(["nsenter", *enter] if enter else []), *isolate, *argv]
    limits = control_files(cpus, memory, tasks)
    lines: deque[str] = deque(maxlen=KEPT_LINES)
    with _started(["setpriv", "--pdeathsig", "KILL", *whole], group, limits, stdin, env) as process:
        for line in _lines(process, time.monotonic() + timeout, argv, lines):
            lines.append(line)
            on_line(line)
        code = _wait(process, argv)
    if code != 0:
        raise CommandFailed(whole, describe(code), "\n".join(lines), code)


@contextmanager
def _started(
    argv: list[str], group: str, limits: dict[str, str], stdin: str, env: Mapping[str, str] | None
) -> Iterator[Popen[bytes]]:
    with closing(Cgroup(group)) as cgroup, closing(Cgroup(os.path.dirname(group))) as all_of_them:
        cgroup.make()
        try:
            cgroup.limit(limits)
            all_of_them.keep_reserve()
            with kept_open(cgroup.open("")) as directory:
                joining = [*JOIN, stdin, *argv]
                process = start(
                    joining, stdin=directory, stdout=PIPE, stderr=STDOUT, env=env, cwd="/", new_session=True
                )
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()
                cgroup.kill()
                if process.stdout is not None:
                    process.stdout.close()
                _wait(process, argv)
        finally:
            cgroup.remove()


def _wait(process: Popen[bytes], argv: Sequence[str]) -> int:
    """The exit code of a process that has closed its output or was killed; the kernel may still be busy with it."""
    try:
        return process.wait(60)
    except TimeoutExpired as error:
        raise CommandFailed(argv, "did not end in time", "", None) from error


def end_contained(group: str) -> None:
    """End processes that a killed hutch may have left in `group`, and remove it. May be called again."""
    with closing(Cgroup(group)) as cgroup:
        cgroup.kill()
        cgroup.remove()


def _lines(process: Popen[bytes], deadline: float, argv: Sequence[str], seen: deque[str]) -> Iterator[str]:
    """The output, line by line, until its end; CommandFailed after the deadline."""
    assert process.stdout is not None
    descriptor, rest = process.stdout.fileno(), ""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while True:
        left = deadline - time.monotonic()  # which who never stops talking runs out of as well
        if left <= 0 or not poll.poll(left * 1000):
            raise CommandFailed(argv, "did not end in time", "\n".join(seen), None)
        chunk = os.read(descriptor, 65536)
        rest += decoder.decode(chunk, final=not chunk)
        *lines, rest = re.split(r"\r\n|\n|\r", rest)
        yield from lines
        if not chunk:
            if rest:
                yield rest
            return
        if len(rest) > 1 << 16:  # too long for a person's line
            yield rest
            rest = ""
